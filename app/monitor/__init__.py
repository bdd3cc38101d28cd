"""The Monitor page: `page.py` is the script that Streamlit runs from top to bottom whenever something on the page changes."""
