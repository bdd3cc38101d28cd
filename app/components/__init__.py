"""Drawings: data in, a Plotly figure, a table or token strips out."""
