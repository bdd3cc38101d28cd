"""The learning rate of a step: a function of its number alone, so that a resumed run cannot lose its place."""


def rate(step: int, steps: int, warmup: float, decay: float) -> float:
    """Share of the peak at `step` (from 0): linear warm-up, flat, linear decay that would reach zero just after the
    last step."""
    rise, fall = round(steps * warmup), round(steps * decay)
    up = (step + 1) / rise if rise else 1.0
    down = (steps - step) / fall if fall else 1.0
    return min(1.0, up, down)
