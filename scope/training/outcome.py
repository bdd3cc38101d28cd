"""What a training came to, and what a reader must be told of it."""

from typing import Any

from scope.sae.base import SAE
from scope.training.config import TrainConfig
from scope.training.schedule import steps_of


def outcome(sae: SAE, config: TrainConfig, log: list[dict], fvu: float, dead: float) -> dict[str, Any]:
    """L0, FVU and dead share over the last tenth of the run, and notes. `fvu` is of its steps, L0 the mean of its log lines."""
    last = [row for row in log if row["step"] > 0.9 * config.steps] or log[-1:]
    l0 = sum(row["l0"] for row in last) / len(last)
    notes = []
    if fvu > 1:
        notes.append(
            f"It is worse than predicting the mean activation: FVU {fvu:.3g} > 1. Lower lr ({config.lr:g}), or give more steps."
        )
    target = target_of(sae)
    if target is not None and abs(l0 / target - 1) > 0.1:
        way = "more steps" if l0 > target else "more steps, or a lower lr"
        notes.append(f"The target L0 of {target:g} was not reached: it is {l0:.1f}. Give {way}.")
    if dead > 0.1:
        notes.append(
            f"{dead:.0%} of the latents are dead (silent for {config.dead_after:,} tokens). Try a smaller d_sae, or more L0."
        )
    revived = log[-1].get("revived", 0) if log else 0
    if revived:
        notes.append(f"Silent latents were started anew {revived:,.0f} times on the way.")
    if not config.center and fvu > 0.5:
        notes.append("Activations were not centred, which a large mean activation punishes with dead latents.")
    tokens = config.steps * config.batch_size
    if tokens < config.dead_after:
        notes.append(
            f"The run of {tokens:,} tokens is shorter than dead_after ({config.dead_after:,}), so no latent can count as dead."
        )
    if (rise := steps_of(config.warmup, config.steps)) >= config.steps:
        notes.append(f"The warm-up of {rise:,} steps is as long as the run of {config.steps:,}: its peak was hardly used.")
    return {"l0": l0, "fvu": fvu, "dead": dead, "tokens": tokens, "notes": notes}


def target_of(sae: SAE) -> float | None:
    """The L0 that this dictionary is to have; None where only a fixed weight of the penalty is given."""
    config = sae.config
    if getattr(config, "l0_weight", None) is not None or getattr(config, "l1_weight", None) is not None:
        return None
    return getattr(config, "target_l0", None) or getattr(config, "k", None)
