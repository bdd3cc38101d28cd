"""Windows of text for labelling a latent, and others for testing its label; no context is in both.

Shown: half of the top examples and half of those of each strength band. Held out, firing: half from the uniform sample of
all firings, half from the bands, so that weak firings count as they occur and as they range. Held out, silent: control
windows of the pack, drawn uniformly from its text, in which the latent fires nowhere.
"""

from dataclasses import dataclass

import numpy as np

from scope.escape import visible_token
from scope.features.pack.feature import Example, Feature

N_SHOWN, N_FIRING, N_SILENT = 16, 10, 10
HALF = 16
"""Tokens on either side of a window's middle."""

_CLEAR = 0.3
"""Share of the strongest activation of a window from which a token is marked."""


@dataclass(frozen=True)
class Window:
    """A stretch of text: its tokens as text and ids, and the latent's activation at each where that is known."""

    pieces: tuple[str, ...]
    ids: tuple[int, ...]
    acts: tuple[float, ...] | None = None

    @property
    def text(self) -> str:
        return joined(self.pieces)

    @property
    def marked(self) -> str:
        """The text with the tokens on which the latent fires clearly between « and »."""
        least = _CLEAR * max(self.acts or (0.0,))
        fires = [bool(self.acts) and a > 0 and a >= least for a in self.acts or ()]
        return joined([f"«{p}»" if on else p for p, on in zip(self.pieces, fires, strict=True)]).replace("»«", "")


@dataclass(frozen=True)
class Evidence:
    """`shown` to the labeller; `windows` and whether the latent `fires` in each are kept from it, mixed by a seed."""

    latent: int
    shown: tuple[Window, ...]
    windows: tuple[Window, ...]
    fires: tuple[bool, ...]

    @property
    def testable(self) -> bool:
        return any(self.fires) and not all(self.fires)


def joined(pieces) -> str:
    """Tokens as running text on one line; what cannot be seen is shown as a glyph."""
    return "".join(
        " " * (len(p) - len(p.lstrip(" "))) + visible_token(p.lstrip(" ")) if p.strip(" ") else p for p in pieces
    ).strip()


def gather(feature: Feature, seed: int = 0) -> Evidence:
    """The windows of one latent. Without control windows in the pack, or without firings to spare, it is not testable.

    Raises:
        PackError: its examples are damaged.
    """
    groups = {name: feature.examples(name, 10_000) for name in ("top", "bands", "random")} if not feature.dead else {}
    bands = groups.get("bands", [])
    shown = [*groups.get("top", [])[::2], *bands[::2]][:N_SHOWN]
    used = {e.context for e in shown}
    texts = {window_of(e).ids for e in shown}
    firing: dict[tuple[int, int], Window] = {}
    for some, most in (
        (groups.get("random", []), N_FIRING // 2),
        (bands[1::2], N_FIRING),
        (groups.get("random", []), N_FIRING),
    ):
        for e in some:
            window = window_of(e)
            if len(firing) < most and e.context not in used and window.ids not in texts:
                firing.setdefault((e.context, e.offset), window)
                texts.add(window.ids)
    silent = [w for w in _silent(feature, used, seed) if w.ids not in texts][:N_SILENT] if firing else []
    pairs = [*((w, True) for w in firing.values()), *((w, False) for w in silent)]
    order = np.random.default_rng([seed, feature.id]).permutation(len(pairs))
    mixed = [pairs[i] for i in order]
    windows, fires = tuple(w for w, _ in mixed), tuple(on for _, on in mixed)
    return Evidence(feature.id, tuple(map(window_of, shown)), windows, fires)


def window_of(example: Example) -> Window:
    near = slice(max(0, example.peak - HALF), example.peak + HALF + 1)
    return Window(tuple(example.tokens[near]), tuple(example.ids[near]), tuple(map(float, example.acts[near])))


def _silent(feature: Feature, used: set[int], seed: int) -> list[Window]:
    """Control windows without a firing, in an order of the latent's own."""
    pack, controls = feature.pack, feature.pack.controls
    if controls is None:
        return []
    half, n_ctx = min(HALF, pack.manifest.control_half or HALF), pack.n_ctx
    at = np.flatnonzero(controls["latent"] == feature.id)
    lit = set(np.searchsorted(controls["start"], at, "right") - 1)
    found = []
    for i in np.random.default_rng([seed, feature.id, 1]).permutation(len(controls["position"])):
        context, offset = divmod(int(controls["position"][i]), n_ctx)
        if i in lit or context in used:
            continue
        ids = pack.contexts[context][max(0, offset - half) : offset + half + 1]
        ids = tuple(int(t) for t in ids[ids != pack.pad])
        found.append(Window(tuple(pack.pieces(ids)), ids))
        if len(found) == 2 * N_SILENT:
            break
    return found
