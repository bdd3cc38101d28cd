"""Log lines for TensorBoard and Weights & Biases."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scope.errors import ConfigError

_WHERE = ("step", "tokens")


class Boards:
    """Called as (folder of a dictionary, its new line of the log)."""

    def __init__(self, boards: Sequence[Any]):
        self.boards = list(boards)

    def __call__(self, folder: Path, row: dict) -> None:
        for board in self.boards:
            board.write(folder, row)

    def close(self) -> None:
        for board in self.boards:
            board.close()


class TensorBoard:
    """Event files in `tensorboard/` within each dictionary's folder; `tensorboard --logdir OUT` shows them side by side."""

    def __init__(self):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "TensorBoard is not installed.\n  pip install 'scope-workbench[tensorboard]', or leave --tensorboard out."
            ) from None
        self.make, self.writers = SummaryWriter, {}

    def write(self, folder: Path, row: dict) -> None:
        if folder not in self.writers:  # what an interrupted run wrote beyond its checkpoint is hidden
            self.writers[folder] = self.make(str(folder / "tensorboard"), purge_step=row["step"])
        for name, value in row.items():
            if name not in _WHERE:
                self.writers[folder].add_scalar(name, value, row["step"])

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class Wandb:
    """One run a dictionary, grouped by the training's folder; the same folder goes on with the same run. What wandb's own
    environment says counts too: WANDB_MODE=offline writes to the disk only."""

    def __init__(self, project: str, out: Path, configs: dict[Path, dict]):
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                "Weights & Biases is not installed.\n  pip install 'scope-workbench[wandb]', or leave --wandb out."
            ) from None
        self.wandb, self.project, self.out, self.configs, self.runs = wandb, project, out, configs, {}

    def write(self, folder: Path, row: dict) -> None:
        if folder not in self.runs:
            self.runs[folder] = self.wandb.init(
                project=self.project,
                group=self.out.name,
                name=folder.name,
                id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
                resume="allow",
                reinit="create_new",
                dir=str(folder),
                config=self.configs.get(folder, {}),
            )
        self.runs[folder].log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def close(self) -> None:
        for run in self.runs.values():
            run.finish()
