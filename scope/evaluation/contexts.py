"""Draw the contexts of an evaluation, and find the document of each token."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scope.errors import ConfigError
from scope.evaluation.result import EvaluateConfig
from scope.shapes import Tokens


@dataclass
class Text:
    """Contexts [batch pos] and the unit (document or context) of each token."""

    tokens: Tensor
    units: Tensor
    n_units: int
    said: dict[str, Any]

    @classmethod
    def draw(cls, tokens: Tokens, documents: Tensor | None, config: EvaluateConfig) -> "Text":
        if len(tokens) < 2:
            raise ConfigError(f"There are {len(tokens)} contexts; give at least two, since an interval needs several.")
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(config.seed))
        drawn = order[: config.contexts].sort().values
        picked = tokens[drawn].long()
        said: dict[str, Any] = {"contexts": drawn.tolist(), "of": len(tokens), "tokens_sha256": _hash(picked)}
        units, name = torch.arange(len(picked))[:, None].expand(picked.shape), "contexts"
        if documents is not None:
            if documents.shape != tokens.shape:
                raise ConfigError(f"documents are {tuple(documents.shape)} and tokens {tuple(tokens.shape)}; they go together.")
            of = documents[drawn].long()
            said["documents_sha256"] = _hash(of)
            found, where = torch.where(of >= 0, of, of.max()).unique(
                return_inverse=True
            )  # padding belongs to no document and is never counted
            if len(found) >= 2:  # within one long text only contexts vary
                units, name = where, "documents"
            else:
                said["one_document"] = True
        return cls(picked, units.contiguous(), int(units.max()) + 1, said | {"units": name})

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.tokens.split(size), self.units.split(size), strict=True)


def _hash(values: Tensor) -> str:
    return hashlib.sha256(values.to(torch.int32).cpu().contiguous().numpy().tobytes()).hexdigest()
