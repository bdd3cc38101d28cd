"""A run as a file for somebody else: a page that only shows, and a notebook that makes it again."""

import json
from collections.abc import Sequence

from scope.escape import escape
from scope.steering.compare.run import Arm, Sample, SteeringRun
from scope.steering.compare.sweep_result import Sweep
from scope.steering.export import show
from scope.steering.export.script import as_python, steps

__all__ = ["as_notebook", "as_page", "as_python"]

_RAMP = ("#FDE9C9", "#FBCB8B", "#F2A444", "#CF7A00", "#8F5000")
_CELL = (
    "text-align:left;vertical-align:top;padding:6px 10px;border-top:1px solid #bbb;"
    "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate"
)
_HEAD = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
    '<meta name="viewport" content="width=device-width">\n<title>{title}</title></head>\n'
    '<body style="font-family:system-ui,sans-serif;line-height:1.5;max-width:1100px;margin:24px auto;padding:0 16px;'
    'color:#1d1f24;background:#fff">\n'
)


def as_page(run: SteeringRun | Sweep, code: str = "") -> str:
    """A whole HTML page: inline styles only, no script, nothing fetched, and a policy that forbids both.

    Every text that came from a model, a prompt or a file is escaped, and marks that act unseen are spelled out.

    Args:
        code: lines of Python to stand at the end, such as those of `as_python`.
    """
    runs = run.runs if isinstance(run, Sweep) else [run]
    title = f"Steering: {runs[0].edits}"
    body = [_HEAD.format(title=escape(title)), f"<h1 style='font-size:20px'>{escape(title)}</h1>"]
    if isinstance(run, Sweep):
        body.append(run._repr_html_())
    for strength, one in zip(run.strengths if isinstance(run, Sweep) else [None], runs, strict=True):
        if strength is not None:
            body.append(f"<h2 style='font-size:17px'>Strength {strength:g}</h2>")
        body += [_texts(one), _told(one)]
    body.append(_settings(runs[0]))
    if code:
        body.append(f"<h2 style='font-size:17px'>As Python</h2><pre style='white-space:pre-wrap'>{escape(code)}</pre>")
    return "\n".join([*body, "</body></html>\n"])


def as_notebook(run: SteeringRun, dictionaries: Sequence[str], model: str | None = None) -> str:
    """The same program as `as_python` in cells, as the JSON of a notebook. Its prose holds nothing that a run brought."""
    titles = ("", "## Model and dictionary", "## Edits", "## Texts, in every arm with the same noise", "## The same as before?")
    cells = [_markdown("# A steering run, made again\n\nWritten by scope. Run the cells from top to bottom.")]
    for title, code in zip(titles, steps(run, dictionaries, model), strict=True):
        cells += [_markdown(title)] if title else []
        cells.append(_code(code.split('"""\n\n', 1)[-1] if not title else code))
    cells.append(_code("run"))
    for place, cell in enumerate(cells):
        cell["id"] = f"cell-{place}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps(
        {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False
    )


def _markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def _code(text: str) -> dict:
    return {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": text.strip("\n")}


def _texts(run: SteeringRun) -> str:
    target = next(iter(run.promoted))
    largest = max((v for arm in run.arms for s in arm.samples if s.scores for v in s.scores.readings[target]), default=0.0)
    head = "".join(f'<th style="{_CELL}">{escape(arm.name)}</th>' for arm in run.arms)
    rows = [f"<tr>{head}</tr>"]
    for i, sample in enumerate(run["steered"].samples):
        rows.append(f'<tr><td style="{_CELL}" colspan="{len(run.arms)}"><em>{escape(sample.prompt)}</em></td></tr>')
        cells = (f'<td style="{_CELL}">{_text(arm, i, target, largest)}</td>' for arm in run.arms)
        rows.append(f"<tr>{''.join(cells)}</tr>")
    key = (
        f"Colour: {target}, read by the unsteered model, against the largest here ({largest:.3g}). Dotted: tokens at which an "
        "edit acted. Bar: the first token that differs from plain."
    )
    table = f'<table style="table-layout:fixed;width:100%;border-collapse:collapse">{"".join(rows)}</table>'
    return f'{table}<p style="font-size:90%;color:#555">{escape(key)}</p>'


def _text(arm: Arm, place: int, target: str, largest: float) -> str:
    sample: Sample = arm.samples[place]
    if not sample.new_ids:
        return "<em>The model ended the text at once.</em>"
    readings = sample.scores.readings[target] if sample.scores else [0.0] * len(sample.pieces)
    touched = arm.report.touched(place, len(sample.pieces)) if arm.report else [False] * len(sample.pieces)
    parts = None if arm.name == "plain" else sample.diverges_at
    return "".join(
        _token(
            piece,
            max(readings[start:stop]),
            largest,
            any(touched[start:stop]),
            parts is not None and start <= parts < stop,
        )
        for start, stop, piece in show.spelled(sample.pieces)
    )


def _token(piece: str, value: float, largest: float, edited: bool, parts: bool) -> str:
    style = ""
    if value > 0 and largest > 0:
        step = min(4, int(5 * value / largest))
        style += f"background:{_RAMP[step]};color:{'#fff' if step == 4 else '#111'};"
    style += "text-decoration:underline dotted;" if edited else ""
    style += "border-left:3px solid #0072B2;padding-left:2px;" if parts else ""
    told = f' title="{value:.3g}"' if value > 0 else ""
    return f'<span style="{style}"{told}>{escape(piece)}</span>' if style else escape(piece)


def _told(run: SteeringRun) -> str:
    """The figures, the self-check and the notes."""
    head = "".join(f'<th style="padding:2px 10px;text-align:right">{escape(arm.name)}</th>' for arm in run.arms)
    rows = "".join(
        f'<tr><td style="padding:2px 10px">{escape(name)}</td>'
        + "".join(f'<td style="padding:2px 10px;text-align:right">{show.number(v)}</td>' for v in values)
        + f'<td style="padding:2px 10px;color:#555">{escape(meaning)}</td></tr>'
        for name, meaning, values in show.figures(run)
    )
    notes = "".join(f"<p><strong>{escape(note)}</strong></p>" for note in run.notes)
    lines = "".join(f"<div>{escape(line)}</div>" for line in [*show.edit_lines(run), *show.self_check(run)])
    return f"{notes}<table><tr><th></th>{head}<th></th></tr>{rows}</table>{lines}"


def _settings(run: SteeringRun) -> str:
    """What is needed to judge and to repeat it: sampling, model, dictionaries, versions."""
    facts = {
        "sampling": run.sampling,
        "texts for each prompt and arm": run.n,
        "model": run.model,
        "dictionaries": run.dictionaries,
        "typical norms": {site: (g.rho, g.source) for site, g in run.gauges.items()},
        "versions": run.versions,
    }
    rows = "".join(
        f'<tr><td style="padding:2px 10px;vertical-align:top">{escape(name)}</td>'
        f'<td style="padding:2px 10px;overflow-wrap:anywhere">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<h2 style='font-size:17px'>How it was made</h2><table style='font-size:90%'>{rows}</table>"
