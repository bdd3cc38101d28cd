"""Output scores in blocks of latents, saved as they are finished and shared by processes."""

import hashlib
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.activations.harvest.ranks import ProcessRank
from scope.features.collect.build_folder import BuildFolder, until
from scope.features.collect.config import NEUTRAL, CollectConfig
from scope.features.collect.token_effects import OutputScores, TokenEffects, output_scores, token_effects
from scope.models.face import LanguageModel, Model, VisionModel
from scope.null_seeds import generator
from scope.progress import OnProgress
from scope.sae.base import SAE
from scope.sites import in_stream_space

PLAN = "plan"
BLOCK = 512
"""Directions of a block."""
_TIMED = 8  # directions


@dataclass(frozen=True, eq=False)
class Scoring:
    """What is measured: of which latents, how far along their directions, and which tokens count."""

    latents: np.ndarray
    promoted: np.ndarray
    length: float
    prompts: int

    @property
    def n_blocks(self) -> int:
        return -(-len(self.latents) // BLOCK)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray]) -> "Scoring":
        return cls(arrays["latents"], arrays["promoted"], float(arrays["length"]), int(arrays["prompts"]))


def score_block(model: LanguageModel, sae: SAE, scoring: Scoring, number: int) -> dict[str, np.ndarray]:
    """Output scores of one block's latents, in their order."""
    some = slice(number * BLOCK, (number + 1) * BLOCK)
    directions = sae.W_dec.detach().float()[torch.from_numpy(scoring.latents[some]).to(sae.W_dec.device)]
    prompts = [model.tokenizer.encode(text) for text in NEUTRAL[: scoring.prompts]]
    return asdict(output_scores(model, next(iter(sae.writes)), directions, scoring.promoted[some], scoring.length, prompts))


class Blocks:
    """Scores in blocks: from an earlier run, from another process, or measured now and kept."""

    def __init__(self, model: Model, sae: SAE, building: BuildFolder, ranks: ProcessRank):
        self.model, self.sae, self.building, self.ranks = model, sae, building, ranks

    def announce(self, scoring: Scoring | None) -> None:
        """Tell the other processes what is to be measured."""
        if self.ranks.world > 1:
            nothing = Scoring(np.zeros(0, np.int64), np.zeros((0, 0), np.int64), 0.0, 0)
            self.building.save_arrays(PLAN, **(scoring or nothing).to_arrays())

    def of(self, scoring: Scoring, number: int) -> dict[str, np.ndarray]:
        name = f"scores-{_digest(scoring)}-{number:05d}"
        found = self.building.load_arrays(name)
        if found is None and not self.ranks.owns(number):
            found = until(lambda: self.building.load_arrays(name))
        if found is None:
            found = score_block(self.model, self.sae, scoring, number)
            self.building.save_arrays(name, **found)
        return found


def _digest(scoring: Scoring) -> str:
    """Scores of other latents, tokens, lengths or prompts bear other names, so they are never taken for these."""
    digest = hashlib.sha256()
    for name, array in sorted(scoring.to_arrays().items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def measure(
    model: Model,
    sae: SAE,
    effects: TokenEffects | None,
    rho: float,
    count: np.ndarray,
    n_tokens: int,
    config: CollectConfig,
    blocks: Blocks,
    on_progress: OnProgress | None = None,
) -> tuple[OutputScores | None, dict[str, Any]]:
    """Output scores of all latents, NaN where they were not measured, and the same for random directions.

    `blocks` brings the scores of each block: measured here, by another process, or in an earlier run.
    """
    if effects is None or config.score_prompts == 0 or model.tokenizer is None or isinstance(model, VisionModel):
        why = "left out" if not config.score_prompts else "the site is not in the residual stream, or there is no tokenizer"
        if effects is not None and isinstance(model, VisionModel):
            why = "they are measured on prompts of text alone, and this model reads pictures"
        blocks.announce(None)
        return None, {"prompts": 0, "why": why}
    length, d_sae = config.score_strength * rho, len(count)
    chosen = _scored(count, n_tokens, config)
    scoring = Scoring(chosen, effects.promoted_id[chosen], length, config.score_prompts)
    blocks.announce(scoring)
    null = {"strength": config.score_strength, "length": length, "prompts": config.score_prompts, "random": config.score_null}
    if config.score_null:
        null |= _of_random_directions(model, sae, length, config)
    null["latents"] = len(chosen)
    every = OutputScores(
        np.full(d_sae, np.nan), np.full(d_sae, np.nan), *(np.zeros((d_sae, 0), t) for t in (np.int32, np.float32))
    )
    for number in range(scoring.n_blocks):
        some = chosen[number * BLOCK : (number + 1) * BLOCK]
        found = blocks.of(scoring, number)
        if not number:
            k = found["measured_id"].shape[1]
            every = OutputScores(every.score, every.kl, np.full((d_sae, k), -1, np.int32), np.zeros((d_sae, k), np.float32))
        for name, column in vars(every).items():
            column[some] = found[name]
        if on_progress:
            done = min((number + 1) * BLOCK, len(chosen))
            on_progress(done, len(chosen), {"output scores": done})
    return every, null


def seconds_for_scores(model: Model, sae: SAE, config: CollectConfig) -> float:
    """Seconds that `measure` will probably take, from a few random directions; 0 where nothing will be measured."""
    site = next(iter(sae.writes), sae.site)
    if not (config.score_prompts and in_stream_space(site)) or isinstance(model, VisionModel) or model.tokenizer is None:
        return 0.0
    n = min(sae.d_sae, config.score_latents or sae.d_sae) + config.score_null
    directions = torch.randn(_TIMED, model.cfg.d_model, generator=generator("directions to time", config.seed))
    directions = directions.to(sae.W_dec.device)
    prompts = [model.tokenizer.encode(text) for text in NEUTRAL[: config.score_prompts]]
    promoted = np.zeros((_TIMED, 10), np.int64)
    begun = time.monotonic()
    output_scores(model, site, directions, promoted, 1.0, prompts)
    return (time.monotonic() - begun) / _TIMED * n


def _of_random_directions(model: LanguageModel, sae: SAE, length: float, config: CollectConfig) -> dict[str, float]:
    chance = generator("directions of output scores", config.seed)
    noise: Tensor = torch.randn(config.score_null, sae.W_dec.shape[1], generator=chance).to(sae.W_dec.device)
    prompts = [model.tokenizer.encode(text) for text in NEUTRAL[: config.score_prompts]]
    aimless = output_scores(model, next(iter(sae.writes)), noise, token_effects(model, noise).promoted_id, length, prompts)
    return {
        "null_mean": float(aimless.score.mean()),
        "null_p95": float(np.quantile(aimless.score, 0.95)),
        "null_kl": float(aimless.kl.mean()),
    }


def _scored(count: np.ndarray, n: int, config: CollectConfig) -> np.ndarray:
    """Latents to measure: all, or the most frequent of those that are not dense."""
    if config.score_latents is None or config.score_latents >= len(count):
        return np.arange(len(count))
    order = np.argsort(np.where(count / max(n, 1) >= config.flags.dense, -1, count) * -1, kind="stable")
    return np.sort(order[: config.score_latents])
