"""One latent of a pack with everything a page shows about it, read on first use."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from scope import renamed
from scope.errors import PackError
from scope.features.pack.data import PackData
from scope.features.pack.decay import LatentDecay
from scope.features.pack.format import GROUPS, NO_BAND
from scope.features.pack.lookahead import LatentLookahead
from scope.features.pack.pictures import PictureExample, PictureExamples
from scope.sae.hub.neuronpedia import neuronpedia_url


@dataclass(frozen=True, eq=False)
class Example:
    """A stretch of a context around one position (the peak), with the latent's activation at each of its tokens."""

    tokens: list[str]
    ids: list[int]
    acts: np.ndarray
    peak: int
    """Index of the peak in `tokens`."""
    value: float
    """Activation at the peak; 0 for a near miss."""
    band: int | None
    """Strength band, 0 the weakest; None outside the group "bands"."""
    document: str
    context: int
    offset: int
    """Position of the peak in its context; the context begins at 0 with <bos>."""


@dataclass(frozen=True, eq=False, repr=False)
class Feature:
    """A latent of a pack."""

    id: int
    pack: PackData

    store = renamed.old_attribute("store", "pack")

    def __post_init__(self):
        self.pack.latent_id(self.id)

    @cached_property
    def row(self) -> dict[str, Any]:
        """The latent's row of the table."""
        return {"id": self.id, **self.pack.table.iloc[self.id].to_dict()}

    @property
    def label(self) -> str:
        return self.row["label"]

    @property
    def label_source(self) -> str:
        return self.row["label_source"]

    @property
    def neuronpedia_url(self) -> str | None:
        """The latent's page on Neuronpedia; None where its SAE has none there."""
        return None if self.pack.neuronpedia is None else neuronpedia_url(self.pack.neuronpedia, self.id)

    @property
    def flags(self) -> list[str]:
        return [f for f in self.row["flags"].split(",") if f]

    @property
    def dead(self) -> bool:
        return self.row["count"] == 0

    @property
    def density_bound(self) -> float:
        """95 % upper bound on the density of a latent that never fired: 3 / tokens."""
        return 3 / max(self.pack.n_tokens, 1)

    @cached_property
    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """(edges [n + 1], counts [n]) of the activations when it fires, eight bins an octave."""
        return self.pack.histogram_edges, self._chunk("histogram").astype(np.int64)

    @cached_property
    def bands(self) -> list[dict[str, float]]:
        """Strength bands from weak to strong: low, high, count, share of firings, share of the activation mass."""
        edges, count, mass = (self._chunk(f"band_{name}") for name in ("edges", "count", "mass"))
        total, weight = max(int(count.sum()), 1), max(float(mass.sum()), 1e-30)
        return [
            {
                "band": b,
                "low": float(edges[b]),
                "high": min(float(edges[b + 1]), self.row["max"]),
                "count": int(count[b]),
                "share": float(count[b] / total),
                "mass_share": float(mass[b] / weight),
            }
            for b in range(len(count))
            if edges[b + 1] > edges[b]
        ]

    def quantile(self, value: float) -> float:
        """Share of this latent's firings that are weaker than `value`, to within one bin of the histogram (9 %)."""
        edges, counts = self.histogram
        total = int(counts.sum())
        if not total or value <= 0:
            return 0.0
        if value > self.row["max"]:
            return 1.0
        weaker = np.interp(np.log(value), np.log(edges), np.concatenate([[0], np.cumsum(counts)]))
        return float(min(weaker, total - 1) / total)  # the strongest firing is not weaker than any

    def mass_of_strongest(self, share: float = 0.01) -> float:
        """Share of its whole activation that its strongest firings hold, those of the given share; to within one bin of the
        histogram (9 %). Equal to `share` were all firings alike; NaN for a latent that never fired."""
        edges, counts = self.histogram
        middles, total = np.sqrt(edges[:-1] * edges[1:]), counts.sum()
        if not total:
            return float("nan")
        beyond = np.cumsum(counts[::-1])[::-1] - counts  # firings in stronger bins
        among = np.clip(share * total - beyond, 0, counts)
        return float((among * middles).sum() / (counts * middles).sum())

    @cached_property
    def logit_histogram(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(edges [n + 1], tokens [n]) of the whole vocabulary by the logit that its direction gives them, through the gain of
        the final norm; None in a pack that was made before it was kept, or where directions have no logits."""
        counts = self._relation("logit_histogram")
        if not len(counts) or not counts.sum():
            return None
        low, high = self._relation("logit_ends")
        return np.linspace(float(low), float(high), len(counts) + 1), counts.astype(np.int64)

    @cached_property
    def groups(self) -> list[str]:
        """Which groups of examples this latent has: top, bands, random, near."""
        kinds = set(self._chunk("group").tolist())
        return [name for i, name in enumerate(GROUPS, 1) if i in kinds]

    def examples(self, group: str = "top", n: int = 12) -> list[Example]:
        """Up to `n` examples.

        top     the strongest, one a context, equal surroundings only once, strongest first
        bands   a uniform sample of the firings within each strength band, strongest band first
        random  a uniform sample of all firings: what it mostly does
        near    silent on a token on which it often fires

        Raises:
            PackError: an unknown group, or examples damaged on disk (only this latent's).
        """
        return [self._example(place) for place in self._places(group, n)]

    def pictures(self, group: str = "top", n: int = 12) -> PictureExamples:
        """Up to `n` examples of a group that have a picture, each with the latent's activation at every patch of it; [] in a
        pack of text. Groups are those of `examples`.

        Raises:
            PackError: an unknown group, or pictures or examples that are damaged on disk.
        """
        pictures, found = self.pack.pictures, PictureExamples()
        for place in self._places(group, None):
            number = (
                -1 if pictures is None else int(pictures.of_context[int(self._chunk("position")[place]) // self.pack.n_ctx])
            )
            if number >= 0 and len(found) < n:
                found.append(self._picture(place, number))
        return found

    def _picture(self, place: int, number: int) -> PictureExample:
        pictures = self.pack.pictures
        context, offset = divmod(int(self._chunk("position")[place]), self.pack.n_ctx)
        patch = offset if offset < pictures.grid.n_patches else None
        band = int(self._chunk("band")[place])
        return PictureExample(
            file=pictures.read_file(number),
            size=tuple(pictures.sizes[number].tolist()),
            grid=pictures.grid,
            acts=pictures.acts(self.id * len(self._chunk("position")) + place),
            peak=patch,
            value=float(self._chunk("value")[place]),
            token="" if patch is not None else self.pack.pieces([self.pack.contexts[context, offset]])[0],
            largest=float(self.row["max"]),
            band=None if band == NO_BAND else band,
            document=self.pack.document(context, offset),
            context=context,
            offset=offset,
        )

    def _places(self, group: str, n: int | None) -> list[int]:
        """The first `n` places of a group's examples in the order in which they are shown."""
        if group not in GROUPS:
            raise PackError(f"There is no group of examples {group!r}; there are {', '.join(GROUPS)}.")
        places = np.flatnonzero(self._chunk("group") == GROUPS.index(group) + 1)
        if group == "bands":  # a few of each band rather than many of the first
            band, rank = self._chunk("band")[places].astype(int), np.zeros(len(places), int)
            for b in set(band.tolist()):
                rank[band == b] = np.arange((band == b).sum())
            places = places[np.lexsort((-band, rank))][:n]
            places = places[np.lexsort((-self._chunk("value")[places], -self._chunk("band")[places].astype(int)))]
        return places[:n].tolist()

    def _example(self, place: int) -> Example:
        position, half = int(self._chunk("position")[place]), self.pack.window
        context, offset = divmod(position, self.pack.n_ctx)
        ids = np.asarray(self.pack.contexts[context])
        start, stop = max(0, offset - half), min(len(ids), offset + half + 1)
        pads = np.flatnonzero(ids[start:stop] == self.pack.pad)
        if len(pads) and start + pads[0] > offset:
            stop = start + int(pads[0])
        ids = ids[start:stop].tolist()
        acts = self._chunk("acts")[place][start - offset + half : stop - offset + half]
        band = int(self._chunk("band")[place])
        return Example(
            tokens=self.pack.pieces(ids),
            ids=ids,
            acts=acts,
            peak=offset - start,
            value=float(self._chunk("value")[place]),
            band=None if band == NO_BAND else band,
            document=self.pack.document(context, offset),
            context=context,
            offset=offset,
        )

    @cached_property
    def promoted(self) -> list[tuple[str, float]]:
        """Tokens whose logits its decoder direction raises most, through the gain of the final norm."""
        return self._tokens("promoted_id", "promoted_logit")

    @cached_property
    def suppressed(self) -> list[tuple[str, float]]:
        """Tokens whose logits its decoder direction lowers most."""
        return self._tokens("suppressed_id", "suppressed_logit")

    @cached_property
    def measured(self) -> list[tuple[str, float]]:
        """Tokens whose probability rose most when the direction was added, mean over neutral prompts; [] if not measured."""
        return self._tokens("measured_id", "measured_rise")

    @cached_property
    def neighbours(self) -> list[tuple[int, float]]:
        """Latents whose decoder directions lie closest, with the cosine."""
        ids, cos = self._relation("neighbour_id"), self._relation("neighbour_cos")
        return [(int(i), float(c)) for i, c in zip(ids, cos, strict=True) if i >= 0]

    @cached_property
    def opposites(self) -> list[tuple[int, float]] | None:
        """Latents whose decoder directions point the other way, with the cosine, the most negative first; None where the pack
        was made before they were kept."""
        ids, cos = self._relation("opposite_id"), self._relation("opposite_cos")
        return [(int(i), float(c)) for i, c in zip(ids, cos, strict=True) if i >= 0] if len(ids) else None

    @cached_property
    def co_firing(self) -> list[tuple[int, float, float]]:
        """(latent j, P(j fires | this fires), lift over j's density), from a uniform sample of this latent's firings."""
        names = ("cofiring_id", "cofiring_p", "cofiring_lift")
        columns = zip(*(self._relation(name) for name in names), strict=True)
        return [(int(j), float(p), float(lift)) for j, p, lift in columns if j >= 0]

    @cached_property
    def tokens(self) -> list[dict[str, Any]]:
        """The tokens on which it fires most often, with both conditional probabilities, lift and mean activation."""
        ids, counts, sums = (self._relation(f"token_{name}") for name in ("id", "count", "sum"))
        totals, fired, n = self.pack.token_totals, max(self.row["count"], 1), max(self.pack.n_tokens, 1)
        rows = []
        for token, count, total in zip(ids.tolist(), counts.tolist(), sums.tolist(), strict=True):
            if token < 0:
                continue
            stood = max(int(totals[token]), 1)
            rows.append(
                {
                    "token": self.pack.vocab[token],
                    "id": token,
                    "count": count,
                    "p_token_given_fires": count / fired,
                    "p_fires_given_token": count / stood,
                    "lift": (count / fired) / (stood / n),
                    "mean": total / count,
                }
            )
        return rows

    @property
    def by_role(self) -> list[dict[str, Any]]:
        """For each role of rows (prefix, suffix, middle, control, ...) its rows, how often the latent fires there, how many
        times its usual frequency that is (lift), and its mean when it fires; [] in a pack of plain text."""
        shares, usual = self.pack.by_role.iloc[self.id], self.row["density"]
        return [
            {
                "role": role,
                "rows": rows,
                "density": float(shares[f"{role}_density"]),
                "lift": float(shares[f"{role}_density"] / usual) if usual else float("nan"),
                "mean": float(shares[f"{role}_mean"]),
            }
            for role, rows in self.pack.manifest.roles.items()
        ]

    @property
    def lookahead(self) -> LatentLookahead | None:
        """How much it fires in a middle because of the suffix; None where that was not tested."""
        return None if self.pack.lookahead is None else self.pack.lookahead.of(self.id)

    @property
    def decay(self) -> LatentDecay | None:
        """What is left of it after further tokens; None at a site that is no state, or where it had too few writes."""
        return None if self.pack.decay is None else self.pack.decay.of(self.id)

    def _tokens(self, ids: str, values: str) -> list[tuple[str, float]]:
        pairs = zip(self._relation(ids).tolist(), self._relation(values).tolist(), strict=True)
        return [(self.pack.vocab[i], v) for i, v in pairs if i >= 0]

    def _chunk(self, name: str) -> np.ndarray:
        if name not in self._chunks:
            self._chunks[name] = self.pack.read_example(name, self.id)
        return self._chunks[name]

    @cached_property
    def _chunks(self) -> dict[str, np.ndarray]:
        return {}

    def _relation(self, name: str) -> np.ndarray:
        return self.pack.relation(name)[self.id]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id}, {self.pack})"
