"""Lists the trainings in folders: settings, progress and outcome of each. Damaged ones are listed as such."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scope.errors import ScopeError
from scope.sae.claims import Provenance
from scope.sae.files import MANIFEST, Manifest
from scope.sae.formats.files import read_config
from scope.training.folder import LOCK, RUN, read_description
from scope.training.progress import LOG, read_log
from scope.typed_json import read_bytes
from scope.whole_files import is_held


@dataclass(kw_only=True)
class Training:
    """One dictionary's training. What is not known is None; means are of the last line of the log, or the last tenth."""

    folder: str
    state: str
    """finished, running, stopped (at a step), or damaged."""

    site: str | None = None
    kind: str | None = None
    preset: str | None = None
    d_sae: int | None = None
    target: float | None = None
    """The L0 that is wanted, or k; None where a weight of the penalty is fixed."""

    l0: float | None = None
    fvu: float | None = None
    dead: float | None = None
    step: int = 0
    steps: int | None = None
    tokens_per_second: float | None = None
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def find_trainings(folders: Sequence[Path]) -> list[Training]:
    """Every training in the folders and below them, in the order of their paths."""
    parents = {path.parent for folder in folders for path in _descriptions(Path(folder))}
    return [read_training(folder) for folder in sorted(parents)]


def read_training(folder: Path) -> Training:
    """The training in a folder, which may be running; nothing in it is changed."""
    notes: list[str] = []
    try:
        described, _ = read_description(folder)
        rows = read_log(folder)
    except ScopeError as error:
        return Training(folder=str(folder), state="damaged", notes=[str(error).splitlines()[0]])
    written = _lines(folder)
    if written > len(rows) + 1:
        notes.append(f"log.jsonl is damaged after line {len(rows)} of {written}.")
    dictionary = described.dictionary
    fixed = dictionary.l0_weight is not None or dictionary.l1_weight is not None
    training = Training(
        folder=str(folder),
        state=_state(folder),
        site=described.site,
        kind=described.kind,
        preset=described.preset,
        d_sae=dictionary.d_sae,
        target=None if fixed else dictionary.target_l0 or dictionary.k,
        steps=described.training.steps,
        notes=notes,
    )
    if rows:
        last = rows[-1]
        training.step, training.tokens_per_second = last["step"], last.get("tokens_per_second")
        training.l0, training.fvu, training.dead = last.get("l0"), last.get("fvu", last.get("error")), last.get("dead")
    if training.state == "finished":
        _add_outcome(training, folder)
    return training


def _add_outcome(training: Training, folder: Path) -> None:
    try:
        result = Provenance.of(read_config(folder / MANIFEST, Manifest).provenance, folder / MANIFEST).training
    except ScopeError as error:
        training.state = "damaged"
        training.notes.append(str(error).splitlines()[0])
        return
    for name in ("l0", "fvu", "dead"):
        if (value := getattr(result, name)) is not None:
            setattr(training, name, value)
    training.step = training.steps or training.step
    training.notes += result.notes


def _state(folder: Path) -> str:
    """A folder of several has its lock and its checkpoint one level up."""
    if (folder / MANIFEST).exists() and not list(folder.glob("checkpoint*.safetensors")):
        return "finished"
    return "running" if any(is_held(place, f"{LOCK}*") for place in (folder, folder.parent)) else "stopped"


def _descriptions(folder: Path) -> Iterator[Path]:
    if (folder / RUN).exists():
        yield folder / RUN
    elif folder.is_dir():
        yield from sorted(folder.rglob(RUN))


def _lines(folder: Path) -> int:
    return len(read_bytes(folder / LOG).splitlines()) if (folder / LOG).exists() else 0
