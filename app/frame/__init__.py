"""What stands around every page: history, the tab's title, the search box, and the pages' menu."""
