"""The passes over the codes: one that gathers all statistics, one that looks things up for the examples chosen.

Memory: latents of a stretch while it is encoded (about 0.5 GB at most), the shortlists (about 40 bytes x
(top + random + half octaves x per_band) x living latents), 16 bytes a (latent, token) pair up to 8 M pairs, the token ids.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from scope.errors import DictionaryError
from scope.features.collect.build_folder import BuildFolder, Chunk
from scope.features.collect.codes import Codes, band_of_bin, lowest_bin, priority, surroundings
from scope.features.collect.config import Sizes
from scope.features.collect.source import Source
from scope.features.collect.streams import (
    N_HALVES,
    Entries,
    Moments,
    Shortlist,
    TokenCounts,
    runs,
    start_bins,
    strongest_per_context,
)
from scope.features.pack.format import NO_BAND
from scope.progress import OnProgress
from scope.sae.base import SAE

TOP, BANDS, RANDOM, NEAR = 1, 2, 3, 4
_DENSE = 1 << 25  # latents [tok d_sae] that are computed at once, whatever the chunk; an encoder holds about four such arrays
_OCCURRENCES = 64  # of a token, drawn uniformly, among which near misses are looked for


def spans(source: Source, chunk_tokens: int) -> list[tuple[int, int]]:
    """(first, last + 1) context of each chunk."""
    n, n_ctx = source.contexts.shape
    step = max(1, chunk_tokens // n_ctx)
    return [(a, min(a + step, n)) for a in range(0, n, step)]


@torch.no_grad()
def encode(sae: SAE, source: Source, a: int, b: int) -> Chunk:
    """What fires in contexts a..b.

    Raises:
        DictionaryError: an activation or a latent that is not finite, with its context.
    """
    device = sae.W_enc.device
    acts = source.read(a, b).to(device)
    rows, columns, values = [], [], []
    step = max(1, _DENSE // sae.W_dec.shape[0])
    for start in range(0, len(acts), step):
        latents = sae.encode(acts[start : start + step])
        if not bool(torch.isfinite(latents.sum() + acts[start : start + step].sum())):
            _refuse_infinite(latents, acts[start : start + step], start, source, a, b)
        row, column = (latents > 0).nonzero(as_tuple=True)
        rows.append(row + start)
        columns.append(column)
        values.append(latents[row, column].float())
    empty = torch.zeros(0, dtype=torch.long)
    rows, columns = torch.cat([empty.to(device), *rows]), torch.cat([empty.to(device), *columns])
    value = torch.cat([empty.to(device).float(), *values]).cpu().numpy()
    narrow = np.uint16 if sae.W_dec.shape[0] <= 1 << 16 else np.int32  # 16 bits are sorted by radix, several times faster
    feature = columns.cpu().numpy().astype(narrow)
    order = np.argsort(feature, kind="stable")
    n_ctx = source.contexts.shape[1]
    places = np.flatnonzero(source.keep[a:b]) + a * n_ctx
    position = places[rows.cpu().numpy()[order]]
    return Chunk(Codes(feature[order].astype(np.int32), position, value[order]), acts.norm(dim=1).cpu().numpy())


def _refuse_infinite(latents: torch.Tensor, acts: torch.Tensor, start: int, source: Source, a: int, b: int) -> None:
    finite = torch.isfinite(acts).all(1) & torch.isfinite(latents).all(1)
    if not bool(finite.all()):
        bad = start + int((~finite).nonzero()[0, 0])
        context = a + int(np.flatnonzero(source.keep[a:b])[bad]) // source.contexts.shape[1]
        raise DictionaryError(f"Activations or latents in context {context} are not finite; nothing is made of them.")


class Statistics:
    """Everything the first pass gathers."""

    def __init__(self, d_sae: int, d_vocab: int, n_ctx: int, low: int, sizes: Sizes, seed: int):
        self.sizes, self.seed, self.n_ctx, self.low = sizes, seed, n_ctx, low
        self.moments = Moments(d_sae, low)
        self.top = Shortlist(d_sae, sizes.top, unique=True)
        self.in_bands = Shortlist(d_sae * N_HALVES, sizes.per_band)
        self.uniform = Shortlist(d_sae, max(sizes.random, sizes.cofiring_sample))
        self.tokens = TokenCounts(d_vocab, sizes.tokens)
        self.norms: list[np.ndarray] = []

    def add(self, chunk: Chunk, contexts: np.ndarray, first_context: int) -> None:
        """`contexts` are the tokens of the chunk's contexts."""
        codes, local = chunk.codes, chunk.codes.position - first_context * self.n_ctx
        bin_of, half = start_bins(codes, self.low)
        group = codes.feature.astype(np.int64)
        self.norms.append(chunk.norms)
        self.moments.add(codes, bin_of)
        self.tokens.add(codes, contexts.reshape(-1)[local])
        none = np.zeros(len(codes), np.uint64)
        drawn = priority(codes.feature, codes.position, self.seed)
        self.uniform.add(Entries(group, drawn, codes.position, codes.value, none))
        self.in_bands.add(Entries(group * N_HALVES + half, drawn, codes.position, codes.value, none))
        best = strongest_per_context(codes, self.n_ctx)
        weaker_first = np.uint64(0xFFFFFFFF) - codes.value[best].view(np.uint32).astype(np.uint64)
        twin = surroundings(contexts, self.sizes.twin_radius).reshape(-1)[local[best]]
        self.top.add(Entries(group[best], weaker_first, codes.position[best], codes.value[best], twin))


def gather(
    sae: SAE,
    source: Source,
    place: BuildFolder,
    sizes: Sizes,
    chunk_tokens: int,
    d_vocab: int,
    seed: int,
    on_progress: OnProgress | None = None,
    missing: Callable[[int, int], Chunk | None] | None = None,
) -> Statistics:
    """The first pass: encode (or take up what an earlier run encoded) and add up. `missing` may bring a chunk that is not
    there, as from another process."""
    found: Statistics | None = None
    done, firings = 0, 0
    for number, (a, b) in enumerate(spans(source, chunk_tokens)):
        chunk = place.load(number, a)
        if chunk is None and missing:
            chunk = missing(number, a)
        if chunk is None:
            chunk = encode(sae, source, a, b)
            place.save(number, a, chunk)
        if found is None:
            low = lowest_bin(float(chunk.codes.value.max(initial=0.0)) or 1.0)
            found = Statistics(sae.W_dec.shape[0], d_vocab, source.contexts.shape[1], low, sizes, seed)
        found.add(chunk, source.contexts[a:b], a)
        done, firings = done + len(chunk.norms), firings + len(chunk.codes)
        place.report(done)
        if on_progress:
            on_progress(done, source.n_tokens, {"L0": firings / max(done, 1)})
    assert found is not None
    return found


@dataclass(eq=False)
class Chosen:
    """The places of all examples, [d_sae places] each, and the strength bands."""

    position: np.ndarray
    group: np.ndarray
    band: np.ndarray
    value: np.ndarray
    band_edges: np.ndarray
    band_count: np.ndarray
    band_mass: np.ndarray

    def put(self, entries: Entries, feature: np.ndarray, place: np.ndarray, group: int, band=NO_BAND) -> None:
        self.position[feature, place], self.value[feature, place] = entries.position, entries.value
        self.group[feature, place], self.band[feature, place] = group, band


def choose(found: Statistics, edges: np.ndarray) -> Chosen:
    """From shortlists to places; near misses are still to come."""
    sizes, moments = found.sizes, found.moments
    d_sae = len(moments.count)
    shape = (d_sae, sizes.places)
    chosen = Chosen(
        np.full(shape, -1, np.int64),
        np.zeros(shape, np.uint8),
        np.full(shape, NO_BAND, np.uint8),
        np.zeros(shape, np.float32),
        *_bands(found, edges),
    )
    for group, entries, k in ((TOP, found.top.result(), sizes.top), (RANDOM, found.uniform.result(), sizes.random)):
        starts, lengths = runs(entries.group)
        nth = np.arange(len(entries)) - np.repeat(starts, lengths)
        some = entries[nth < k]
        chosen.put(some, some.group, sizes.start(group) + nth[nth < k], group)
    entries = found.in_bands.result()
    feature, half = entries.group // N_HALVES, entries.group % N_HALVES
    band = _display_band(moments, feature, half, sizes.bands)
    order = np.lexsort((entries.rank, band, feature))
    entries, feature, band = entries[order], feature[order], band[order]
    starts, lengths = runs(feature * sizes.bands + band)
    nth = np.arange(len(entries)) - np.repeat(starts, lengths)
    few = nth < sizes.per_band
    place = sizes.start(BANDS) + (sizes.bands - 1 - band) * sizes.per_band + nth
    chosen.put(entries[few], feature[few], place[few], BANDS, band[few])
    return chosen


def _halves(moments: Moments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(counts [d_sae N_HALVES], lowest and highest half octave in which a latent fired)."""
    counts = moments.histogram.reshape(len(moments.count), N_HALVES, -1).sum(2, dtype=np.int64)
    lit = counts > 0
    return counts, lit.argmax(1), N_HALVES - 1 - lit[:, ::-1].argmax(1)


def _display_band(moments: Moments, feature: np.ndarray, half: np.ndarray, n_bands: int) -> np.ndarray:
    _, low, high = _halves(moments)
    return band_of_bin(low[feature], high[feature], half, n_bands)


def _bands(found: Statistics, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges, counts and masses of the display bands; the outermost edges are the ends of the half octaves."""
    moments, n_bands = found.moments, found.sizes.bands
    counts, low, high = _halves(moments)
    d_sae = len(counts)
    count, mass = np.zeros((d_sae, n_bands), np.int64), np.zeros((d_sae, n_bands))
    ends = np.zeros((d_sae, n_bands + 1), np.float32)
    half_edges, rows = edges[:: len(edges) // N_HALVES], np.arange(d_sae)
    silent = moments.count == 0
    for half in range(N_HALVES):
        inside = (low <= half) & (half <= high) & ~silent
        band = band_of_bin(low[inside], high[inside], np.full(inside.sum(), half), n_bands)
        count[rows[inside], band] += counts[inside, half]
        mass[rows[inside], band] += moments.mass[inside, half]
        ends[rows[inside], band + 1] = half_edges[half + 1]
    ends[:, 0] = np.where(silent, 0, half_edges[low])
    return np.maximum.accumulate(ends, 1), count, mass


def chunks(source: Source, place: BuildFolder, chunk_tokens: int, sae: SAE) -> Iterator[tuple[int, int, Chunk]]:
    """The codes again, from disk."""
    for number, (a, b) in enumerate(spans(source, chunk_tokens)):
        chunk = place.load(number, a)
        if chunk is None:  # damaged since the first pass
            chunk = encode(sae, source, a, b)
            place.save(number, a, chunk)
        yield a, b, chunk


def near_candidates(source: Source, token_id: np.ndarray, token_count: np.ndarray, count: np.ndarray, seed: int) -> Entries:
    """Positions of a latent's up to four most frequent tokens (each at least a twentieth of its firings), drawn uniformly."""
    flat = np.flatnonzero(source.keep)
    ids = source.contexts.reshape(-1)[flat].astype(np.int64)
    drawn = priority(ids, flat, seed + 1)
    order = np.lexsort((drawn, ids))
    flat, ids = flat[order], ids[order]
    starts, lengths = runs(ids)
    first = np.zeros((int(ids.max(initial=0)) + 1), np.int64)
    n_of = np.zeros_like(first)
    first[ids[starts]], n_of[ids[starts]] = starts, np.minimum(lengths, _OCCURRENCES)
    often = (token_id[:, :4] >= 0) & (token_count[:, :4] * 20 >= np.maximum(count[:, None], 20))
    feature, k = np.nonzero(often)
    token = token_id[feature, k]
    repeats = n_of[token]
    group = np.repeat(feature, repeats).astype(np.int64)
    nth = np.arange(len(group)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    position = flat[np.repeat(first[token], repeats) + nth]
    value = np.zeros(len(group), np.float32)
    return Entries(group, priority(group, position, seed + 2), position, value, np.zeros(len(group), np.uint64))


def control_positions(source: Source, sizes: Sizes, seed: int) -> np.ndarray:
    """Middles of the control windows: a uniform draw of the positions that count, in rising order."""
    flat = np.flatnonzero(source.keep)
    drawn = np.argsort(priority(np.zeros(len(flat), np.int64), flat, seed + 3), kind="stable")
    return np.sort(flat[drawn[: sizes.controls]])


def near_and_cofiring(
    found: Statistics,
    candidates: Entries,
    again: Callable[[], Iterator[tuple[int, int, Chunk]]],
    n_positions: int,
    controls: np.ndarray,
) -> tuple[Entries, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Second pass, first half: candidates that are silent, which latents fire where each latent's sample fired, and which
    fire in the control windows."""
    sizes, n_ctx, d_sae = found.sizes, found.n_ctx, len(found.moments.count)
    near = Shortlist(d_sae, sizes.near)
    sample = found.uniform.result()
    starts, lengths = runs(sample.group)
    sample = sample[np.arange(len(sample)) - np.repeat(starts, lengths) < sizes.cofiring_sample]
    by_position = np.argsort(sample.position, kind="stable")
    candidates = candidates[np.argsort(candidates.position, kind="stable")]
    sample, pairs, lit = sample[by_position], [], []
    for a, b, chunk in again():
        keys = chunk.codes.keys(n_positions)
        some = candidates[slice(*np.searchsorted(candidates.position, [a * n_ctx, b * n_ctx]))]
        silent = chunk.codes.lookup(keys, some.group * n_positions + some.position) == 0
        near.add(some[silent])
        mine = sample[slice(*np.searchsorted(sample.position, [a * n_ctx, b * n_ctx]))]
        order = np.argsort(chunk.codes.position, kind="stable")
        position, feature = chunk.codes.position[order], chunk.codes.feature[order]
        pairs.append(_together(position, feature, mine, d_sae))
        windows = controls[slice(*np.searchsorted(controls, [a * n_ctx, b * n_ctx]))]
        lit += _in_windows(position, feature, windows, sizes.control_half, n_ctx)
    starts = np.cumsum([0, *map(len, lit)])
    lists = {"position": controls, "start": starts, "latent": np.concatenate([np.zeros(0, np.int32), *lit])}
    return near.result(), _cofiring(np.concatenate(pairs), found, sizes), lists


def _in_windows(position: np.ndarray, feature: np.ndarray, middles: np.ndarray, half: int, n_ctx: int) -> list[np.ndarray]:
    """For each window, the latents that fire anywhere in it; windows end with their context."""
    first = np.maximum(middles - half, middles // n_ctx * n_ctx)
    last = np.minimum(middles + half, middles // n_ctx * n_ctx + n_ctx - 1)
    start, stop = np.searchsorted(position, first, "left"), np.searchsorted(position, last, "right")
    return [np.unique(feature[i:j]).astype(np.int32) for i, j in zip(start, stop, strict=True)]


def _together(position: np.ndarray, feature: np.ndarray, sample: Entries, d_sae: int) -> np.ndarray:
    """feature * d_sae + other, for every latent that fires where a sampled firing lies; firings come in order of position."""
    start, stop = (np.searchsorted(position, sample.position, side) for side in ("left", "right"))
    repeats = stop - start
    nth = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    other = feature[np.repeat(start, repeats) + nth]
    mine = np.repeat(sample.group, repeats)
    return (mine * d_sae + other)[mine != other]


def _cofiring(pairs: np.ndarray, found: Statistics, sizes: Sizes) -> dict[str, np.ndarray]:
    """Of the latents seen at least twice, those with the largest P(j | i) x log2(lift), the largest first."""
    d_sae, k = len(found.moments.count), sizes.cofiring
    pairs = np.sort(pairs)
    starts, hits = runs(pairs)
    feature, other = pairs[starts] // d_sae, pairs[starts] % d_sae
    n_tokens = sum(map(len, found.norms))
    sampled = np.minimum(found.moments.count, sizes.cofiring_sample)
    p = hits / np.maximum(sampled[feature], 1)
    lift = p * n_tokens / np.maximum(found.moments.count[other], 1)
    weight = p * np.log2(np.maximum(lift, 1e-12))
    told = (hits >= 2) & (weight > 0)
    feature, other, p, lift, weight = (column[told] for column in (feature, other, p, lift, weight))
    order = np.lexsort((other, -weight, feature))
    feature, other, p, lift = (column[order] for column in (feature, other, p, lift))
    starts, lengths = runs(feature)
    nth = np.arange(len(feature)) - np.repeat(starts, lengths)
    few = nth < k
    out = {"cofiring_id": np.full((d_sae, k), -1, np.int32)}
    out["cofiring_p"], out["cofiring_lift"] = np.zeros((d_sae, k), np.float32), np.zeros((d_sae, k), np.float32)
    for name, column in (("cofiring_id", other), ("cofiring_p", p), ("cofiring_lift", lift)):
        out[name][feature[few], nth[few]] = column[few]
    return out


def fill_windows(
    chosen: Chosen,
    sizes: Sizes,
    again: Callable[[], Iterator[tuple[int, int, Chunk]]],
    n_ctx: int,
    n_positions: int,
    acts: np.ndarray,
) -> None:
    """Second pass, second half: the latent's activation at each token around every example, into `acts`."""
    feature, place = np.nonzero(chosen.group)
    position = chosen.position[feature, place]
    order = np.argsort(position, kind="stable")
    feature, place, position = feature[order], place[order], position[order]
    offsets = np.arange(-sizes.window, sizes.window + 1)
    for a, b, chunk in again():
        inside = slice(*np.searchsorted(position, [a * n_ctx, b * n_ctx]))
        f, where = feature[inside], position[inside]
        if not len(f):
            continue
        around = where[:, None] + offsets
        wanted = f[:, None].astype(np.int64) * n_positions + around
        values = chunk.codes.lookup(chunk.codes.keys(n_positions), wanted)
        acts[f, place[inside]] = np.where(around // n_ctx == where[:, None] // n_ctx, values, 0)
