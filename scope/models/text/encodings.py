"""Reads what a tokenizer of transformers returns: a mapping with input_ids and, as a rule, attention_mask."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from scope.errors import TokensError


def read_encoding(input: Any, pad: int) -> tuple[Tensor, Tensor | None] | None:
    """(ids [batch pos], the mask of the same shape or None) of a BatchEncoding or another mapping; None for anything else.

    Rows of unequal length are padded with `pad` on the right. The mask is as it was given; see `as_mask`.

    Raises:
        TokensError: a mapping without input_ids, or whose ids and mask are no rows of numbers of one shape.
    """
    if not isinstance(input, Mapping):
        return None
    if input.get("input_ids") is None:
        raise TokensError(
            f"These are no tokens: a mapping with {', '.join(map(str, input)) or 'nothing'}.\n"
            "  Give texts, ids, or what a tokenizer returns, which has input_ids."
        )
    ids, lengths = _rows(input["input_ids"], pad, "input_ids")
    if input.get("attention_mask") is not None:
        mask, _ = _rows(input["attention_mask"], 0, "attention_mask")
        if mask.shape != ids.shape:
            raise TokensError(f"attention_mask is {tuple(mask.shape)}; input_ids are {tuple(ids.shape)}.")
        return ids, mask
    ragged = len(set(lengths)) > 1
    return ids, torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None] if ragged else None


def as_ids(input: Any) -> Tensor:
    """Ids of tokens as a tensor: from a tensor, an array, a number or lists of numbers of equal length.

    Raises:
        TokensError: text, numbers that are no whole ones, or rows of unequal length.
    """
    try:
        ids = torch.as_tensor(input)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TokensError(
            f"These are no ids of tokens: {str(error).splitlines()[0]}\n  Give whole numbers, such as model.to_tokens returns."
        ) from None
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise TokensError(
            f"These are numbers of type {str(ids.dtype).removeprefix('torch.')}; ids of tokens are whole numbers."
        )
    return ids


def _rows(values: Any, pad: int, name: str) -> tuple[Tensor, list[int]]:
    """(one tensor, the length that each row had)."""
    try:
        rows = [torch.as_tensor(row) for row in values]
        if rows and not rows[0].dim():
            rows = [torch.stack(rows)]
        return pad_sequence(rows, batch_first=True, padding_value=pad), [len(row) for row in rows]
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise TokensError(f"{name} are no rows of numbers: {str(error).splitlines()[0]}") from None
