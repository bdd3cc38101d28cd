"""The change of every weight between two models: its size, and how few directions it has.

    relative   |D| / |W|, Frobenius norms of the change and of the base's weight
    first      share of the first singular value in |D|^2: 1 for a change of rank 1
    stable     |D|^2 / s_1^2, the stable rank
    effective  exp of the entropy of s_i^2 / |D|^2, the effective rank (Roy and Vetterli, 2007)
    rank       singular values that hold 99 % of |D|^2

Of a LoRA update the singular values follow from its factors, exactly and without the product: with B = Q_b R_b and
A^T = Q_a R_a they are those of R_b R_a^T. Of other changes they come from the Gram matrix in float64.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scope.errors import ConfigError
from scope.models.adapters import LowRank, Update
from scope.models.face import LanguageModel
from scope.progress import OnProgress

BFLOAT16_ROUNDING = 0.00165
"""Relative Frobenius norm of what rounding to bfloat16 changes of normally distributed weights."""

_KEPT = 64
_SAME = 1e-12  # share of |D|^2 below which a singular value is rounding

Matrix = Float[Tensor, "out in"]


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """What became of one weight."""

    parameter: str
    shape: tuple[int, ...]
    relative: float
    rank: int | None = None
    stable: float | None = None
    effective: float | None = None
    first: float | None = None
    rows: int | None = None
    """Rows of an embedding that changed."""

    source: str = "weights"
    """Where the numbers come from: the two weights, or the adapter's factors."""


@dataclass(frozen=True)
class Directions:
    """The first singular directions of a change D = sum of s_i u_i v_i^T: what it writes and what it reads."""

    writes: Float[Tensor, "out k"]
    sizes: Float[Tensor, " k"]
    reads: Float[Tensor, "in k"]


def parameters(model: LanguageModel) -> dict[str, Tensor]:
    """The weights by name.

    Raises:
        ConfigError: they are not in memory.
    """
    if model.streamed or not isinstance(model, nn.Module):
        raise ConfigError(
            "The weights of this model do not lie in memory, where they are compared.\n  Load it without streaming."
        )
    return {name: p.detach() for name, p in model.named_parameters()}


def weight_changes(
    base: LanguageModel, tuned: LanguageModel, on_progress: OnProgress | None = None
) -> tuple[list[WeightChange], dict[str, Directions]]:
    """(a row for each weight that changed, the largest first; the directions of the matrices among them).

    Raises:
        ConfigError: the models have other weights than each other.
    """
    ours, theirs = parameters(base), parameters(tuned)
    shapes = [{name: tuple(p.shape) for name, p in some.items()} for some in (ours, theirs)]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0]
        raise ConfigError(
            f"These models do not have the same weights: {odd[0]} {list(odd[1])} is in one alone. A fine-tune has its base's "
            "shape.\n  Latents of two unlike models are compared by: scope match"
        )
    adapter = getattr(tuned, "adapter", None)  # models of TransformerLens have none
    updates: dict[str, Update] = adapter.updates if adapter is not None else {}
    changes, directions = [], {}
    for n, (name, before) in enumerate(ours.items()):
        after = theirs[name]
        if on_progress:
            on_progress(n + 1, len(ours), {})
        if torch.equal(before, after.to(before)):
            continue
        factors = _factors(updates.get(name), before, after)
        norm = torch.linalg.vector_norm(before, dtype=torch.float64).item()
        if before.dim() != 2:
            size = torch.linalg.vector_norm(after.double() - before.double()).item()
            changes.append(WeightChange(parameter=name, shape=tuple(before.shape), relative=_ratio(size, norm)))
            continue
        values, found = factors or dense(after.double() - before.double())
        directions[name] = found
        energy = values.square()
        share = energy / energy.sum()
        ordered = share[share > _SAME]
        rows = int((after != before.to(after)).any(1).sum()) if name == "embed.weight" else None
        changes.append(
            WeightChange(
                parameter=name,
                shape=tuple(before.shape),
                relative=_ratio(energy.sum().sqrt().item(), norm),
                rank=int((ordered.cumsum(0) < 0.99).sum()) + 1,
                stable=(1 / share[0]).item(),
                effective=torch.exp(-(ordered * ordered.log()).sum()).item(),
                first=share[0].item(),
                rows=rows,
                source="adapter" if factors else "weights",
            )
        )
    return sorted(changes, key=lambda c: -c.relative), directions


def _ratio(size: float, norm: float) -> float:
    return size / norm if norm else float("inf")


def _factors(update: Any, before: Tensor, after: Tensor) -> tuple[Tensor, Directions] | None:
    """The singular values and directions of a LoRA update, if it is what lies between the two weights."""
    if not isinstance(update, LowRank) or update.magnitude is not None:
        return None
    if not torch.equal(update.applied(before).to(after), after):
        return None
    q_b, r_b = torch.linalg.qr(update.B.double())
    q_a, r_a = torch.linalg.qr(update.A.double().T)
    u, s, vt = torch.linalg.svd(update.scale * r_b @ r_a.T)
    return s, Directions((q_b @ u).float(), s.float(), (q_a @ vt.T).float())


def dense(change: Matrix) -> tuple[Tensor, Directions]:
    """All singular values of a matrix, and its first directions."""
    wide = change.shape[0] < change.shape[1]
    gram = change @ change.T if wide else change.T @ change
    squares, vectors = torch.linalg.eigh(gram)
    values, vectors = squares.clamp_min(0).sqrt().flip(0), vectors.flip(1)[:, :_KEPT]
    first = values[: vectors.shape[1]]
    other = (change.T if wide else change) @ vectors / first.clamp_min(1e-300)
    u, v = (vectors, other) if wide else (other, vectors)
    return values, Directions(u.float(), first.float(), v.float())
