"""A table of text as HTML for notebooks."""

from typing import Any

from scope.escape import escape


def html_table(head: list[str], columns: tuple[str, ...], rows: list[tuple[Any, ...]], foot: list[str]) -> str:
    """Lines, a table and further lines. Inline styles only; all text escaped; first and last column to the left."""
    styles = ["text-align:right;padding:2px 8px"] * len(columns)
    styles[0] = styles[-1] = "text-align:left;padding:2px 8px"

    def row(cells: tuple[Any, ...], tag: str) -> str:
        pairs = zip(styles, cells, strict=True)
        drawn = (f'<{tag} style="{style};unicode-bidi:isolate">{escape(str(cell))}</{tag}>' for style, cell in pairs)
        return f"<tr>{''.join(drawn)}</tr>"

    above, below = ("".join(f"<div>{escape(line)}</div>" for line in lines) for lines in (head, foot))
    table = f"<table>{row(columns, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"
    return f'<div>{above}{table}<div style="font-size:90%">{below}</div></div>'
