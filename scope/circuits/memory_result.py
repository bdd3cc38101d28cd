"""`Memory`: the states of a recurrent model over a text, token by token, at one time or at all."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from scope.circuits.tables import html_table
from scope.errors import ConfigError
from scope.escape import escape, visible_token
from scope.models.griffin.shares import half_lives
from scope.result import Result
from scope.typed_json import read_bytes, typed
from scope.whole_files import write_whole

Measure = Literal["retained", "share", "length"]
TITLES = {
    "retained": "length left of what the token wrote / length written",
    "share": "the token's share of the state",
    "length": "length left of what the token wrote",
}
Figures = Float[np.ndarray, " tok"]
Heat = Float[np.ndarray, "tok time"]

LONG = 16
"""Further tokens after which a memory counts as long."""

_SHOWN = 12
_SCHEMA = 1
_WAY_OUT = "Make it again: scope memory TEXT --save FILE"


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerMemory:
    """One recurrent layer: for each token and each time T what is left at T of what the token wrote into the state. Tokens
    after T have left nothing yet: 0."""

    layer: int
    length: Heat
    """Length of what is left."""

    share: Heat
    """Projections of what is left on the state, in parts of the state's squared length: over tokens it adds up to 1."""

    written: Figures
    """Length of what the token wrote."""

    lengthening: Figures
    """How many times longer a token's write is than with the factor sqrt(1 - a^2): 1 but where a document starts."""

    starts: Bool[np.ndarray, " tok"]
    """Where a document starts: there nothing is retained, and the factor is left out."""

    state_norm: Float[np.ndarray, " time"]
    gap: float
    """Largest difference of the sum over tokens from the model's own state, in parts of the largest number in the states. The
    sum is in float64; a model in float32 rounds its own state by about 1e-7 a step."""

    latents: Int[np.ndarray, " latent"]
    contribution: Float[np.ndarray, "latent tok time"]
    """What the token adds at T to the latent's pre-activation; over tokens, and with the bias, it is the pre-activation that
    the SAE has on the state."""

    bias: Float[np.ndarray, " latent"]
    activation: Float[np.ndarray, "latent time"]
    """The latent's activation at T."""

    @property
    def retained(self) -> Heat:
        """Length left over length written."""
        return self.length / np.maximum(self.written, 1e-30)[:, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory(Result):
    """The state of every recurrent layer as a sum over the tokens of a text; see `scope.circuits.memory`."""

    text: str
    pieces: tuple[str, ...]
    ids: tuple[int, ...]
    model: str
    times: tuple[int, ...]
    """Positions after which the state is taken apart; the last one is the end of the text."""

    layers: tuple[LayerMemory, ...]
    site: str = ""
    """Site of the SAE whose latents are read; empty without one."""

    dictionary: str = ""
    """Hash of the SAE's parameters."""

    def layer(self, layer: int | None = None) -> LayerMemory:
        """One layer; without a number that of the SAE, or the last.

        Raises:
            ConfigError: no recurrent layer, or one that was not read.
        """
        if layer is None:
            return next((one for one in self.layers if len(one.latents)), self.layers[-1])
        found = next((one for one in self.layers if one.layer == layer), None)
        if found is None:
            there = ", ".join(str(one.layer) for one in self.layers)
            raise ConfigError(f"Layer {layer} is not among the recurrent layers that were read: {there}.")
        return found

    def heat(self, layer: int | None = None, measure: Measure = "retained", latent: int | None = None) -> Heat:
        """[token time], NaN before the token: "retained", "share" or "length"; or with `latent` what the token adds to it.

        Raises:
            ConfigError: an unknown measure, layer or latent.
        """
        one = self.layer(layer)
        if latent is not None:
            values = one.contribution[self._place(one, latent)]
        elif measure in get_args(Measure):
            values = getattr(one, measure)
        else:
            raise ConfigError(f"There is no measure {measure!r}; there are {', '.join(get_args(Measure))}.")
        future = np.arange(len(self.ids))[:, None] > np.asarray(self.times)[None]
        return np.where(future, np.nan, values)

    def half_lives(self, layer: int | None = None, latent: int | None = None) -> Figures:
        """For each token, after how many further tokens half is left of what it wrote (or of what it adds to a latent): between
        two times by the exponential through them; infinite where more than half is left at the end; NaN for the last token
        and for those that wrote nothing."""
        one = self.layer(layer)
        if latent is None:
            left = one.retained
        else:
            added = np.abs(one.contribution[self._place(one, latent)])
            first = [np.searchsorted(self.times, token) for token in range(len(self.ids))]
            written = added[np.arange(len(self.ids)), first]
            left = np.where(written[:, None] > 0, added / np.maximum(written, 1e-30)[:, None], np.nan)
        return np.array([half_life(np.asarray(self.times) - token, row) for token, row in enumerate(left)])

    def _place(self, one: LayerMemory, latent: int) -> int:
        places = np.flatnonzero(one.latents == latent)
        if not len(places):
            there = ", ".join(map(str, one.latents.tolist())) or "none, since no SAE was given"
            raise ConfigError(f"Latent {latent} was not read in layer {one.layer}. Read were: {there}.")
        return int(places[0])

    def to_frame(self, time: int | None = None) -> Any:
        """A row per layer and token: what it wrote, and what is left at `time`, by default the end of the text."""
        import pandas as pd

        at = self._index(time)
        parts = []
        for one in self.layers:
            columns = {
                "layer": one.layer,
                "position": np.arange(len(self.ids)),
                "token": self.pieces,
                "written": one.written,
                "length": one.length[:, at],
                "retained": one.retained[:, at],
                "share": one.share[:, at],
                "half_life": self.half_lives(one.layer),
                "start": one.starts,
                "lengthening": one.lengthening,
            }
            parts.append(pd.DataFrame(columns | {f"latent {j}": one.contribution[i, :, at] for i, j in enumerate(one.latents)}))
        return pd.concat(parts, ignore_index=True)

    def _index(self, time: int | None) -> int:
        if time is None:
            return len(self.times) - 1
        if time not in self.times:
            near = min(self.times, key=lambda t: abs(t - time))
            raise ConfigError(f"The state after token {time} was not taken apart; the nearest is {near}. Give times=[{time}].")
        return self.times.index(time)

    def plot(self, layer: int | None = None, measure: Measure = "retained", latent: int | None = None) -> Any:
        """The heat map tokens x time as a Plotly figure."""
        import plotly.graph_objects as go

        one, z = self.layer(layer), self.heat(layer, measure, latent)
        title = TITLES[measure] if latent is None else f"what the token adds to latent {latent} before its threshold"
        most = float(np.nanmax(np.abs(z))) or 1.0
        signed = latent is not None or measure == "share"
        tokens = [f"{i} {visible_token(piece)}" for i, piece in enumerate(self.pieces)]
        times = [tokens[t] for t in self.times]
        scale = (
            {"colorscale": "RdBu", "zmid": 0, "zmin": -most, "zmax": most} if signed else {"colorscale": "Viridis", "zmin": 0}
        )
        figure = go.Figure(go.Heatmap(z=z, x=times, y=tokens, hoverongaps=False, **scale))
        figure.update_layout(
            title=f"Layer {one.layer}: {title}",
            xaxis_title="after this token",
            yaxis={"title": "of this token", "autorange": "reversed"},
            template="simple_white",
            height=min(1200, 220 + 14 * len(tokens)),
        )
        return figure

    def summary(self) -> list[tuple[str, ...]]:
        """A row per layer. Half-lives are of tokens that at least `LONG` others follow, but starts of documents; the share of
        the start is that of the last state."""
        rows = []
        for one in self.layers:
            lives = self.half_lives(one.layer)
            lives = lives[~one.starts & (len(self.ids) - 1 - np.arange(len(self.ids)) >= LONG) & ~np.isnan(lives)]
            first = float(one.share[one.starts, -1].sum())
            cells = (
                _steps(float(np.median(lives))) if len(lives) else "-",
                f"{(lives > LONG).mean():.0%}" if len(lives) else "-",
                f"{0.0 if abs(first) < 5e-4 else first:.1%}",
                " ".join(f"{x:.3g}" for x in one.lengthening[one.starts]) or "-",
                f"{one.gap:.1e}",
            )
            rows.append((str(one.layer), *cells))
        return rows

    _COLUMNS = ("layer", "half-life, median", f"beyond {LONG}", "share of the start", "its write is longer", "gap of the sum")

    def _head(self) -> str:
        n = len(self.ids)
        return f"What {self.model} remembers of {n} tokens: h_T as a sum of what each token wrote, times what was left of it."

    def _notes(self) -> list[str]:
        lines = [
            f"Half-life: further tokens until half of the length is left, of tokens that {LONG} others follow. Share of the "
            "start: of the state after the last token, what the start of the document wrote, which is longer by the factor "
            "beside it, since sqrt(1 - a^2) is left out there. Gap: the sum from the model's own state, relative."
        ]
        one = self.layer()
        order = [i for i in np.argsort(-one.share[:, -1]) if not one.starts[i]][:_SHOWN]
        tokens = ", ".join(f"{visible_token(self.pieces[i])} {one.share[i, -1]:.1%}" for i in order)
        lines.append(f"Largest shares of the last state of layer {one.layer}: {tokens}.")
        for place, latent in enumerate(one.latents.tolist()):
            added = one.contribution[place, :, -1]
            top = np.argsort(-np.abs(added))[:5]
            parts = ", ".join(f"{visible_token(self.pieces[i])} {added[i]:+.3g}" for i in top)
            lines.append(
                f"Latent {latent} at the end: activation {one.activation[place, -1]:.3g}; before the threshold "
                f"{added.sum() + one.bias[place]:.3g} = bias {one.bias[place]:+.3g} and tokens {added.sum():+.3g}, "
                f"most: {parts}."
            )
        return lines

    def __str__(self) -> str:
        rows = [self._COLUMNS, *self.summary()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self._COLUMNS))]
        table = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([self._head(), *table, *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table([self._head()], self._COLUMNS, self.summary(), self._notes())

    def to_html(self, file: str | Path | None = None) -> str:
        """As a page that needs nothing else, also written to `file`: the figures and a heat map per layer."""
        heats = [self.plot(one.layer).to_html(full_html=False, include_plotlyjs=i == 0) for i, one in enumerate(self.layers)]
        one = self.layer()
        heats += [self.plot(one.layer, latent=j).to_html(full_html=False, include_plotlyjs=False) for j in one.latents.tolist()]
        text = (
            "<!doctype html><meta charset='utf-8'><title>Memory</title><div style='font-family:sans-serif'>"
            f"<h1>What the state remembers</h1><p><code style='white-space:pre-wrap'>{escape(self.text)}</code></p>"
            f"{self._repr_html_()}{''.join(heats)}</div>"
        )
        if file is not None:
            write_whole(Path(file), text)
        return text

    def _write(self, file: Path) -> None:
        """Write it as a safetensors file; `Memory.load` reads it."""
        from safetensors.numpy import save

        names = [f.name for f in fields(LayerMemory) if f.name not in ("layer", "gap")]
        arrays = {
            f"{i}.{name}": np.ascontiguousarray(getattr(one, name)) for i, one in enumerate(self.layers) for name in names
        }
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layers"}
        head |= {"schema": _SCHEMA, "layers": [one.layer for one in self.layers], "gaps": [one.gap for one in self.layers]}
        write_whole(file, save(arrays, {"memory": json.dumps(head)}))

    @classmethod
    def load(cls, file: str | Path) -> "Memory":
        """Read what `save` wrote.

        Raises:
            ConfigError: it cannot be read, is damaged, or was written by a newer version.
        """
        from safetensors.numpy import load

        data = read_bytes(Path(file), ConfigError, _WAY_OUT)
        try:
            size = int.from_bytes(data[:8], "little")
            head = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["memory"])
            arrays = load(data)
        except Exception as error:  # safetensors has an exception of its own, which says little
            raise ConfigError(f"{file} holds no memory of a text, or is damaged ({error}).\n  {_WAY_OUT}") from None
        stored = typed(head, _Stored, file, ConfigError, _WAY_OUT)
        if stored.schema != _SCHEMA:
            raise ConfigError(f"{file} has schema {stored.schema}; this version reads {_SCHEMA}.\n  {_WAY_OUT}")
        names = [f.name for f in fields(LayerMemory) if f.name not in ("layer", "gap")]
        n, m = len(stored.ids), len(stored.times)
        layers = []
        for i, (layer, gap) in enumerate(zip(stored.layers, stored.gaps, strict=True)):
            values = {name: arrays.get(f"{i}.{name}") for name in names}
            if any(value is None for value in values.values()) or values["length"].shape != (n, m):
                raise ConfigError(f"{file} is damaged: what is said of layer {layer} is not whole.\n  {_WAY_OUT}")
            layers.append(LayerMemory(layer=layer, gap=gap, **values))
        rest = {f.name: getattr(stored, f.name) for f in fields(cls) if f.name != "layers"}
        return cls(**rest, layers=tuple(layers))


@dataclass(frozen=True)
class _Stored:
    """The head of a saved memory."""

    schema: int
    text: str
    pieces: tuple[str, ...]
    ids: tuple[int, ...]
    model: str
    times: tuple[int, ...]
    layers: list[int]
    gaps: list[float]
    site: str = ""
    dictionary: str = ""


def half_life(ages: np.ndarray, left: np.ndarray) -> float:
    """`half_lives` of one part, whose ages may begin before it was written; NaN where there is no age above 0."""
    later = ages > 0
    return float(half_lives(ages[later], left[later])) if later.any() else math.nan


def _steps(value: float) -> str:
    return "beyond the text" if math.isinf(value) else f"{value:.1f}"
