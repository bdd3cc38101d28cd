"""Attributions as frozen values that print, show themselves in a notebook, and become a table."""

from dataclasses import asdict, dataclass
from typing import Any

from scope.escape import escape, visible
from scope.steering.export.show import number

_SHOWN = 15


@dataclass(frozen=True, kw_only=True)
class Row:
    """One part of the stream and what it does to the logit difference, in logits."""

    name: str
    value: float
    null: float | None = None
    """One standard deviation of what random directions in its place come to."""
    latent: int | None = None
    activation: float | None = None
    """The latent's largest in the prompt, at the token `strongest`."""
    n_active: int | None = None
    """Tokens of the prompt on which it fires."""
    strongest: str = ""
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """A logit difference taken apart; see `scope.circuits.attribution`. The rows add up to `whole`, but for `gap`."""

    prompt: str
    pieces: tuple[str, ...]
    token: str
    other: str
    p_token: float
    p_other: float
    method: str
    site: str
    logit_difference: float
    whole: float
    whole_is: str
    gap: float
    rows: tuple[Row, ...]

    def to_frame(self):
        """Every row as a pandas table, latents by falling size of their effect, then the other parts."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.sorted()])

    def sorted(self) -> list[Row]:
        latents = sorted((r for r in self.rows if r.latent is not None), key=lambda r: -abs(r.value))
        return [*latents, *(r for r in self.rows if r.latent is None)]

    def top(self, k: int = 10) -> list[int]:
        """The latents with the largest effects, either way."""
        return [row.latent for row in self.sorted()[:k] if row.latent is not None]

    def _shown(self) -> list[tuple[str, str, str, str]]:
        """(part, effect, null, what it is): the foremost latents, all others as one row, and the other parts."""
        rows = self.sorted()
        latents = [r for r in rows if r.latent is not None]
        found = [(r.name, f"{r.value:+.3f}", "-" if r.null is None else number(r.null), _what(r)) for r in latents[:_SHOWN]]
        if len(latents) > _SHOWN:
            left = latents[_SHOWN:]
            found.append((f"{len(left)} further latents", f"{sum(r.value for r in left):+.3f}", "", ""))
        found += [(r.name, f"{r.value:+.3f}", "", "") for r in rows if r.latent is None]
        return [*found, ("sum", f"{sum(r.value for r in rows):+.3f}", "", self.whole_is)]

    def _head(self) -> str:
        return (
            f"{visible(self.token)!r} (p {self.p_token:.3f}) rather than {visible(self.other)!r} (p {self.p_other:.3f}) after "
            f"{visible(self.prompt)!r}: logit difference {self.logit_difference:+.3f}; {self.method}, {self.site}"
        )

    def _foot(self) -> list[str]:
        told = []
        if abs(self.whole - self.logit_difference) > 1e-3:
            told.append(
                f"The linear reading is {self.whole:+.3f}, the logit difference itself {self.logit_difference:+.3f}: "
                'what lies between bends with the stream. method="integrated" adds up to the latter.'
            )
        scale = sum(abs(r.value) for r in self.rows)
        if self.method == "integrated" and abs(self.gap) > 0.01 * scale:
            told.append(f"The integral is off by {self.gap:+.3f}; raise steps.")
        error = sum(abs(r.value) for r in self.rows if r.name == "error")
        latents = sum(abs(r.value) for r in self.rows if r.latent is not None)
        if error > 0.5 * latents:
            told.append("The error weighs more than half as much as all latents together: the dictionary misses much here.")
        return told

    def __str__(self) -> str:
        rows = self._shown()
        width = max(len(row[0]) for row in rows)
        lines = [self._head(), f"{'':<{width}} {'effect':>9} {'null':>7}"]
        lines += [f"{name:<{width}} {value:>9} {null:>7}  {what}".rstrip() for name, value, null, what in rows]
        return "\n".join([*lines, *self._foot()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = ("part", "effect, logits", "null (1 sd)", "")
        return html_table(self._head(), head, self._shown(), self._foot())


def html_table(title: str, head: tuple[str, ...], rows: list[tuple[Any, ...]], foot: list[str]) -> str:
    """Inline styles only; all text escaped."""
    left, right = "text-align:left;padding:2px 8px", "text-align:right;padding:2px 8px"
    ths = "".join(f'<th style="{left if i in (0, len(head) - 1) else right}">{escape(h)}</th>' for i, h in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{left if i in (0, len(row) - 1) else right};unicode-bidi:isolate">{escape(str(v))}</td>'
            for i, v in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    told = "".join(f"<div>{escape(line)}</div>" for line in foot)
    return f'<div><div>{escape(title)}</div><table><tr>{ths}</tr>{body}</table><div style="font-size:90%">{told}</div></div>'


def _what(row: Row) -> str:
    where = f"{row.activation:.2f} on {visible(row.strongest)!r}, fires on {row.n_active}"
    return f"{row.label} ({where})" if row.label else where
