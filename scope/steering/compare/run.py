"""`SteeringRun`: the texts of all arms, what was done to them, how they score; saved as JSON, and replayed from it."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scope.errors import EditError
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply.gauge import Gauge
from scope.steering.apply.report import Report
from scope.steering.compare.judge import By, Judged, judge, typical_pmi
from scope.steering.compare.scores import Scores
from scope.steering.edits.interventions import Edits, edit_from
from scope.steering.export import show

SCHEMA = 2
READS = (1, 2)  # runs of schema 1 lack some scores and arms


@dataclass(frozen=True)
class Sample:
    """One text of an arm. `diverges_at` is its first new token that differs from the plain arm's, None if none does."""

    prompt: str
    prompt_ids: list[int]
    new_ids: list[int]
    pieces: list[str]
    text: str
    stopped_by: str
    scores: Scores | None
    diverges_at: int | None = None


@dataclass(frozen=True)
class Arm:
    """All texts made in one way: "plain", "steered", or a control; see `scope.steering.compare.steer.ARMS`."""

    name: str
    samples: list[Sample]
    report: Report | None = None

    def mean(self, score: str, target: str | None = None) -> float:
        """A score's mean over the texts that have one; nan if none has."""
        found = [getattr(s.scores, score) for s in self.samples if s.scores]
        values = [v for v in ([v[target] for v in found] if target is not None else found) if v is not None]
        return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True, kw_only=True, repr=False)
class SteeringRun:
    """Everything about one comparison. Prints as text, shows as HTML in a notebook, travels as JSON."""

    edits: Edits
    sheet: list[dict[str, Any]]
    """Per edit its strength in three units, and the length of the decoder row."""
    promoted: dict[str, list[str]]
    """Per target the tokens that it promotes most by the weights; `share` and `mass` are about these."""
    prompts: list[str]
    n: int
    sampling: SamplingConfig
    control_seed: int
    arms: list[Arm]
    notes: list[str]
    gauges: dict[str, Gauge]
    model: dict[str, Any]
    dictionaries: dict[str, dict[str, Any]]
    versions: dict[str, str]
    instruction: str | None = None
    """What stood before each prompt in the arm "prompt"."""
    others: dict[str, list[int]] = field(default_factory=dict)
    """Per arm "other" the latents that took the edited ones' places, in the order of `edits`."""
    stopped_after: int | None = None
    """Steps, if somebody stopped the generation."""
    fvu: dict[str, float] = field(default_factory=dict)
    """Per dictionary's site the share of the variance of the unedited texts that the dictionary does not explain."""

    def __getitem__(self, name: str) -> Arm:
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise EditError(f"This run has no arm {name!r}; it has {', '.join(a.name for a in self.arms)}.")

    def texts(self) -> dict[str, list[str]]:
        """Arm -> its texts."""
        return {arm.name: [s.text for s in arm.samples] for arm in self.arms}

    def judged(self, target: str | None = None, by: By = "share") -> dict[str, list[Judged | None]]:
        """Arm -> concept, relevance, fluency and score of each text, beside the plain arm's; see `compare.judge`.

        Raises:
            EditError: the run has no plain arm.
        """
        plain, target = self["plain"].samples, target or next(iter(self.promoted))
        pmi = typical_pmi(plain)
        return {
            arm.name: [judge(mine, other, pmi, target, by) for mine, other in zip(arm.samples, plain, strict=True)]
            for arm in self.arms
        }

    def same_texts(self, other: "SteeringRun") -> bool:
        """Whether both wrote the same, token by token, in every arm."""
        return [(a.name, [s.new_ids for s in a.samples]) for a in self.arms] == [
            (a.name, [s.new_ids for s in a.samples]) for a in other.arms
        ]

    def to_json(self, file: str | Path | None = None) -> str:
        """As JSON text, also written to `file`. With the same model and dictionary it can be replayed."""
        raw = {
            "schema": SCHEMA,
            "edits": [e.to_dict() for e in self.edits],
            "sampling": asdict(self.sampling),
            "gauges": {site: g.to_dict() for site, g in self.gauges.items()},
            "arms": [asdict(a) for a in self.arms],
            **{name: getattr(self, name) for name in (*_PLAIN, *_LATER)},
        }
        text = json.dumps(raw, indent=1, ensure_ascii=False, allow_nan=False)
        if file is not None:
            write_whole(Path(file), text)
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> "SteeringRun":
        """From a file, or from JSON text itself.

        Raises:
            EditError: it is no saved run, or one of another version.
        """
        try:
            raw = json.loads(text_of(source))
            schema = raw.get("schema")
        except (OSError, ValueError, AttributeError) as error:
            raise EditError(f"No steering run can be read from {str(source)[:80]!r}: {error}") from None
        if schema not in READS:
            raise EditError(f"This run was saved with schema {schema}; this version reads {' and '.join(map(str, READS))}.")
        try:
            sampling = {**raw["sampling"], "stop": tuple(raw["sampling"]["stop"])}
            return cls(
                edits=Edits(edit_from(e) for e in raw["edits"]),
                sampling=SamplingConfig(**sampling),
                gauges={site: Gauge.from_dict(g) for site, g in raw["gauges"].items()},
                arms=[_arm(a) for a in raw["arms"]],
                **{name: raw[name] for name in _PLAIN if name in raw or schema == SCHEMA},
                **{name: raw[name] for name in _LATER if name in raw},
            )
        except (KeyError, TypeError) as error:
            raise EditError(f"The saved run lacks something, or holds what this version does not know: {error}.") from None

    def replay(self, model, sae, on_token: Callable[[int, list[int | None]], bool | None] | None = None) -> "SteeringRun":
        """Make it again, from what it says of itself. On the same machine and versions the texts are the same.

        `on_token` sees every step and may stop it, as in `scope.steering.compare.steer`.

        Raises:
            EditError: the model or a dictionary is not the one that made it.
        """
        from scope.steering.compare.steer import steer

        def watch(step: int, ids: list[int | None]) -> bool:
            asked = bool(on_token and on_token(step, ids))
            return asked or (self.stopped_after is not None and step + 1 >= self.stopped_after)

        _same("model", self.model, model.provenance)
        again = steer(
            model,
            sae,
            self.edits,
            self.prompts,
            self.sampling,
            arms=tuple(a.name for a in self.arms),
            n=self.n,
            gauges=self.gauges,
            control_seed=self.control_seed,
            instruction=self.instruction,
            any_model=True,
            on_token=watch,
        )
        for site, made_with in self.dictionaries.items():
            _same(f"dictionary at {site}", made_with, again.dictionaries.get(site, {}))
        return again

    def __str__(self) -> str:
        return show.as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return show.as_html(self)


_PLAIN = ("sheet", "promoted", "prompts", "n", "control_seed", "notes", "model", "dictionaries", "versions")
_PLAIN += ("instruction", "others", "stopped_after")
_LATER = ("fvu",)  # what runs of this schema may lack, having been saved before it was kept


def text_of(source: str | Path) -> str:
    """JSON text as it is, or what stands in the file of that name."""
    return str(source) if str(source).lstrip().startswith("{") else Path(source).read_text(encoding="utf-8")


def write_whole(file: Path, text: str) -> None:
    """Aside, then renamed: nobody ever sees half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(file)


def _arm(raw: dict[str, Any]) -> Arm:
    samples = [Sample(**{**s, "scores": Scores(**s["scores"]) if s["scores"] else None}) for s in raw["samples"]]
    return Arm(raw["name"], samples, Report(**raw["report"]) if raw["report"] else None)


def _same(what: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    for name in ("weights_sha256", "tokenizer_sha256"):
        if expected.get(name) and found.get(name) != expected[name]:
            raise EditError(
                f"This run was made with another {what}: {name} {str(expected[name])[:12]} there, "
                f"{str(found.get(name))[:12]} here. Load that {what}: {expected.get('model') or expected.get('site')}."
            )
