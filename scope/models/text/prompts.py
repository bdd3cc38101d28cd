"""The methods by which a model takes text and shows tokens, named as in TransformerLens."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.errors import ConfigError, TokensError
from scope.models.checkpoints import end_tokens
from scope.models.parts.mask import as_mask
from scope.models.text.chat import ChatTemplates
from scope.models.text.encodings import as_ids, read_encoding
from scope.models.text.tokenizer import Tokenizer
from scope.models.text.tokenizer_names import Side
from scope.shapes import Mask, Tokens


class TextMethods:
    """For a model with `cfg`, `device` and `tokenizer`. Text becomes tokens after one <bos>; nothing is cut unless asked."""

    @classmethod
    def read_folder(cls, config: Any, folder: Path, adapter: Path | None = None) -> tuple[Any, Tokenizer]:
        """(the config with every end token that the checkpoint names, its tokenizer). The folder of an adapter may bring a
        tokenizer or a chat template of its own.

        Raises:
            CheckpointError: a file is missing or cannot be read.
        """
        replaced = adapter is not None and (adapter / "tokenizer.json").exists()
        tokenizer = Tokenizer.from_folder(adapter if replaced else folder, config.d_vocab)
        if adapter is not None and not replaced:
            tokenizer.chat_template = ChatTemplates.from_folder(adapter).default or tokenizer.chat_template
        ends = dict.fromkeys((*config.eos, *end_tokens(folder), tokenizer.end_id))
        eos = tuple(i for i in ends if i is not None and 0 <= i < config.d_vocab)
        return replace(config, eos=eos or config.eos), tokenizer

    def to_tokens(
        self,
        input: str | list[str] | Mapping[str, Any],
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        move_to_device: bool = True,
        truncate: bool = False,
    ) -> Tokens:
        """Ids [batch pos]; texts of unequal length are padded. With `truncate`, what exceeds the context is dropped.
        As in TransformerLens, None means the default: `cfg.default_prepend_bos` and `tokenizer.padding_side`.

        Raises:
            TokensError: the model was made without a tokenizer.
            ConfigError: a side that is neither left nor right.
        """
        if (encoding := read_encoding(input, self.cfg.pad)) is not None:
            return encoding[0].to(self.device if move_to_device else "cpu")
        side = self.side_of(padding_side)
        rows = self._encode(input, prepend_bos, truncate)
        longest = max(map(len, rows))
        padding = [[self.cfg.pad] * (longest - len(row)) for row in rows]
        padded = [row + pad if side == "right" else pad + row for row, pad in zip(rows, padding, strict=True)]
        return torch.tensor(padded, dtype=torch.long, device=self.device if move_to_device else "cpu")

    def side_of(self, padding_side: str | None) -> Side:
        """The side that is padded, the tokenizer's by default."""
        side = getattr(self.tokenizer, "padding_side", "right") if padding_side is None else padding_side
        if side not in ("left", "right"):
            raise ConfigError(f'padding_side is {side!r}; it can be "left" or "right".')
        return side

    def begins(self, prepend_bos: bool | None) -> bool:
        """Whether <bos> comes first, as the config says by default."""
        return self.cfg.default_prepend_bos is not False if prepend_bos is None else prepend_bos

    def mask_of(
        self, texts: str | list[str] | Mapping[str, Any], prepend_bos: bool | None = None, padding_side: Side | None = None
    ) -> Mask:
        """Where `to_tokens` of the same texts holds text rather than padding."""
        if (encoding := read_encoding(texts, self.cfg.pad)) is not None:
            tokens, mask = self.placed(*encoding)
            return torch.ones_like(tokens, dtype=torch.bool) if mask is None else as_mask(mask)
        lengths = torch.tensor([len(row) for row in self._encode(texts, prepend_bos)], device=self.device)[:, None]
        longest = int(lengths.max())
        where = torch.arange(longest, device=self.device)[None]
        return where >= longest - lengths if self.side_of(padding_side) == "left" else where < lengths

    def mask_of_tokens(self, tokens: Tokens, prepend_bos: bool | None = None, padding_side: Side | None = None) -> Mask:
        """As TransformerLens reads it off the ids: False at the pads that begin a row padded on the left, or end one padded on
        the right."""
        left = self.side_of(padding_side) == "left"
        text = tokens != self.cfg.pad
        real = (text if left else text.flip(1)).long().cumsum(1) > 0
        if left and self.cfg.pad == self.cfg.bos and self.begins(prepend_bos):  # the last of the pads is the <bos>
            real[:, :-1] = real[:, :-1] | real[:, 1:]
        return real if left else real.flip(1)

    def placed(self, tokens: Tensor, own_mask: Tensor | None, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(ids, mask) of an encoding on the model's device; a `mask` that is given beside it goes before its own."""
        mask = own_mask if mask is None else mask
        return tokens.to(self.device), None if mask is None else mask.to(self.device)

    def _encode(self, text: str | list[str], prepend_bos: bool | None, truncate: bool = False) -> list[list[int]]:
        bos = self.begins(prepend_bos)
        rows = [self.words.encode(t, bos=bos) for t in ([text] if isinstance(text, str) else text)]
        if not rows:
            raise TokensError("There is no text to run on. Give at least one.")
        return [row[: self.cfg.n_ctx] for row in rows] if truncate else rows

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token.

        Raises:
            TokensError: it is several, or none.
        """
        ids = self.words.encode(string, bos=False)
        if len(ids) != 1:
            raise TokensError(f"{string!r} is {len(ids)} tokens, not one: {self.words.pieces(ids)}. Mind the leading space.")
        return ids[0]

    def to_single_str_token(self, int_token: int) -> str:
        return self.words.pieces([int_token])[0]

    def to_string(self, tokens) -> str | list[str]:
        """The text of a row of ids; of several rows, or of an encoding, a list."""
        encoding = read_encoding(tokens, self.cfg.pad)
        tokens = as_ids(tokens) if encoding is None else encoding[0]
        if tokens.dim() == 2:
            return [self.words.decode(row, skip_special=False) for row in tokens]
        return self.words.decode(tokens.reshape(-1), skip_special=False)

    def to_str_tokens(
        self, input, prepend_bos: bool | None = None, padding_side: Side | None = None
    ) -> list[str] | list[list[str]]:
        """The text of each token of a text or of one row of ids; of a list of texts, or of rows of ids, a list each. A row is
        not padded, whatever `padding_side` says."""
        if (encoding := read_encoding(input, self.cfg.pad)) is not None:
            return [self.words.pieces(row) for row in encoding[0].tolist()]
        if isinstance(input, str):
            return self.words.pieces(self.words.encode(input, bos=self.begins(prepend_bos)))
        if isinstance(input, list | tuple) and input and isinstance(input[0], str | list | tuple):
            return [self.to_str_tokens(one, prepend_bos) for one in input]
        if isinstance(input, list | tuple) and input and isinstance(input[0], Tensor) and input[0].dim():
            return [self.to_str_tokens(one, prepend_bos) for one in input]
        ids = as_ids(input)
        if ids.dim() == 2 and len(ids) > 1:
            raise TokensError(f"{len(ids)} rows of tokens make no one list of pieces; give one row, or a list of rows.")
        return self.words.pieces(ids.reshape(-1).tolist())

    def get_token_position(
        self,
        single_token,
        input,
        mode: str = "first",
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> int:
        """Where a token (id, or text that is one token) stands in a text or row of ids, first or last.

        Raises:
            TokensError: it does not occur.
            ConfigError: a mode that is neither first nor last.
        """
        if mode not in ("first", "last"):
            raise ConfigError(f'mode is {mode!r}; it can be "first" or "last".')
        wanted = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
        text = isinstance(input, str)
        tokens = self.to_tokens(input, prepend_bos, padding_side) if text else as_ids(input)
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
