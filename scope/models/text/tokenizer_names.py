"""transformers' names for what our tokenizer does, so that code written for its tokenizers runs."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from scope.errors import ConfigError

Side = Literal["left", "right"]


class TransformersNames:
    """For a tokenizer with `backend`, `bos`, `eos`, `end_id`, `pad`, `special_ids`, `encode`, `decode` and `chat`."""

    padding_side: Side = "right"
    """On which side texts of unequal length are padded where nothing else is given."""

    name_or_path = ""
    is_fast = True
    bos_token_id = property(lambda self: self.bos)
    eos_token_id = property(lambda self: self.eos if self.end_id is None else self.end_id)
    pad_token_id = property(lambda self: self.pad)
    unk_token_id = property(lambda self: self.backend.token_to_id("<unk>"))
    bos_token = property(lambda self: self.backend.id_to_token(self.bos))
    eos_token = property(lambda self: self.backend.id_to_token(self.eos_token_id))
    pad_token = property(lambda self: self.backend.id_to_token(self.pad))
    unk_token = property(lambda self: "<unk>" if self.unk_token_id is not None else None)
    vocab_size = property(lambda self: len(self))
    all_special_ids = property(lambda self: sorted(self.special_ids))
    all_special_tokens = property(lambda self: self.convert_ids_to_tokens(self.all_special_ids))

    def get_vocab(self) -> dict[str, int]:
        """Token as the vocabulary writes it -> id."""
        return self.backend.get_vocab()

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        padding_side: Side | None = None,
        **_: Any,
    ) -> Any:
        """transformers' BatchEncoding of `input_ids` and `attention_mask`, with one <bos> unless `add_special_tokens` is False.

        Raises:
            ConfigError: tensors of rows of unequal length, or of another library than torch.
        """
        from transformers import BatchEncoding

        one = isinstance(text, str)
        rows = [self.encode(t, bos=add_special_tokens) for t in ([text] if one else text)]
        rows = [row[:max_length] for row in rows] if truncation and max_length is not None else rows
        mask = [[1] * len(row) for row in rows]
        if padding:
            longest = max_length if padding == "max_length" and max_length is not None else max(map(len, rows), default=0)
            side = padding_side or self.padding_side
            rows, mask = ([_padded(row, longest, value, side) for row in part] for part, value in ((rows, self.pad), (mask, 0)))
        if return_tensors not in (None, "pt"):
            raise ConfigError(f'return_tensors is {return_tensors!r}; it can be "pt" or None.')
        if return_tensors == "pt":
            if len({len(row) for row in rows}) > 1:
                raise ConfigError("These texts have unequal lengths, so they make no tensor. Give padding=True.")
            return BatchEncoding({"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)})
        return BatchEncoding({"input_ids": rows[0] if one else rows, "attention_mask": mask[0] if one else mask})

    def tokenize(self, text: str, **_: Any) -> list[str]:
        """The tokens of a text as the vocabulary writes them, without <bos>."""
        return self.convert_ids_to_tokens(self.encode(text, bos=False))

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """An id, or several, as the vocabulary writes them; None where there is no such id."""
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        return self.backend.id_to_token(ids) if isinstance(ids, int) else [self.backend.id_to_token(int(i)) for i in ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or of each of several, <unk>'s where there is none."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        known = self.backend.token_to_id(tokens)
        return self.unk_token_id if known is None else known

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """The text of each row of ids."""
        return [self.decode(row, **options) for row in sequences]

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        return_tensors: str | None = None,
        return_dict: bool = True,
        **variables: Any,
    ) -> Any:
        """Turns laid out by the checkpoint's template: a text, a BatchEncoding (transformers 5's default), or ids alone."""
        text = self.chat(conversation, add_generation_prompt, **variables)
        if not tokenize:
            return text
        encoding = self(text, return_tensors=return_tensors)
        return encoding if return_dict else encoding["input_ids"]


def _padded(row: list[int], length: int, value: int, side: Side) -> list[int]:
    rest = [value] * (length - len(row))
    return row + rest if side == "right" else rest + row
