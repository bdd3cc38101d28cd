"""What a model takes, what each row that comes out is, and the one rule of which rows count.

A row is a position of a context: a token, a patch of an image, a state. Harvesting, scoring, packs and steering all ask here
which rows count:

    counted_tokens(tokens, model.special_ids)                 # bool [batch pos]: neither first, nor special, nor padding
    counted(roles)                                            # the same for rows whose roles are known
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scope.activations.corpus.readers import Document
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
    """Which rows count, by rules that `LEAVES_OUT` names: the one answer for recording, training, scoring and packs."""
    left_out = sorted({int(role) for rule in exclude for role in LEAVES_OUT[rule]})
    return ~torch.isin(roles, torch.tensor(left_out, dtype=torch.uint8, device=roles.device))


def counted_tokens(
    tokens: Tokens,
    special_ids: Collection[int],
    positions: Positions | None = None,
    real: Mask | None = None,
    exclude: Iterable[str] = RULES,
) -> Mask:
    """Which tokens of plain text count. See `text_roles` for the arguments."""
    return counted(text_roles(tokens, special_ids, positions, real), exclude)


_ROWS = ("tokens", "documents", "roles")


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """A batch for a model, and what each row that comes out of it is. All sites give one row for each position."""

    tokens: Any
    """Integers [batch pos]: token ids, NO_TOKEN where a row is no token."""

    documents: Any
    """Integers [batch pos]: which document of the corpus each row is of, NO_DOCUMENT for padding."""

    roles: Any
    """uint8 [batch pos]: a `Role` each."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the model takes beside token ids, under the model's names, such as pixel_values: each [batch ...], and sliceable."""

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
        """bool [batch pos]: which rows count."""
        return counted(torch.as_tensor(self.roles), exclude).cpu().numpy()

    def to(self, device: Any) -> "Inputs":
        """The same as tensors on a device, token ids and documents int64."""
        ids = {name: torch.as_tensor(getattr(self, name)).long().to(device) for name in ("tokens", "documents")}
        arguments = {name: torch.as_tensor(value).to(device) for name, value in self.arguments.items()}
        return Inputs(**ids, roles=torch.as_tensor(self.roles).to(device), arguments=arguments)

    def digest(self) -> str:
        """Hash of what the model takes; of text alone, that of its tokens."""
        hashed = hashlib.sha256(np.ascontiguousarray(self.tokens))
        for name in sorted(self.arguments):
            hashed.update(name.encode() + np.ascontiguousarray(self.arguments[name]).data)
        return hashed.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """A place in a corpus: `documents` were opened, `offset` rows of the last are used, and it had this checksum."""

    documents: int = 0
    offset: int = 0
    crc32: int = 0
    dropped: int = 0
    """Control tokens found in the texts themselves and left out, so far."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed(Inputs):
    """Contexts out of a corpus, the documents that start in them, and where the corpus stands after."""

    names: list[str]
    facts: list[dict] = field(default_factory=list)
    """What is known of each document beside its name, such as the size of an image; JSON. Empty where nothing is."""
    cursor: Cursor
    exhausted: bool


@runtime_checkable
class InputStream(Protocol):
    """Contexts of a corpus, one after another."""

    opened: int
    """Documents opened so far."""

    def take(self, n_contexts: int) -> Packed:
        """The next contexts; fewer only when the corpus has ended."""
        ...


@runtime_checkable
class InputMaker(Protocol):
    """How documents become what a model takes. `contexts.TextMaker` is the one for text, `processor` those of other inputs."""

    identity: dict[str, Any]
    """JSON: makers of equal identity make equal inputs. A recording is continued by an equal one only."""
    packing: str
    """In words, how documents fill contexts."""
    stores_roles: bool
    """Whether a recording must hold the role of every row, since its token does not tell."""

    def stream(self, documents: Iterator[Document], context: int, cursor: Cursor = Cursor()) -> InputStream:
        """Contexts of `context` rows from a cursor on."""
        ...


@runtime_checkable
class Recorder(Protocol):
    """A model, as harvesting sees it. If it has a `device`, batches are given to it there."""

    def record(self, batch: Any, sites: Sequence[str]) -> dict[str, Tensor]:
        """Activations [batch pos width] of each site for a batch: token ids [batch pos], or `Inputs` of tensors."""
        ...

    def sites(self) -> dict[str, int]:
        """Every site that can be recorded, with its width."""
        ...


def record(recorder: Recorder, inputs: Inputs, sites: Sequence[str]) -> dict[str, Tensor]:
    """Activations [batch * pos width] of each site. A model that takes only token ids is given them as a tensor.

    Raises:
        RecordingError: a site gives another number of rows than the inputs say.
    """
    batch = inputs.to(getattr(recorder, "device", "cpu"))
    with torch.no_grad():
        recorded = recorder.record(batch if inputs.arguments else batch.tokens, sites)
    rows = {site: recorded[site].flatten(0, 1) for site in sites}
    for site, x in rows.items():
        if len(x) != batch.tokens.numel():
            raise RecordingError(
                f"{site} gives {len(x)} rows for {batch.tokens.numel()} positions of these inputs, as a vision tower does "
                "beside a language model.\n  Record sites of one kind of rows at a time, each kind into its own folder."
            )
    return rows
