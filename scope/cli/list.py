"""`scope list`: what lies in runs/, or in another folder; and which SAEs are published."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from scope.cli.info import show


@dataclass(frozen=True)
class Command:
    """List everything below a folder that scope made or can read: labs, recordings, SAEs, packs, checkpoints, saved results.

    scope list releases: the published SAEs of Gemma models that can be given by name; scope list releases NAME: those of a
    release, of a model (gemma-2-9b-it) or of a repository on the hub.
    """

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Where to look; or releases."""

    name: tyro.conf.Positional[str | None] = None
    """With releases: which."""

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from scope.errors import ConfigError
        from scope.workflows.folders import list_folder
        from scope.workflows.published import list_releases

        if self.folder == Path("releases") and (self.name or not self.folder.is_dir()):
            show(list_releases(self.name), self.json)
            return
        if self.name:
            raise ConfigError(f"{self.name} is a second place. Give one: scope list FOLDER, or scope list releases NAME.")
        rows = list_folder(self.folder)
        if not rows and not self.json:
            raise ConfigError(f"Nothing that scope knows lies in {self.folder}. A first lab, in a few minutes: scope demo")
        show(rows, self.json)
