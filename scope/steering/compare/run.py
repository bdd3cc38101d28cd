"""The data of one comparison: the texts of every condition, what was done to them, how they score. Saved as JSON.

`scope.steering.compare.steer.SteeringRun` is this data with what a user does with it: print, show, replay.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scope.errors import EditError
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.compare.scores import By, Judged, judge, typical_pmi
from scope.steering.compare.stored import SCHEMA, Condition, Sample, read_stored, stored_run
from scope.steering.edits.interventions import Edits, edit_from
from scope.whole_files import write_whole

__all__ = ["Condition", "RunData", "Sample", "write_file"]


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
            **{name: getattr(self, name) for name in _AS_THEY_ARE},
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
        return cls.from_dict(read_stored(source, "steering run"))

    @classmethod
    def from_dict(cls, raw: Any) -> "RunData":
        """From the JSON object of a saved run.

        Raises:
            EditError: it is none, is damaged, or is one of another version.
        """
        stored = stored_run(raw)
        return cls(
            edits=Edits(edit_from(e) for e in stored.edits),
            sampling=stored.sampling,
            strength_units={site: StrengthUnits.from_dict(units) for site, units in stored.gauges.items()},
            conditions=stored.arms,
            **{name: getattr(stored, name) for name in _AS_THEY_ARE},
        )


_AS_THEY_ARE = ("sheet", "promoted", "prompts", "n", "control_seed", "notes", "model", "dictionaries", "versions")
_AS_THEY_ARE += ("instruction", "others", "stopped_after", "fvu")


def write_file(file: str | Path, text: str) -> None:
    """Write a file whole, making its folder."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(file), text)
