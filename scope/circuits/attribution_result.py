"""The result of an attribution: its rows as text, as HTML and as a pandas table."""

from dataclasses import asdict, dataclass

from scope.circuits.tables import html_table
from scope.escape import visible
from scope.result import Result

_SHOWN = 15


@dataclass(frozen=True, kw_only=True)
class Row:
    """One part of the residual stream and its effect on the logit difference, in logits."""

    name: str
    value: float
    null: float | None = None
    """One standard deviation of the effect of random directions in its place."""
    latent: int | None = None
    activation: float | None = None
    """The latent's largest activation in the prompt, at the token `strongest`."""
    n_active: int | None = None
    """Tokens of the prompt on which it fires."""
    strongest: str = ""
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Attribution(Result):
    """A logit difference as a sum; see `scope.circuits.attribution`. The rows add up to `whole`, but for `gap`."""

    bars = ("name", "value")

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
    before_cap: float | None = None
    """With the method "direct", the logit difference before the soft cap."""

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
        """(part, effect, null, meaning): the largest latents, all others as one row, and the other parts."""
        rows = self.sorted()
        latents = [r for r in rows if r.latent is not None]
        shown = [(r.name, f"{r.value:+.3f}", "-" if r.null is None else f"{r.null:.3f}", _meaning(r)) for r in latents[:_SHOWN]]
        if further := latents[_SHOWN:]:
            shown.append((f"{len(further)} further latents", f"{sum(r.value for r in further):+.3f}", "", ""))
        shown += [(r.name, f"{r.value:+.3f}", "", "") for r in rows if r.latent is None]
        return [*shown, ("sum", f"{sum(r.value for r in rows):+.3f}", "", self.whole_is)]

    def _head(self) -> list[str]:
        """The question, and what a reader must know of the method before the rows."""
        title = (
            f"{visible(self.token)!r} (p {self.p_token:.3f}) rather than {visible(self.other)!r} (p {self.p_other:.3f}) after "
            f"{visible(self.prompt)!r}: logit difference {self.logit_difference:+.3f}; {self.method}, {self.site}"
        )
        return [title, *self.cautions()]

    def cautions(self) -> list[str]:
        """What a reader must know of the method before the rows; nothing of "integrated" and "ablation"."""
        if self.method == "direct":
            return self._about_direct()
        if self.method != "gradient":
            return []
        return [
            f"The rows add up to {self.whole:+.3f}, the gradient's linear reading, not to the logit difference of "
            f'{self.logit_difference:+.3f}: this method is fast, and signs may be wrong. method="integrated" adds up to it.'
        ]

    def _about_direct(self) -> list[str]:
        lines = ["The way from the last token's stream straight to the logits, the scale of the final norm held fixed."]
        before = self.before_cap
        if before and abs(self.logit_difference - before) > 1e-4 * abs(before):
            lines.append(
                f"The soft cap makes {self.logit_difference:+.3f} of a difference of {before:+.3f}; "
                f"every row is multiplied by {self.logit_difference / before:.3f}."
            )
        return lines

    def _foot(self) -> list[str]:
        notes = []
        scale = sum(abs(r.value) for r in self.rows)
        if self.method == "integrated" and abs(self.gap) > 0.01 * scale:
            notes.append(f"The integral is off by {self.gap:+.3f}; raise steps.")
        if self.method == "direct" and abs(self.gap) > 0.01 * scale:
            notes.append(f"The rows miss {self.gap:+.3f}: biases of the final norm or the unembedding, or rounding.")
        error = sum(abs(r.value) for r in self.rows if r.name == "error")
        latents = sum(abs(r.value) for r in self.rows if r.latent is not None)
        if error > 0.5 * latents:
            notes.append("The error weighs more than half as much as all latents together: the dictionary misses much here.")
        return notes

    def __str__(self) -> str:
        rows = self._shown()
        width = max(len(row[0]) for row in rows)
        lines = [*self._head(), f"{'':<{width}} {'effect':>9} {'null':>7}"]
        lines += [f"{name:<{width}} {value:>9} {null:>7}  {meaning}".rstrip() for name, value, null, meaning in rows]
        return "\n".join([*lines, *self._foot()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self._head(), ("part", "effect, logits", "null (1 sd)", ""), self._shown(), self._foot())


def _meaning(row: Row) -> str:
    where = f"{row.activation:.2f} on {visible(row.strongest)!r}, fires on {row.n_active}"
    return f"{row.label} ({where})" if row.label else where
