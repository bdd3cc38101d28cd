"""The state of a recurrence as a sum over tokens. With the gates of a text as they are, the state after token T is

    h_T = sum over t <= T of (a_(t+1) a_(t+2) ... a_T) w_t

channel by channel: what token t wrote, times what each later token left of it. The products are multiplied up, never divided,
so that long texts, channels that forget at once and starts of documents (a = 0) are exact.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scope.errors import ConfigError
from scope.models.face import LanguageModel
from scope.models.hooks import HookPoint, only_reads
from scope.shapes import PerToken, Tokens

T = TypeVar("T")
PerChannel = Float[Tensor, "pos channel"]
Starts = Bool[Tensor, "pos"]

AT_ONCE = 2**25
"""Numbers of what is left of the tokens' writes that are held at once; channels are taken in turn."""

POINTS = ("hook_log_a", "hook_a", "hook_write", "hook_state")


@dataclass(frozen=True)
class Recurrence:
    """One recurrent layer on one text, in float64."""

    retained: PerChannel
    """What each token leaves of the state before it: a, 0 where a document starts, 1 at padding."""

    write: PerChannel
    """What each token adds: 0 at padding."""

    state: PerChannel
    """The state as the model has it."""

    starts: Starts
    """Where a document starts."""

    lengthening: PerToken
    """How many times longer a write is than with the factor sqrt(1 - a^2) of all others: 1 but where a document starts."""


def recurrent_layers(model: LanguageModel) -> list[int]:
    """The layers that have a recurrence.

    Raises:
        ConfigError: there is none, as in a Gemma.
    """
    sites = model.sites()
    layers = [layer for layer in range(model.cfg.n_layers) if state_site(layer) in sites]
    if not layers:
        name = model.provenance.get("model") or "This model"
        raise ConfigError(
            f"{name} has no recurrent layer, so it has no state that remembers: each token attends to those before it.\n"
            "  Give a RecurrentGemma, such as --model bundled-recurrent or google/recurrentgemma-2b."
        )
    return layers


def state_site(layer: int) -> str:
    return f"blocks.{layer}.rec.hook_state"


def layer_of(site: str) -> int | None:
    """The recurrent layer that a site is the state or the writes of; None for other sites."""
    parts = site.split(".")
    return int(parts[1]) if len(parts) == 4 and parts[2] == "rec" and parts[3] in ("hook_state", "hook_write") else None


@torch.no_grad()
def for_each_recurrence(
    model: LanguageModel, tokens: Tokens, layers: Sequence[int], do: Callable[[int, Recurrence], T], row: int = 0, **how: Any
) -> dict[int, T]:
    """Layer -> what `do` returns for it and the recurrence of one row of a batch. It is called while the model runs, so that
    one layer is in memory at a time; `how` goes to the model, such as attention_mask and position_ids."""
    seen: dict[str, Tensor] = {}
    results: dict[int, T] = {}

    @only_reads
    def keep(x: Tensor, hook: HookPoint) -> None:
        seen[hook.name.rpartition(".")[2]] = x[row].detach().cpu().double()
        if hook.name.endswith("hook_state") and hook.run.settled:
            run = hook.run
            results[hook.layer()] = do(hook.layer(), _recurrence(seen, run.positions[row].cpu(), run.real[row].cpu()))

    names = [f"blocks.{layer}.rec.{point}" for layer in layers for point in POINTS]
    model.run_with_hooks(tokens, fwd_hooks=[(names, keep)], return_type=None, stop_at_layer=max(layers) + 1, **how)
    return results


def _recurrence(seen: Mapping[str, Tensor], positions: Tensor, real: Tensor) -> Recurrence:
    log_a, a, write, state = (seen[point] for point in POINTS)
    starts = (positions == 0) & real
    short = write * (-torch.expm1(2 * log_a)).clamp(min=0).sqrt()
    lengthening = torch.where(starts, write.norm(dim=1) / short.norm(dim=1).clamp(min=1e-300), 1.0)
    retained = a.masked_fill(starts[:, None], 0.0).masked_fill(~real[:, None], 1.0)
    return Recurrence(retained, write.masked_fill(~real[:, None], 0.0), state, starts, lengthening)


def remaining(recurrence: Recurrence, times: Sequence[int], at_once: int = AT_ONCE) -> Iterator[tuple[slice, int, PerChannel]]:
    """For each time T in rising order, what is left at T of what each token up to T wrote: (channels, index of T, [T+1
    channel]). Channels come in as many parts as the memory of `at_once` numbers takes, the times of one part after the other.
    The tensor is overwritten by the next step."""
    n, width = recurrence.write.shape
    step = max(1, min(width, at_once // max(n, 1)))
    for start in range(0, width, step):
        channels = slice(start, min(start + step, width))
        retained, write = recurrence.retained[:, channels], recurrence.write[:, channels]
        left = torch.empty_like(write)
        before = 0
        for index, time in enumerate(times):
            until = time + 1
            later = retained[before:until].flip(0).cumprod(0).flip(0)  # of token t in it: a_t a_(t+1) ... a_T
            if before:
                left[:before] *= later[0]
            left[before : until - 1] = write[before : until - 1] * later[1:]
            left[until - 1] = write[until - 1]
            before = until
            yield channels, index, left[:until]


def half_lives(ages: Sequence[float] | np.ndarray, left: np.ndarray) -> np.ndarray:
    """For parts that were 1 at age 0 and are `left` [... age] at rising ages above 0, the age at which each first falls to 1/2,
    between two ages by the exponential through them; infinite where it never does, NaN where a value is not known."""
    ages = np.concatenate([[0.0], np.asarray(ages, float)])
    left = np.concatenate([np.ones((*left.shape[:-1], 1)), np.asarray(left, float)], -1)
    below = left <= 0.5
    at = np.maximum(below.argmax(-1), 1)
    before, after = (np.take_along_axis(left, (at - k)[..., None], -1)[..., 0] for k in (1, 0))
    after = np.maximum(after, 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip(np.log(before / 0.5) / np.log(before / after), 0, 1)
    found = ages[at - 1] + part * (ages[at] - ages[at - 1])
    return np.where(np.isnan(left).any(-1), np.nan, np.where(below.any(-1), found, np.inf))
