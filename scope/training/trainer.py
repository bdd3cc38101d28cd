"""`train`: batches in, a dictionary out. It adds gradients, steps, counts and saves; what is learnt is the
dictionary's own affair.

Everything that the next step depends on is in one file, written between two steps: parameters, both moments of Adam,
the place in the recording, the state of the schedule and of the engine, the random state, the running means. So a run
that was stopped, however rudely, ends in the same bits as one that was not (on the same machine, with as many
threads).
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.errors import ConfigError
from scope.sae.base import SAE
from scope.sae.engine import Batch, Engine
from scope.sae.files import MANIFEST, load_sae, save_sae
from scope.sae.formats.sae_lens import read_json, write_json
from scope.sae.kinds import kind_of
from scope.shapes import Acts
from scope.training.batches import Batches, TensorBatches
from scope.training.checkpoint import load_state, save_state
from scope.training.config import TrainConfig
from scope.training.interrupt import Interrupt, exclusive
from scope.training.progress import Log, Running, read_log
from scope.training.schedule import rate
from scope.versions import version_of

__all__ = ["Batches", "TensorBatches", "TrainConfig", "train"]

RUN, CHECKPOINT = "training.json", "checkpoint.safetensors"
OnProgress = Callable[[int, int, dict], None]

_FREE = {"save_every", "log_every"}
"""Settings that leave the result alone, so a run may be continued with others."""


def train(
    sae: SAE,
    batches: Batches,
    config: TrainConfig,
    out: Path | str,
    on_progress: OnProgress | None = None,
    engine: Engine | None = None,
) -> SAE:
    """Train `sae` in place on raw activations, save it in `out` as a dictionary of raw activations, and return it.

    The same call continues a run that was stopped, and returns the dictionary of one that is finished. `sae.site` and
    `sae.provenance` are saved as they are given, with the settings and the outcome of the training added.

    Raises:
        ConfigError: `out` holds something else, or was begun with other settings; activations of another width, too
            few of them,
            NaN or Inf among them (with step and row); a loss that leaves the numbers.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    described = describe(sae, config)
    with exclusive(out), Interrupt() as interrupt:
        if _finished(out, described):
            return load_sae(out)
        return _Run(sae, batches, config, out, engine or kind_of(sae.config).engine(sae)).go(on_progress, interrupt, described)


def describe(sae: SAE, config: TrainConfig) -> dict[str, Any]:
    """What decides the outcome of a run; kept in training.json and compared when a run goes on."""
    settings = {k: v for k, v in asdict(config).items() if k not in _FREE}
    source = {k: v for k, v in sae.provenance.items() if k not in ("training", "versions", "weights_sha256")}
    return {
        "kind": sae.kind,
        "site": sae.site,
        "dictionary": asdict(sae.config),
        "training": settings,
        "from": source,
    }


class _Run:
    """One training run between its first step, or the one it is continued at, and its last."""

    def __init__(self, sae: SAE, batches: Batches, config: TrainConfig, out: Path, engine: Engine):
        self.sae, self.batches, self.config, self.out, self.engine = sae, batches, config, out, engine
        groups = [{"params": [p], "peak": config.lr * sae.rates.get(name, 1.0)} for name, p in sae.named_parameters()]
        self.adam = torch.optim.Adam(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
        self.running = Running(sae.d_sae, config.dead_after)
        self.step, self.mean, self.scale = 0, torch.zeros(sae.d_in), 1.0

    def go(self, on_progress: OnProgress | None, interrupt: Interrupt, described: dict) -> SAE:
        c = self.config
        if (self.out / CHECKPOINT).exists():
            self._restore(load_state(self.out / CHECKPOINT))
        else:
            self._calibrate()
            write_json(self.out / RUN, described)
        log = Log(self.out, self.step)
        stream = iter(self.batches)
        mean, device = self.mean.to(self.sae.W_dec.device), self.sae.W_dec.device
        while self.step < c.steps:
            x = (self._next(stream).to(device, torch.float32) - mean) / self.scale
            self.running.add(self._advance(x), len(x))
            if self.step % c.log_every == 0 or self.step == c.steps:
                numbers = self.running.line()
                row = log.write(
                    self.step, c.batch_size, numbers | self.sae.watched() | {"lr": c.lr * self._rate(self.step - 1)}
                )
                if on_progress:
                    shown = {"FVU": row["error"], "L0": row["l0"], "dead": f"{row['dead']:.1%}"}
                    on_progress(self.step, c.steps, shown)
            if self.step % c.save_every == 0 or interrupt.asked:
                save_state(self.out / CHECKPOINT, self._state())
            interrupt.leave_if_asked()
        return self._finish()

    def _advance(self, x: Acts) -> Batch:
        for group in self.adam.param_groups:
            group["lr"] = group["peak"] * self._rate(self.step)
        batch = self.engine.gradients(x)
        if not math.isfinite(batch.error):
            raise ConfigError(
                f"The squared error became {batch.error} at step {self.step}; lr {self.config.lr:g} is probably too high.\n"
                f"  Lower it and give another --out. What was reached before is in {self.out / CHECKPOINT}."
            )
        self.sae.before_step()
        self.adam.step()
        self.step += 1
        self.sae.after_step(batch.l0, self.step / self.config.steps)
        return batch

    def _rate(self, step: int) -> float:
        return rate(step, self.config.steps, self.config.warmup, self.config.decay)

    def _next(self, stream: Iterator[Acts]) -> Tensor:
        x = next(stream, None)
        if x is None:
            raise ConfigError(
                f"The activations ended after {self.step} of {self.config.steps} steps of {self.config.batch_size}.\n"
                "  Record more, ask for fewer steps, or read them more than once."
            )
        self._check(x)
        return x

    def _check(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != self.sae.d_in:
            raise ConfigError(f"The activations have shape {tuple(x.shape)}; this dictionary reads [tokens, {self.sae.d_in}].")
        if not torch.isfinite(x.sum()):
            row = int((~torch.isfinite(x)).any(1).nonzero()[0])
            raise ConfigError(
                f"The activations hold NaN or Inf: row {row} of the batch of step {self.step}. One such row spoils all.\n"
                "  `scope recording verify` finds where they lie on the disk; record them again, in float32 if they overflowed."
            )

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Mean, scale and start weights, from the first activations; the stream is then put back to its beginning."""
        c, place, sample, n = self.config, self.batches.state_dict(), [], 0
        for x in self.batches:
            self._check(x)
            sample.append(x.float())
            n += len(x)
            if n >= c.calibration:
                break
        if n < 2:
            raise ConfigError("There are no activations to train on.")
        self.batches.load_state_dict(place)
        x = torch.cat(sample)[: c.calibration]
        if c.center:
            self.mean = x.double().mean(0).float()
        self.scale = float((x - self.mean).double().square().sum(1).mean().sqrt())
        if self.scale == 0:
            raise ConfigError(f"All {len(x)} activations are equal, so there is nothing to learn.")
        self.sae.initialise(((x - self.mean) / self.scale)[:8192].to(self.sae.W_dec.device), c.seed)

    def _state(self) -> dict[str, Any]:
        moments = {name: dict(self.adam.state[p]) for name, p in self.sae.named_parameters()}
        return {
            "step": self.step,
            "parameters": dict(self.sae.named_parameters()),
            "adam": moments,
            "schedule": self.sae.training_state(),
            "engine": self.engine.state(),
            "batches": self.batches.state_dict(),
            "running": self.running.state_dict(),
            "random": torch.get_rng_state(),
            "mean": self.mean,
            "scale": self.scale,
        }

    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> None:
        for name, p in self.sae.named_parameters():
            p.copy_(state["parameters"][name])
            self.adam.state[p] = {k: v.to(p.device) for k, v in state["adam"][name].items()}
        self.sae.load_training_state(state["schedule"])
        self.engine.load_state(state["engine"])
        self.batches.load_state_dict(state["batches"])
        self.running.load_state_dict(state["running"])
        torch.set_rng_state(state["random"])
        self.step, self.mean, self.scale = state["step"], state["mean"], state["scale"]

    def _finish(self) -> SAE:
        sae = self.sae
        sae.zero_grad(set_to_none=True)
        sae.fold(self.mean.to(sae.W_dec.device), self.scale)
        sae.unit_decoder()
        result = outcome(sae, self.config, read_log(self.out), self.running.dead)
        sae.provenance["training"] = {
            "config": asdict(self.config),
            "scale": self.scale,
            "mean_norm": self.mean.norm().item(),
            "threads": torch.get_num_threads(),
            **result,
        }
        sae.provenance["versions"] = {"scope": version_of(), "torch": torch.__version__}
        save_sae(sae, self.out)
        (self.out / CHECKPOINT).unlink(missing_ok=True)
        return sae.eval()


def outcome(sae: SAE, config: TrainConfig, log: list[dict], dead: float) -> dict[str, Any]:
    """L0, FVU and dead share over the last tenth of the run, and what a reader must be told of them."""
    last = [row for row in log if row["step"] > 0.9 * config.steps] or log[-1:]
    l0, fvu = (sum(row[name] for row in last) / len(last) for name in ("l0", "error"))
    notes = []
    target = getattr(sae.config, "target_l0", None) if getattr(sae.config, "l0_weight", None) is None else None
    if target is not None and abs(l0 / target - 1) > 0.1:
        way = "more steps" if l0 > target else "more steps, or a lower lr"
        notes.append(f"The target L0 of {target:g} was not reached: it is {l0:.1f}. Give {way}.")
    if dead > 0.1:
        notes.append(
            f"{dead:.0%} of the latents are dead (silent for {config.dead_after:,} tokens). Try a smaller d_sae, or more L0."
        )
    if not config.center and fvu > 0.5:
        notes.append("Activations were not centred, which a large mean activation punishes with dead latents.")
    tokens = config.steps * config.batch_size
    if tokens < config.dead_after:
        notes.append(
            f"The run of {tokens:,} tokens is shorter than dead_after ({config.dead_after:,}), so no latent can count as dead."
        )
    return {"l0": l0, "fvu": fvu, "dead": dead, "tokens": tokens, "notes": notes}


def _finished(out: Path, described: dict) -> bool:
    """Whether `out` holds this very run, finished.

    Raises:
        ConfigError: it holds another one, or something that no training made.
    """
    before = out / RUN
    if before.exists():
        changed = differences(read_json(before), _plain(described))
        if changed:
            raise ConfigError(
                f"{out} holds a training with other settings:\n  "
                + "\n  ".join(changed)
                + "\n  Give another --out, or the same settings."
            )
        return (out / MANIFEST).exists() and not (out / CHECKPOINT).exists()
    if (out / MANIFEST).exists() or (out / "cfg.json").exists():
        raise ConfigError(f"{out} holds a dictionary that was not trained there. Give another --out.")
    return False


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """One line for each setting that is not what it was."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(k for k in now if k not in before)]
        return [line for k in keys for line in differences(before.get(k), now.get(k), f"{path}.{k}" if path else k)]
    return [] if before == now else [f"{path}: {before} then, {now} now"]


def _plain(value: Any) -> Any:
    """As it would come back from JSON."""
    return json.loads(json.dumps(value))
