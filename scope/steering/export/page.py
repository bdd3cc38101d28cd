"""A run or a sweep as one HTML page that can be sent to somebody."""

from scope.escape import escape
from scope.steering.compare import show
from scope.steering.compare.run import Condition
from scope.steering.compare.steer import SteeringRun
from scope.steering.compare.sweep import Sweep

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

    Every text that came from a model, a prompt or a file is escaped, and invisible marks are made visible.

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
        body += [_texts(one), _figures(one)]
    body.append(_settings(runs[0]))
    if code:
        body.append(f"<h2 style='font-size:17px'>As Python</h2><pre style='white-space:pre-wrap'>{escape(code)}</pre>")
    return "\n".join([*body, "</body></html>\n"])


def _texts(run: SteeringRun) -> str:
    target = next(iter(run.promoted))
    largest = run.largest_reading(target)
    head = "".join(f'<th style="{_CELL}">{escape(c.name)}</th>' for c in run.conditions)
    rows = [f"<tr>{head}</tr>"]
    for i, sample in enumerate(run["steered"].samples):
        rows.append(f'<tr><td style="{_CELL}" colspan="{len(run.conditions)}"><em>{escape(sample.prompt)}</em></td></tr>')
        cells = (f'<td style="{_CELL}">{_text(c, i, target, largest)}</td>' for c in run.conditions)
        rows.append(f"<tr>{''.join(cells)}</tr>")
    key = (
        f"Colour: {target}, read by the unsteered model, against the largest here ({largest:.3g}). Dotted: tokens at which an "
        "edit acted. Bar: the first token that differs from plain."
    )
    table = f'<table style="table-layout:fixed;width:100%;border-collapse:collapse">{"".join(rows)}</table>'
    return f'{table}<p style="font-size:90%;color:#555">{escape(key)}</p>'


def _text(condition: Condition, place: int, target: str, largest: float) -> str:
    sample = condition.samples[place]
    if not sample.new_ids:
        return "<em>The model ended the text at once.</em>"
    readings = sample.scores.readings[target] if sample.scores else [0.0] * len(sample.pieces)
    touched = condition.report.touched(place, len(sample.pieces)) if condition.report else [False] * len(sample.pieces)
    differs = None if condition.name == "plain" else sample.diverges_at
    return "".join(
        _token(
            piece,
            max(readings[start:stop]),
            largest,
            any(touched[start:stop]),
            differs is not None and start <= differs < stop,
        )
        for start, stop, piece in show.spelled(sample.pieces)
    )


def _token(piece: str, value: float, largest: float, edited: bool, differs: bool) -> str:
    style = ""
    if value > 0 and largest > 0:
        step = min(4, int(5 * value / largest))
        style += f"background:{_RAMP[step]};color:{'#fff' if step == 4 else '#111'};"
    style += "text-decoration:underline dotted;" if edited else ""
    style += "border-left:3px solid #0072B2;padding-left:2px;" if differs else ""
    title = f' title="{value:.3g}"' if value > 0 else ""
    return f'<span style="{style}"{title}>{escape(piece)}</span>' if style else escape(piece)


def _figures(run: SteeringRun) -> str:
    """Notes, scores and the self-check."""
    head = "".join(f'<th style="padding:2px 10px;text-align:right">{escape(c.name)}</th>' for c in run.conditions)
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
    """Sampling, model, dictionaries and versions, to judge and to repeat the run."""
    facts = {
        "sampling": run.sampling,
        "texts per prompt and condition": run.n,
        "model": run.model,
        "dictionaries": run.dictionaries,
        "typical norms": {site: (units.typical_norm, units.source) for site, units in run.strength_units.items()},
        "versions": run.versions,
    }
    rows = "".join(
        f'<tr><td style="padding:2px 10px;vertical-align:top">{escape(name)}</td>'
        f'<td style="padding:2px 10px;overflow-wrap:anywhere">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<h2 style='font-size:17px'>How it was made</h2><table style='font-size:90%'>{rows}</table>"
