"""Recipes as data: their settings, their sources, and what they leave open.

small-budget   Ours, the default: converges within a few million tokens. Learning rate high, decayed over the second half; over
               the first the target L0 is approached from above, and reached. Wider dictionaries get more tokens and a lower
               rate. JumpReLU's latents that are silent for a fortieth of the run start anew; TopK's and BatchTopK's are
               taught by the auxiliary loss at its full weight, and their decoder rows start short and free.
gemma-scope    Gemma Scope (arXiv:2408.05147, section 3.2 and appendix A), JumpReLU (arXiv:2407.14435). Adam (0, 0.999), eps
               1e-8, lr 7e-5, cosine warm-up from a tenth over 1000 steps and no decay; batches of 4096; 4 billion tokens at
               width 16k, 16 at a million, 8 otherwise; bandwidth and start threshold 0.001 for inputs of unit mean square
               norm without a mean taken off; a pre-encoder bias, folded at the end; unit decoder rows, their lengthening
               gradient dropped; no dead latent is revived; lambda rises linearly over 10,000 steps. Its lambdas are not
               published: give --l0-weight, or --target-l0 and lambda is moved until that is so. Two things differ: start
               directions are uniform on the sphere where the paper's are uniform in the cube, and contexts of 1024 tokens are
               a matter of the recording. At 7e-5 it needs 10^5 steps or more; in a short run it is the worst of the three.
gemma-scope-2  Gemma Scope 2 (announced December 2025; the report was not at hand). Known: JumpReLU, a quadratic penalty round a
               target L0, a penalty on latents of high frequency, L0 of 10-20, 30-60 or 90-150 by size. Second hand: learning
               rate, warm-up, Adam and batch as in gemma-scope. Not said: the strengths of both penalties, tokens, and whether
               lambda warms up; ours stand in. Its Matryoshka loss is left out, as its widths are not known; --nested adds one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scope.errors import ConfigError


@dataclass(frozen=True)
class Size:
    """What the values of a recipe may depend on."""

    kind: str
    d_sae: int
    tokens: int
    batch_size: int

    @property
    def steps(self) -> int:
        return max(1, math.ceil(self.tokens / self.batch_size))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """`tokens` of a width, the batch of a token budget; from the size the values of TrainConfig and of each kind's config."""

    summary: str
    tokens: Callable[[int], int]
    batch_size: Callable[[int], int]
    training: Callable[[Size], dict[str, Any]]
    kinds: dict[str, Callable[[Size], dict[str, Any]]]


def _nothing(size: Size) -> dict[str, Any]:
    return {}


def _small_lr(size: Size) -> dict[str, Any]:
    peak = 8e-3 if size.kind == "jumprelu" else 4e-3
    return {"lr": float(f"{peak * min(1.0, (2048 / size.d_sae) ** 0.5):.2g}")}


def _small_revival(size: Size) -> dict[str, Any]:
    """A fortieth of the run: what fires seldom has time to, and what is dead comes back while there is time to learn."""
    return {"revive_after": max(50_000, size.tokens // 40)}


def _gemma_scope(size: Size) -> dict[str, Any]:
    return {
        "lr": 7e-5,
        "beta1": 0.0,
        "beta2": 0.999,
        "warmup": 1000.0,
        "warmup_start": 0.1,
        "warmup_shape": "cosine",
        "decay": 0.0,
        "center": False,
        "pre_bias": True,
        "dead_after": 10_000_000,
    }


def _gemma_scope_jumprelu(size: Size) -> dict[str, Any]:
    return {
        "penalty": "l0",
        "bandwidth": 1e-3,
        "threshold_form": "direct",
        "threshold_rate": 1.0,
        "start_threshold": 1e-3,
        "start_l0": 1.0,
        "revive_after": None,
        "anneal": min(1.0, 10_000 / size.steps),
        "decoder": "unit",
    }


def _gemma_scope_2_jumprelu(size: Size) -> dict[str, Any]:
    return _gemma_scope_jumprelu(size) | {
        "penalty": "quadratic",
        "frequency_scale": 0.1,
        "target_l0": min(60.0, size.d_sae / 2),
    }


def _gemma_scope_tokens(d_sae: int) -> int:
    return 4_000_000_000 if d_sae <= 2**14 else 16_000_000_000 if d_sae >= 2**20 else 8_000_000_000


PRESETS: dict[str, Preset] = {
    "small-budget": Preset(
        summary="converges within a few million tokens",
        tokens=lambda d_sae: max(2_048_000, 500 * d_sae),
        batch_size=lambda tokens: 1024 if tokens < 16_000_000 else 2048 if tokens < 64_000_000 else 4096,
        training=_small_lr,
        kinds={"jumprelu": _small_revival} | dict.fromkeys(("topk", "batch_topk", "gated"), _nothing),
    ),
    "gemma-scope": Preset(
        summary="the paper's recipe, for billions of tokens",
        tokens=_gemma_scope_tokens,
        batch_size=lambda tokens: 4096,
        training=_gemma_scope,
        kinds={"jumprelu": _gemma_scope_jumprelu},
    ),
    "gemma-scope-2": Preset(
        summary="quadratic target, frequency penalty, for billions of tokens",
        tokens=_gemma_scope_tokens,
        batch_size=lambda tokens: 4096,
        training=_gemma_scope,
        kinds={"jumprelu": _gemma_scope_2_jumprelu},
    ),
}


def resolve(
    name: str,
    kind: str,
    d_sae: int,
    tokens: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values of TrainConfig, values of the kind's config) of a recipe at a width, a token budget or number of steps, a batch.

    Raises:
        ConfigError: there is no such recipe, or it is not one for this kind.
    """
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name}. There are: {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    if kind not in preset.kinds:
        raise ConfigError(
            f"{name} is a recipe for {', '.join(preset.kinds)}, not for {kind}.\n  Leave --preset out, or give --kind "
            f"{next(iter(preset.kinds))}."
        )
    budget = tokens or (steps * (batch_size or 1024) if steps else preset.tokens(d_sae))
    batch = batch_size or preset.batch_size(budget)
    size = Size(kind, d_sae, steps * batch if steps else budget, batch)
    return {"steps": size.steps, "batch_size": batch, **preset.training(size)}, preset.kinds[kind](size)
