"""How long, how fast, and how often to say so: what every kind of dictionary is trained with."""

from dataclasses import dataclass

from scope.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. The defaults converge within a few million tokens."""

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
    """Share of the steps over which the learning rate rises linearly from zero."""

    decay: float = 0.5
    """Share of the steps, at the end, over which the learning rate falls linearly to zero."""

    center: bool = True
    """Subtract the mean activation before training and put it into the biases on saving; a large mean kills latents."""

    calibration: int = 65536
    """Activations, at most, on which mean and scale are measured and the start weights are set, before the first step."""

    dead_after: int = 200_000
    """Tokens without firing after which a latent counts as dead."""

    save_every: int = 200
    """Steps between checkpoints."""

    log_every: int = 20
    """Steps between lines of log.jsonl."""

    seed: int = 0
    """Of the start weights and of the order in which the recording is read."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "calibration", "dead_after", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.lr > 0:
            raise ConfigError(f"lr is {self.lr:g}; a learning rate must be above 0.")
        if not (0 <= self.beta1 < 1 and 0 < self.beta2 < 1):
            raise ConfigError(f"beta1 is {self.beta1:g} and beta2 {self.beta2:g}; both must lie below 1, and not below 0.")
        if not (0 <= self.warmup <= 1 and 0 <= self.decay <= 1 and self.warmup + self.decay <= 1):
            raise ConfigError(f"warmup {self.warmup:g} and decay {self.decay:g} are shares of one run: together at most 1.")
