"""`Result`: what every result of a measurement can do: `to_frame()`, `plot()`, `to_html()` and `save(file)`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from scope.errors import ConfigError
from scope.escape import csv_cell, escape, visible
from scope.html_page import html_page
from scope.whole_files import write_whole

FIGURES = (".png", ".svg", ".pdf")
_BARS = 30
_PAGE_ROWS = 200


class Result:
    """Base of what a measurement returns. A class writes `to_frame`, and of the rest what differs."""

    bars: ClassVar[tuple[str, ...]] = ()
    """Columns of `to_frame` that `plot` draws: the one that names a bar, then one or more with its length."""

    def to_frame(self) -> Any:
        """Its rows as a pandas table."""
        raise NotImplementedError(f"{type(self).__name__} has no table.")

    def plot(self) -> Any:
        """The largest rows as bars, in a Plotly figure."""
        return bar_figure(self.to_frame(), *self.bars)

    def to_html(self, file: str | Path | None = None) -> str:
        """A page that needs nothing else, with the figure and the table; also written to `file`."""
        body = getattr(self, "_repr_html_", lambda: f'<pre style="white-space:pre-wrap">{escape(self)}</pre>')()
        figure = self.plot().to_html(full_html=False, include_plotlyjs=True)
        table = "" if hasattr(self, "_repr_html_") else frame_html(self.to_frame())
        text = html_page(type(self).__name__, body + figure + table, scripts=True)
        if file is not None:
            write_whole(Path(file), text)
        return text

    def save(self, file: str | Path) -> Path:
        """Write it in the format of the file's name: .html (page), .csv and .parquet (table), .png, .svg and .pdf (figure), or
        else the format that it is read back from, which is .json for most.

        Raises:
            ConfigError: a figure is wanted, and this machine has nothing to draw one with.
        """
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = file.suffix.lower()
        if kind == ".html":
            self.to_html(file)
        elif kind in (".csv", ".parquet"):
            write_frame(self.to_frame(), file)
        elif kind in FIGURES:
            save_figure(self.plot(), file)
        else:
            self._write(file)
        return file

    def _write(self, file: Path) -> None:
        """Write it as JSON."""
        if not hasattr(self, "to_json"):
            write_whole(file, self.to_frame().to_json(orient="records", indent=1, force_ascii=False))
            return
        content = self.to_json()
        write_whole(file, content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")


def write_frame(frame: Any, file: Path) -> None:
    """A table as .csv, in which no spreadsheet finds a formula, or as .parquet."""
    if file.suffix.lower() == ".parquet":
        write_whole(file, frame.to_parquet())
        return
    texts = frame.select_dtypes(include=["object", "string"]).columns
    safe = frame.assign(**{name: frame[name].map(lambda v: None if v is None else csv_cell(v)) for name in texts})
    named = frame.index.name is not None or frame.index.dtype == object
    write_whole(file, safe.to_csv(index=named))


def frame_html(frame: Any) -> str:
    """A table as HTML, all text escaped; long ones end after some rows."""
    more = f"<p>{len(frame) - _PAGE_ROWS:,} further rows</p>" if len(frame) > _PAGE_ROWS else ""
    cells = frame.head(_PAGE_ROWS).map(lambda v: f"{v:.4g}" if isinstance(v, float) else escape(v))
    return cells.rename(columns=escape).to_html(index=False, escape=False, border=0) + more


def bar_figure(frame: Any, label: str | None = None, *values: str) -> Any:
    """Bars of one or several columns by the rows' names, those with the largest first values only."""
    import plotly.graph_objects as go

    numbers = [name for name in frame.select_dtypes(include="number") if name != label]
    values = values or tuple(numbers[:1])
    if values and len(frame) > _BARS:
        frame = frame.loc[frame[values[0]].abs().sort_values(ascending=False, kind="stable").index[:_BARS]]
    names = frame.index if label is None else frame[label]
    places = list(range(len(frame)))
    figure = go.Figure([go.Bar(x=places, y=frame[value].tolist(), name=value) for value in values])
    texts = [visible(str(name))[:40] for name in names]
    figure.update_xaxes(tickmode="array", tickvals=places, ticktext=[escape(text) for text in texts])
    return figure.update_layout(
        template="simple_white", height=400, yaxis_title=values[0] if len(values) == 1 else None, showlegend=len(values) > 1
    )


def heat_figure(values: Any, columns: Sequence[str], rows: Sequence[str], texts: Any = None, **style: Any) -> Any:
    """A heat map [row column]; names may repeat, as tokens of a text do. `texts` [row column] stand in the cells."""
    import plotly.graph_objects as go

    cells = (
        {} if texts is None else {"text": [[escape(visible(str(t))) for t in row] for row in texts], "texttemplate": "%{text}"}
    )
    figure = go.Figure(go.Heatmap(z=values, **cells, **style))
    for axis, names in (("xaxis", columns), ("yaxis", rows)):
        shown = [escape(visible(str(name))) for name in names]
        figure.update_layout({axis: {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": shown}})
    return figure.update_layout(template="simple_white", height=120 + 24 * max(8, len(rows)))


def save_figure(figure: Any, file: Path) -> None:
    """A Plotly figure as .png, .svg or .pdf. Plotly draws these with kaleido, which runs a Chrome of this machine, offline.

    Raises:
        ConfigError: kaleido or a Chrome is missing.
    """
    try:
        image = figure.to_image(format=file.suffix.lower()[1:], scale=2)
    except (ValueError, ImportError, RuntimeError) as error:  # kaleido's own errors are RuntimeErrors
        raise ConfigError(
            f"{file} cannot be drawn: {str(error).strip().splitlines()[0]}\n"
            "  A page needs neither, and its camera button saves a PNG: .save('figure.html')\n"
            "  For PNG, SVG and PDF: pip install kaleido, and Chrome or Chromium (or once: plotly_get_chrome)"
        ) from None
    write_whole(file, image)
