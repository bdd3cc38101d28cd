"""One dictionary in training: its gradients, its optimiser, its own random state, and what is counted of it.

Learners that read the same activations share nothing else, so that each ends in the bits in which it would have ended alone.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scope.errors import ConfigError
from scope.sae.base import SAE
from scope.sae.engine import Batch, Engine, JumpReLUEngine
from scope.sae.files import save_sae
from scope.sae.jumprelu import JumpReLUSAE
from scope.sae.kinds import kind_of
from scope.sae.revival import Pool, Revival
from scope.shapes import Acts
from scope.training.adam import Adam
from scope.training.checkpoint import Part
from scope.training.config import TrainConfig
from scope.training.outcome import outcome
from scope.training.progress import Log, Running, read_log
from scope.training.ranks import Ranks
from scope.training.schedule import rate
from scope.versions import version_of

SPLIT = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "threshold": 0}
"""Parameter of a JumpReLU dictionary -> the dimension along which its latents are counted."""


@dataclass(frozen=True)
class Job:
    """A dictionary to be trained, how, and the folder it goes to. `engine` None takes the fastest of its kind."""

    sae: SAE
    config: TrainConfig
    out: Path
    engine: Engine | None = None


class Learner:
    def __init__(self, job: Job, ranks: Ranks):
        self.whole, self.config, self.out, self.ranks = job.sae, job.config, job.out, ranks
        self.sae, self.step, self.mean, self.scale = job.sae, 0, torch.zeros(job.sae.d_in), 1.0
        self.given = job.engine
        self.random = {"cpu": torch.Generator().manual_seed(job.config.seed).get_state()}
        if self.device.type == "cuda":
            self.random["cuda"] = torch.Generator(self.device).manual_seed(job.config.seed).get_state()
        _refuse_what_cannot_be(job, ranks)

    @property
    def device(self) -> torch.device:
        return self.sae.W_dec.device

    @property
    def name(self) -> str:
        return self.out.name

    # Beginning.

    def begin(self, mean: Tensor, scale: float, sample: Acts) -> None:
        """Start weights, from raw activations whose mean and scale are these."""
        self.mean, self.scale = mean, scale
        with self._own_random():
            self.whole.initialise(((sample - mean) / scale).to(self.device), self.config.seed)
        self._equip()

    def _equip(self) -> None:
        """Take this process's share of the dictionary; make optimiser and engine for it."""
        if self.ranks.mode == "width" and self.ranks.talks:
            self.sae = share_of(self.whole, self.ranks)
            for p in self.whole.parameters():
                p.data = p.data.new_empty(0)
        if isinstance(self.sae, JumpReLUSAE) and self.sae.revival and self.ranks.talks:
            self.sae.revival = Revival(self.sae.d_sae, self.sae.revival.after, pool_of(self.ranks, self.whole.d_sae))
        sae, c = self.sae, self.config
        named = dict(sae.named_parameters())
        self.adam = Adam(named, {name: c.lr * sae.rates.get(name, 1.0) for name in named}, (c.beta1, c.beta2))
        self.engine = self.given or self._engine()
        self.running = Running(sae.d_sae, c.dead_after, self.device)

    def _engine(self) -> Engine:
        if isinstance(self.sae, JumpReLUSAE) and self.ranks.talks and not self.sae.config.nested:
            if self.ranks.mode == "width":
                return JumpReLUEngine(self.sae, reduce=self.ranks.sum)
            return JumpReLUEngine(self.sae, average=self.ranks.mean)
        return kind_of(self.sae.config).engine(self.sae)

    # A step.

    def advance(self, x: Acts) -> None:
        """One step on a batch of standardised activations, all processes' rows of it."""
        rows = len(x)
        with self._own_random():
            batch = self._gradients(x[self.ranks.share(rows)] if self.ranks.mode == "data" else x)
            if not math.isfinite(batch.error):
                raise ConfigError(
                    f"{self.name}: the squared error became {batch.error} at step {self.step}; lr {self.config.lr:g} is "
                    "probably too high.\n  Lower it and give another --out. What was reached before is in its last checkpoint."
                )
            self.sae.before_step()
            self.adam.step(self.rate(self.step))
            self.step += 1
            self.sae.after_step(batch.l0, self.step / self.config.steps)
        self.running.add(batch, x, at_end=self.step > 0.9 * self.config.steps)

    def rate(self, step: int) -> float:
        c = self.config
        return rate(step, c.steps, c.warmup, c.decay, c.warmup_start, c.warmup_shape)

    @torch.no_grad()
    def _gradients(self, x: Acts) -> Batch:
        sae = self.sae
        if not self.config.pre_bias:
            with torch.enable_grad():
                batch = self.engine.gradients(x)
            return self._together(batch)
        # decode(encode(x - b)) + b - x is the same error with x - b for x and no bias; b then also learns through the encoder
        bias = sae.b_dec.clone()
        sae.b_dec.zero_()
        with torch.enable_grad():
            batch = self.engine.gradients(x - bias)
        sae.b_dec.copy_(bias)
        assert sae.b_dec.grad is not None
        assert sae.b_enc.grad is not None
        through = sae.W_enc @ sae.b_enc.grad
        sae.b_dec.grad.sub_(self.ranks.sum(through) if self.ranks.mode == "width" else through)
        return self._together(batch)

    def _together(self, batch: Batch) -> Batch:
        """Gradients and numbers as of the whole batch and the whole dictionary."""
        ranks = self.ranks
        if not ranks.talks:
            return batch
        if ranks.mode == "width":
            if "frequency" in batch.terms:  # the one term that is a sum over latents, and not over tokens or dimensions
                term = torch.tensor(batch.terms["frequency"], dtype=torch.float64, device=self.device)
                batch.terms["frequency"] = ranks.sum(term).item()
            return batch
        for p in self.sae.parameters():
            if p.grad is not None:
                ranks.mean(p.grad)
        numbers = torch.tensor([batch.error, batch.l0, batch.candidates, *batch.terms.values()], dtype=torch.float64)
        error, l0, candidates, *terms = ranks.mean(numbers.to(self.device)).tolist()
        return Batch(dict(zip(batch.terms, terms, strict=True)), error, l0, ranks.sum(batch.fired), candidates)

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

    # Saying.

    def listen(self) -> None:
        """Open the log at the present step."""
        self.log = Log(self.out, self.step) if self.ranks.writes else None

    def say(self) -> dict[str, float]:
        """The means since the last time; the process that writes puts them into the log."""
        numbers = self.running.line()
        if self.ranks.mode == "width" and self.ranks.talks:
            both = torch.tensor([numbers[k] * self.sae.d_sae for k in ("dead", "dense")], dtype=torch.float64)
            numbers["dead"], numbers["dense"] = (self.ranks.sum(both.to(self.device)) / self.whole.d_sae).tolist()
        numbers |= self.sae.watched() | {"lr": self.config.lr * self.rate(self.step - 1)}
        return self.log.write(self.step, self.config.batch_size, numbers) if self.log else numbers

    # Keeping.

    def state(self) -> dict[str, Any]:
        """All that its next step depends on; of several processes every one must ask."""
        moments = {
            name: {k: self._part(name, v) if v.dim() else v for k, v in kept.items()} for name, kept in self.adam.moments()
        }
        running = self.running.state_dict()
        return {
            "step": self.step,
            "parameters": {name: self._part(name, p) for name, p in self.sae.named_parameters()},
            "buffers": dict(self.sae.named_buffers()),
            "adam": moments,
            "schedule": self._schedule(self.sae.training_state(), self._part),
            "engines": self.ranks.everyones(self.engine.state()),
            "running": running | {"silent": self._part("threshold", running["silent"])},
            "random": self.random,
            "mean": self.mean,
            "scale": self.scale,
        }

    def _schedule(self, state: dict[str, Any], split: Callable[[str, Tensor], Any]) -> dict[str, Any]:
        """With what is counted by latents split, or put together, as the latents are."""
        if "revival" not in state or not isinstance(self.sae, JumpReLUSAE):
            return state
        revival = state["revival"]
        return state | {"revival": revival | {"silent": split("threshold", revival["silent"])}}

    def _part(self, name: str, tensor: Tensor) -> Tensor | Part:
        if self.ranks.mode == "width" and self.ranks.talks and name in SPLIT:
            return Part(tensor, SPLIT[name], self.whole.d_sae)
        return tensor

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        for name, p in self.whole.named_parameters():
            p.copy_(state["parameters"][name])
        for name, buffer in self.whole.named_buffers():
            buffer.copy_(state["buffers"][name])
        self._equip()
        for name, kept in state["adam"].items():
            self.adam.load_moments(name, {k: self._mine(name, v) if v.dim() else v for k, v in kept.items()})
        self.sae.load_training_state(self._schedule(state["schedule"], self._mine))
        engines = state["engines"]
        self.engine.load_state(engines[self.ranks.rank if len(engines) == self.ranks.world and self.ranks.talks else 0])
        self.running.load_state_dict(state["running"] | {"silent": self._mine("threshold", state["running"]["silent"])})
        self.random, self.step = state["random"], state["step"]
        # cloned: in the file it lies anywhere, and a product rounds by where in memory its factors begin
        self.mean, self.scale = state["mean"].clone(), state["scale"]

    def _mine(self, name: str, tensor: Tensor) -> Tensor:
        if self.ranks.mode == "width" and self.ranks.talks and name in SPLIT:
            mine = self.ranks.share(self.whole.d_sae)
            return tensor.narrow(SPLIT[name], mine.start, mine.stop - mine.start)
        return tensor

    # Ending.

    def finish(self) -> SAE | None:
        """The dictionary of raw activations, saved; None on a process that does not write."""
        dead = self.running.dead
        if self.ranks.mode == "width" and self.ranks.talks:
            dead = self.ranks.sum(torch.tensor(dead * self.sae.d_sae, dtype=torch.float64, device=self.device)).item()
            dead /= self.whole.d_sae
        sae = self._assembled()
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
            "processes": self.ranks.world if self.ranks.talks else 1,
            **outcome(sae, self.config, read_log(self.out), self.running.at_end.value(), dead),
        }
        sae.provenance["versions"] = {"scope": version_of(), "torch": torch.__version__}
        save_sae(sae, self.out)
        return sae.eval()

    def _assembled(self) -> SAE | None:
        if not (self.ranks.mode == "width" and self.ranks.talks):
            return self.sae if self.ranks.writes else None
        found = {name: self.ranks.gather(Part(p.detach(), SPLIT[name], self.whole.d_sae)) for name, p in self._split()}
        if not self.ranks.writes:
            return None
        for name, p in self.whole.named_parameters():
            whole = found[name] if name in found else self.sae.get_parameter(name).detach()
            assert whole is not None
            p.data = whole.cpu()
        return self.whole

    def _split(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.sae.named_parameters() if name in SPLIT]


def share_of(sae: SAE, ranks: Ranks) -> SAE:
    """A dictionary of this process's latents alone; what is not counted by latents is copied whole."""
    mine = ranks.share(sae.d_sae)
    part = copy.copy(sae)
    part._parameters = {}
    for name, p in sae.named_parameters():
        data = p.data.narrow(SPLIT[name], mine.start, mine.stop - mine.start) if name in SPLIT else p.data
        part._parameters[name] = nn.Parameter(data.clone())
    part.config = copy.copy(sae.config)
    object.__setattr__(part.config, "d_sae", mine.stop - mine.start)  # not `replace`: the target is that of all latents
    return part


def pool_of(ranks: Ranks, d_sae: int) -> Pool:
    """How the processes choose together which latents start anew, and on which tokens: as one would with the whole batch and
    all latents. Every process is given the sum of parts that are zero elsewhere, so all have the same bits."""

    def placed(mine: Tensor, size: int, at: slice) -> Tensor:
        whole = mine.new_zeros(size, *mine.shape[1:])
        whole[at] = mine
        return ranks.sum(whole)

    def rows(mine: Tensor) -> Tensor:
        return placed(mine, len(mine) * ranks.world, slice(len(mine) * ranks.rank, len(mine) * (ranks.rank + 1)))

    if ranks.mode == "data":
        return Pool(batches=ranks.world, rows=rows, counts=lambda fired: ranks.sum(fired.clone()))
    own = ranks.share(d_sae)
    return Pool(latents=lambda mine: placed(mine, d_sae, own), first=own.start)


BY_TOKEN = ("jumprelu",)
"""Kinds whose gradient is the mean over tokens of each token's own, so that it can be taken over processes."""


def _refuse_what_cannot_be(job: Job, ranks: Ranks) -> None:
    kind, c, d_sae = job.sae.kind, job.config, job.sae.d_sae
    nested, frequency = job.sae.config.nested, getattr(job.sae.config, "frequency_scale", None)
    if c.pre_bias and kind == "gated":
        raise ConfigError("pre_bias is for kinds with one path through the encoder; gated has two. Leave it out.")
    if not ranks.talks:
        return
    what = f"kind {kind}" if kind not in BY_TOKEN else "nested widths"
    if ranks.mode == "width" and (kind != "jumprelu" or nested):
        raise ConfigError(
            f"--parallel width splits a plain jumprelu dictionary only; with {what} the latents depend on one another.\n"
            "  Use --parallel site, or one process."
        )
    if ranks.mode == "width" and d_sae < ranks.world:
        raise ConfigError(f"{d_sae} latents cannot be split over {ranks.world} processes. Start fewer.")
    if ranks.mode == "data" and (kind not in BY_TOKEN or (nested and frequency)):
        raise ConfigError(
            f"--parallel data averages gradients over tokens; with {what} what is learnt depends on the whole batch.\n"
            "  Use --parallel site, or one process."
        )
    if ranks.mode == "data" and c.batch_size % ranks.world:
        raise ConfigError(
            f"A batch_size of {c.batch_size} cannot be shared evenly by {ranks.world} processes.\n"
            f"  Give --batch-size {c.batch_size // ranks.world * ranks.world or ranks.world}, or other processes."
        )
