"""The learning rate of a step: a function of its number alone, so that a resumed run cannot lose its place."""

import math


def rate(step: int, steps: int, warmup: float, decay: float, start: float = 0.0, shape: str = "linear") -> float:
    """Share of the peak at `step` (from 0): a rise from `start`, flat, a linear fall that would reach zero just after the
    last step.

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
