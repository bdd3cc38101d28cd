"""Batches of model inputs, the role of every row, and the one rule that decides which rows count.

A row is a position of a context: a token, a patch of an image, a state. Recording, scoring, packs and steering all use

    counted_tokens(tokens, model.special_ids)      # bool [batch pos]: False at position 0, special tokens and padding
    counted(roles)                                 # the same where the roles of the rows are known
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scope.activations.corpus.document import Document
from scope.activations.corpus.roles import LEAVES_OUT, RULES, Role
from scope.activations.errors import RecordingError
from torch import Tensor

from scope.shapes import Mask, Positions, Roles, Tokens

NO_DOCUMENT = -1
"""The document of padding."""

NO_TOKEN = -1
"""The token id of a row that is no token."""


def text_roles(
    tokens: Tokens, special_ids: Collection[int], positions: Positions | None = None, real: Mask | None = None
) -> Roles:
    """The role of each token of plain text: the first of a context is <bos>, ids that stand for no text are special.

    `positions` are needed where contexts do not begin in the first column, as with padding on the left. `real` is False for
    padding whose id is not among the special ones.
    """
    special = torch.tensor(sorted(special_ids), dtype=tokens.dtype, device=tokens.device)
    roles = torch.isin(tokens, special).to(torch.uint8) * int(Role.SPECIAL)
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    roles[positions == 0] = Role.BOS
    if real is not None:
        roles[~real] = Role.PADDING
    return roles


def counted(roles: Roles, exclude: Iterable[str] = RULES) -> Mask:
    """Mask of the rows that count. `exclude` holds names of `LEAVES_OUT`."""
    left_out = sorted({int(role) for rule in exclude for role in LEAVES_OUT[rule]})
    return ~torch.isin(roles, torch.tensor(left_out, dtype=torch.uint8, device=roles.device))


def counted_tokens(
    tokens: Tokens,
    special_ids: Collection[int],
    positions: Positions | None = None,
    real: Mask | None = None,
    exclude: Iterable[str] = RULES,
) -> Mask:
    """Mask of the tokens of plain text that count. See `text_roles` for the arguments."""
    return counted(text_roles(tokens, special_ids, positions, real), exclude)


_ROWS = ("tokens", "documents", "roles")


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """A batch for a model, with the document and role of each row. Every site has one row for each position."""

    tokens: Any
    """Integers [batch pos]: token ids, NO_TOKEN where a row is no token."""

    documents: Any
    """Integers [batch pos]: index of each row's document in the corpus, NO_DOCUMENT for padding."""

    roles: Any
    """uint8 [batch pos]: the `Role` of each row."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the model by name, such as pixel_values; each is an array [batch ...]."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, contexts: slice | np.ndarray) -> "Inputs":
        """Some of the contexts, by a slice or a mask."""
        arrays = {name: getattr(self, name)[contexts] for name in _ROWS}
        return Inputs(**arrays, arguments={name: value[contexts] for name, value in self.arguments.items()})

    @staticmethod
    def joined(parts: Sequence["Inputs"]) -> "Inputs":
        """The contexts of several batches, one after another."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ROWS}
        arguments = {name: np.concatenate([part.arguments[name] for part in parts]) for name in parts[0].arguments}
        return Inputs(**arrays, arguments=arguments)

    def counted(self, exclude: Iterable[str] = RULES) -> np.ndarray:
        """bool [batch pos]: True where a row counts."""
        return counted(torch.as_tensor(self.roles), exclude).cpu().numpy()

    def to(self, device: Any) -> "Inputs":
        """These inputs as tensors on a device; token ids and documents are int64."""
        ids = {name: torch.as_tensor(getattr(self, name)).long().to(device) for name in ("tokens", "documents")}
        arguments = {name: torch.as_tensor(value).to(device) for name, value in self.arguments.items()}
        return Inputs(**ids, roles=torch.as_tensor(self.roles).to(device), arguments=arguments)

    def digest(self) -> str:
        """SHA-256 of everything the model reads."""
        hashed = hashlib.sha256(np.ascontiguousarray(self.tokens))
        for name in sorted(self.arguments):
            hashed.update(name.encode() + np.ascontiguousarray(self.arguments[name]).data)
        return hashed.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """A position in a corpus: documents opened, tokens used of the last one, and the checksum of its text."""

    documents: int = 0
    offset: int = 0
    crc32: int = 0
    dropped: int = 0
    """Control tokens that occurred in texts and were removed so far."""
    replaced: int = 0
    """Characters U+FFFD so far, which stand for what is no UTF-8."""
    skipped: int = 0
    """Documents so far of which nothing is recorded, such as pictures that cannot be read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed(Inputs):
    """Contexts made from a corpus, the documents that start in them, and the corpus position after them."""

    names: list[str]
    facts: list[dict] = field(default_factory=list)
    """Metadata of each document, such as the size of an image; JSON objects. Empty if there is none."""
    pictures: list[bytes] = field(default_factory=list)
    """A small picture of each document, as the bytes of a file; b"" where there is none. Empty if no document has one."""
    cursor: Cursor
    exhausted: bool


@runtime_checkable
class InputStream(Protocol):
    """An iterator over the contexts of a corpus."""

    opened: int
    """Documents opened so far."""

    def take(self, n_contexts: int) -> Packed:
        """The next contexts; fewer only when the corpus has ended."""
        ...


@runtime_checkable
class InputMaker(Protocol):
    """Turns documents into model inputs. `contexts.TextMaker` does so for text; a vision model brings its own."""

    identity: dict[str, Any]
    """JSON: makers with equal identity make equal inputs. A recording can only be continued with an equal one."""
    packing: str
    """A description of how documents fill contexts, for the manifest."""
    stores_roles: bool
    """True if the role of a row does not follow from its token, so that recordings must store it."""

    def stream(self, documents: Iterator[Document], context: int, cursor: Cursor = Cursor()) -> InputStream:
        """Contexts of `context` rows, starting at a cursor."""
        ...


@runtime_checkable
class Recorder(Protocol):
    """The part of a model that harvesting uses. If it has a `device`, batches are moved there."""

    def record(self, batch: Any, sites: Sequence[str]) -> dict[str, Tensor]:
        """Activations [batch pos width] of each site for a batch: token ids [batch pos], or `Inputs` of tensors."""
        ...

    def sites(self) -> dict[str, int]:
        """Every site that can be recorded, with its width."""
        ...


def without_padding(inputs: Inputs) -> Inputs:
    """Inputs without the columns at their end in which everything is padding, where the model reads an attention mask: what is
    masked changes nothing."""
    shape = inputs.tokens.shape
    if "attention_mask" not in inputs.arguments or not len(inputs):
        return inputs
    n = int(np.flatnonzero((np.asarray(inputs.roles) != Role.PADDING).any(0)).max(initial=0)) + 1
    rows = {name: getattr(inputs, name)[:, :n] for name in _ROWS}
    arguments = {name: x[:, :n] if x.shape[:2] == shape else x for name, x in inputs.arguments.items()}
    return Inputs(**rows, arguments=arguments)


def record(recorder: Recorder, inputs: Inputs, sites: Sequence[str]) -> dict[str, Tensor]:
    """Activations [batch * pos width] of each site. Inputs that are only token ids are passed as a tensor.

    Raises:
        RecordingError: the number of rows of a site differs from the number of positions.
    """
    short = without_padding(inputs)
    batch = short.to(getattr(recorder, "device", "cpu"))
    with torch.no_grad():
        recorded = recorder.record(batch if inputs.arguments else batch.tokens, sites)
    n, width = inputs.tokens.shape
    missing = width - short.tokens.shape[1]
    if missing:
        recorded = {site: torch.nn.functional.pad(recorded[site], (0, 0, 0, missing)) for site in sites}
    rows = {site: recorded[site].flatten(0, 1) for site in sites}
    for site, x in rows.items():
        if len(x) != n * width:
            raise RecordingError(
                f"{site} gives {len(x)} rows for {n * width} positions of these inputs, as a vision tower does "
                "beside a language model.\n  Record sites of one kind of rows at a time, each kind into its own folder."
            )
    return rows
