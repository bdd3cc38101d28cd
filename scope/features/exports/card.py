"""A latent as a card: HTML for notebooks and exports, plain text for a terminal.

The HTML is one piece with inline styles only: no script, no style sheet, nothing fetched, so GitHub's notebook view and
offline exports show it as it is. Colours are set on coloured tokens alone, which suits light and dark pages.
"""

import math

import numpy as np

from scope.errors import PackError
from scope.escape import escape, visible_token
from scope.features.exports.strip import strip_html, strip_text
from scope.features.pack.decay import steps
from scope.features.pack.feature import Example, Feature

_MUTED = "opacity:.65;font-size:12px"
_CHIP = "display:inline-block;border:1px solid rgba(128,128,128,.45);border-radius:4px;padding:0 5px;margin:1px 2px"


def card_html(feature: Feature, examples: int = 8, window: int = 24) -> str:
    """The card, about 20 kB: numbers, histogram, output by weights beside measured, top and random examples."""
    row = feature.row
    flags = "".join(f'<span style="{_CHIP};{_MUTED}">{escape(f)}</span>' for f in feature.flags)
    head = (
        f'<div style="font-size:16px"><b>#{feature.id}</b> <bdi>{escape(feature.label)}</bdi> {flags}</div>'
        f'<div style="{_MUTED}">label from {escape(feature.label_source)} · {escape(feature.pack.title)}</div>'
    )
    body = _silence(feature) if feature.dead else _numbers(row) + _roles(feature) + _histogram(feature)
    shown = "" if feature.dead else _examples(feature, "top", examples - examples // 2, window)
    shown += "" if feature.dead else _examples(feature, "random", examples // 2, window)
    return f'<div style="font-family:sans-serif;line-height:1.5;max-width:900px">{head}{body}{_output(feature)}{shown}</div>'


def _silence(feature: Feature) -> str:
    bound = f"{feature.density_bound:.1e}"
    text = f"did not fire in {feature.pack.n_tokens:,} tokens (95 % upper bound on its density: {bound})"
    return f"<div>{escape(text)}</div>"


def numbers(row: dict) -> list[tuple[str, str]]:
    """The few figures that stand on top of a latent's page, as (name, value)."""
    shown = [("density", percent(row["density"])), ("firings", f"{row['count']:,}"), ("mean", f"{row['mean']:.3g}")]
    shown += [(name, f"{row[name]:.3g}") for name in ("p50", "p99", "max")]
    if row["out_score"] is not None and not math.isnan(row["out_score"]):
        shown.append(("output score", f"{row['out_score']:+.3f}"))
    return shown


def percent(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-3 else f"{share:.1e}"


def _numbers(row: dict) -> str:
    cells = "".join(f'<span style="margin-right:14px">{escape(k)} <b>{escape(v)}</b></span>' for k, v in numbers(row))
    return f"<div>{cells}</div>"


def roles_line(feature: Feature) -> str:
    """How often it fires on rows of each role, in one line; "" where rows have no roles."""
    try:
        shares = [f"{row['role']} {percent(row['density'])}" for row in feature.by_role]
    except PackError as damaged:
        return str(damaged)
    return f"fires on {', '.join(shares)} of its rows" if shares else ""


def _roles(feature: Feature) -> str:
    lines = (roles_line(feature), decay_line(feature))
    return "".join(f'<div style="{_MUTED}">{escape(line)}</div>' for line in lines if line)


def _histogram(feature: Feature, height: int = 34) -> str:
    try:
        edges, counts = feature.histogram
    except PackError as damaged:
        return f"<div>{escape(damaged)}</div>"
    lit = np.flatnonzero(counts)
    low, high = int(lit[0]), int(lit[-1]) + 1
    largest = counts.max()
    heights = [max(1, round(height * n / largest)) if n else 0 for n in counts]
    bars = "".join(
        f'<span title="{edges[k]:.3g} to {edges[k + 1]:.3g}: {counts[k]:,}" style="display:inline-block;width:7px;'
        f'margin-right:1px;background:#CF7A00;height:{heights[k]}px"></span>'
        for k in range(low, high)
    )
    scale = f"{edges[low]:.3g} … {min(edges[high], feature.row['max']):.3g}, log scale"
    return (
        f'<div role="img" aria-label="histogram of activations" style="height:{height}px;margin-top:4px">{bars}</div>'
        f'<div style="{_MUTED}">activation when it fires, {escape(scale)}</div>'
    )


def _output(feature: Feature) -> str:
    lines = [("promotes (weights)", feature.promoted, "+.2f"), ("suppresses (weights)", feature.suppressed, "+.2f")]
    lines.append(("promotes (measured)", feature.measured, "+.1%"))
    return "".join(_chips(name, pairs, form) for name, pairs, form in lines if pairs)


def _chips(name: str, pairs: list[tuple[str, float]], form: str) -> str:
    chips = "".join(
        f'<span style="{_CHIP}" title="{value:{form}}"><bdi>{escape(visible_token(token, mark_space=True))}</bdi></span>'
        for token, value in pairs[:8]
    )
    return f'<div><span style="{_MUTED}">{escape(name)}</span> {chips}</div>'


def _examples(feature: Feature, group: str, n: int, window: int) -> str:
    try:
        pictures, found = feature.pictures(group, n), feature.examples(group, n)
    except PackError as damaged:
        return f"<div>{escape(damaged)}</div>"
    if pictures:
        return f'<div style="margin-top:6px"><span style="{_MUTED}">{group} examples</span>{pictures._repr_html_()}</div>'
    rows = "".join(
        f'<div style="border-top:1px solid rgba(128,128,128,.3);padding:2px 0"><span style="{_MUTED};float:right;'
        f'margin-left:8px">{example.value:.3g}</span>{_line(example, feature.row["max"], window)}</div>'
        for example in found
    )
    return f'<div style="margin-top:6px"><span style="{_MUTED}">{group} examples</span>{rows}</div>' if rows else ""


def _line(example: Example, largest: float, window: int) -> str:
    near = near_peak(example, window)
    return strip_html(example.tokens[near], example.acts[near], largest, example.peak - near.start)


def near_peak(example: Example, window: int) -> slice:
    """The part of an example up to `window` tokens from its peak on either side."""
    return slice(max(0, example.peak - window), example.peak + window + 1)


def decay_line(feature: Feature) -> str:
    """Half-life of a latent of a state, with its interval and the tokens that are retained; empty at other sites."""
    row, whole = feature.decay, feature.pack.decay
    if row is None or whole is None:
        return ""
    low, high = (steps(end, whole.ages) for end in (row.low, row.high))
    retained = "  ".join(f"{visible_token(k.token, mark_space=True)} {k.left:.0%}" for k in row.retained)
    tokens = f"; left of its tokens after {whole.kept_at}: {retained}" if retained else ""
    return f"half-life {steps(row.half_life, whole.ages)} tokens [{low}, {high}], {row.writes:,} writes{tokens}"


def card_text(feature: Feature, examples: int = 4, window: int = 12) -> str:
    """The card for a terminal; the peak of an example stands between « and »."""
    flags = f"  [{', '.join(feature.flags)}]" if feature.flags else ""
    lines = [f"latent {feature.id} of {feature.pack.title}", f"  {feature.label}  (label from {feature.label_source}){flags}"]
    if feature.dead:
        bound = f"{feature.density_bound:.1e}"
        lines.append(f"  did not fire in {feature.pack.n_tokens:,} tokens (95 % upper bound on its density: {bound})")
    else:
        lines.append("  " + "  ".join(f"{k} {v}" for k, v in numbers(feature.row)))
        lines += [f"  {line}" for line in (roles_line(feature), decay_line(feature)) if line]
    for name, pairs in (("promotes", feature.promoted), ("measured", feature.measured)):
        if pairs:
            lines.append(f"  {name}: " + "  ".join(visible_token(t, mark_space=True) for t, _ in pairs[:8]))
    try:
        found = [] if feature.dead else feature.examples("top", examples)
    except PackError as damaged:
        return "\n".join([*lines, f"  {damaged}"])
    for example in found:
        near = near_peak(example, window)
        lines.append(f"  {example.value:8.3g}  {strip_text(example.tokens[near], example.peak - near.start)}")
    return "\n".join(lines)
