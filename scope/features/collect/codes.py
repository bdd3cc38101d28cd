"""Sparse activations of a dictionary on a stretch of text, and arithmetic that all statistics share."""

from dataclasses import dataclass

import numpy as np

from scope.features.pack.format import N_BINS

_BIN_SHIFT = 20  # of the bits of a float32: 8 exponent bits and 3 of the fraction remain, so 8 bins an octave
BINS_PER_BAND = 4  # a sampling band is half an octave


@dataclass(frozen=True, eq=False)
class Codes:
    """What fired in some whole contexts: triples in order of latent, then of position.

    A position is context * n_ctx + offset, counted over the whole corpus.
    """

    feature: np.ndarray  # int32
    position: np.ndarray  # int64
    value: np.ndarray  # float32, > 0

    def __len__(self) -> int:
        return len(self.feature)

    def keys(self, n_positions: int) -> np.ndarray:
        """feature * n_positions + position, ascending: what `lookup` searches."""
        return self.feature.astype(np.int64) * n_positions + self.position

    def lookup(self, keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The values at the wanted keys, 0 where nothing fired; `keys` are this object's `keys`."""
        if not len(keys):
            return np.zeros(wanted.shape, np.float32)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, self.value[at], np.float32(0))


def lowest_bin(largest: float) -> int:
    """Where the histogram begins so that its 20 octaves reach from 2^-15 to 2^5 times a typical large activation."""
    top = int(np.float32(max(largest, 1e-30)).view(np.int32)) >> 23
    return max(1, top - 15) << 3


def bins(values: np.ndarray, low: int) -> np.ndarray:
    """Histogram bin of each activation; what lies outside the 20 octaves is counted in the first or last bin."""
    return np.clip((values.astype(np.float32).view(np.int32) >> _BIN_SHIFT) - low, 0, N_BINS - 1)


def edges(low: int) -> np.ndarray:
    """[N_BINS + 1] edges of the bins, in units of activation."""
    return ((np.arange(N_BINS + 1) + low).astype(np.uint32) << np.uint32(_BIN_SHIFT)).view(np.float32).astype(np.float64)


def priority(feature: np.ndarray, position: np.ndarray, seed: int) -> np.ndarray:
    """A uint64 for each firing, as good as random and fixed by (feature, position, seed).

    The r smallest of any set are a uniform sample of it, however the set was split and merged.
    Source: splitmix64's finaliser, Steele, Lea and Flood 2014.
    """
    with np.errstate(over="ignore"):  # wrapping around is meant
        x = np.asarray(feature).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = x + _mix(np.asarray(position).astype(np.uint64) + _mix(np.array(seed + 1, np.uint64)))
        return _mix(x)


def _mix(x: np.ndarray | np.uint64) -> np.ndarray | np.uint64:  # numpy makes scalars of arrays without dimensions
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def surroundings(contexts: np.ndarray, radius: int, pictures: np.ndarray | None = None, n_patches: int = 0) -> np.ndarray:
    """uint64 [n_contexts context]: equal where the tokens from `radius` before to `radius` after are equal.

    Beyond the ends of a context counts as a token of its own, so a cut text differs from a whole one. With `pictures`
    [n_contexts], hashes of the contexts' pictures, these are to be equal too; the first `n_patches` rows are patches, of which
    two of equal pictures are equal.
    """
    padded = np.pad(contexts.astype(np.uint64) + np.uint64(1), ((0, 0), (radius, radius)))
    out = np.zeros(contexts.shape, np.uint64)
    with np.errstate(over="ignore"):
        for k in range(2 * radius + 1):
            out = _mix(out * np.uint64(0x100000001B3) + padded[:, k : k + contexts.shape[1]])
        if pictures is not None:
            out[:, :n_patches] = 0
            out = _mix(out + _mix(pictures + np.uint64(1))[:, None])
    return out


def band_of_bin(low_bin: np.ndarray, high_bin: np.ndarray, half_octave: np.ndarray, n_bands: int) -> np.ndarray:
    """Which of up to `n_bands` display bands a half octave belongs to, when the latent fired from low_bin to high_bin."""
    span = high_bin - low_bin + 1
    return (half_octave - low_bin) * np.minimum(n_bands, span) // span
