"""Saved runs in a folder: one JSON file each, named by the hash of its content."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from scope.errors import EditError, ScopeError
from scope.steering.compare.json_files import content, is_name, read_stored, runs_folders, saved_names, write_file
from scope.steering.compare.steer import SteeringRun
from scope.steering.compare.sweep import Sweep


@dataclass(frozen=True)
class Entry:
    """A run in a list: its name, when it was saved (seconds since 1970), what was edited, and the first prompt."""

    name: str
    saved: float
    edits: str
    prompt: str
    sweep: bool


class Runs:
    """Runs and sweeps in a folder. A name is the beginning of the contents' SHA-256, so the same run is kept once."""

    def __init__(self, folder: str | Path, *older: Path):
        self.folder = Path(folder)
        self.older = older
        """Further folders, which are read and not written."""

    @classmethod
    def of_pack(cls, pack: str | Path) -> "Runs":
        """The runs of a pack; see `runs_folders`."""
        return cls(*runs_folders(pack))

    @property
    def beside(self) -> int:
        """How many runs lie in folders of earlier versions, and would not move with the pack."""
        return len(set(saved_names(*self.older)) - set(saved_names(self.folder)))

    def save(self, run: SteeringRun | Sweep) -> str:
        """Save a run; returns its name."""
        text = run.to_json()
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        write_file(self.folder / f"{name}.json", text)
        return name

    def load(self, name: str) -> SteeringRun | Sweep:
        """A run by name. The last few that were read are cached.

        Raises:
            EditError: there is no such run, or it cannot be read.
        """
        file = self._file(name)
        return _read(file, file.stat().st_mtime_ns)

    def forget(self, name: str) -> None:
        """Delete a run.

        Raises:
            EditError: there is no such run.
        """
        self._file(name).unlink()
        for folder in self.older:
            (folder / f"{name}.json").unlink(missing_ok=True)

    def names(self) -> list[str]:
        """All of them, the newest first."""
        return saved_names(self.folder, *self.older)

    def newest(self, most: int = 20) -> tuple[list[Entry], list[str]]:
        """What a list of them shows, and the names of those that cannot be read."""
        entries, damaged = [], []
        for name in self.names()[:most]:
            try:
                run, saved = self.load(name), self._file(name).stat().st_mtime
            except ScopeError:
                damaged.append(name)
                continue
            one = run.runs[0] if isinstance(run, Sweep) else run
            entries.append(Entry(name, saved, str(one.edits), one.prompts[0], isinstance(run, Sweep)))
        return entries, damaged

    def _file(self, name: str) -> Path:
        """Names come from addresses, so nothing but a name is ever taken for one."""
        files = [folder / f"{name}.json" for folder in (self.folder, *self.older)]
        found = next((file for file in files if file.is_file()), None) if is_name(name) else None
        if found is None:
            raise EditError(f"No saved run {name!r} lies in this pack.\n  Runs are saved in {self.folder}")
        return found


@lru_cache(maxsize=64)
def _read(file: Path, written: int) -> SteeringRun | Sweep:
    return read_saved(file)


def read_saved(source: str | Path) -> SteeringRun | Sweep:
    """What `to_json` wrote, a run or a sweep, from a file or from JSON text itself.

    Raises:
        EditError: it is neither, is damaged, is of another version, or is not what the name of its file says.
    """
    data = content(source)
    kind, name = (Sweep, "sweep") if b'"sweep":' in data[:200] else (SteeringRun, "steering run")
    stem = Path(str(source)[-80:]).stem
    if is_name(stem) and hashlib.sha256(data).hexdigest()[:12] != stem:
        raise EditError(
            f"No {name} can be read from {str(source)[:80]!r}: it is not what its name says, so it is damaged or edited.\n"
            "  Remove it; or, to use it as it is, give it another name."
        )
    return read_stored(source, name, kind.from_dict, data)
