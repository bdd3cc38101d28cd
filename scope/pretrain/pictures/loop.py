"""The training loop of the small models of pictures: Muon on matrices, AdamW on the rest, checkpoints that resume.

The data of a step is a function of its number, and the learning rate too: a run that was stopped and continued ends in the
same weights as one that was not.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scope.activations.errors import CorpusError
from scope.errors import ConfigError
from scope.pretrain.checkpoint import read_checkpoint, write_checkpoint
from scope.shapes import Scalar
from scope.typed_json import json_lines, read_bytes, read_typed
from scope.whole_files import only_writer, write_whole


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every recipe of a model of pictures has."""

    steps: int = 1000
    """Optimiser steps."""

    batch: int = 128
    """Pictures a step."""

    matrix_lr: float = 0.02
    """Peak learning rate of Muon, for the matrices of the blocks."""

    other_lr: float = 2e-3
    """Peak learning rate of AdamW, for the rest."""

    fast_lr: float = 1e-2
    """Peak learning rate of AdamW for scale, bias and positions."""

    warmup: int = 40
    """Steps of linear warm-up."""

    decay: float = 0.4
    """Share of the steps, at the end, over which the learning rate falls linearly to zero."""

    seed: int = 0
    """Random seed for the start weights and for the data."""

    save_every: int = 50
    """Steps between checkpoints."""

    def __post_init__(self):
        if min(self.steps, self.batch, self.save_every) < 1 or self.warmup < 0 or not 0 <= self.decay <= 1:
            raise ConfigError("steps, batch and save_every must be at least 1, warmup not below 0, decay from 0 to 1.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, as a share of its peak."""
        decay_steps = max(1, int(self.steps * self.decay))
        return min(1.0, (step + 1) / max(1, self.warmup), (self.steps - step) / decay_steps)


def optimizers(
    config: LoopConfig, matrices: Iterable[Tensor], rest: Iterable[Tensor], fast: Iterable[Tensor] = ()
) -> list[torch.optim.Optimizer]:
    """Muon for matrices, AdamW for the rest; `fast` parameters have a learning rate of their own."""
    groups = [{"params": list(rest), "lr": config.other_lr}, {"params": list(fast), "lr": config.fast_lr}]
    groups = [group for group in groups if group["params"]]
    adam = [torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)] if groups else []
    matrices = list(matrices)
    muon = [torch.optim.Muon(matrices, lr=config.matrix_lr, weight_decay=0.01, momentum=0.95)] if matrices else []
    return [*adam, *muon]


def train(
    trained: nn.Module,
    opts: list[torch.optim.Optimizer],
    config: LoopConfig,
    loss_at: Callable[[int], Scalar],
    out: Path,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
) -> None:
    """Train the parameters of `trained` on the loss of every step; the same call continues a run that was stopped.

    Writes OUT/recipe.json (config), OUT/curve.jsonl (a line every 10 steps) and OUT/checkpoint.pt.

    Raises:
        ConfigError: OUT holds a run with another config, or the loss is not finite.
        CheckpointError: its checkpoint is damaged.
        FolderInUse: another process trains there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out, doing="used for a training"):
        _train(trained, opts, config, loss_at, out, log)


def _train(
    trained: nn.Module,
    opts: list[torch.optim.Optimizer],
    config: LoopConfig,
    loss_at: Callable[[int], Scalar],
    out: Path,
    log: Callable[[dict[str, Any]], None],
) -> None:
    """The training of a folder that nobody else writes into."""
    peaks = [[group["lr"] for group in opt.param_groups] for opt in opts]
    step, curve, running = _resume(config, out, trained, opts)  # which replaces the groups
    parameters = [p for opt in opts for group in opt.param_groups for p in group["params"]]
    while step < config.steps:
        for opt, of_groups in zip(opts, peaks, strict=True):
            for group, peak in zip(opt.param_groups, of_groups, strict=True):
                group["lr"] = peak * config.rate(step)
        loss = loss_at(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step += 1
        running.append(loss.item())
        if step % 10 == 0 or step == config.steps:
            mean, running = sum(running) / len(running), []
            if not math.isfinite(mean):
                raise ConfigError(f"The loss is {mean} at step {step}; lower the learning rates. {out} has a checkpoint.")
            curve.append({"step": step, "loss": round(mean, 4)})
            log(curve[-1] | {"steps": config.steps})
        if step % config.save_every == 0 or step == config.steps:
            write_whole(out / "curve.jsonl", "".join(json.dumps(row) + "\n" for row in curve))
            state = {"trained": trained.state_dict(), "optimizers": [opt.state_dict() for opt in opts]}
            write_checkpoint(out / "checkpoint.pt", state | {"step": step, "running": running})


def refuse_other_settings(config: LoopConfig, out: Path) -> None:
    """Do nothing where OUT holds no run, or one with this config.

    Raises:
        ConfigError: it holds one with another config.
    """
    file, way_out = out / "recipe.json", "Give another --out, or the same settings."
    if not file.exists():
        return
    before, now = read_typed(file, dict[str, Any], ConfigError, way_out), json.loads(json.dumps(asdict(config)))
    changed = [f"{k}: {before.get(k)} then, {v} now" for k, v in now.items() if k != "save_every" and before.get(k) != v]
    if changed:
        raise ConfigError(f"{out} holds a run with other settings ({', '.join(changed)}).\n  {way_out}")


def _resume(
    config: LoopConfig, out: Path, trained: nn.Module, opts: list[torch.optim.Optimizer]
) -> tuple[int, list[dict[str, Any]], list[float]]:
    """The step at which a run goes on, its loss curve until there, and the losses since the last row of that."""
    refuse_other_settings(config, out)
    write_whole(out / "recipe.json", json.dumps(asdict(config), indent=1))
    if not (out / "checkpoint.pt").exists():
        return 0, [], []
    saved = read_checkpoint(out / "checkpoint.pt")
    trained.load_state_dict(saved["trained"])
    for opt, state in zip(opts, saved["optimizers"], strict=True):
        opt.load_state_dict(state)
    rows = json_lines(read_bytes(out / "curve.jsonl", CorpusError), out / "curve.jsonl")
    return saved["step"], [row for row in rows if row["step"] <= saved["step"]], saved.get("running", [])
