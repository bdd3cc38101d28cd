"""One file a page. Each is a script: it runs from top to bottom whenever something on it changes."""
