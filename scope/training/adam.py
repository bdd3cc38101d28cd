"""Adam, fused, over parameters as they lie in memory.

PyTorch's fused Adam copies a gradient that does not lie row by row, as the encoder's does not, whose latents' weights lie side
by side: at 768 x 16384 that is 50 MB and a tenth of a training step. So such a parameter is handed to it transposed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Adam:
    """`peaks` are the learning rates of single parameters, before the schedule's share of them."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], peaks: Mapping[str, float], betas: tuple[float, float]):
        self.parameters, self.peaks = dict(parameters), dict(peaks)
        self.rows = {name: nn.Parameter(by_rows(p.data), p.requires_grad) for name, p in self.parameters.items()}
        groups = [{"params": [row], "name": name} for name, row in self.rows.items()]
        self.torch = torch.optim.Adam(groups, lr=1.0, betas=betas, fused=True)

    def step(self, share: float) -> None:
        """Move all parameters, at this share of their peak rates."""
        for group in self.torch.param_groups:
            group["lr"] = share * self.peaks[group["name"]]
        for name, p in self.parameters.items():
            if p.grad is not None:
                self.rows[name].grad = _like(p.grad, p).contiguous()
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)  # of the views; the gradients stay with their owners

    def moments(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Of each parameter `step`, `exp_avg` and `exp_avg_sq`, the latter shaped as the parameter is."""
        for name, p in self.parameters.items():
            yield name, {k: _like(v, p) if v.dim() else v for k, v in self.torch.state[self.rows[name]].items()}

    def load_moments(self, name: str, moments: Mapping[str, Any]) -> None:
        """Undo of `moments` for one parameter."""
        p, row = self.parameters[name], self.rows[name]
        # `step` of a fused Adam lies where the parameter does
        self.torch.state[row] = {
            k: torch.empty_like(row).copy_(_like(v, p)) if v.dim() else v.to(row.device) for k, v in moments.items()
        }


def by_rows(tensor: Tensor) -> Tensor:
    """The tensor, or its transpose if that is what lies row by row; the same memory."""
    return tensor.T if _transposed(tensor) else tensor


def _transposed(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and not tensor.is_contiguous() and tensor.T.is_contiguous()


def _like(tensor: Tensor, p: Tensor) -> Tensor:
    """What belongs to a parameter, the way round in which Adam has the parameter; and back."""
    return tensor.T if tensor.dim() == 2 and _transposed(p) else tensor
