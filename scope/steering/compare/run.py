"""The data of one comparison: the texts of every condition, what was done to them, how they score. Saved as JSON.

`scope.steering.compare.steer.SteeringRun` is this data with what a user does with it: print, show, replay.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scope.errors import EditError
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply.counts import Report
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.compare.json_files import check_schema, read_stored, write_file
from scope.steering.compare.scores import By, Judged, Scores, judge, typical_pmi
from scope.steering.edits.interventions import Edits, edit_from
from scope.typed_json import typed

SCHEMA = 2
READS = (1, 2)  # runs of schema 1 lack some scores and conditions


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


@dataclass(frozen=True, kw_only=True, repr=False)
class RunData:
    """Everything about one comparison."""

    edits: Edits
    sheet: list[dict[str, Any]]
    """Per edit its strength in three units, and the length of the decoder row."""
    promoted: dict[str, list[str]]
    """Per target the tokens that it promotes most by the weights; `share` and `mass` are about these."""
    prompts: list[str]
    n: int
    sampling: SamplingConfig
    control_seed: int
    conditions: list[Condition]
    notes: list[str]
    strength_units: dict[str, StrengthUnits]
    model: dict[str, Any]
    dictionaries: dict[str, dict[str, Any]]
    versions: dict[str, str]
    instruction: str | None = None
    """What stood before each prompt in the condition "prompt"."""
    others: dict[str, list[int]] = field(default_factory=dict)
    """Per condition "other" the latents that took the edited ones' places, in the order of `edits`."""
    stopped_after: int | None = None
    """Steps, if somebody stopped the generation."""
    fvu: dict[str, float] = field(default_factory=dict)
    """Per dictionary's site the share of the variance of the unedited texts that the dictionary does not explain."""
    picture: str | None = None
    """A PNG as base64 of which the model reads the same, of a run about a picture; None for the others."""

    def __getitem__(self, name: str) -> Condition:
        for condition in self.conditions:
            if condition.name == name:
                return condition
        raise EditError(f"This run has no condition {name!r}; it has {', '.join(c.name for c in self.conditions)}.")

    def texts(self) -> dict[str, list[str]]:
        """Condition -> its texts."""
        return {c.name: [s.text for s in c.samples] for c in self.conditions}

    def judged(self, target: str | None = None, by: By = "share") -> dict[str, list[Judged | None]]:
        """Condition -> concept, relevance, fluency and score of each text, beside the plain condition's; see `judge`.

        Raises:
            EditError: the run has no plain condition.
        """
        plain, target = [s.scores for s in self["plain"].samples], target or next(iter(self.promoted))
        pmi = typical_pmi(plain)
        return {
            c.name: [judge(s.scores, other, pmi, target, by) for s, other in zip(c.samples, plain, strict=True)]
            for c in self.conditions
        }

    def largest_reading(self, target: str) -> float:
        """The target's largest reading over all new tokens of all conditions; 0 without texts."""
        samples = (s for c in self.conditions for s in c.samples if s.scores)
        return max((v for s in samples for v in s.scores.readings[target]), default=0.0)

    def same_texts(self, other: "RunData") -> bool:
        """Whether both wrote the same, token by token, in every condition."""
        return [(c.name, [s.new_ids for s in c.samples]) for c in self.conditions] == [
            (c.name, [s.new_ids for s in c.samples]) for c in other.conditions
        ]

    def to_json(self, file: str | Path | None = None) -> str:
        """As JSON text, also written to `file`. With the same model and dictionary it can be replayed."""
        raw = {
            "schema": SCHEMA,
            "edits": [e.to_dict() for e in self.edits],
            "sampling": asdict(self.sampling),
            "gauges": {site: units.to_dict() for site, units in self.strength_units.items()},
            "arms": [asdict(c) for c in self.conditions],
            **{name: getattr(self, name) for name in _AS_THEY_ARE if name != "picture" or self.picture is not None},
        }
        text = json.dumps(raw, indent=1, ensure_ascii=False, allow_nan=False)
        if file is not None:
            write_file(file, text)
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> "RunData":
        """From a file, or from JSON text itself.

        Raises:
            EditError: it is no saved run, is damaged, or is one of another version.
        """
        return read_stored(source, "steering run", cls.from_dict)

    @classmethod
    def from_dict(cls, raw: Any) -> "RunData":
        """From the JSON object of a saved run.

        Raises:
            EditError: it is none, is damaged, or is one of another version.
        """
        stored = _stored(raw)
        return cls(
            edits=Edits(edit_from(e) for e in stored.edits),
            sampling=stored.sampling,
            strength_units={site: StrengthUnits.from_dict(units) for site, units in stored.gauges.items()},
            conditions=stored.arms,
            **{name: getattr(stored, name) for name in _AS_THEY_ARE},
        )


_AS_THEY_ARE = ("sheet", "promoted", "prompts", "n", "control_seed", "notes", "model", "dictionaries", "versions")
_AS_THEY_ARE += ("instruction", "others", "stopped_after", "fvu", "picture")


@dataclass(frozen=True)
class _Sheet:
    edit: str
    site: str
    decoder_norm: float


@dataclass(frozen=True)
class _SheetOfAmount(_Sheet):
    strength: float
    raw: float
    multiple_of_maximum: float | None


@dataclass(frozen=True)
class _StoredRun:
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
    picture: str | None = None


def _stored(raw: Any) -> _StoredRun:
    """A saved run with the type of every field, and with all that its parts say of one another.

    Raises:
        EditError: a field that is missing or of another type, or parts that do not belong together.
    """
    check_schema(raw, READS, "run")
    run = typed(raw, _StoredRun, "The saved run", EditError)
    for row in run.sheet:
        typed(row, _SheetOfAmount if "raw" in row else _Sheet, "The sheet of the saved run", EditError)
    names = [condition.name for condition in run.arms]
    conflict = next(_conflicts(run, names), None)
    if conflict is not None:
        raise EditError(f"The saved run is damaged: {conflict}.")
    return run


def _conflicts(run: _StoredRun, names: list[str]) -> Iterator[str]:
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
