"""What is said while a dictionary trains: one line of log.jsonl per logging step, and numbers for a bar."""

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from scope.sae.engine import Batch

LOG = "log.jsonl"


@dataclass
class Running:
    """Running means over the steps since the last line, and when each latent last fired."""

    d_sae: int
    dead_after: int
    silent: Tensor = field(init=False)
    """Tokens since each latent fired last."""

    def __post_init__(self):
        self.silent = torch.zeros(self.d_sae, dtype=torch.long)
        self.sums: dict[str, float] = {}
        self.steps = 0

    def add(self, batch: Batch, tokens: int) -> None:
        self.silent.add_(tokens).masked_fill_(batch.fired.cpu() > 0, 0)
        seen = {"error": batch.error, "l0": batch.l0, "dense": (batch.fired > 0.1 * tokens).sum().item() / self.d_sae}
        for name, value in (batch.terms | seen).items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1

    @property
    def dead(self) -> float:
        """Share of latents that have not fired for `dead_after` tokens."""
        return (self.silent >= self.dead_after).double().mean().item()

    def line(self) -> dict[str, float]:
        """The means, under their names; then they start anew."""
        means = {name: value / max(1, self.steps) for name, value in self.sums.items()}
        means["dead"] = self.dead
        self.sums, self.steps = {}, 0
        return means

    def state_dict(self) -> dict:
        return {"silent": self.silent, "sums": self.sums, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.silent, self.sums, self.steps = state["silent"], state["sums"], state["steps"]


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
    """The lines of log.jsonl; a last one that was cut short is left out."""
    rows = []
    try:
        lines = (folder / LOG).read_text().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _short(value: float) -> float:
    return value if value == 0 or not math.isfinite(value) else float(f"{value:.6g}")
