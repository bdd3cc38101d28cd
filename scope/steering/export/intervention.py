"""`Intervention`: edits that were handed over as a folder, with all that they need but the model.

intervention.json     edits, strengths in three units, sites, model and SAE by their hashes, what each form cannot carry
vectors.safetensors   per edit what it adds (vector) and what it reads (encoder, bias, threshold), float32
texts.jsonl           test texts with recorded outputs
hook.py               applies it to a transformers model, without scope (scope/steering/export/transformers_hook.py)
control_vector.gguf   the same for llama.cpp, where that form can carry it
card.md               all of it for a reader
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.errors import EditError
from scope.models.face import LanguageModel, VisionModel
from scope.progress import OnProgress
from scope.provenance import ModelId, without_folders
from scope.sae.base import SAE
from scope.steering.apply.resolve import Resolved, at_each_layer, check_sites, dictionaries, resolve
from scope.steering.apply.strength_units import StrengthUnits, units_for
from scope.steering.compare.steer import SteeringRun
from scope.steering.compare.text_scorer import TextScorer
from scope.steering.edits.encoders import LatentEncoder
from scope.steering.edits.interventions import Edit, Edits, edit_from
from scope.steering.export import control_vector, hook_of
from scope.steering.export.card import card
from scope.steering.export.carried import carried
from scope.steering.export.places import place_here
from scope.steering.export.recorded import RecordedText, record_texts
from scope.texts import list_of_texts
from scope.typed_json import json_lines, read_bytes, read_json, typed
from scope.versions import version_of
from scope.whole_files import whole_folder, write_json, write_whole

ABOUT, VECTORS, TEXTS, HOOK, GGUF, CARD = (
    "intervention.json",
    "vectors.safetensors",
    "texts.jsonl",
    "hook.py",
    "control_vector.gguf",
    "card.md",
)
FORMAT, SCHEMA = "scope.intervention", 1
WAY_OUT = "Give a folder that scope steer --export wrote."
_LARGEST = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """Edits with their own vectors, the units of their strengths, and the texts that they were recorded to write."""

    edits: Edits
    sheet: list[dict[str, Any]]
    """Per edit its strength in three units: fraction of the typical norm, raw, multiples of the latent's maximum."""
    strength_units: dict[str, StrengthUnits]
    promoted: dict[str, list[str]]
    """Per target the tokens that a push along it raises most."""
    model: dict[str, Any]
    dictionaries: dict[str, dict[str, Any]]
    versions: dict[str, str]
    texts: tuple[RecordedText, ...]
    hook: dict[str, Any] | None
    """What hook.py reads; None where that form cannot carry the edits."""
    forms: dict[str, str | None]
    """Form -> why it cannot carry the edits, None where it is there."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Results on effect and side effects that were measured beside it."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What loads the model that it was made for; a folder's whole place was not written, so that one has to be given."""
        name = self.model.get("model")
        return {} if name is None or name.startswith("./") else {"model": self.model}

    def check(self, model: LanguageModel) -> None:
        """
        Raises:
            EditError: the model is not the one that the edits were made for.
        """
        expected, there = ModelId.of(self.model), ModelId.of(model.provenance)
        if expected.same_weights(there) is False:
            raise EditError(
                f"The intervention was made for {expected}; this model is {there}. Load that model, or allow any: --any-model."
            )

    def resolved(self, model: LanguageModel) -> list[Resolved]:
        """Each edit with its numbers, for `Editing(model, {}, ...)`."""
        return [resolve(edit, {}, self.strength_units) for edit in at_each_layer(model, self.edits)]

    def reproduces(self, model: LanguageModel) -> list[bool]:
        """Whether each recorded text is written again, token by token, plain and steered."""
        again = [record_texts(model, {}, self.resolved(model), [text.prompt], text.max_new_tokens)[0] for text in self.texts]
        pairs = zip(self.texts, again, strict=True)
        return [(a.plain.ids, a.steered.ids) == (b.plain.ids, b.steered.ids) for a, b in pairs]

    def __str__(self) -> str:
        lines = [f"{row['edit']} ({row['site']})" for row in self.sheet]
        missing = [f"  no {form}: {why}" for form, why in self.forms.items() if why]
        return "\n".join([*lines, f"  of {ModelId.of(self.model)}, {len(self.texts)} recorded texts", *missing])

    __repr__ = __str__


def export_intervention(
    model: LanguageModel,
    sae: SAE | Sequence[SAE] | None,
    edits: Edit | Edits | Sequence[Edit],
    prompts: str | Sequence[str],
    folder: str | Path,
    *,
    strength_units: StrengthUnits | Mapping[str, StrengthUnits] | None = None,
    max_new_tokens: int = 40,
    measured: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> Intervention:
    """Write the edits as a folder, with texts that the model writes greedily under them. A folder that was exported before is
    replaced.

    Raises:
        EditError: an edit that no folder can carry, or something else at `folder`.
    """
    folder = Path(folder).expanduser()
    refuse_other_folder(folder)
    if isinstance(model, VisionModel) or model.provenance.get("picture_sha256"):
        raise EditError(
            f"A {model.cfg.family_name} writes about a picture, and no exported form holds one.\n"
            "  To hand the edit over, save the run with --json: scope steer --replay makes it again with the same picture."
        )
    prompts = list_of_texts(prompts, EditError)
    edits, saes = Edits.of(edits), dictionaries(sae)
    check_sites(model, saes, edits)
    units = units_for(model, saes, edits, prompts, strength_units)
    edits = carried(edits, saes, units)
    resolved = [resolve(edit, {}, units) for edit in edits]
    texts = record_texts(model, {}, resolved, prompts, max_new_tokens, on_progress)
    scorer = TextScorer(model, {}, resolved, units, prompts)
    why_no_hook = hook_of.refusal(model, resolved, texts)
    why_no_gguf = control_vector.refusal(model, resolved)
    made = Intervention(
        edits=edits,
        sheet=[r.sheet() for r in resolved],
        strength_units={e.site: units[e.site] for e in resolved},
        promoted={name: model.words.pieces(ids) for name, ids in scorer.promoted.items()},
        model=_sent(dict(model.provenance)),
        dictionaries={site: without_folders(_identity(one)) for site, one in saes.items()},
        versions={"torch": torch.__version__, "scope": version_of()},
        texts=texts,
        hook=None if why_no_hook else hook_of.about_hook(model, resolved),
        forms={"transformers hook": why_no_hook, "GGUF control vector": why_no_gguf},
        measured=dict(measured or {}),
    )
    with whole_folder(folder) as aside:
        _write(made, resolved, model, aside)
    return made


def export_run(run: SteeringRun, model: LanguageModel, sae: SAE | Sequence[SAE] | None, folder: str | Path, **how: Any):
    """The edits of a run as a folder, with its prompts as test texts; see `export_intervention`."""
    how = {"max_new_tokens": run.sampling.max_new_tokens, "measured": effect_of(run)} | how
    prompts = list(dict.fromkeys(run.prompts))
    return export_intervention(model, sae, run.edits, prompts, folder, strength_units=run.strength_units, **how)


def effect_of(run: SteeringRun) -> dict[str, Any]:
    """Mean share of promoted tokens by condition and target, for the card."""
    return {
        "promoted tokens, share of the texts": {
            target: {c.name: round(c.mean("share", target), 4) for c in run.conditions} for target in run.promoted
        }
    }


def refuse_other_folder(folder: Path) -> None:
    """
    Raises:
        EditError: there is something at the place that was not exported, and would be replaced.
    """
    if folder.exists() and not (folder / ABOUT).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise EditError(f"{folder} is there and holds no exported intervention, so it is not replaced. Give another folder.")


def _write(intervention: Intervention, resolved: Sequence[Resolved], model: LanguageModel, folder: Path) -> None:
    from safetensors.torch import save as to_bytes

    write_whole(folder / VECTORS, to_bytes(_tensors(intervention.edits, resolved), {"format": "pt"}))
    lines = (json.dumps(asdict(text), ensure_ascii=False) for text in intervention.texts)
    (folder / TEXTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if intervention.hook is not None:
        source = Path(__file__).with_name("transformers_hook.py").read_text(encoding="utf-8")
        (folder / HOOK).write_text(source, encoding="utf-8")
    if intervention.forms["GGUF control vector"] is None:
        control_vector.write(folder / GGUF, model, resolved)
    as_they_are = ("sheet", "promoted", "model", "dictionaries", "versions", "hook", "forms", "measured")
    about = {"format": FORMAT, "schema": SCHEMA, "edits": [_without_vectors(edit) for edit in intervention.edits]}
    about |= {"strength_units": {site: units.to_dict() for site, units in intervention.strength_units.items()}}
    write_json(folder / ABOUT, about | {name: getattr(intervention, name) for name in as_they_are})
    (folder / CARD).write_text(card(intervention), encoding="utf-8")


def load_intervention(folder: str | Path) -> Intervention:
    """What `export_intervention` wrote. `scope.steer(model, None, intervention.edits, prompts,
    strength_units=intervention.strength_units)` steers with it.

    Raises:
        EditError: it is none, is damaged, or was written by a newer version.
    """
    folder = Path(folder).expanduser()
    if not (folder / ABOUT).is_file():
        raise EditError(f"There is no exported intervention in {folder}.\n  {WAY_OUT}")
    raw = read_json(folder / ABOUT, EditError, WAY_OUT, _LARGEST)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or raw.get("schema") != SCHEMA:
        said = raw.get("schema") if isinstance(raw, dict) else None
        raise EditError(f"{folder} was exported with schema {str(said)[:20]}; this version reads {SCHEMA}.\n  {WAY_OUT}")
    stored = typed(raw, _Stored, folder / ABOUT, EditError, WAY_OUT)
    tensors = _read_tensors(folder / VECTORS)
    lines = json_lines(read_bytes(folder / TEXTS, EditError, WAY_OUT, _LARGEST), folder / TEXTS, EditError, WAY_OUT)
    texts = tuple(typed(line, RecordedText, folder / TEXTS, EditError, WAY_OUT) for line in lines)
    edits = Edits.of([_with_vectors(edit, i, tensors) for i, edit in enumerate(stored.edits)])
    units = {site: StrengthUnits.from_dict(value) for site, value in stored.strength_units.items()}
    missing = [edit.latent.site for edit in edits if edit.latent.site not in units]
    if missing or len(stored.sheet) != len(edits):
        raise EditError(f"{folder / ABOUT} is damaged: its edits, sites and strengths do not belong together.\n  {WAY_OUT}")
    names = ("sheet", "promoted", "model", "dictionaries", "versions", "hook", "forms", "measured")
    return Intervention(edits=edits, strength_units=units, texts=texts, **{name: getattr(stored, name) for name in names})


@dataclass(frozen=True)
class _Stored:
    """intervention.json, under the names of its fields."""

    edits: list[dict[str, Any]]
    sheet: list[dict[str, Any]]
    strength_units: dict[str, dict[str, Any]]
    promoted: dict[str, list[str]]
    model: dict[str, Any]
    dictionaries: dict[str, dict[str, Any]]
    versions: dict[str, str]
    hook: dict[str, Any] | None
    forms: dict[str, str | None]
    measured: dict[str, Any] = field(default_factory=dict)


def _tensors(edits: Sequence[Edit], resolved: Sequence[Resolved]) -> dict[str, Tensor]:
    """Every vector of the edits by name. Of a direction that is no latent's row `direction` is it before it got length 1."""
    tensors: dict[str, Tensor] = {}
    for i, (edit, numbers) in enumerate(zip(edits, resolved, strict=True)):
        tensors[f"{i}.vector"] = numbers.row.detach().float().cpu().contiguous()
        if edit.latent.encoder is None:
            tensors[f"{i}.direction"] = torch.tensor(edit.latent.vector, dtype=torch.float64)
        tensors |= _encoder_tensors(f"{i}.", edit.latent.encoder)
        if edit.when:
            tensors |= _encoder_tensors(f"{i}.when.", edit.when.latent.encoder)
            tensors[f"{i}.when.vector"] = torch.tensor(edit.when.latent.vector)
    return tensors


def _encoder_tensors(prefix: str, encoder: LatentEncoder | None) -> dict[str, Tensor]:
    if encoder is None or encoder.weights is None:
        return {}
    values = {"encoder": encoder.weights, "bias": encoder.bias, "threshold": encoder.threshold}
    return {f"{prefix}{name}": torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def _without_vectors(edit: Edit) -> dict[str, Any]:
    raw = edit.to_dict()
    for one in (raw, raw["when"] or {}):
        if isinstance(one.get("latent"), dict):
            encoder = one["latent"]["encoder"]
            kept = None if encoder is None else {name: encoder[name] for name in ("number", "maximum")}
            one["latent"] = one["latent"] | {"vector": [], "encoder": kept}
    return raw


def _with_vectors(raw: Any, number: int, tensors: Mapping[str, Tensor]) -> Edit:
    """
    Raises:
        EditError: a vector is missing, or has another shape than its companions.
    """

    def filled(one: Any, prefix: str) -> Any:
        if not isinstance(one, dict):
            raise EditError(f"Edit {number} is damaged: it names no vector.\n  {WAY_OUT}")
        vector = tensors.get(f"{prefix}direction", tensors.get(f"{prefix}vector"))
        if vector is None or vector.dim() != 1:
            raise EditError(f"{VECTORS} lacks {prefix}vector.\n  {WAY_OUT}")
        encoder, weights = one.get("encoder"), tensors.get(f"{prefix}encoder")
        if isinstance(encoder, dict) and weights is not None:
            rest = [tensors.get(f"{prefix}{name}") for name in ("bias", "threshold")]
            if any(t is None or t.numel() != 1 for t in rest) or weights.shape != vector.shape:
                raise EditError(f"{VECTORS} is damaged: {prefix}encoder does not fit its vector.\n  {WAY_OUT}")
            encoder = encoder | {"weights": weights.tolist(), "bias": float(rest[0]), "threshold": float(rest[1])}
        return one | {"vector": vector.tolist(), "encoder": encoder}

    when = raw.get("when")
    if isinstance(when, dict):
        when = when | {"latent": filled(when.get("latent"), f"{number}.when.")}
    return edit_from(raw | {"latent": filled(raw.get("latent"), f"{number}."), "when": when})


def _read_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(read_bytes(file, EditError, WAY_OUT, _LARGEST))
    except SafetensorError as error:
        raise EditError(f"{file} is damaged: {error}\n  {WAY_OUT}") from None


def _sent(model: dict[str, Any]) -> dict[str, Any]:
    """A model's identity without this machine's folders."""
    if isinstance(model.get("model"), str):
        model["model"] = "+".join(place_here(part) for part in model["model"].split("+"))
    return without_folders(model)


def _identity(sae: SAE) -> dict[str, Any]:
    known = ("weights_sha256", "parameters_sha256", "source", "model")
    return {"kind": sae.kind, "site": sae.site, "d_sae": sae.d_sae} | {
        k: sae.provenance[k] for k in known if k in sae.provenance
    }
