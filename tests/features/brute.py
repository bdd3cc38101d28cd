"""Every statistic of a pack, computed the slow and obvious way from dense latents: what `collect` is held against."""

import math

import numpy as np

from scope.features.collect.codes import priority
from scope.features.pack.format import N_BINS, NO_BAND


def bin_of(value: float, low: int) -> int:
    """8 bins an octave by way of logarithms, not of bit patterns."""
    mantissa, exponent = math.frexp(float(np.float32(value)))  # value = mantissa * 2^exponent, mantissa in [0.5, 1)
    index = (exponent - 1 + 127) * 8 + int((mantissa * 2 - 1) * 8)
    return min(max(index - low, 0), N_BINS - 1)


class Brute:
    """Statistics of dense latents [n_contexts context d_sae] over tokens [n_contexts context] where `keep` is True."""

    def __init__(
        self, latents, tokens, keep, low, seed=0, top=16, per_band=5, n_bands=5, random=12, near=6, window=32, radius=6
    ):
        self.latents = np.where(keep[..., None], latents, 0).astype(np.float32)
        self.tokens, self.keep, self.low, self.seed = tokens, keep, low, seed
        self.n_contexts, self.n_ctx, self.d_sae = latents.shape
        self.sizes = {"top": top, "bands": per_band * n_bands, "random": random, "near": near}
        self.top_k, self.per_band, self.n_bands, self.n_random = top, per_band, n_bands, random
        self.window, self.radius = window, radius

    def firings(self, f):
        """[(position, value)] in order of position."""
        flat = self.latents[:, :, f].reshape(-1)
        return [(int(p), float(flat[p])) for p in np.flatnonzero(flat > 0)]

    def around(self, position):
        c, o = divmod(position, self.n_ctx)
        return tuple(int(self.tokens[c, k]) if 0 <= k < self.n_ctx else -1 for k in range(o - self.radius, o + self.radius + 1))

    def histogram(self, f):
        counts = np.zeros(N_BINS, np.int64)
        for _, v in self.firings(f):
            counts[bin_of(v, self.low)] += 1
        return counts

    def top(self, f):
        best = {}
        for p, v in self.firings(f):
            c = p // self.n_ctx
            if c not in best or v > best[c][1]:
                best[c] = (p, v)
        chosen, seen = [], set()
        for p, v in sorted(best.values(), key=lambda pv: (-pv[1], pv[0])):
            if self.around(p) not in seen:
                seen.add(self.around(p))
                chosen.append((p, v))
        return chosen[: self.top_k]

    def random(self, f, n=None):
        ordered = sorted(self.firings(f), key=lambda pv: int(priority(np.array([f]), np.array([pv[0]]), self.seed)[0]))
        return ordered[: self.n_random if n is None else n]

    def bands(self, f):
        """[(position, value, band)] and (edges, counts, masses)."""
        fired = self.firings(f)
        if not fired:
            return [], None
        half = {p: bin_of(v, self.low) // 4 for p, v in fired}
        lo, hi = min(half.values()), max(half.values())
        n = min(self.n_bands, hi - lo + 1)
        band = {p: (half[p] - lo) * n // (hi - lo + 1) for p, _ in fired}
        chosen, counts, masses = [], [], []
        for b in range(n):
            inside = [(p, v) for p, v in self.random(f, len(fired)) if band[p] == b]
            chosen += [(p, v, b) for p, v in inside[: self.per_band]]
            counts.append(len(inside))
            masses.append(sum(v for _, v in inside))
        return chosen, (counts, masses)

    def token_counts(self, f):
        counts, sums = {}, {}
        for p, v in self.firings(f):
            t = int(self.tokens.reshape(-1)[p])
            counts[t], sums[t] = counts.get(t, 0) + 1, sums.get(t, 0.0) + v
        return sorted(((t, n, sums[t]) for t, n in counts.items()), key=lambda r: (-r[1], r[0]))

    def acts(self, f, position):
        c, o = divmod(position, self.n_ctx)
        out = np.zeros(2 * self.window + 1, np.float32)
        for k in range(-self.window, self.window + 1):
            if 0 <= o + k < self.n_ctx:
                out[k + self.window] = self.latents[c, o + k, f]
        return out

    def totals(self, d_vocab):
        return np.bincount(self.tokens[self.keep], minlength=d_vocab)

    def examples(self):
        """The arrays of examples.h5, near misses taken as the first silent positions on the latent's top token."""
        places = sum(self.sizes.values())
        position = np.full((self.d_sae, places), -1, np.int64)
        group, value = np.zeros((self.d_sae, places), np.uint8), np.zeros((self.d_sae, places), np.float32)
        band = np.full((self.d_sae, places), NO_BAND, np.uint8)
        acts = np.zeros((self.d_sae, places, 2 * self.window + 1), np.float32)
        band_edges = np.zeros((self.d_sae, self.n_bands + 1), np.float32)
        band_count, band_mass = np.zeros((self.d_sae, self.n_bands), np.int64), np.zeros((self.d_sae, self.n_bands))
        for f in range(self.d_sae):
            in_bands, shares = self.bands(f)
            rows = [(p, v, NO_BAND, 1) for p, v in self.top(f)]
            rows += [(p, v, b, 2) for p, v, b in sorted(in_bands, key=lambda r: -r[2])]
            rows += [(p, v, NO_BAND, 3) for p, v in self.random(f)]
            rows += [(p, 0.0, NO_BAND, 4) for p in self.silent(f)]
            for k, (p, v, b, g) in enumerate(rows):
                position[f, k], value[f, k], band[f, k], group[f, k], acts[f, k] = p, v, b, g, self.acts(f, p)
            if shares:
                n = len(shares[0])
                band_count[f, :n], band_mass[f, :n] = shares
                low, high = min(v for _, v in self.firings(f)), max(v for _, v in self.firings(f))
                band_edges[f, : n + 1] = np.geomspace(low, high * 1.001, n + 1)
                band_edges[f, n + 1 :] = band_edges[f, n]
        histogram = np.stack([self.histogram(f) for f in range(self.d_sae)])
        return {
            "position": position,
            "group": group,
            "band": band,
            "value": value,
            "acts": acts,
            "histogram": histogram,
            "band_edges": band_edges,
            "band_count": band_count,
            "band_mass": band_mass,
        }

    def silent(self, f):
        counts = self.token_counts(f)
        if not counts:
            return []
        flat, kept = self.tokens.reshape(-1), self.keep.reshape(-1)
        fired = {p for p, _ in self.firings(f)}
        return [int(p) for p in np.flatnonzero((flat == counts[0][0]) & kept) if int(p) not in fired][: self.sizes["near"]]
