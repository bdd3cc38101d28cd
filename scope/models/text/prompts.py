"""The methods by which a model takes text and shows tokens, named as in TransformerLens."""

from typing import Literal

import torch
from torch import Tensor

from scope.errors import ConfigError, TokensError
from scope.shapes import Mask, Tokens

Side = Literal["left", "right"]


class TextMethods:
    """For a model with `cfg`, `device` and `tokenizer`. Text becomes tokens after one <bos>; nothing is cut unless asked."""

    def to_tokens(
        self,
        text: str | list[str],
        prepend_bos: bool | None = True,
        padding_side: Side | None = "right",
        move_to_device: bool = True,
        truncate: bool = False,
    ) -> Tokens:
        """Ids [batch pos]; texts of unequal length are padded. With `truncate`, what exceeds the context is dropped.
        As in TransformerLens, None means the default: <bos> first, padding on the right.

        Raises:
            TokensError: the model was made without a tokenizer.
            ConfigError: a side that is neither left nor right.
        """
        padding_side = "right" if padding_side is None else padding_side
        if padding_side not in ("left", "right"):
            raise ConfigError(f'padding_side is {padding_side!r}; it can be "left" or "right".')
        rows = self._encode(text, prepend_bos, truncate)
        longest = max(map(len, rows))
        padding = [[self.cfg.pad] * (longest - len(row)) for row in rows]
        pairs = zip(rows, padding, strict=True)
        padded = [row + pad if padding_side == "right" else pad + row for row, pad in pairs]
        return torch.tensor(padded, dtype=torch.long, device=self.device if move_to_device else "cpu")

    def mask_of(self, texts: str | list[str], prepend_bos: bool | None = True, padding_side: Side | None = "right") -> Mask:
        """Where `to_tokens` of the same texts holds text rather than padding."""
        lengths = torch.tensor([len(row) for row in self._encode(texts, prepend_bos)], device=self.device)[:, None]
        longest = int(lengths.max())
        where = torch.arange(longest, device=self.device)[None]
        return where >= longest - lengths if padding_side == "left" else where < lengths

    def _encode(self, text: str | list[str], bos: bool | None, truncate: bool = False) -> list[list[int]]:
        rows = [self.words.encode(t, bos=bos is not False) for t in ([text] if isinstance(text, str) else text)]
        if not rows:
            raise TokensError("There is no text to run on. Give at least one.")
        return [row[: self.cfg.n_ctx] for row in rows] if truncate else rows

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            TokensError: it is several, or none.
        """
        ids = self.words.encode(text, bos=False)
        if len(ids) != 1:
            raise TokensError(f"{text!r} is {len(ids)} tokens, not one: {self.words.pieces(ids)}. Mind the leading space.")
        return ids[0]

    def to_single_str_token(self, token: int) -> str:
        return self.words.pieces([token])[0]

    def to_string(self, tokens) -> str | list[str]:
        tokens = torch.as_tensor(tokens)
        if tokens.dim() == 2:
            return [self.words.decode(row, skip_special=False) for row in tokens]
        return self.words.decode(tokens.reshape(-1), skip_special=False)

    def to_str_tokens(self, text, prepend_bos: bool | None = True) -> list[str] | list[list[str]]:
        """The text of each token of a text or of one row of ids; of a list of texts, or of rows of ids, a list each."""
        if isinstance(text, str):
            return self.words.pieces(self.words.encode(text, bos=prepend_bos is not False))
        if isinstance(text, list | tuple) and text and isinstance(text[0], str | list | tuple):
            return [self.to_str_tokens(one, prepend_bos) for one in text]
        if isinstance(text, list | tuple) and text and isinstance(text[0], Tensor) and text[0].dim():
            return [self.to_str_tokens(one, prepend_bos) for one in text]
        ids = torch.as_tensor(text)
        if ids.dim() == 2 and len(ids) > 1:
            raise TokensError(f"{len(ids)} rows of tokens make no one list of pieces; give one row, or a list of rows.")
        return self.words.pieces(ids.reshape(-1).tolist())

    def get_token_position(self, single_token, text, mode: str = "first", prepend_bos: bool | None = True) -> int:
        """Where a token (id, or text that is one token) stands in a text or row of ids, first or last.

        Raises:
            TokensError: it does not occur.
            ConfigError: a mode that is neither first nor last.
        """
        if mode not in ("first", "last"):
            raise ConfigError(f'mode is {mode!r}; it can be "first" or "last".')
        wanted = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
        tokens = self.to_tokens(text, prepend_bos) if isinstance(text, str) else torch.as_tensor(text)
        if tokens.dim() == 2 and len(tokens) > 1:
            raise TokensError(f"{len(tokens)} rows of tokens were given; look in one at a time.")
        places = (tokens.reshape(-1) == wanted).nonzero().flatten()
        if not len(places):
            raise TokensError(f"Token {wanted} does not occur among these {tokens.numel()} tokens.")
        return int(places[0 if mode == "first" else -1])

    @property
    def words(self):
        if self.tokenizer is None:
            raise TokensError("This model has no tokenizer; give it token ids, or load it with load_model.")
        return self.tokenizer

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text: the tokenizer's, or, without one, those that the config names."""
        if self.tokenizer is not None:
            return frozenset(self.tokenizer.special_ids)
        return frozenset({self.cfg.bos, self.cfg.pad, *self.cfg.eos})
