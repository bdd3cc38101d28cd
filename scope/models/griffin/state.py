"""The cache entry of a recurrent block: the state of its recurrence and the last inputs of its convolution."""

import torch
from torch import Tensor

from scope.models.griffin.scan import Channels, Earlier, State
from scope.shapes import Mask


class RecurrentState:
    """`h` [batch channel], in float32 or wider whatever the dtype of the activations, and `inputs` [batch width-1 channel],
    the last real tokens' with zeros before the first. Both are None before the first token. Their size does not grow."""

    def __init__(self, h: State | None = None, inputs: Earlier | None = None):
        self.h, self.inputs = h, inputs

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        self.h, self.inputs = self.h[rows], self.inputs[rows]

    def repeated(self, n: int) -> "RecurrentState":
        """The one row, n times; what is appended to the copy does not change this one."""
        if self.h is None:
            return RecurrentState()
        return RecurrentState(self.h.expand(n, -1), self.inputs.expand(n, -1, -1))

    def before(self, x: Channels, width: int) -> Earlier:
        """The inputs before those of x: zeros where there were none."""
        if self.inputs is not None:
            return self.inputs
        return x.new_zeros(len(x), width - 1, x.shape[-1])


def last_real(x: Channels, real: Mask, n: int) -> Earlier:
    """The inputs of each row's last n real tokens, in their order."""
    order = torch.where(real, torch.arange(1, real.shape[1] + 1, device=real.device), 0)
    last = order.topk(n, dim=1).values.flip(1) - 1
    return x.gather(1, last[..., None].expand(-1, -1, x.shape[-1]))
