"""Text and pictures become tokens: the image tokens, <bos>, the prompt and a newline; then, for scoring, the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scope.errors import PictureError, TokensError
from scope.models.face import TextTokenizer
from scope.models.text.tokenizer import check_text
from scope.models.text.tokenizer_names import Side
from scope.shapes import Mask, Tokens

IMAGE = "<image>"
_LOCATIONS = [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]


@dataclass(frozen=True)
class Row:
    """One text with its pictures: ids, and 0 for each token of the prefix, 1 for each of the answer."""

    ids: list[int]
    types: list[int]


def add_locations(backend, n_rows: int) -> None:
    """Give a tokenizer that lacks <loc> and <seg> tokens those for which the embedding has rows, as transformers' processor
    does."""
    size = backend.get_vocab_size()
    missing = [token for token in _LOCATIONS if backend.token_to_id(token) is None]
    if missing and size + len(missing) <= n_rows:
        backend.add_tokens(missing)


def lay_out(
    words: TextTokenizer,
    texts: Sequence[str],
    pictures: Sequence[int],
    answers: Sequence[str] | None,
    image_token: int,
    n_patches: int,
) -> list[Row]:
    """Rows of ids as transformers' PaliGemmaProcessor makes them. `pictures` says how many belong to each text; a text may
    say with <image> where they stand, and has them at its beginning otherwise.

    Raises:
        PictureError: a text names more or fewer pictures than it has.
        TokensError: a text is none.
    """
    for text in texts:
        check_text(text)
    placed = any(IMAGE in text for text in texts)
    bos = words.pieces([words.bos])[0]
    rows = []
    for i, (text, n) in enumerate(zip(texts, pictures, strict=True)):
        if placed:
            if text.count(IMAGE) != n:
                raise PictureError(f"Text {i} names {text.count(IMAGE)} pictures with {IMAGE}, and {n} belong to it.")
            end = text.rfind(IMAGE) + len(IMAGE) if n else 0
            whole = text[:end] + bos + text[end:] + "\n"
        else:
            whole = IMAGE * n + bos + text + "\n"
        between = words.encode_batch(whole.split(IMAGE))
        ids = list(between[0])
        for part in between[1:]:
            ids += [image_token] * n_patches + part
        answer = [] if answers is None else words.encode_batch([answers[i]])[0] + [words.eos]
        rows.append(Row(ids + answer, [0] * len(ids) + [1] * len(answer)))
    return rows


def stacked(rows: Sequence[Row], pad: int, side: Side) -> tuple[Tokens, Mask, Tokens]:
    """(ids, which of them are no padding, token types), padded on a side to one length. Padding is of type 0.

    Raises:
        TokensError: there is no row.
    """
    if not rows:
        raise TokensError("There is no text to run on. Give at least one.")
    longest = max(len(row.ids) for row in rows)

    def table(of: list[list[int]], value: int) -> torch.Tensor:
        rest = [[value] * (longest - len(row)) for row in of]
        return torch.tensor([a + b if side == "right" else b + a for a, b in zip(of, rest, strict=True)])

    ids, types = table([row.ids for row in rows], pad), table([row.types for row in rows], 0)
    return ids, table([[1] * len(row.ids) for row in rows], 0).bool(), types
