"""The browser of features: Streamlit pages over packs. It imports scope; nothing imports it."""
