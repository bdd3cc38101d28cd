"""The JSON of saved runs and sweeps, with the type of every field: what stands in a file of a stranger is checked here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scope.errors import EditError
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply.counts import Report
from scope.steering.compare.scores import By, Scores
from scope.typed_json import parse_json, read_bytes, typed

SCHEMA = 2
READS = (1, 2)  # runs of schema 1 lack some scores and conditions
SWEEP_SCHEMA = 1


@dataclass(frozen=True)
class Sample:
    """One text. `diverges_at` is its first new token that differs from the plain condition's, None if none does."""

    prompt: str
    prompt_ids: list[int]
    new_ids: list[int]
    pieces: list[str]
    text: str
    stopped_by: str
    scores: Scores | None
    diverges_at: int | None = None


@dataclass(frozen=True)
class Condition:
    """All texts made in one way: "plain", "steered", or a control; see `scope.steering.compare.steer.CONDITIONS`."""

    name: str
    samples: list[Sample]
    report: Report | None = None

    def mean(self, score: str, target: str | None = None) -> float:
        """A score's mean over the texts that have one; nan if none has."""
        values = [getattr(s.scores, score) for s in self.samples if s.scores]
        values = [v for v in ([v[target] for v in values] if target is not None else values) if v is not None]
        return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class _Sheet:
    edit: str
    site: str
    decoder_norm: float
    strength: float | None = None
    raw: float | None = None
    multiple_of_maximum: float | None = None


@dataclass(frozen=True)
class StoredRun:
    """A saved run under the field names of its file; what else the file holds is left out."""

    schema: int
    edits: list[dict[str, Any]]
    sampling: SamplingConfig
    gauges: dict[str, dict[str, Any]]
    arms: list[Condition]
    sheet: list[dict[str, Any]]
    promoted: dict[str, list[str]]
    prompts: list[str]
    n: int
    control_seed: int
    notes: list[str]
    model: dict[str, Any]
    dictionaries: dict[str, dict[str, Any]]
    versions: dict[str, str]
    instruction: str | None = None
    others: dict[str, list[int]] = field(default_factory=dict)
    stopped_after: int | None = None
    fvu: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredSweep:
    """A saved sweep under the field names of its file."""

    schema: int
    sweep: list[float]
    by: By
    stopped: bool
    runs: list[dict[str, Any]]


def read_stored(source: str | Path, name: str) -> Any:
    """The JSON value in a file, or of JSON text itself. `name` is what messages call it.

    Raises:
        EditError: see `parse_stored`; or the file cannot be read.
    """
    is_text = str(source).lstrip().startswith("{")
    return parse_stored(str(source) if is_text else read_file(Path(source)), name, source)


def read_file(path: Path) -> bytes:
    """The content of a saved run's file.

    Raises:
        EditError: it cannot be read.
    """
    try:
        return read_bytes(path, EditError)
    except (EditError, ValueError) as problem:  # a name may hold a zero byte
        raise EditError(f"No steering run can be read from {str(path)[:80]!r}: {problem}") from None


def parse_stored(data: bytes | str, name: str, source: object) -> Any:
    """The JSON value of a saved run or sweep.

    Raises:
        EditError: it is no JSON, or holds numbers or characters that no saved run holds.
    """
    error = f"No {name} can be read from {str(source)[:80]!r}"
    try:
        return checked(parse_json(data, "it", EditError), error)
    except EditError as problem:
        raise problem if str(problem).startswith(error) else EditError(f"{error}: {problem}") from None


def checked(value: Any, error: str) -> Any:
    """A JSON value whose numbers are finite and whose texts can be written again.

    Raises:
        EditError: Infinity, NaN, or half of a surrogate pair.
    """
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            todo += one
        elif isinstance(one, float) and not math.isfinite(one):
            raise EditError(f"{error}: it holds {one}, which is no number.")
        elif isinstance(one, str) and not one.isascii() and any("\ud800" <= char <= "\udfff" for char in one):
            raise EditError(f"{error}: it holds half of a character, {one[:40]!a}.")
    return value


def stored_run(raw: Any) -> StoredRun:
    """A saved run with the type of every field, and with all that its parts say of one another.

    Raises:
        EditError: a field that is missing or of another type, or parts that do not belong together.
    """
    _check_schema(raw, READS, "run")
    run = typed(raw, StoredRun, "The saved run", EditError)
    typed(run.sheet, list[_Sheet], "The sheet of the saved run", EditError)
    names = [condition.name for condition in run.arms]
    conflict = next(_conflicts(run, names), None)
    if conflict is not None:
        raise EditError(f"The saved run is damaged: {conflict}.")
    return run


def stored_sweep(raw: Any) -> StoredSweep:
    """A saved sweep with the type of every field; its runs are still JSON.

    Raises:
        EditError: a field that is missing or of another type, or no run for each strength.
    """
    _check_schema(raw, (SWEEP_SCHEMA,), "sweep")
    sweep = typed(raw, StoredSweep, "The saved sweep", EditError)
    if not sweep.runs or len(sweep.sweep) != len(sweep.runs):
        raise EditError(f"The saved sweep is damaged: it has {len(sweep.sweep)} strengths and {len(sweep.runs)} runs.")
    return sweep


def _check_schema(raw: Any, known: Sequence[int], what: str) -> None:
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if type(schema) is not int or schema not in known:
        readable = " and ".join(map(str, known))
        raise EditError(f"This {what} was saved with schema {str(schema)[:20]}; this version reads {what}s of {readable}.")


def _conflicts(run: StoredRun, names: list[str]):
    """What parts of a run contradict one another, as ends of a sentence."""
    texts = len(run.prompts) * run.n
    if not run.edits or len(run.sheet) != len(run.edits):
        yield f"it has {len(run.edits)} edits and {len(run.sheet)} rows about them"
    if not run.prompts or run.n < 1:
        yield f"it has {len(run.prompts)} prompts with {run.n} texts each"
    if "steered" not in names or len(set(names)) < len(names):
        yield f"its conditions are {', '.join(names)[:80] or 'none'}"
    if not run.promoted:
        yield "it names no target"
    for condition in run.arms:
        if len(condition.samples) != texts:
            yield f"{condition.name[:20]} has {len(condition.samples)} texts, and there are {texts} of each condition"
        for sample in condition.samples:
            s = sample.scores
            if s and any(set(run.promoted) - set(part) for part in (s.concept, s.share, s.mass, s.readings)):
                yield f"a text of {condition.name[:20]} has no scores for {', '.join(run.promoted)[:80]}"
            if len(sample.pieces) != len(sample.new_ids):
                yield f"a text of {condition.name[:20]} has {len(sample.new_ids)} tokens and {len(sample.pieces)} pieces"
    if run.schema == SCHEMA:
        strange = [name for name in run.others if name not in names]
        if strange:
            yield f"it names other latents for {strange[0][:20]}, which is none of its conditions"
