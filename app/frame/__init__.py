"""The parts around every page: history, the title of the tab, the search box, and the menu of pages."""
