"""Parts that training adds to a dictionary: start weights, terms to minimise, what happens around a step, and what is logged.

The trainer knows only `Objective`; each kind has its own.
"""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from scope.sae.base import SAE
from scope.sae.engines.autograd import Autograd
from scope.sae.engines.base import Engine
from scope.shapes import Acts, Latents, Scalar


@runtime_checkable
class Processes(Protocol):
    """The processes of one training: in `mode` "data" each takes a share of every batch, in "width" a share of the latents."""

    mode: str
    rank: int
    world: int

    def sum(self, tensor: Tensor) -> Tensor: ...

    def mean(self, tensor: Tensor) -> Tensor: ...

    def share(self, n: int) -> slice: ...


class Objective:
    """The training of one dictionary, on standardised activations."""

    shares_batch = False
    """Whether its gradient is the mean over tokens of each token's own, so that processes can take a share of a batch each."""

    shares_latents = False
    """Whether latents meet only in what they reconstruct together, so that processes can take a share of them each."""

    one_path = True
    """Whether x reaches the latents only through x @ W_enc + b_enc, so that a bias on x can be folded into b_enc."""

    sums_over_latents: tuple[str, ...] = ()
    """Terms that are sums over latents; the others are means over tokens."""

    def __init__(self, sae: SAE):
        self.sae, self.config = sae, sae.config
        self.rates: dict[str, float] = {}  # parameter -> its learning rate as a multiple of the trainer's, where not 1
        self.processes: Processes | None = None

    def over(self, processes: Processes, sae: SAE) -> "Objective":
        """The same objective as one of several processes has it. In mode "width" `sae` holds this process's latents."""
        mine = copy.copy(self)
        mine.sae, mine.processes = sae, processes
        return mine

    def engine(self) -> Engine:
        """The fastest engine whose gradients are those of `losses`."""
        return Autograd(self)

    def start(self, sample: Acts, seed: int = 0) -> None:
        """Set the start weights, from a seed and a sample of activations."""
        raise NotImplementedError

    def losses(self, x: Acts) -> dict[str, Scalar]:
        """Named terms whose sum is minimised. This is the reference; an engine may be faster."""
        raise NotImplementedError

    def errors(self, latents: Latents, x: Acts) -> dict[str, Scalar]:
        """The terms of reconstruction: squared error per token ("error") and, where widths are nested, the sum of those
        that the first latents alone leave ("nested")."""
        sae = self.sae
        if not self.config.nested:
            return {"error": (sae.decode(latents) - x).square().sum(1).mean()}
        x_hat, errors = sae.b_dec, []
        for start, end in pairwise((0, *self.config.nested, sae.d_sae)):
            x_hat = x_hat + latents[:, start:end] @ sae.W_dec[start:end]
            errors.append((x_hat - x).square().sum(1).mean())
        return {"error": errors[-1], "nested": torch.stack(errors[:-1]).sum()}

    def observe(self, x: Acts, surplus: Acts, fired: Tensor) -> None:
        """Called by the engine with each batch: its activations, what their reconstruction was wrong by (x_hat - x, times any
        positive number), and on how many tokens each latent fired."""

    def before_step(self) -> None:
        """Called when all gradients are there and before the optimiser moves the parameters."""

    def after_step(self, l0: float, progress: float) -> None:
        """Called after the optimiser; `l0` is this batch's, `progress` the share of the run that is done, 0 to 1."""

    def state(self) -> dict[str, Any]:
        """What the next step depends on beside parameters and optimiser: numbers and tensors, saved with every checkpoint."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Undo of `state`."""

    def map_by_latent(self, state: dict[str, Any], change: Callable[[Tensor], Any]) -> dict[str, Any]:
        """A `state` in which what has one number for each latent is changed: split among processes, or put together again."""
        return state

    def watched(self) -> dict[str, float]:
        """Numbers of its own for every line of the log."""
        return {}


@torch.no_grad()
def start_tied(sae: SAE, seed: int) -> None:
    """Unit decoder rows in random directions, and an encoder that is their transpose."""
    rows = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(seed)).to(sae.W_dec)
    sae.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
    sae.W_enc.copy_(sae.W_dec.T)


@torch.no_grad()
def kth_pre_activation(sae: SAE, sample: Acts, share: float) -> Tensor:
    """[d_sae]: the pre-activation, without b_enc, that each latent exceeds on this share of the sample, at most a half."""
    kth = max(1, round(min(0.5, share) * len(sample)))
    # a slice of latents at a time: the sample times all latents may be large
    slices = (sae.W_enc[:, start : start + 1024] for start in range(0, sae.d_sae, 1024))
    return torch.cat([(sample @ weights).topk(kth, dim=0).values[-1] for weights in slices])


@torch.no_grad()
def drop_lengthening(W_dec: nn.Parameter) -> None:
    """Take from the gradient the part along each unit row, which would only lengthen it (P33)."""
    if W_dec.grad is not None:
        W_dec.grad.sub_((W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec)


@torch.no_grad()
def unit_rows(W_dec: nn.Parameter) -> None:
    W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))
