"""One dictionary in training: its gradients, its optimiser, its own random state, and what is counted of it.

Learners that read the same activations share nothing else, so that each ends in the bits in which it would have ended alone.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.errors import ConfigError
from scope.evaluation.metrics import OUTLIER_TIMES, FvuSums
from scope.sae.base import SAE
from scope.sae.engines.base import Batch
from scope.sae.files import save_sae
from scope.sae.kinds import make_objective
from scope.sae.objectives.base import Objective
from scope.shapes import Acts
from scope.training.adam import Adam
from scope.training.config import TrainConfig, rate
from scope.training.division import Division, refuse_division
from scope.training.processes import ProcessGroup
from scope.training.progress import Log, Running, outcome, read_log
from scope.versions import version_of


@dataclass(frozen=True)
class Job:
    """A dictionary to be trained, how, and the folder it goes to. `objective` None takes that of its kind."""

    sae: SAE
    config: TrainConfig
    out: Path
    objective: Objective | None = None


_USUAL_ROWS = 1024  # on which FVU without outliers is measured, of a batch that has some


class Learner:
    """`whole` is the dictionary; `objective.sae` is what this process trains of it."""

    def __init__(self, job: Job, group: ProcessGroup):
        self.whole, self.config, self.out, self.group = job.sae, job.config, job.out, group
        self.objective = job.objective or make_objective(job.sae)
        self.division = Division(self.whole, group)
        self.step, self.mean, self.scale = 0, torch.zeros(job.sae.d_in), 1.0
        self.norm_limit = math.inf
        """Norm of a raw activation above which it counts as an outlier."""

        self.random = {"cpu": torch.Generator().manual_seed(job.config.seed).get_state()}
        if self.device.type == "cuda":
            self.random["cuda"] = torch.Generator(self.device).manual_seed(job.config.seed).get_state()
        refuse_division(self.objective, job.config, group)

    @property
    def sae(self) -> SAE:
        return self.objective.sae

    @property
    def device(self) -> torch.device:
        return self.sae.W_dec.device

    @property
    def name(self) -> str:
        return self.out.name

    def begin(self, mean: Tensor, scale: float, sample: Acts) -> None:
        """Set start weights, from raw activations with this mean and scale."""
        self.mean, self.scale = mean, scale
        self.norm_limit = OUTLIER_TIMES * sample.norm(dim=1).median().item() or math.inf
        with self._own_random():
            self.objective.start(((sample - mean) / scale).to(self.device), self.config.seed)
        self._equip()

    def _equip(self) -> None:
        """Take this process's share of the dictionary; make optimiser and engine for it."""
        self.objective = self.division.take_share(self.objective)
        sae, c = self.sae, self.config
        named = dict(sae.named_parameters())
        peaks = {name: c.lr * self.objective.rates.get(name, 1.0) for name in named}
        self.adam = Adam(named, peaks, (c.beta1, c.beta2))
        self.engine = self.objective.engine()
        self.running = Running(sae.d_sae, c.dead_after, self.device)

    # A step.

    def advance(self, x: Acts) -> None:
        """One step on a batch of standardised activations, all processes' rows of it."""
        with self._own_random():
            batch = self._gradients(x[self.group.share(len(x))] if self.group.mode == "data" else x)
            if not math.isfinite(batch.error):
                raise ConfigError(
                    f"{self.name}: the squared error became {batch.error} at step {self.step}; lr {self.config.lr:g} is "
                    "probably too high.\n  Lower it and give another --out. What was reached before is in its last checkpoint."
                )
            usual, outliers = self._without_outliers(x)
            self.objective.before_step()
            self.adam.step(self.rate(self.step))
            self.step += 1
            self.objective.after_step(batch.l0, self.step / self.config.steps)
        self.running.add(batch, x, self.step > 0.9 * self.config.steps, usual, outliers)

    def rate(self, step: int) -> float:
        c = self.config
        return rate(step, c.steps, c.warmup, c.decay, c.warmup_start, c.warmup_shape)

    @torch.no_grad()
    def _gradients(self, x: Acts) -> Batch:
        sae = self.sae
        if not self.config.pre_bias:
            with torch.enable_grad():
                batch = self.engine.gradients(x)
            return self.division.together(self.objective, batch)
        # decode(encode(x - b)) + b - x is the same error with x - b for x and no bias; b then also learns through the encoder
        bias = sae.b_dec.clone()
        sae.b_dec.zero_()
        with torch.enable_grad():
            batch = self.engine.gradients(x - bias)
        sae.b_dec.copy_(bias)
        assert sae.b_dec.grad is not None
        assert sae.b_enc.grad is not None
        through = sae.W_enc @ sae.b_enc.grad
        sae.b_dec.grad.sub_(self.group.sum(through) if self.division.by_latent else through)
        return self.division.together(self.objective, batch)

    @torch.no_grad()
    def _without_outliers(self, x: Acts) -> tuple[FvuSums | None, int]:
        """(FVU's sums without activations of huge norm, how many these are); (None, 0) where there are none.

        They are measured on the others' own reconstructions: the error of all is mostly that of the huge ones, so that nothing
        would be left of it but rounding. Of a dictionary divided by latents no process can reconstruct, and none are counted.
        """
        if self.norm_limit == math.inf or self.division.by_latent:
            return None, 0
        usual = (x * self.scale + self.mean.to(x.device)).norm(dim=1) <= self.norm_limit
        outliers = len(x) - int(usual.sum())
        if not outliers:
            return None, 0
        rows = x[usual][:_USUAL_ROWS]
        if not len(rows):
            return FvuSums(), outliers
        bias = self.sae.b_dec if self.config.pre_bias else 0.0
        error = (self.sae.decode(self.sae.encode(rows - bias)) - rows).double().square().sum().item()
        return FvuSums.of(rows, error), outliers

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        """Random numbers within the block are this learner's own, wherever others draw theirs."""
        cuda = self.device if "cuda" in self.random else None
        before = torch.get_rng_state(), torch.cuda.get_rng_state(cuda) if cuda else None
        torch.set_rng_state(self.random["cpu"])
        if cuda:
            torch.cuda.set_rng_state(self.random["cuda"], cuda)
        try:
            yield
        finally:
            self.random["cpu"] = torch.get_rng_state()
            torch.set_rng_state(before[0])
            if cuda:
                self.random["cuda"] = torch.cuda.get_rng_state(cuda)
                torch.cuda.set_rng_state(before[1], cuda)

    # The log.

    def open_log(self) -> None:
        """Open the log at the present step."""
        self.log = Log(self.out, self.step) if self.group.writes else None

    def write_line(self) -> dict[str, float]:
        """The means since the last line; the process that writes puts them into the log."""
        numbers = self.running.line()
        numbers["dead"], numbers["dense"] = self.division.mean_over_latents(numbers["dead"], numbers["dense"])
        numbers |= self.objective.watched() | {"lr": self.config.lr * self.rate(self.step - 1)}
        return self.log.write(self.step, self.config.batch_size, numbers) if self.log else numbers

    # Checkpoints.

    def state(self) -> dict[str, Any]:
        """All that its next step depends on; of several processes every one must call this."""
        part, dims = self.division.part, self.whole.latent_dims
        running = self.running.state_dict()
        return {
            "step": self.step,
            "parameters": {name: part(p, dims.get(name)) for name, p in self.sae.named_parameters()},
            "buffers": dict(self.sae.named_buffers()),
            "adam": {
                name: {k: part(v, dims.get(name)) if v.dim() else v for k, v in moments.items()}
                for name, moments in self.adam.moments()
            },
            "schedule": self.objective.map_by_latent(self.objective.state(), part),
            "engines": self.group.everyones(self.engine.state()),
            "running": running | {"silent": part(running["silent"])},
            "random": self.random,
            "mean": self.mean,
            "scale": self.scale,
            "norm_limit": self.norm_limit,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        for name, p in self.whole.named_parameters():
            p.copy_(state["parameters"][name])
        for name, buffer in self.whole.named_buffers():
            buffer.copy_(state["buffers"][name])
        self._equip()
        mine, dims = self.division.own_share, self.whole.latent_dims
        for name, moments in state["adam"].items():
            self.adam.load_moments(name, {k: mine(v, dims.get(name)) if v.dim() else v for k, v in moments.items()})
        self.objective.load_state(self.objective.map_by_latent(state["schedule"], mine))
        engines = state["engines"]
        self.engine.load_state(engines[self.group.rank if len(engines) == self.group.world and self.group.talks else 0])
        self.running.load_state_dict(state["running"] | {"silent": mine(state["running"]["silent"])})
        self.random, self.step = state["random"], state["step"]
        # cloned: in the file it lies anywhere, and a product rounds by where in memory its factors begin
        self.mean, self.scale = state["mean"].clone(), state["scale"]
        self.norm_limit = state.get("norm_limit", math.inf)  # absent from older checkpoints

    def finish(self) -> SAE | None:
        """The dictionary of raw activations, saved; None on a process that does not write."""
        (dead,) = self.division.mean_over_latents(self.running.dead)
        sae = self.division.assembled(self.sae)
        if sae is None:
            return None
        sae.zero_grad(set_to_none=True)
        with torch.no_grad():
            if self.config.pre_bias:
                sae.b_enc.sub_(sae.b_dec @ sae.W_enc)
            sae.fold(self.mean.to(sae.W_dec.device), self.scale)
            sae.unit_decoder()
        sae.provenance["training"] = {
            "config": asdict(self.config),
            "scale": self.scale,
            "mean_norm": self.mean.norm().item(),
            "threads": torch.get_num_threads(),
            "device": str(self.device.type),
            "processes": self.group.world if self.group.talks else 1,
            **outcome(sae, self.config, read_log(self.out), self.running, dead),
        }
        sae.provenance["versions"] = {"scope": version_of(), "torch": torch.__version__}
        save_sae(sae, self.out)
        return sae.eval()
