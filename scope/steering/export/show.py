"""A run as text and as HTML: arms side by side, where they part, and the figures that say whether to believe it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scope.escape import escape, visible
from scope.models.text.characters import BYTE, characters

if TYPE_CHECKING:
    from scope.steering.compare.run import SteeringRun

_SHOWN = 8
_SHADES = ("#FBCB8B", "#F2A444", "#CF7A00")  # legible with #111 on light and dark pages alike
_PARTS = "border-left:3px solid #0072B2;padding-left:2px"


def figures(run: "SteeringRun") -> list[tuple[str, str, list[float]]]:
    """(name, what it says, value per arm): the table under the texts."""
    rows = []
    for target in run.promoted:
        rows += [
            (
                f"concept, {target}",
                "mean activation, read by the unsteered model",
                [a.mean("concept", target) for a in run.arms],
            ),
            (f"promoted tokens, {target}", "share of new tokens", [a.mean("share", target) for a in run.arms]),
            (f"their probability, {target}", "mean, given by the arm itself", [a.mean("mass", target) for a in run.arms]),
        ]
    means = {name: [a.mean(name) for a in run.arms] for name in ("log_prob", "repetition", "distinct", "off_target", "kl")}
    rows += [
        ("log-probability", "nats a token, under the unsteered model", means["log_prob"]),
        ("repetition", "share of repeated 4-grams", means["repetition"]),
        ("different pairs", "share of token pairs that are different ones", means["distinct"]),
        ("off target", "other latents that the edit moves, mean a text", means["off_target"]),
        ("KL to plain", "nats a step", means["kl"]),
        ("edit / norm", "mean length of the edit", [a.report.mean_norm if a.report else 0.0 for a in run.arms]),
    ]
    if any(a.name == "plain" for a in run.arms):
        judged = run.judged()
        for name, meaning in (
            ("relevance", "what the prompt says about the text, over plain"),
            ("fluency", "likely, not repeated, over plain"),
            ("score", "harmonic mean: promoted tokens added, relevance, fluency"),
        ):
            values = [_mean([getattr(one, name) for one in judged[a.name] if one]) for a in run.arms]
            rows.append((name, meaning, values))
    return [row for row in rows if not all(map(math.isnan, row[2]))]


def _mean(values: list[float | None]) -> float:
    found = [v for v in values if v is not None]
    return sum(found) / len(found) if found else math.nan


def number(value: float) -> str:
    """Three places, and a dash where there is none to show."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def edit_lines(run: "SteeringRun") -> list[str]:
    """Each edit with its strength in the three units."""
    lines = []
    for sheet in run.sheet:
        line = f"{sheet['edit']} ({sheet['site']})"
        if "raw" in sheet:
            of_max = sheet["multiple_of_maximum"]
            line += f": {sheet['strength']:+.3g} of the norm = raw {sheet['raw']:+.4g} = "
            line += "maximum not known" if of_max is None else f"{of_max:+.2f} x maximum"
        lines.append(line)
    return lines


def as_text(run: "SteeringRun") -> str:
    """Without markup: for terminals, logs and `print`."""
    lines = edit_lines(run)
    for i, prompt in enumerate(run["steered"].samples[:_SHOWN]):
        lines += ["", f"{visible(prompt.prompt)} ..."]
        for arm in run.arms:
            sample = arm.samples[i]
            parted = "" if sample.diverges_at is None or arm.name == "plain" else f"  [parts at token {sample.diverges_at}]"
            lines.append(f"  {arm.name:<9} {visible(sample.text)}{parted}")
    if len(run["steered"].samples) > _SHOWN:
        lines.append(f"  ... and {len(run['steered'].samples) - _SHOWN} more")
    width = max(len(name) for name, _, _ in figures(run))
    lines += ["", f"{'':<{width}}  " + "".join(f"{a.name:>10}" for a in run.arms)]
    lines += [f"{name:<{width}}  " + "".join(f"{number(v):>10}" for v in values) for name, _, values in figures(run)]
    lines += ["", *self_check(run), *[f"Note: {note}" for note in run.notes]]
    return "\n".join(lines)


def self_check(run: "SteeringRun") -> list[str]:
    """What the hooks counted, one line an edited arm; a counting that does not add up would show here."""
    lines = [f"{arm.name}: {arm.report.line()}." for arm in run.arms if arm.report]
    lines += [f"{site}: {v:.0%} of the variance of the unedited texts is not explained (FVU)." for site, v in run.fvu.items()]
    lines += [f"{arm}: written along latents {', '.join(map(str, ids))} instead." for arm, ids in run.others.items()]
    return [*lines, *([f'prompt: began with "{visible(run.instruction)}"'] if run.instruction else [])]


def as_html(run: "SteeringRun") -> str:
    """Inline styles only, no script, nothing fetched: shows in notebooks, on GitHub and in the app alike."""
    cell = 'style="text-align:left;vertical-align:top;padding:4px 8px;white-space:pre-wrap;unicode-bidi:isolate"'
    head = "".join(f"<th {cell}>{escape(a.name)}</th>" for a in run.arms)
    target = next(iter(run.promoted))
    largest = max((v for a in run.arms for s in a.samples if s.scores for v in s.scores.readings[target]), default=0.0)
    key = f"Shaded: {target}, read by the unsteered model (largest here {largest:.3g}). Bar: where the text parts from plain."
    rows = []
    for i, sample in enumerate(run["steered"].samples[:_SHOWN]):
        rows.append(f'<tr><td {cell} colspan="{len(run.arms)}"><em>{escape(sample.prompt)}</em></td></tr>')
        rows.append(
            "<tr>" + "".join(f"<td {cell}>{_marked(a.name, a.samples[i], target, largest)}</td>" for a in run.arms) + "</tr>"
        )
    scores = "".join(
        f'<tr><td {cell} title="{escape(meaning)}">{escape(name)}</td>'
        + "".join(f'<td style="text-align:right;padding:2px 8px">{number(v)}</td>' for v in values)
        + "</tr>"
        for name, meaning, values in figures(run)
    )
    below = "".join(f"<div>{escape(line)}</div>" for line in [*edit_lines(run), *self_check(run)])
    told = "".join(f"<div><strong>{escape(note)}</strong></div>" for note in run.notes)
    return (
        f'<div><table style="table-layout:fixed;width:100%"><tr>{head}</tr>{"".join(rows)}</table>'
        f'<div style="font-size:90%">{escape(key)}</div>'
        f"<table><tr><th></th>{head}</tr>{scores}</table>"
        f'<div style="font-size:90%">{told}{below}</div></div>'
    )


def _marked(arm: str, sample, target: str, largest: float) -> str:
    """The text, shaded where the target fires by itself, with a bar where it parts from the plain arm's."""
    readings = sample.scores.readings[target] if sample.scores else []
    at = None if arm == "plain" else sample.diverges_at
    runs: list[tuple[str, int, bool]] = []  # neighbours of one shade are one span, or a long text would be all markup
    for start, stop, text in spelled(sample.pieces):
        value = max(readings[start:stop], default=0.0)
        step = min(len(_SHADES), 1 + int(len(_SHADES) * value / largest)) if value > 0 else 0
        parts = at is not None and start <= at < stop
        if runs and not parts and (step, False) == runs[-1][1:]:
            runs[-1] = (runs[-1][0] + text, step, False)
        else:
            runs.append((text, step, parts))
    return "".join(_span(*run, target) for run in runs)


def spelled(pieces: Sequence[str]) -> list[tuple[int, int, str]]:
    """(start, stop, text) over tokens: bytes that complete a character are it, and one that is left alone is as ⟨E6⟩."""
    return [
        (start, stop, BYTE.sub(r"⟨\1⟩", text) if BYTE.fullmatch(text) else text) for start, stop, text in characters(pieces)
    ]


def _span(text: str, step: int, parts: bool, target: str) -> str:
    text = escape(text)
    if not step and not parts:
        return text
    told = [f"{target}: {('weak', 'middling', 'strong')[step - 1]}"] if step else []
    told += ["first token that differs from plain"] if parts else []
    style = ";".join(([f"background:{_SHADES[step - 1]};color:#111"] if step else []) + ([_PARTS] if parts else []))
    return f'<span style="{style}" title="{escape(", ".join(told))}">{text}</span>'
