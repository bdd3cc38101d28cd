"""Reports of a training: a line of log.jsonl per logging step, numbers for a progress bar, and at the end its outcome."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.errors import ConfigError, ScopeError
from scope.evaluation.metrics import OUTLIER_TIMES, FvuSums
from scope.sae.base import SAE
from scope.sae.engines.base import Batch
from scope.shapes import Acts
from scope.training.config import TrainConfig, steps_of
from scope.typed_json import json_lines, read_bytes, typed
from scope.whole_files import write_whole

LOG = "log.jsonl"
_FVU_SUMS = ("since_line", "at_end", "usual_since_line", "usual_at_end")


@dataclass
class Running:
    """Means and FVU over the steps since the last line, FVU over the end of the run, and when each latent last fired."""

    d_sae: int
    dead_after: int
    device: str | torch.device = "cpu"
    silent: Tensor = field(init=False)
    """Tokens since each latent fired last."""

    def __post_init__(self):
        self.silent = torch.zeros(self.d_sae, dtype=torch.long, device=self.device)
        self.dense = torch.zeros((), dtype=torch.long, device=self.device)  # stays there: no step waits for it
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.since_line, self.at_end = FvuSums(), FvuSums()
        self.usual_since_line, self.usual_at_end = FvuSums(), FvuSums()  # without outliers
        self.outliers = 0

    def add(self, batch: Batch, x: Acts, at_end: bool, usual: FvuSums | None = None, outliers: int = 0) -> None:
        """A step on the activations `x`; `at_end` where it counts for what the training declares. `usual` are the sums without
        the `outliers` among them."""
        tokens, sums = len(x), FvuSums.of(x, batch.error * len(x))
        self.since_line += sums
        self.usual_since_line += usual or sums
        self.outliers += outliers
        if at_end:
            self.at_end += sums
            self.usual_at_end += usual or sums
        self.silent.add_(tokens).masked_fill_(batch.fired > 0, 0)
        self.dense += (batch.fired > 0.1 * tokens).sum()
        for name, value in (batch.terms | {"error": batch.error, "l0": batch.l0}).items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1

    @property
    def dead(self) -> float:
        """Share of latents that have not fired for `dead_after` tokens."""
        return (self.silent >= self.dead_after).sum().item() / self.d_sae

    def line(self) -> dict[str, float]:
        """The means, under their names; then they start anew."""
        means = {name: value / max(1, self.steps) for name, value in self.sums.items()}
        means["fvu"] = self.since_line.value()
        if self.outliers:
            means["fvu_without_outliers"] = self.usual_since_line.value()
        means |= {"dense": self.dense.item() / (self.d_sae * max(1, self.steps)), "dead": self.dead}
        self.sums, self.steps, self.since_line, self.usual_since_line = {}, 0, FvuSums(), FvuSums()
        self.dense.zero_()
        return means

    def state_dict(self) -> dict:
        state = {"silent": self.silent, "sums": self.sums, "steps": self.steps, "dense": self.dense, "outliers": self.outliers}
        return state | {name: vars(getattr(self, name)) for name in _FVU_SUMS}

    def load_state_dict(self, state: dict) -> None:
        self.sums, self.steps = state["sums"], state["steps"]
        self.silent.copy_(state["silent"])
        self.dense.copy_(state["dense"])
        self.outliers = state.get("outliers", 0)
        for name in _FVU_SUMS:  # absent from older checkpoints
            sums = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in state.get(name, {}).items()}
            setattr(self, name, FvuSums(**sums))


@dataclass(frozen=True, kw_only=True)
class Line:
    """The entries of a line of log.jsonl that are read by name; all entries are numbers."""

    step: int
    tokens: int | None = None
    l0: float | None = None
    fvu: float | None = None
    dead: float | None = None
    tokens_per_second: float | None = None


class Log:
    """log.jsonl in a folder. A resumed run drops the lines of steps that it will do again."""

    def __init__(self, folder: Path, from_step: int):
        self.file = folder / LOG
        rows = [row for row in read_log(folder) if row["step"] <= from_step]
        write_whole(self.file, "".join(json.dumps(row) + "\n" for row in rows))
        self.started, self.first = time.perf_counter(), from_step

    def write(self, step: int, batch_size: int, numbers: dict[str, float]) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        row = {"step": step, "tokens": step * batch_size, **{k: _short(v) for k, v in numbers.items()}}
        row["tokens_per_second"] = round((step - self.first) * batch_size / max(seconds, 1e-9))
        with open(self.file, "a") as handle:
            handle.write(json.dumps(row) + "\n")
        return row


def read_log(folder: Path) -> list[dict]:
    """The lines of log.jsonl up to the first that is damaged; a last one that was cut short is left out.

    Raises:
        ConfigError: there is something else than a file in its place.
    """
    rows: list[dict[str, Any]] = []
    if not (folder / LOG).exists():
        return rows
    try:
        for row in json_lines(read_bytes(folder / LOG, ConfigError, "Delete it; the training can do without."), LOG):
            typed(row, Line, LOG)
            rows.append(typed(row, dict[str, int | float], LOG))
    except ConfigError:
        raise
    except ScopeError:
        pass
    return rows


def shown(rows: list[dict]) -> dict[str, str]:
    """A line of each dictionary in training, for a bar: of several, the span from the least to the largest."""
    numbers = {"FVU": _span([row["fvu"] for row in rows], ".3f")}
    if any("fvu_without_outliers" in row for row in rows):
        numbers["FVU without outliers"] = _span([row.get("fvu_without_outliers", row["fvu"]) for row in rows], ".3f")
    numbers["L0"] = _span([row["l0"] for row in rows], ".1f")
    terms = {name for row in rows for name in row} & {"sparsity", "frequency", "auxiliary", "aux"}
    for name in sorted(terms):
        numbers[name] = _span([row[name] for row in rows if name in row], ".3g")
    return numbers | {"dead": _span([row["dead"] for row in rows], ".1%"), "tok/s": f"{rows[0]['tokens_per_second']:,}"}


def _span(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}..{high}"


def _short(value: float) -> float:
    return value if value == 0 or not math.isfinite(value) else float(f"{value:.6g}")


def outcome(sae: SAE, config: TrainConfig, log: list[dict], running: Running, dead: float) -> dict[str, Any]:
    """L0, FVU and dead share over the last tenth of the run, and notes. FVU is of its steps, L0 the mean of its log lines."""
    fvu, usual = running.at_end.value(), running.usual_at_end.value()
    last = [row for row in log if row["step"] > 0.9 * config.steps] or log[-1:]
    values = [row["l0"] for row in last if "l0" in row]
    l0 = sum(values) / len(values) if values else math.nan
    notes = []
    if running.outliers:
        notes.append(
            f"{running.outliers:,} of the activations read have a norm above {OUTLIER_TIMES:g} times the median: FVU is "
            f"{fvu:.3f} with them and {usual:.3f} without. Leave them out of the recording or tensor to train on the others."
        )
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
    without = {"fvu_without_outliers": usual, "outliers": running.outliers} if running.outliers else {}
    return {"l0": l0, "fvu": fvu, **without, "dead": dead, "tokens": tokens, "notes": notes}


def target_of(sae: SAE) -> float | None:
    """The L0 that this dictionary is to have; None where only a fixed weight of the penalty is given."""
    config = sae.config
    if getattr(config, "l0_weight", None) is not None or getattr(config, "l1_weight", None) is not None:
        return None
    return getattr(config, "target_l0", None) or getattr(config, "k", None)
