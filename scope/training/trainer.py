"""`train`: batches in, a dictionary out; `train_all`: many dictionaries out of one pass. Either adds gradients, steps,
counts and saves; what is minimised is the objective's affair (`scope/sae/objectives/`).

Everything that the next step depends on is in one file, written between two steps: of every dictionary the parameters, both
moments of Adam, the state of the schedule and of the engine, the random state and the running means; and the place in the
activations. So a run that was stopped, however rudely, ends in the same bits as one that was not (on the same machine, with as
many threads and processes).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.errors import ConfigError, DictionaryError
from scope.progress import OnProgress
from scope.renamed import old_keywords
from scope.sae.base import SAE
from scope.sae.files import read_sae
from scope.sae.objectives.base import Objective
from scope.training.batches import Batches, TensorBatches
from scope.training.checkpoint import VERSION, load_state, save_state
from scope.training.config import TrainConfig
from scope.training.folder import (
    CHECKPOINT,
    LOCK,
    RUN,
    describe,
    is_finished,
    refuse_another,
    refuse_foreign,
    refuse_undescribed,
)
from scope.training.interrupt import Interrupt
from scope.training.learner import Job, Learner
from scope.training.processes import ProcessGroup
from scope.training.progress import shown
from scope.whole_files import only_writer, remove_asides, write_json

__all__ = ["CHECKPOINT", "RUN", "Batches", "Job", "TensorBatches", "TrainConfig", "describe", "train", "train_all"]

OnRow = Callable[[Path, dict], None]
"""Called with (folder of the dictionary, its new line of the log)."""

_SHARED = ("steps", "batch_size", "calibration", "center", "save_every", "log_every")
_SAMPLE_BYTES = 2 << 30  # of several sites, what is held at once while they are measured
_START_ROWS = 8192  # activations from which start weights are set


@old_keywords(engine="objective")
def train(
    sae: SAE,
    batches: Batches,
    config: TrainConfig,
    out: Path | str,
    on_progress: OnProgress | None = None,
    objective: Objective | None = None,
) -> SAE:
    """Train `sae` in place on raw activations, save it in `out` as a dictionary of raw activations, and return it.

    The same call continues a run that was stopped, and returns the dictionary of one that is finished. `sae.site` and
    `sae.provenance` are saved as they are given, with the settings and the outcome of the training added. A training
    begins with start weights of its own, so `sae` is a fresh one: `make_sae(config, site)`.

    Raises:
        ConfigError: `out` holds something else, or was begun with other settings; `sae` was trained before; activations of
            another width, too few of them, NaN or Inf among them (with their place); a loss that becomes NaN or Inf.
        FolderInUse: another process trains in `out`.
    """
    return train_all([Job(sae, config, Path(out), objective)], batches, out, on_progress)[0]


def train_all(
    jobs: Sequence[Job],
    batches: Batches,
    out: Path | str,
    on_progress: OnProgress | None = None,
    group: ProcessGroup = ProcessGroup(),
    on_row: OnRow | None = None,
) -> list[SAE]:
    """Train several dictionaries in one pass over the same batches; each ends in the bits in which it would have ended alone.

    `batches` gives [tokens width], or a tuple of those whose `batches.sites` say which is which. `out` is the folder of them
    all, which holds the checkpoint. All are stopped, continued and finished together. With `group`, every process that takes
    part calls this; those that do not write return nothing.

    Raises: as `train`, and
        ConfigError: configs that do not share one pass; a division over processes that cannot be.
    """
    out = Path(out)
    _refuse_what_does_not_share([job.config for job in jobs])
    refuse_foreign(out, [job.out for job in jobs])
    for folder in {out, *(job.out for job in jobs)}:
        folder.mkdir(parents=True, exist_ok=True)
    described = [describe(job.sae, job.config) for job in jobs]
    lock = LOCK if group.writes and not group.rank else f"{LOCK}-{group.rank}"
    with only_writer(out, lock, doing="used for a training"), Interrupt() as interrupt:
        for job, one in zip(jobs, described, strict=True):
            refuse_another(job.out, one)
        run = _Run(jobs, batches, out, group, on_row)
        if run.checkpoint.exists():
            refuse_undescribed(run.checkpoint, [job.out for job in jobs])
        if not run.checkpoint.exists() and all(is_finished(job.out) for job in jobs):
            return [read_sae(job.out) for job in jobs]
        return run.go(on_progress, interrupt, described)


class _Run:
    """One pass between its first step, or the one it is continued at, and its last."""

    def __init__(self, jobs: Sequence[Job], batches: Batches, out: Path, group: ProcessGroup, on_row: OnRow | None):
        self.batches, self.out, self.group, self.on_row = batches, out, group, on_row
        self.learners = [Learner(job, group) for job in jobs]
        self.config, self.step = jobs[0].config, 0
        dealt = group.mode == "site" and group.world > 1
        self.checkpoint = out / (f"checkpoint-{group.rank}-of-{group.world}.safetensors" if dealt else CHECKPOINT)
        self._refuse_other_processes()

    def go(self, on_progress: OnProgress | None, interrupt: Interrupt, described: list[dict]) -> list[SAE]:
        c, group = self.config, self.group
        if self.checkpoint.exists():
            self._restore(load_state(self.checkpoint))
        else:
            self._refuse_what_is_trained()
            self._calibrate()
            for learner, one in zip(self.learners, described, strict=True):
                if group.writes:
                    write_json(learner.out / RUN, one)
        for learner in self.learners:
            learner.open_log()
        stream = iter(self.batches)
        while self.step < c.steps:
            self._advance(self._next(stream))
            if self.step % c.log_every == 0 or self.step == c.steps:
                self._report(on_progress)
            stop = group.any(bool(interrupt.asked), self.learners[0].device)
            if self.step % c.save_every == 0 or stop:
                self._save()
            if stop:
                interrupt.leave()
        return self._finish()

    def _advance(self, batch: tuple[Tensor, ...]) -> None:
        """One step of every learner. Those of one site are given the same standardised rows."""
        at = None
        for learner in self.learners:
            if at != (place := self._place(learner)):
                at, device = place, learner.device
                x = batch[place].to(device, torch.float32, non_blocking=True)
                x = (x - learner.mean.to(device)) / learner.scale
            learner.advance(x)
        self.step += 1

    def _report(self, on_progress: OnProgress | None) -> None:
        rows = [learner.write_line() for learner in self.learners]
        if not self.group.writes:
            return
        for learner, row in zip(self.learners, rows, strict=True):
            if self.on_row:
                self.on_row(learner.out, row)
        if on_progress:
            on_progress(self.step, self.config.steps, shown(rows))

    def _refuse_what_is_trained(self) -> None:
        for learner in self.learners:
            sae = learner.whole
            if {"training", "weights_sha256"} & set(sae.provenance):
                raise ConfigError(
                    f"The dictionary for {learner.out} was trained or loaded, and a training begins with start weights: its "
                    "own would be lost.\n  Give a fresh one, make_sae(sae.config, sae.site), with the same provenance['model']."
                )

    # Reading.

    def _place(self, learner: Learner) -> int:
        """Where in a batch the rows of a learner's site stand."""
        sites = getattr(self.batches, "sites", None)
        return sites.index(learner.whole.site) if sites and len(sites) > 1 else 0

    def _next(self, stream: Iterator[Any]) -> tuple[Tensor, ...]:
        batch = next(stream, None)
        if batch is None:
            raise ConfigError(
                f"The activations ended after {self.step} of {self.config.steps} steps of {self.config.batch_size}.\n"
                "  Record more, ask for fewer steps, or read them more than once."
            )
        return self._checked(batch)

    def _checked(self, batch: Any) -> tuple[Tensor, ...]:
        tensors = batch if isinstance(batch, tuple) else (batch,)
        checked = set()
        for learner in self.learners:
            place, d_in = self._place(learner), learner.whole.d_in
            x = tensors[place]
            if x.dim() != 2 or x.shape[1] != d_in:
                raise ConfigError(f"The activations have shape {tuple(x.shape)}; this dictionary reads [tokens, {d_in}].")
            if place not in checked and not torch.isfinite(x.sum()):
                self._refuse_no_number(x, learner)
            checked.add(place)
        return tensors

    def _refuse_no_number(self, x: Tensor, learner: Learner) -> None:
        bad = (~torch.isfinite(x)).any(1).nonzero()
        if not len(bad):  # large numbers whose sum overflowed
            return
        row = int(bad[0])
        where = getattr(self.batches, "where", None)
        source = f", which is {where(row, len(x))}" if where else ""
        raise ConfigError(
            f"The activations of {learner.whole.site or 'this site'} hold NaN or Inf: row {row} of the batch of step "
            f"{self.step}{source}. One such row spoils all weights.\n"
            "  `scope recording verify` finds where they lie on the disk; record them again, in float32 if they overflowed."
        )

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Mean, scale and start weights, from the first activations; the stream is then put back to its beginning."""
        places: dict[int, list[Learner]] = {}
        for learner in self.learners:
            places.setdefault(self._place(learner), []).append(learner)
        waiting = list(places)
        while waiting:
            held, room = [], _SAMPLE_BYTES
            while waiting and (not held or room > 0):
                room -= self.config.calibration * places[waiting[0]][0].whole.d_in * 4
                held.append(waiting.pop(0))
            for place, x in self._sample(held).items():
                mean, scale = self._measured(x)
                for learner in places[place]:
                    learner.begin(mean, scale, x[:_START_ROWS])

    def _sample(self, places: list[int]) -> dict[int, Tensor]:
        position, samples, n = self.batches.state_dict(), {place: [] for place in places}, 0
        for batch in self.batches:
            tensors = self._checked(batch)
            for place in places:
                samples[place].append(tensors[place].float())
            n += len(tensors[0])
            if n >= self.config.calibration:
                break
        if n < 2:
            raise ConfigError("There are no activations to train on.")
        self.batches.load_state_dict(position)
        return {place: torch.cat(parts)[: self.config.calibration] for place, parts in samples.items()}

    def _measured(self, x: Tensor) -> tuple[Tensor, float]:
        mean = x.double().mean(0).float() if self.config.center else torch.zeros(x.shape[1])
        scale = float((x - mean).double().square().sum(1).mean().sqrt())
        if scale == 0 or bool((x == x[0]).all()):
            raise ConfigError(f"All {len(x)} activations are equal, so there is nothing to learn.")
        return mean, scale

    # Keeping and ending.

    def _save(self) -> None:
        for learner in self.learners:
            same = learner.sae.parameters() if self.group.mode == "data" else [learner.sae.b_dec]
            self.group.must_agree(learner.name, list(same))
        state = {
            "step": self.step,
            "batches": self.batches.state_dict(),
            "learners": {str(i): learner.state() for i, learner in enumerate(self.learners)},
        }
        save_state(self.checkpoint, state, self.group.gather, self.group.writes)

    def _restore(self, state: dict[str, Any]) -> None:
        if state.get("version") not in (2, VERSION) or len(state["learners"]) != len(self.learners):
            raise DictionaryError(
                f"{self.checkpoint} is of another version, or of other dictionaries. Delete it to start the training anew."
            )
        try:
            self.batches.load_state_dict(state["batches"])
            self.step = state["step"]
            for i, learner in enumerate(self.learners):
                learner.restore(state["learners"][str(i)])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # one without a checksum
            raise DictionaryError(
                f"{self.checkpoint} is damaged ({type(error).__name__}: {error}).\n  Delete it to start the training anew."
            ) from None

    def _finish(self) -> list[SAE]:
        saes = [sae for learner in self.learners if (sae := learner.finish())]
        for p in (p for sae in saes for p in sae.parameters()):
            p.data = p.data.contiguous()  # laid out as it will be read back: sums then round alike
        if self.group.writes:
            remove_asides(self.checkpoint)  # of a kill amid saving
            self.checkpoint.unlink(missing_ok=True)
        self.group.wait()
        return saes

    def _refuse_other_processes(self) -> None:
        """Dealt dictionaries are stopped at different steps, so they can only be picked up as they were dealt."""
        for other in sorted(self.out.glob("checkpoint*.safetensors")):
            dealt = other.stem.split("-of-")
            if len(dealt) == 2 and int(dealt[1]) != self.group.world:
                raise ConfigError(
                    f"{self.out} was begun with the dictionaries dealt to {dealt[1]} processes; now there are "
                    f"{self.group.world}.\n"
                    f"  Start {dealt[1]} (torchrun --nproc-per-node {dealt[1]} … --parallel site), or give another --out."
                )
            if len(dealt) == 1 and self.checkpoint.name != CHECKPOINT:
                raise ConfigError(
                    f"{self.out} was begun without dealing the dictionaries to processes.\n"
                    "  Go on without --parallel site, or give another --out."
                )


def _refuse_what_does_not_share(configs: list[TrainConfig]) -> None:
    for name in _SHARED:
        values = {getattr(c, name) for c in configs}
        if len(values) > 1:
            raise ConfigError(f"Dictionaries of one pass share one {name}; these have {', '.join(map(str, sorted(values)))}.")
