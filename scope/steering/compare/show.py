"""Draws runs and sweeps: as text, as HTML and as figures, conditions side by side."""

import math
from collections.abc import Sequence
from typing import Any

from scope.escape import escape, visible
from scope.models.text.characters import BYTE, characters
from scope.steering.compare.run import RunData, Sample
from scope.steering.compare.statistics import by_prompt, by_text, interval, mean

_SHOWN = 8
_TOP = 10
_SHADES = ("#FBCB8B", "#F2A444", "#CF7A00")  # legible with #111 on light and dark pages alike
_BAR = "border-left:3px solid #0072B2;padding-left:2px"

_COLOURS = {"steered": "#0072B2", "random": "#888888", "other": "#D55E00", "prompt": "#009E73"}


def decisive(run: RunData, cost: Any = None) -> list[str]:
    """The three numbers that decide, a line each: what the edit does to its target, what a random direction of the same size
    does to it, and what it costs: on ordinary texts where that was measured (a `Cost`), else how much less likely the written
    texts are under the unsteered model.
    """
    target, names = next(iter(run.promoted)), [c.name for c in run.conditions]
    mass = {name: run[name].mean("mass", target) for name in ("plain", "steered", "random") if name in names}

    def effect(name: str) -> str:
        if name not in mass:
            return f"not measured: the condition {name} is not among {', '.join(names)}"
        apart = f", plain {mass['plain']:.2%}" if "plain" in mass else ""
        return f"{mass[name]:.2%} of the probability goes to the {_TOP} tokens that {target} promotes{apart}"

    if cost is not None:
        low, high = cost.beyond_random
        told = "" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"
        price = f"{cost.steered - cost.plain:+.3f} nats a token on ordinary texts ({cost.n_tokens:,} tokens); "
        price += f"beyond a random direction {cost.steered - cost.random:+.3f}{told}"
    elif "plain" in mass:
        change = run["steered"].mean("log_prob") - run["plain"].mean("log_prob")
        price = (
            f"{-change:+.2f} nats a token by which its own texts are less likely than plain ones; --evaluate: on ordinary texts"
        )
    else:
        price = "not measured: the condition plain is missing; --evaluate measures it on ordinary texts"
    return [f"Effect on the target: {effect('steered')}", f"Random direction: {effect('random')}", f"Cost: {price}"]


def figures(run: RunData) -> list[tuple[str, str, list[float]]]:
    """(name, meaning, value per condition): the table under the texts."""

    def row(name: str, meaning: str, score: str, target: str | None = None) -> tuple[str, str, list[float]]:
        return name, meaning, [c.mean(score, target) for c in run.conditions]

    rows = []
    for target in run.promoted:
        rows += [
            row(f"concept, {target}", _meaning(run, target), "concept", target),
            row(f"promoted tokens, {target}", "share of new tokens", "share", target),
            row(f"their probability, {target}", "mean, given by the condition itself", "mass", target),
        ]
    rows += [
        row("log-probability", "nats a token, under the unsteered model", "log_prob"),
        row("repetition", "share of repeated 4-grams", "repetition"),
        row("different pairs", "share of token pairs that are different ones", "distinct"),
        row("off target", "other latents that the edit moves, mean a text", "off_target"),
        row("KL to plain", "nats a step", "kl"),
        ("edit / norm", "mean length of the edit", [c.report.mean_norm if c.report else 0.0 for c in run.conditions]),
    ]
    if any(c.name == "plain" for c in run.conditions):
        judged = run.judged()
        for name, meaning in (
            ("relevance", "what the prompt says about the text, over plain"),
            ("fluency", "likely, not repeated, over plain"),
            ("score", "harmonic mean: promoted tokens added, relevance, fluency"),
        ):
            rows.append((name, meaning, [_mean([getattr(j, name) for j in judged[c.name] if j]) for c in run.conditions]))
    return [row for row in rows if not all(map(math.isnan, row[2]))]


def _meaning(run: RunData, target: str) -> str:
    if any(edit.on_tokens and edit.target == target for edit in run.edits):
        return "length of what is left of them in the states, typical norms, read by the unsteered model"
    return "mean activation, read by the unsteered model"


def _mean(values: list[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else math.nan


def number(value: float) -> str:
    """Three places, and a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def edit_lines(run: RunData) -> list[str]:
    """Each edit with its strength in the three units."""
    lines = []
    for sheet in run.sheet:
        line = f"{sheet['edit']} ({sheet['site']})"
        if "raw" in sheet:
            of_max = sheet["multiple_of_maximum"]
            line += f": {sheet['strength']:+.3g} of the norm = raw {sheet['raw']:+.4g} = "
            line += "maximum not known" if of_max is None else f"{of_max:+.2f} x maximum"
        elif "part" in sheet:
            line += f": {sheet['part']:.0%}"
        lines.append(line)
    return lines


def self_check(run: RunData) -> list[str]:
    """What the hooks counted, a line per edited condition, and what the controls were."""
    lines = [f"{c.name}: {c.report.line()}." for c in run.conditions if c.report]
    lines += [f"{site}: {v:.0%} of the variance of the unedited texts is not explained (FVU)." for site, v in run.fvu.items()]
    lines += [f"{name}: written along latents {', '.join(map(str, ids))} instead." for name, ids in run.others.items() if ids]
    if run.others and any(edit.on_tokens for edit in run.edits):
        lines.append(f"{', '.join(run.others)}: neighbouring tokens of about equal share, as many, are forgotten instead.")
    return [*lines, *([f'prompt: began with "{visible(run.instruction)}"'] if run.instruction else [])]


def as_text(run: RunData) -> str:
    """Without markup: for terminals, logs and `print`."""
    lines, steered = [*decisive(run), "", *edit_lines(run)], run["steered"].samples
    for i, first in enumerate(steered[:_SHOWN]):
        lines += ["", f"{visible(first.prompt)} ..."]
        for condition in run.conditions:
            sample = condition.samples[i]
            differs = sample.diverges_at is not None and condition.name != "plain"
            place = f"  [differs from token {sample.diverges_at} on]" if differs else ""
            lines.append(f"  {condition.name:<9} {visible(sample.text)}{place}")
    if len(steered) > _SHOWN:
        lines.append(f"  ... and {len(steered) - _SHOWN} more")
    table = figures(run)
    width = max(len(name) for name, _, _ in table)
    lines += ["", f"{'':<{width}}  " + "".join(f"{c.name:>10}" for c in run.conditions)]
    lines += [f"{name:<{width}}  " + "".join(f"{number(v):>10}" for v in values) for name, _, values in table]
    return "\n".join([*lines, "", *self_check(run), *[f"Note: {note}" for note in run.notes]])


def as_html(run: RunData, most: int | None = _SHOWN, exact: bool = False) -> str:
    """Inline styles only, no script, nothing fetched: shows in notebooks, on GitHub and in the app alike.

    `exact` dots the edited tokens and gives every token its reading as a tooltip, which makes long texts large.
    """
    cell = 'dir="auto" style="text-align:start;vertical-align:top;padding:4px 8px;white-space:pre-wrap"'
    names = [escape(c.name) for c in run.conditions]
    target = next(iter(run.promoted))
    largest = run.largest_reading(target)
    rows = [f"<tr>{''.join(f'<th {cell}>{name}</th>' for name in names)}</tr>"]
    for i, first in enumerate(run["steered"].samples[:most]):
        rows.append(f'<tr><td {cell} colspan="{len(names)}"><em>{escape(first.prompt)}</em></td></tr>')
        texts = []
        for c in run.conditions:
            touched = c.report.touched(i, len(c.samples[i].pieces)) if exact and c.report else []
            texts.append(_marked(c.name, c.samples[i], target, largest, touched, exact))
        rows.append(f"<tr>{''.join(f'<td {cell}>{text}</td>' for text in texts)}</tr>")
    key = f"Shaded: {target}, read by the unsteered model (largest here {largest:.3g}). Bar: first token unlike plain."
    key += " Dotted: an edit acted." if exact else ""
    head = "".join(f'<th style="padding:2px 8px;text-align:right">{name}</th>' for name in names)
    scores = "".join(
        f'<tr><td {cell} title="{escape(meaning)}">{escape(name)}</td>'
        + "".join(f'<td style="text-align:right;padding:2px 8px">{number(v)}</td>' for v in values)
        + (f'<td style="padding:2px 8px;color:#555">{escape(meaning)}</td></tr>' if exact else "</tr>")
        for name, meaning, values in figures(run)
    )
    notes = "".join(f"<div><strong>{escape(note)}</strong></div>" for note in run.notes)
    below = "".join(f"<div>{escape(line)}</div>" for line in [*edit_lines(run), *self_check(run)])
    return (
        f'<div><table style="table-layout:fixed;width:100%">{"".join(rows)}</table>'
        f'<div style="font-size:90%">{escape(key)}</div>'
        f"<table><tr><th></th>{head}</tr>{scores}</table>"
        f'<div style="font-size:90%">{notes}{below}</div></div>'
    )


def _marked(
    condition: str, sample: Sample, target: str, largest: float, touched: Sequence[bool] = (), exact: bool = False
) -> str:
    """The text, shaded where the target fires by itself, with a bar at the first token that differs from plain."""
    if not sample.new_ids:
        return "<em>The model ended the text at once.</em>"
    readings = sample.scores.readings[target] if sample.scores else []
    at = None if condition == "plain" else sample.diverges_at
    spans: list[tuple[str, str, str]] = []  # text, style, title: neighbours of one look are one span
    for start, stop, text in spelled(sample.pieces):
        value = max(readings[start:stop], default=0.0)
        shade = min(len(_SHADES), 1 + int(len(_SHADES) * min(value / largest, 1.0))) if value > 0 else 0
        style, title = [], []
        if shade:
            style.append(f"background:{_SHADES[shade - 1]};color:#111")
            title.append(f"{target}: {value:.3g}" if exact else f"{target}: {('weak', 'middling', 'strong')[shade - 1]}")
        if any(touched[start:stop]):
            style.append("text-decoration:underline dotted")
        if at is not None and start <= at < stop:
            style.append(_BAR)
            title.append("first token that differs from plain")
        look = (";".join(style), ", ".join(title))
        if spans and not exact and _BAR not in style and look == spans[-1][1:]:
            spans[-1] = (spans[-1][0] + text, *look)
        else:
            spans.append((text, *look))
    return "".join(
        f'<span style="{style}" title="{escape(title)}">{escape(text)}</span>' if style else escape(text)
        for text, style, title in spans
    )


def spelled(pieces: Sequence[str]) -> list[tuple[int, int, str]]:
    """(start, stop, text) over tokens: bytes that complete a character are it, and one that is left alone is as ⟨E6⟩."""
    return [
        (start, stop, BYTE.sub(r"⟨\1⟩", text) if BYTE.fullmatch(text) else text) for start, stop, text in characters(pieces)
    ]


def sweep_figure(table, conditions: Sequence[str], measures: Sequence[str], x_title: str, best: dict[str, Any] | None):
    """Each measure of a sweep's rows by strength, a line a condition, with 95 % intervals over prompts."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure, strengths = make_subplots(1, len(measures), subplot_titles=measures), sorted(set(table["strength"]))
    for column, measure in enumerate(measures, 1):
        for name in (c for c in conditions if c in _COLOURS):
            at = [table[table["strength"] == strength] for strength in strengths]
            values = [by_prompt(t, by_text(t, name, measure)) for t in at]
            means, bounds = [mean(v) for v in values], [interval(v) for v in values]
            error = {
                "type": "data",
                "symmetric": False,
                "array": [high - m for (_, high), m in zip(bounds, means, strict=True)],
                "arrayminus": [m - low for (low, _), m in zip(bounds, means, strict=True)],
            }
            line = {"x": strengths, "y": means, "error_y": error, "name": name, "line_color": _COLOURS[name]}
            figure.add_trace(go.Scatter(**line, legendgroup=name, showlegend=column == 1), 1, column)
    figure.update_xaxes(title_text=x_title)
    title = ""
    if best:
        figure.add_vline(best["strength"], line_dash="dot", line_color="#888888")
        title = f"chosen: {best['strength']:g}; score {best['score']:.3f} on held-out prompts, random {best['random']:.3f}"
    return figure.update_layout(title=title, title_font_size=13, height=340, margin={"l": 40, "r": 10, "t": 70, "b": 40})
