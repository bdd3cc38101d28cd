"""Settings of a training run that every kind of dictionary has, and the learning rate of a step."""

import math
from dataclasses import dataclass
from typing import Literal

from scope.errors import ConfigError
from scope.sae.configs.base import refuse_no_number


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. The defaults converge within a few million tokens; `scope.training.presets` holds other recipes."""

    steps: int = 2000
    """Optimiser steps."""

    batch_size: int = 1024
    """Activations (tokens) per step."""

    lr: float = 4e-3
    """Peak learning rate of Adam, for activations of mean square norm 1."""

    beta1: float = 0.9
    """Decay of Adam's first moment."""

    beta2: float = 0.999
    """Decay of Adam's second moment."""

    warmup: float = 0.05
    """Share of the steps (a number of steps if above 1) over which the learning rate rises."""

    warmup_start: float = 0.0
    """Share of the peak from which the learning rate rises."""

    warmup_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the rise."""

    decay: float = 0.5
    """Share of the steps (a number of steps if above 1), at the end, over which the learning rate falls linearly to zero."""

    center: bool = True
    """Subtract the mean activation before training and put it into the biases on saving; a large mean kills latents."""

    pre_bias: bool = False
    """Subtract b_dec from what is encoded while training, as Gemma Scope does, and fold that into b_enc on saving."""

    calibration: int = 65536
    """Activations, at most, on which mean and scale are measured and the start weights are set, before the first step."""

    dead_after: int = 200_000
    """Tokens without firing after which a latent counts as dead."""

    save_every: int = 200
    """Steps between checkpoints."""

    log_every: int = 20
    """Steps between lines of log.jsonl."""

    seed: int = 0
    """Random seed for the start weights."""

    order_seed: int | None = None
    """Random seed for the order in which activations are read; None takes `seed`, and of several seeds the first."""

    def __post_init__(self):
        refuse_no_number(self)
        for name in ("steps", "batch_size", "calibration", "dead_after", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.lr > 0:
            raise ConfigError(f"lr is {self.lr:g}; a learning rate must be above 0.")
        if not (0 <= self.beta1 < 1 and 0 < self.beta2 < 1):
            raise ConfigError(f"beta1 is {self.beta1:g} and beta2 {self.beta2:g}; both must lie below 1, and not below 0.")
        if self.warmup < 0 or self.decay < 0:
            raise ConfigError(f"warmup is {self.warmup:g} and decay {self.decay:g}; neither can be negative.")
        shares = [value if value <= 1 else value / self.steps for value in (self.warmup, self.decay)]
        if self.decay and sum(shares) > 1 + 1e-9:
            raise ConfigError(
                f"warmup {self.warmup:g} and decay {self.decay:g} take more than the {self.steps} steps of one run.\n"
                "  Up to 1 they are shares of it and together at most 1; above 1 they are steps. Lower one, or give more steps."
            )
        if not 0 <= self.warmup_start <= 1:
            raise ConfigError(f"warmup_start is {self.warmup_start:g}; it is a share of the peak, between 0 and 1.")

    @property
    def order(self) -> int:
        """The seed of the order in which activations are read."""
        return self.seed if self.order_seed is None else self.order_seed


def rate(step: int, steps: int, warmup: float, decay: float, start: float = 0.0, shape: str = "linear") -> float:
    """Share of the peak learning rate at `step` (from 0): a rise from `start`, flat, a linear fall that would reach zero just
    after the last step. It depends on the step alone, so a resumed run cannot lose its place.

    `warmup` and `decay` are shares of the steps up to 1, and numbers of steps above. `shape` of the rise: linear, or cosine
    (half a wave, Gemma Scope's).
    """
    rise, fall = steps_of(warmup, steps), steps_of(decay, steps)
    up = min(1.0, (step + 1) / rise) if rise else 1.0
    if shape == "cosine":
        up = (1 - math.cos(math.pi * up)) / 2
    down = (steps - step) / fall if fall else 1.0
    return min(start + (1.0 - start) * up, down, 1.0)


def steps_of(value: float, steps: int) -> int:
    """A length given as a share of the run (up to 1) or in steps (above 1), in steps."""
    return round(value * steps) if value <= 1 else round(value)
