"""The first pass: encode every context once, keep only what fired, and add up all statistics of all latents at once.

Memory: latents of a stretch while it is encoded (about 0.5 GB at most), the shortlists (about 40 bytes x
(top + random + half octaves x per_band) x living latents), 16 bytes a (latent, token) pair up to 8 M pairs, the token ids.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from scope.activations.corpus.roles import Role
from scope.errors import DictionaryError
from scope.features.collect.build_folder import BuildFolder, Chunk
from scope.features.collect.codes import Codes, lowest_bin, priority, surroundings
from scope.features.collect.config import Sizes
from scope.features.collect.source import Pictures, Source
from scope.features.collect.streams import (
    N_HALVES,
    Entries,
    Moments,
    RoleCounts,
    Shortlist,
    TokenCounts,
    WordsBeside,
    start_bins,
    strongest_per_context,
)
from scope.progress import OnProgress
from scope.sae.base import SAE
from scope.shapes import Acts

DENSE = 1 << 25  # latents [tok d_sae] that are computed at once, whatever the chunk; an encoder holds about four such arrays


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
    step = max(1, DENSE // sae.W_dec.shape[0])
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
        raise DictionaryError(f"Activations or latents in context {context} are not finite.")


class Statistics:
    """Everything the first pass gathers."""

    def __init__(self, d_sae: int, d_vocab: int, n_ctx: int, low: int, sizes: Sizes, seed: int):
        self.sizes, self.seed, self.n_ctx, self.low = sizes, seed, n_ctx, low
        self.moments = Moments(d_sae, low)
        self.top = Shortlist(d_sae, sizes.top, unique=True)
        self.in_bands = Shortlist(d_sae * N_HALVES, sizes.per_band)
        self.uniform = Shortlist(d_sae, sizes.uniform(d_sae))
        self.tokens = TokenCounts(d_vocab, sizes.tokens)
        self.norms: list[np.ndarray] = []
        self.roles = RoleCounts(d_sae, len(Role))
        self.beside: WordsBeside | None = None

    def add_roles(self, chunk: Chunk, roles: np.ndarray, keep: np.ndarray, first_context: int) -> None:
        """`roles` and `keep` are those of the rows of the chunk's contexts."""
        codes, local = chunk.codes, chunk.codes.position - first_context * self.n_ctx
        self.roles.add(codes.feature, codes.value, roles.reshape(-1)[local], np.bincount(roles[keep], minlength=len(Role)))

    def add(self, chunk: Chunk, contexts: np.ndarray, first_context: int, pictures: Pictures | None = None) -> None:
        """`contexts` are the tokens of the chunk's contexts; `pictures` those of all contexts."""
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
        seen = (None, 0)
        if pictures is not None:
            seen = pictures.hashes[first_context : first_context + len(contexts)], pictures.n_patches
            self.beside = self.beside or WordsBeside(len(self.moments.count), pictures.texts)
            strongest = codes.feature[best], codes.position[best] // self.n_ctx, codes.value[best]
            self.beside.add(*strongest, first_context, len(contexts))
        twin = surroundings(contexts, self.sizes.twin_radius, *seen).reshape(-1)[local[best]]
        self.top.add(Entries(group[best], weaker_first, codes.position[best], codes.value[best], twin))


def gather(
    sae: SAE,
    source: Source,
    building: BuildFolder,
    sizes: Sizes,
    chunk_tokens: int,
    d_vocab: int,
    seed: int,
    on_progress: OnProgress | None = None,
    missing: Callable[[int, int], Chunk | None] | None = None,
) -> Statistics:
    """The first pass: encode (or take up what an earlier run encoded) and add up. `missing` may bring a chunk that is not
    there, as from another process."""
    statistics: Statistics | None = None
    done, firings = 0, 0
    for number, (a, b) in enumerate(spans(source, chunk_tokens)):
        chunk = building.load(number, a)
        if chunk is None and missing:
            chunk = missing(number, a)
        if chunk is None:
            chunk = encode(sae, source, a, b)
            building.save(number, a, chunk)
        if statistics is None:
            low = lowest_bin(float(chunk.codes.value.max(initial=0.0)) or 1.0)
            statistics = Statistics(sae.W_dec.shape[0], d_vocab, source.contexts.shape[1], low, sizes, seed)
        statistics.add(chunk, source.contexts[a:b], a, source.pictures)
        if source.roles is not None:
            statistics.add_roles(chunk, source.roles[a:b], source.keep[a:b], a)
        done, firings = done + len(chunk.norms), firings + len(chunk.codes)
        building.report(done)
        if on_progress:
            on_progress(done, source.n_tokens, {"L0": firings / max(done, 1)})
    assert statistics is not None
    if source.control is not None:
        _add_control(sae, source.control(), statistics.roles)
    return statistics


@torch.no_grad()
def _add_control(sae: SAE, acts: Acts, roles: RoleCounts) -> None:
    """Add what fires at control tokens, which no other statistic counts."""
    device, step = sae.W_enc.device, max(1, DENSE // sae.W_dec.shape[0])
    rows = np.bincount([int(Role.CONTROL)], minlength=len(Role))
    for start in range(0, len(acts), step):
        latents = sae.encode(acts[start : start + step].to(device))
        row, column = (latents > 0).nonzero(as_tuple=True)
        values = latents[row, column].float().cpu().numpy()
        at = np.full(len(values), int(Role.CONTROL))
        roles.add(column.cpu().numpy(), values, at, rows * len(latents))


def chunks(source: Source, building: BuildFolder, chunk_tokens: int, sae: SAE) -> Iterator[tuple[int, int, Chunk]]:
    """The codes again, from disk."""
    for number, (a, b) in enumerate(spans(source, chunk_tokens)):
        chunk = building.load(number, a)
        if chunk is None:  # damaged since the first pass
            chunk = encode(sae, source, a, b)
            building.save(number, a, chunk)
        yield a, b, chunk
