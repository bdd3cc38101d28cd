"""The memory that a training will need, compared with what is free before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scope.errors import ConfigError
from scope.free_memory import free_memory
from scope.sae.configs.base import SAEConfig
from scope.sae.engines.autograd import Autograd
from scope.sae.kinds import make_objective, make_sae

_SLICE = 512  # tokens that an engine without a graph takes at a time


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes are those of this process."""

    dictionaries: int
    parameters: int
    weights: int
    optimiser: int
    """Gradients and both moments of Adam."""

    work: int
    """Bytes that a step computes in."""

    reading: int
    """Bytes of activations that wait to be shuffled."""

    free: int | None
    """None where the system does not tell."""

    @property
    def needed(self) -> int:
        return self.weights + self.optimiser + self.work


def plan(configs: Sequence[SAEConfig], batch_size: int, reading: int, device: torch.device, split: int = 1) -> Plan:
    """`split` is the number of processes over which widths are split; `reading` the bytes held to shuffle, on the CPU."""
    parameters = work = 0
    for config in configs:
        with torch.device("meta"):
            sae = make_sae(config)
            by_hand = not isinstance(make_objective(sae).engine(), Autograd)
        parameters += sum(p.numel() for p in sae.parameters()) // split
        width = config.d_sae // split
        work += 12 * _SLICE * width + 2 * width * config.d_in if by_hand else 24 * batch_size * width
    return Plan(
        dictionaries=len(configs),
        parameters=parameters,
        weights=4 * parameters,
        optimiser=12 * parameters,
        work=work,
        reading=reading,
        free=free_memory(device),
    )


def refuse_what_does_not_fit(planned: Plan, device: torch.device) -> None:
    """
    Raises:
        ConfigError: more memory is needed than is free.
    """
    needed = planned.needed + (planned.reading if device.type == "cpu" else 0)
    if planned.free is not None and needed > planned.free:
        raise ConfigError(
            f"This training needs {needed / 1e9:.1f} GB, and {planned.free / 1e9:.1f} GB are free on {device}.\n"
            "  Train fewer dictionaries at once or narrower ones, lower --shuffle-mb, or use several processes: torchrun with\n"
            "  --parallel site deals the dictionaries to them, --parallel width splits each."
        )
