"""The result of a comparison: tables, a verdict, and the folder that keeps them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from scope.diffing.updates import UpdateLatents
from scope.diffing.weights import BFLOAT16_ROUNDING, WeightChange
from scope.errors import ConfigError, ScopeError
from scope.escape import visible
from scope.features.exports.tables import safe_cell
from scope.result import Result
from scope.typed_json import read_json, typed
from scope.whole_files import write_json, write_whole

FORM = 1
MANIFEST, LATENTS, DIRECTIONS = "manifest.json", "latents.csv", "directions.safetensors"
_AGAIN = "To make it again: scope diff BASE TUNED --out FOLDER"


class DiffError(ScopeError):
    """A saved comparison that is missing, damaged, or of another version."""


@dataclass(frozen=True, kw_only=True)
class SiteChange:
    """How far the activations of a site lie apart: d = tuned - base, x = base, at every counted token."""

    site: str
    relative: float
    """Mean of |d| / |x|."""

    pooled: float
    """sqrt(sum |d|^2 / sum |x|^2), which tokens of large norm decide."""

    constant: float
    """Share of sum |d|^2 that is the same shift of every token."""

    first: float
    """Share of the first direction in sum |d|^2, not centred."""

    rank: int
    """Directions that hold 99 % of it."""

    promotes: tuple[str, ...] = ()
    """Tokens that the mean of d raises most, by the weights after it."""


@dataclass(frozen=True, kw_only=True)
class GroupChange:
    """Text of one group: a script, a language, a domain, a corpus."""

    group: str
    tokens: int
    relative: float
    """Mean of |d| / |x| at the site of the SAE, or at the last site."""

    loss_tokens: int = 0
    """Tokens of which the loss was read, those of the first contexts: `DiffConfig.loss_contexts`."""

    loss_base: float | None = None
    """Nats a token."""

    loss_tuned: float | None = None
    l0_base: float | None = None
    l0_tuned: float | None = None


@dataclass(frozen=True, kw_only=True)
class TokenChange:
    """A token at which activations lie apart."""

    token: str
    count: int
    relative: float


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """How well the base's SAE fits a model."""

    model: str
    fvu: float
    fvu_inliers: float
    """Without tokens of huge norm."""

    l0: float
    loss: float | None = None
    spliced: float | None = None
    """Loss with the reconstruction in place of the activation."""

    @property
    def delta_loss(self) -> float | None:
        return None if self.loss is None or self.spliced is None else self.spliced - self.loss


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How many latents moved beyond the null, and what the null gives."""

    latents: int
    of: int
    threshold: float
    level: float
    redraws: int
    by_chance: float
    any_by_chance: float


@dataclass(frozen=True, kw_only=True)
class Diff(Result):
    """What lies between two models. `latents` has a row for each latent of the SAE, None without one."""

    weights: tuple[WeightChange, ...]
    sites: tuple[SiteChange, ...]
    groups: tuple[GroupChange, ...]
    tokens: tuple[TokenChange, ...]
    transfer: tuple[Transfer, ...] = ()
    moved: Moved | None = None
    updates: tuple[UpdateLatents, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    latents: pd.DataFrame | None = None
    directions: Mapping[str, Tensor] = field(default_factory=dict)
    """SITE/mean: the mean difference; SITE/first: the first direction of the differences, of length 1."""

    def to_frame(self, table: str = "latents") -> pd.DataFrame:
        """One of the tables: latents, weights, sites, groups, tokens, transfer, updates.

        Raises:
            ConfigError: there is no such table.
        """
        if table == "latents":
            if self.latents is None:
                raise ConfigError("There are no latents without an SAE. Give --sae; the other tables are there.")
            return self.latents.sort_values("z", key=abs, ascending=False, ignore_index=True)
        if table not in TABLES:
            raise ConfigError(f"There is no table {table!r}; there are latents, {', '.join(TABLES)}.")
        names = [f.name for f in fields(TABLES[table])]
        frame = pd.DataFrame([asdict(row) for row in getattr(self, table)], columns=names)
        return frame.assign(delta_loss=[row.delta_loss for row in self.transfer]) if table == "transfer" else frame

    def verdict(self) -> list[str]:
        """A line each for weights, activations, latents, the update, the SAE's transfer, and text."""
        lines = [*self._weights(), *self._activations(), *self._latents(), *self._updates(), *self._transfer(), *self._groups()]
        return [visible(line) for line in lines]

    def _weights(self) -> list[str]:
        if not self.weights:
            return ["Weights: none differs."]
        most, matrices = self.weights[0], [w for w in self.weights if w.stable is not None]
        line = f"Weights: {len(self.weights)} differ, most {most.parameter} by {most.relative:.2%} of its norm"
        if matrices:
            ranks = sorted(w.rank for w in matrices if w.rank is not None)
            line += f"; 99 % of a change lies in {ranks[0]} to {ranks[-1]} directions (median {ranks[len(ranks) // 2]})"
        if all(w.relative <= 1.2 * BFLOAT16_ROUNDING for w in self.weights):
            line += f". That is no more than rounding to bfloat16 does ({BFLOAT16_ROUNDING:.2%})"
        return [f"{line}."]

    def _activations(self) -> list[str]:
        most = max(self.sites, key=lambda s: s.relative)
        if not most.relative:
            return [f"Activations: equal at {len(self.sites)} sites."]
        last = [s for s in self.sites if s.site.endswith("hook_resid_post")] or [self.sites[-1]]
        line = f"Activations: most apart at {most.site}, by {most.relative:.2%} of the norm"
        if last[-1] is not most:
            line += f"; at {last[-1].site} {last[-1].relative:.2%}"
        top = ", ".join(repr(t.token) for t in self.tokens[:5])
        return [f"{line}. Most apart at the tokens {top}." if top else f"{line}."]

    def _latents(self) -> list[str]:
        if (m := self.moved) is None:
            return []
        return [
            f"Latents: {m.latents:,} of {m.of:,} moved beyond what drawing the text anew does (|z| > {m.threshold:.1f}; "
            f"family-wise {m.level:.0%} over all latents, {m.redraws:,} redraws). The base itself on redrawn text: "
            f"{m.by_chance:.2g} latents in the mean, any at all in {m.any_by_chance:.0%}."
        ]

    def _updates(self) -> list[str]:
        lines = []
        for role in ("reads", "writes"):
            rows = [u for u in self.updates if u.role == role and u.by == "decoder" and u.meets]
            if rows:
                latents = {latent for u in rows for latent in u.latents}
                beyond, chance = sum(u.beyond for u in rows), sum(u.by_chance for u in rows)
                first = max(rows, key=lambda u: u.strengths[:1] or (0.0,))
                named = (
                    f"; most {first.parameter}, latent {first.latents[0]} ({first.strengths[0]:.1f} x random)"
                    if latents
                    else ""
                )
                lines.append(
                    f"The update {role}: {beyond} pairs of weight and latent beyond the largest of as many random directions "
                    f"(further random directions: {chance}){named}."
                )
        return lines

    def _transfer(self) -> list[str]:
        if len(self.transfer) != 2:
            return []
        base, tuned = self.transfer
        line = f"The base's SAE: FVU {base.fvu:.3f} -> {tuned.fvu:.3f}, L0 {base.l0:.1f} -> {tuned.l0:.1f}"
        if base.delta_loss is not None and tuned.delta_loss is not None:
            line += f", delta loss {base.delta_loss:+.3f} -> {tuned.delta_loss:+.3f} nats"
        return [f"{line} (base -> tuned)."]

    def _groups(self) -> list[str]:
        parts = []
        for g in self.groups:
            loss = ""
            if g.loss_base is not None and g.loss_tuned is not None:
                loss = f", loss {g.loss_base:.3f} -> {g.loss_tuned:.3f} on {g.loss_tokens:,} of them"
            parts.append(f"{g.group} ({g.tokens:,} tokens) {g.relative:.2%} apart{loss}")
        return ["Text: " + "; ".join(parts) + "."]

    def __str__(self) -> str:
        return "\n".join([self.title(), *self.verdict(), *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def title(self) -> str:
        names = [visible(str((self.provenance.get(who) or {}).get("model") or who)) for who in ("base", "tuned")]
        return " -> ".join(names)

    def plot(self):
        """Activations by layer, and the latents' mean activation in either model, as a Plotly figure."""
        from scope.diffing.show import figure

        return figure(self)

    def to_html(self, file: Path | str | None = None) -> str:
        """A page of its own: verdict, figure and tables; also written to `file`."""
        from scope.diffing.show import page

        text = page(self)
        if file is not None:
            write_whole(Path(file), text)
        return text

    def _repr_html_(self) -> str:
        from scope.diffing.show import verdict_html

        return verdict_html(self)

    def _write(self, folder: Path) -> None:
        """Write the folder: latents.csv, directions.safetensors, a CSV for each table, and manifest.json, which is last."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        for name in WRITTEN:  # those of an earlier comparison
            (folder / name).unlink(missing_ok=True)
        if self.latents is not None:
            write_whole(folder / LATENTS, _csv(self.to_frame()))
        for table in TABLES:
            if len(frame := self.to_frame(table)):
                write_whole(folder / f"{table}.csv", _csv(frame))
        write_whole(folder / DIRECTIONS, save({name: d.contiguous() for name, d in self.directions.items()}))
        stored = {f.name: getattr(self, f.name) for f in fields(Stored)}
        plain = {name: [asdict(r) for r in value] if name in TABLES else value for name, value in stored.items()}
        plain["moved"] = asdict(self.moved) if self.moved else None
        write_json(folder / MANIFEST, {"form": FORM, **json.loads(json.dumps(plain))})

    @classmethod
    def load(cls, folder: Path | str) -> "Diff":
        """Read what `save` wrote.

        Raises:
            DiffError: a folder without a whole comparison, or one of another version.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        content = read_json(folder / MANIFEST, DiffError, _AGAIN)
        form = content.pop("form", None) if isinstance(content, dict) else None
        if form != FORM:
            raise DiffError(f"{folder} holds a comparison of form {form}; this version reads form {FORM}.\n  {_AGAIN}")
        stored = typed(content, Stored, folder / MANIFEST, DiffError, _AGAIN)
        try:
            directions = load_file(folder / DIRECTIONS)
            latents = pd.read_csv(folder / LATENTS, **_TEXTS) if stored.moved else None
        except (OSError, ValueError, SafetensorError) as error:
            raise DiffError(f"{folder} is damaged: {error}.\n  {_AGAIN}") from None
        return cls(**{f.name: getattr(stored, f.name) for f in fields(Stored)}, latents=latents, directions=directions)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The part of a comparison that its manifest holds."""

    weights: tuple[WeightChange, ...]
    sites: tuple[SiteChange, ...]
    groups: tuple[GroupChange, ...]
    tokens: tuple[TokenChange, ...]
    transfer: tuple[Transfer, ...] = ()
    moved: Moved | None = None
    updates: tuple[UpdateLatents, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


def _csv(frame: pd.DataFrame) -> str:
    """As CSV in which no text of a model is a formula; several values are one cell."""
    cells = frame.map(
        lambda v: safe_cell(" ".join(map(str, v)) if isinstance(v, tuple) else v) if isinstance(v, str | tuple) else v
    )
    return cells.to_csv(index=False)


TABLES = {
    "weights": WeightChange,
    "sites": SiteChange,
    "groups": GroupChange,
    "tokens": TokenChange,
    "transfer": Transfer,
    "updates": UpdateLatents,
}
_TEXTS = {"dtype": {"promotes": str, "label": str}, "keep_default_na": False}  # an empty cell and the token NA are text
WRITTEN = (MANIFEST, LATENTS, DIRECTIONS, *(f"{table}.csv" for table in TABLES))
"""The files of a saved comparison."""
