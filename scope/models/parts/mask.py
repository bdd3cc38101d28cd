"""Causal masks, with or without a window: whole, or in pieces, each with only the keys that some query of it sees."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scope.errors import TokensError
from scope.shapes import Mask, Positions

Visible = Bool[Tensor, "batch pos key"]
KeyPositions = Int[Tensor, "batch key"]
KeyReal = Bool[Tensor, "batch key"]
_HIDDEN = -1e4
"""Added to a score, this and less leaves nothing of its token; masks of float16 have -65504 at the lowest."""

Hidden = Bool[Tensor, "#batch pos _"]


def as_mask(mask: Tensor) -> Mask:
    """A mask in any of the forms in use as True where a token is seen: bool, 0 and 1, or additive, which has 0 where a token is
    seen and -inf, or a number that a softmax cannot tell from it, where it is hidden.

    Raises:
        TokensError: other numbers, which could mean either.
    """
    if mask.dtype == torch.bool:
        return mask
    if bool(((mask == 0) | (mask == 1)).all()) and (not mask.is_floating_point() or bool(mask.any())):
        return mask == 1
    if mask.is_floating_point() and bool(((mask == 0) | (mask <= _HIDDEN)).all()):  # all 0 hides nothing
        return mask == 0
    values = ", ".join(f"{value:g}" for value in mask.unique()[:6].tolist())
    raise TokensError(
        f"attention_mask holds {values}; it must be bool, 1 (seen) and 0 (hidden), or additive: 0 (seen) and at most "
        f"{_HIDDEN:g}, such as -inf (hidden)."
    )


def visible(query_pos: Tensor, key_pos: Tensor, real: Tensor, window: int | None) -> Visible:
    """Which keys each query sees: real ones, not after it, and, in a local layer, fewer than `window` back.

    Positions are absolute [batch pos] and [batch key], so the same rule serves prompts, padding and cached decoding.
    """
    distance = query_pos[:, :, None] - key_pos[:, None, :]
    seen = (distance >= 0) & real[:, None, :]
    return seen if window is None else seen & (distance < window)


@dataclass(frozen=True)
class Piece:
    """Some queries, the keys that any of them sees, and which of these are hidden from which: columns, [batch pos column]."""

    queries: slice
    keys: slice
    hidden: list[tuple[slice, Hidden]]


class CausalMask:
    """What one kind of layer sees in one run. Queries are the last of the keys; a layer that forgot early keys has fewer.

    Without padding (`real` None) everything follows from positions, and no mask over all queries and keys is made.
    """

    def __init__(
        self,
        query_pos: Positions,
        key_pos: KeyPositions,
        real: KeyReal | None,
        window: int | None,
        documents: KeyPositions | None = None,
    ):
        """`documents` says which document of its row each key belongs to, where rows hold several: none sees another."""
        self.query_pos, self.key_pos, self.real, self.window, self.documents = query_pos, key_pos, real, window, documents
        self._pieces: dict[tuple[int, ...], list[Piece]] = {}

    def whole(self, n_keys: int) -> Visible:
        """Over the last `n_keys` keys; one row for all texts where there is no padding."""
        key_pos, query_pos = self.key_pos[:, -n_keys:], self.query_pos
        if self.real is not None:
            seen = visible(query_pos, key_pos, self.real[:, -n_keys:], self.window)
            if self.documents is None:
                return seen
            keys, queries = self.documents[:, -n_keys:], self.documents[:, -query_pos.shape[1] :]
            return seen & (queries[:, :, None] == keys[:, None, :])
        return visible(query_pos[:1], key_pos[:1], torch.ones_like(key_pos[:1], dtype=torch.bool), self.window)

    def pieces(self, n_keys: int, numbers: int, rows: int) -> list[Piece]:
        """Cut so that `rows` (batch times heads) tables of queries by keys hold about `numbers` numbers."""
        if (n_keys, numbers, rows) not in self._pieces:
            n = self.query_pos.shape[1]
            reach = n_keys if self.window is None else min(n_keys, self.window + 64)
            step = min(n, max(16, numbers // (rows * reach)))
            cut = self._by_index if self.real is None else self._by_mask
            self._pieces[n_keys, numbers, rows] = cut(n_keys, [slice(a, min(a + step, n)) for a in range(0, n, step)])
        return self._pieces[n_keys, numbers, rows]

    def _by_index(self, n_keys: int, cuts: list[slice]) -> list[Piece]:
        """Query i is key `before + i`; hidden are the keys after it, and those a window or more back."""
        before, window = n_keys - self.query_pos.shape[1], self.window or n_keys + 1
        index, pieces = torch.arange(n_keys, device=self.query_pos.device)[None], []
        for cut in cuts:
            first, last = before + cut.start, before + cut.stop  # of the queries, among the keys
            start = max(0, first - window + 1)
            query = index[:, first:last, None]
            later = slice(first - start, last - start)
            hidden = [(later, index[:, None, first:last] > query)] if last - first > 1 else []
            if last - window > start:  # the last query does not see the first key
                early = slice(0, last - window - start)
                hidden.append((early, query - index[:, None, start : last - window] >= window))
            pieces.append(Piece(cut, slice(start, last), hidden))
        return pieces

    def _by_mask(self, n_keys: int, cuts: list[slice]) -> list[Piece]:
        mask, pieces = self.whole(n_keys), []
        for cut in cuts:
            part = mask[:, cut]
            columns = part.any(0).any(0).nonzero().flatten().tolist() or [0, n_keys - 1]
            keys = slice(columns[0], columns[-1] + 1)
            pieces.append(Piece(cut, keys, [(slice(None), ~part[:, :, keys])]))
        return pieces
