"""A whole HTML page that can be sent to somebody: inline styles, no script but a figure's, and nothing fetched."""

from scope.escape import escape

_POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'"
_SCRIPTS = "; script-src 'unsafe-inline'"
_BODY = "font-family:system-ui,sans-serif;line-height:1.5;margin:24px auto;max-width:{width}px;padding:0 16px"


def html_page(title: str, body: str, width: int = 1100, scripts: bool = False) -> str:
    """The page. `title` is text, and stands as its heading too; `body` is HTML whose texts are escaped already. Light or
    dark as the reader's system is. With `scripts`, those that stand in the body run, as a Plotly figure's; still nothing is
    fetched."""
    return f"{head(title, width, scripts)}{body}</body></html>\n"


def head(title: str, width: int = 1100, scripts: bool = False) -> str:
    """The page up to its heading, for what is written piece by piece; `</body></html>` ends it."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}{_SCRIPTS if scripts else ""}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title></head>\n<body style="{_BODY.format(width=width)}">'
        f'<h1 style="font-size:20px">{escape(title)}</h1>\n'
    )
