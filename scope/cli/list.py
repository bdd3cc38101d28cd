"""`scope list`: what lies in runs/, or in another folder."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from scope.cli.info import show


@dataclass(frozen=True)
class Command:
    """List everything below a folder that scope made or can read: labs, recordings, SAEs, packs, checkpoints, saved results."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Where to look."""

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from scope.errors import ConfigError
        from scope.workflows.folders import list_folder

        rows = list_folder(self.folder)
        if not rows and not self.json:
            raise ConfigError(f"Nothing that scope knows lies in {self.folder}. A first lab, in a few minutes: scope demo")
        show(rows, self.json)
