"""The second pass: windows, near misses, co-firing and control windows for the examples that the first pass chose."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from scope.features.collect.build_folder import BuildFolder, Chunk
from scope.features.collect.codes import band_of_bin, edges, priority
from scope.features.collect.config import CollectConfig, Sizes
from scope.features.collect.first_pass import Statistics, chunks
from scope.features.collect.source import Pictures, Source
from scope.features.collect.streams import (
    N_HALVES,
    Entries,
    Moments,
    Shortlist,
    runs,
)
from scope.features.pack.format import NO_BAND
from scope.sae.base import SAE

Arrays = dict[str, np.ndarray]
TOP, BANDS, RANDOM, NEAR = 1, 2, 3, 4
_OCCURRENCES = 64  # of a token, drawn uniformly, among which near misses are looked for
_IN_MEMORY = 1 << 28  # bytes of example windows above which they are gathered in a mapped file


def look_up(
    sae: SAE, source: Source, building: BuildFolder, statistics: Statistics, config: CollectConfig
) -> tuple[Arrays, Arrays, Arrays, Arrays, Arrays | None]:
    """(examples, co-firing and token relations, token statistics, control windows, pictures of the examples if there are
    any)."""
    sizes, (n_contexts, n_ctx) = config.sizes, source.contexts.shape
    d_sae, n_positions = len(statistics.moments.count), n_contexts * n_ctx

    def again():
        return chunks(source, building, config.chunk_tokens, sae)

    chosen, pictures = choose(statistics, edges(statistics.low)), None
    tokens = statistics.tokens.result(d_sae)
    candidates = near_candidates(source, tokens["id"], tokens["count"], statistics.moments.count, config.seed)
    middles = control_positions(source, sizes, config.seed)
    near, relations, controls = near_and_cofiring(statistics, candidates, again, n_positions, middles)
    starts, lengths = runs(near.group)
    chosen.put(near, near.group, sizes.start(NEAR) + np.arange(len(near)) - np.repeat(starts, lengths), NEAR)
    shape = (d_sae, sizes.places, 2 * sizes.window + 1)
    large = math.prod(shape) * 4 > _IN_MEMORY
    acts = np.memmap(building.folder / "windows", np.float32, "w+", shape=shape) if large else np.zeros(shape, np.float32)
    fill_windows(chosen, sizes, again, n_ctx, n_positions, acts)
    examples = {**vars(chosen), "acts": acts, "histogram": statistics.moments.histogram}
    if source.pictures is not None:
        heat = fires_in_pictures(chosen, source.pictures.n_patches, again, n_ctx, n_positions)
        pictures = {**pictures_of(chosen, source.pictures, n_contexts, n_ctx), **heat}
    relations |= {f"token_{name}": tokens[name] for name in ("id", "count", "sum")}
    return examples, relations, tokens, controls, pictures


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


def choose(statistics: Statistics, edges: np.ndarray) -> Chosen:
    """From shortlists to places; near misses are still to come."""
    sizes, moments = statistics.sizes, statistics.moments
    d_sae = len(moments.count)
    shape = (d_sae, sizes.places)
    chosen = Chosen(
        np.full(shape, -1, np.int64),
        np.zeros(shape, np.uint8),
        np.full(shape, NO_BAND, np.uint8),
        np.zeros(shape, np.float32),
        *_bands(statistics, edges),
    )
    for group, entries, k in ((TOP, statistics.top.result(), sizes.top), (RANDOM, statistics.uniform.result(), sizes.random)):
        starts, lengths = runs(entries.group)
        nth = np.arange(len(entries)) - np.repeat(starts, lengths)
        some = entries[nth < k]
        chosen.put(some, some.group, sizes.start(group) + nth[nth < k], group)
    entries = statistics.in_bands.result()
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


def _bands(statistics: Statistics, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges, counts and masses of the display bands; the outermost edges are the ends of the half octaves."""
    moments, n_bands = statistics.moments, statistics.sizes.bands
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


def firing_positions(statistics: Statistics) -> np.ndarray:
    """Int[d_sae firings] positions of uniformly drawn firings of each latent, in rising order; -1 is an empty place."""
    d_sae = len(statistics.moments.count)
    drawn, k = statistics.uniform.result(), statistics.sizes.firings_of(d_sae)
    positions = np.full((d_sae, k), -1, np.int64)
    starts, lengths = runs(drawn.group)
    nth = np.arange(len(drawn)) - np.repeat(starts, lengths)
    few = nth < k
    positions[drawn.group[few], nth[few]] = drawn.position[few]
    return np.sort(positions, 1)


def control_positions(source: Source, sizes: Sizes, seed: int) -> np.ndarray:
    """Middles of the control windows: a uniform draw of the positions that count, in rising order."""
    flat = np.flatnonzero(source.keep)
    drawn = np.argsort(priority(np.zeros(len(flat), np.int64), flat, seed + 3), kind="stable")
    return np.sort(flat[drawn[: sizes.controls]])


def near_and_cofiring(
    statistics: Statistics,
    candidates: Entries,
    again: Callable[[], Iterator[tuple[int, int, Chunk]]],
    n_positions: int,
    controls: np.ndarray,
) -> tuple[Entries, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Second pass, first half: candidates that are silent, which latents fire where each latent's sample fired, and which
    fire in the control windows."""
    sizes, n_ctx, d_sae = statistics.sizes, statistics.n_ctx, len(statistics.moments.count)
    near = Shortlist(d_sae, sizes.near)
    sample = statistics.uniform.result()
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
    return near.result(), _cofiring(np.concatenate(pairs), statistics, sizes), lists


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


def _cofiring(pairs: np.ndarray, statistics: Statistics, sizes: Sizes) -> dict[str, np.ndarray]:
    """Of the latents seen at least twice, those with the largest P(j | i) x log2(lift), the largest first."""
    d_sae, k = len(statistics.moments.count), sizes.cofiring
    pairs = np.sort(pairs)
    starts, hits = runs(pairs)
    feature, other = pairs[starts] // d_sae, pairs[starts] % d_sae
    n_tokens = sum(map(len, statistics.norms))
    sampled = np.minimum(statistics.moments.count, sizes.cofiring_sample)
    p = hits / np.maximum(sampled[feature], 1)
    lift = p * n_tokens / np.maximum(statistics.moments.count[other], 1)
    weight = p * np.log2(np.maximum(lift, 1e-12))
    shown = (hits >= 2) & (weight > 0)
    feature, other, p, lift, weight = (column[shown] for column in (feature, other, p, lift, weight))
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


def pictures_of(chosen: Chosen, pictures: Pictures, n_contexts: int, n_ctx: int) -> Arrays:
    """The small pictures of all contexts in which an example lies, and which context has which."""
    wanted = np.unique(chosen.position[chosen.group > 0] // n_ctx)
    files = [(context, data) for context in wanted.tolist() if (data := pictures.thumbnail(context)) is not None]
    of_context = np.full(n_contexts, -1, np.int32)
    of_context[[context for context, _ in files]] = np.arange(len(files))
    return {
        "file": np.frombuffer(b"".join(data for _, data in files), np.uint8),
        "file_start": np.cumsum([0, *(len(data) for _, data in files)]),
        "size": pictures.sizes[[context for context, _ in files]].reshape(-1, 2),
        "of_context": of_context,
    }


def fires_in_pictures(
    chosen: Chosen, n_patches: int, again: Callable[[], Iterator[tuple[int, int, Chunk]]], n_ctx: int, n_positions: int
) -> Arrays:
    """Where in its picture the latent of each example fires: of example e = latent * places + place, patches
    patch[patch_start[e] : patch_start[e + 1]] with the activations there."""
    feature, place = np.nonzero(chosen.group)
    position = chosen.position[feature, place]
    order = np.argsort(position, kind="stable")
    feature, place, position = feature[order], place[order], position[order]
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for a, b, chunk in again():
        inside = slice(*np.searchsorted(position, [a * n_ctx, b * n_ctx]))
        begins = position[inside] // n_ctx * n_ctx
        first = feature[inside].astype(np.int64) * n_positions + begins
        keys = chunk.codes.keys(n_positions)
        low, high = np.searchsorted(keys, first), np.searchsorted(keys, first + n_patches)
        lengths = high - low
        rows = np.repeat(low, lengths) + np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        example = np.repeat(feature[inside] * chosen.group.shape[1] + place[inside], lengths)
        parts.append((example, chunk.codes.position[rows] - np.repeat(begins, lengths), chunk.codes.value[rows]))
    example, patch, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(example, kind="stable")
    counts = np.bincount(example, minlength=chosen.group.size)
    return {"patch_start": np.cumsum([0, *counts]), "patch": patch[order].astype(np.int32), "patch_act": value[order]}
