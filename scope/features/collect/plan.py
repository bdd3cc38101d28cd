"""Memory and disk that making a pack takes, estimated from sizes alone.

Nothing is d_sae x d_sae: co-firing is counted on a sample of each latent's firings, neighbours are sought block by block.
"""

from dataclasses import dataclass

from scope.features.collect import first_pass
from scope.features.collect.config import CollectConfig
from scope.features.collect.streams import N_HALVES
from scope.features.pack.format import N_BINS, RELATIONS

_LATENTS_FIRING = 64  # a token, where nobody knows better
_ENTRY = 40  # bytes of a row of a shortlist
_SORTING = 3  # times its size that a shortlist takes while it is sorted
_PAIRS = 1 << 23  # (latent, token) pairs in memory
_BASE = 400 << 20  # Python, torch and the libraries
_CODE = 10  # bytes of a firing on disk


@dataclass(frozen=True)
class Plan:
    """Bytes, part by part. Memory leaves out model and dictionary, which are loaded already."""

    memory: dict[str, int]
    building: int
    """Disk that is free again when the pack is done."""
    pack: int

    @property
    def peak(self) -> int:
        return sum(self.memory.values())


def plan(
    d_sae: int, d_in: int, d_vocab: int, n_tokens: int, n_ctx: int, config: CollectConfig, l0: float | None = None
) -> Plan:
    """Upper estimates for `n_tokens` tokens in contexts of `n_ctx`. `l0` is the mean number of latents that fire on a token."""
    sizes, firings = config.sizes, n_tokens * (l0 or _LATENTS_FIRING)
    chunk = min(config.chunk_tokens, n_tokens)
    entries = sizes.top + sizes.uniform(d_sae) + N_HALVES * sizes.per_band
    shortlists = int(min(entries * d_sae, 3 * firings)) * _ENTRY * _SORTING
    windows = d_sae * sizes.places * (2 * sizes.window + 1) * 4
    relations = d_sae * 4 * (40 + 3 * sizes.cofiring + 5 * sizes.tokens + 60 + 42 + 2 * sizes.firings_of(d_sae))
    memory = {
        "latents of a stretch": 4 * 4 * min(first_pass.DENSE, chunk * d_sae),
        "activations and firings of a chunk": chunk * (4 * d_in + 100 * int(l0 or _LATENTS_FIRING)),
        "moments and histograms": d_sae * (8 * 5 + 4 + 4 * N_BINS + 8 * N_HALVES),
        "shortlists": shortlists,
        "tokens by latent": int(min(firings, 3 * _PAIRS)) * 24,
        "examples and bands": d_sae * sizes.places * 14 + d_sae * sizes.bands * 20,
        "windows": min(windows, 1 << 28),
        "relations and table": relations + d_sae * 2000,
        "directions and their logits": 2 * 4 * d_sae * d_in + 5 * (1 << 26) + 4 * d_in * d_vocab,
        "text": n_tokens * 13,
        "program": _BASE,
    }
    building = int(firings * _CODE) + (windows if windows > 1 << 28 else 0)
    pack = d_sae * (len(RELATIONS) * 8 * 16 + 1000 + 4 * sizes.firings_of(d_sae)) + int(windows * 0.12) + n_tokens * 8
    return Plan(memory, building, pack)
