"""What is said while a dictionary trains: one line of log.jsonl per logging step, and numbers for a bar."""

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from scope.evaluation.metrics import FvuSums
from scope.sae.engine import Batch
from scope.shapes import Acts

LOG = "log.jsonl"


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

    def add(self, batch: Batch, x: Acts, at_end: bool) -> None:
        """A step on the activations `x`; `at_end` where it counts for what the training declares."""
        tokens, sums = len(x), FvuSums.of(x, batch.error * len(x))
        self.since_line += sums
        if at_end:
            self.at_end += sums
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
        means |= {"dense": self.dense.item() / (self.d_sae * max(1, self.steps)), "dead": self.dead}
        self.sums, self.steps, self.since_line = {}, 0, FvuSums()
        self.dense.zero_()
        return means

    def state_dict(self) -> dict:
        fvu = {name: vars(getattr(self, name)) for name in ("since_line", "at_end")}
        return {"silent": self.silent, "sums": self.sums, "steps": self.steps, "dense": self.dense} | fvu

    def load_state_dict(self, state: dict) -> None:
        self.sums, self.steps = state["sums"], state["steps"]
        self.silent.copy_(state["silent"])
        self.dense.copy_(state["dense"])
        for name in ("since_line", "at_end"):  # absent from checkpoints of version 0.1.0
            sums = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in state.get(name, {}).items()}
            setattr(self, name, FvuSums(**sums))


class Log:
    """log.jsonl in a folder. A resumed run drops the lines of steps that it will do again."""

    def __init__(self, folder: Path, from_step: int):
        self.file = folder / LOG
        kept = [row for row in read_log(folder) if row["step"] <= from_step]
        aside = self.file.with_name(LOG + ".tmp")
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(aside, self.file)
        self.started, self.first = time.perf_counter(), from_step

    def write(self, step: int, batch_size: int, numbers: dict[str, float]) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        row = {"step": step, "tokens": step * batch_size, **{k: _short(v) for k, v in numbers.items()}}
        row["tokens_per_second"] = round((step - self.first) * batch_size / max(seconds, 1e-9))
        with open(self.file, "a") as handle:
            handle.write(json.dumps(row) + "\n")
        return row


def read_log(folder: Path) -> list[dict]:
    """The lines of log.jsonl up to the first that is damaged; a last one that was cut short is left out."""
    rows = []
    try:
        lines = (folder / LOG).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def shown(rows: list[dict]) -> dict[str, str]:
    """A line of each dictionary in training, for a bar: of several, the span from the least to the largest."""
    numbers = {"FVU": _span([row["fvu"] for row in rows], ".3f"), "L0": _span([row["l0"] for row in rows], ".1f")}
    terms = {name for row in rows for name in row} & {"sparsity", "frequency", "auxiliary", "aux"}
    for name in sorted(terms):
        numbers[name] = _span([row[name] for row in rows if name in row], ".3g")
    return numbers | {"dead": _span([row["dead"] for row in rows], ".1%"), "tok/s": f"{rows[0]['tokens_per_second']:,}"}


def _span(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}..{high}"


def _short(value: float) -> float:
    return value if value == 0 or not math.isfinite(value) else float(f"{value:.6g}")
