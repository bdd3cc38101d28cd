"""Drawing: data in, a figure, a table, bars or token strips out. No file here knows which pack or page is shown."""
