"""`scope.steer`: a dictionary and prompts in, a comparison of steered and unsteered texts out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scope.models.text.sampling_config import SamplingConfig
from scope.progress import OnProgress
from scope.sae.hub.names import name_where_no_folder_is
from scope.workflows.notes import OnNote, silent
from scope.workflows.settings import ModelSettings, resolve
from scope.workflows.side_effects import SideEffectSettings

DEMO = Path("runs/demo/dictionary")
"""Where `scope demo` leaves its SAE: the default of commands that need one."""


@dataclass(frozen=True, kw_only=True)
class Steer(ModelSettings):
    """What to edit and what to write. Each field is also a flag of `scope steer`."""

    sae: Path = DEMO
    """SAE: a folder that `scope train` wrote, a SAELens folder, a params.npz, or the name of a published SAE."""

    site: str | None = None
    """Where it reads, e.g. blocks.12.hook_resid_post, for a file that does not say, as a params.npz. None: as it says."""

    latent: tuple[int, ...] = ()
    """Latents to edit. Without any, the best candidates of the pack are listed."""

    direction: Path | None = None
    """Edit this direction instead of latents: a vector in a .npy, .npz, .json or .safetensors file."""

    key: str | None = None
    """Which of several vectors in that file."""

    toward: tuple[str, ...] = ()
    """Edit the difference of means between these prompts ..."""

    away: tuple[str, ...] = ()
    """... and these."""

    probe: bool = False
    """With --toward and --away: the weights of a linear probe that separates the two sides, not the difference of means."""

    forget: tuple[str, ...] = ()
    """Edit the state of a recurrent model: take out what these tokens of the prompt left in it. Words as they stand in the
    prompt, or positions as in 4 or 4:7 (<bos> is 0). Needs no SAE; --strength is the part."""

    intervention: Path | None = None
    """Steer with an intervention that --export wrote, in place of latents or a direction. Needs no SAE."""

    strength: tuple[float, ...] = ()
    """One for all latents, or one for each, in --unit; by default 0.5. Below 0 pushes the other way. With --edit scale, the
    factor; with --edit hold and --forget the part, by default 1."""

    edit: Literal["add", "clamp", "at-least", "ablate", "project-out", "scale", "cap", "floor", "hold"] = "add"
    """What to do: add along the latent's direction; set its activation; raise it to at least; remove its contribution;
    remove the whole direction; multiply its contribution; hold what lies along the direction below or above; keep what a latent
    of a state stands for from decaying (hold)."""

    when: str | None = None
    """Only where another latent is active: its number, or as in 7:2.5 its number and the activation it must exceed."""

    unit: Literal["norm", "raw", "max"] | None = None
    """Unit of the strength: fractions of the site's typical residual norm, the latent's own activation, multiples of its
    maximum. By default raw for clamp and at-least of a latent with a --strength, and else norm."""

    positions: str | None = None
    """Where: not_bos (the default), all, content, prompt, generated, last_prompt, or from:K. With --forget from where on, by
    default last_prompt."""

    prompt: tuple[str, ...] = ("My favourite hobby is",)
    """Texts to continue."""

    prompts: Path | None = None
    """Continue the texts of this file in place of --prompt: one a line, or .json or .jsonl."""

    chat: bool = False
    """Each prompt is a user's turn, laid out by the model's chat template."""

    picture: Path | None = None
    """A picture that stands before every prompt, for a PaliGemma. --positions image edits its patches alone, text the rest."""

    infill: tuple[str, str] | None = None
    """Write the text between this prefix and this suffix, in place of --prompt. For models with infilling, as CodeGemma."""

    infill_form: str = "psm"
    """Order of the parts with --infill: psm, spm or spm_joint."""

    infill_files: tuple[Path, ...] = ()
    """With --infill, other files of the context: their texts stand before this one, each ended by the file separator."""

    n: int = 1
    """Texts for each prompt and condition."""

    conditions: tuple[str, ...] = ("plain", "steered", "random")
    """What to compare: plain, steered, random (a random direction of equal length; further ones as random:1), other (another
    latent that fires as often), prompt (nothing edited, but asked for in the prompt)."""

    instruction: str | None = None
    """What the condition "prompt" begins with; by default, Talk about the promoted words."""

    sweep: tuple[float, ...] = ()
    """Strengths to try in turn, each beside all controls; the best is chosen on half of the prompts and reported on the
    others."""

    moderate: str | None = None
    """Judge by this policy, such as harassment: with --sweep every text, to name the largest strength within --budget; with
    --refusals every answer."""

    moderator: str = "google/shieldgemma-2b"
    """Model that judges: a ShieldGemma by folder or hub id, or bundled+shield."""

    budget: float = 0.5
    """Largest mean P(Yes) of the steered texts that --moderate allows."""

    pack: Path | None = None
    """Feature pack, for the typical norm and the maxima; by default the folder pack/ beside the SAE, if it is there."""

    export: Path | None = None
    """Write the edit into this folder, to be handed over: vectors, test texts with recorded outputs, a hook for transformers
    that needs no scope, a control vector for llama.cpp where that can carry it, and a card."""

    side_effects: SideEffectSettings = field(default_factory=SideEffectSettings)

    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    control_seed: int = 0
    """Random seed for the random direction."""

    replay: Path | None = None
    """Make a saved run again and compare the texts. Of the other flags only --model, --sae, --device count."""

    certificate: bool = True
    """First check on about 2,000 tokens that the SAE fits this model and site; kept beside it, so made once."""

    any_model: bool = False
    """Allow an SAE that was trained on other weights than the model's, as for a fine-tune of the same base."""


def steer(
    config: Any = None,
    *rest: Any,
    on_progress: OnProgress | None = None,
    on_note: OnNote = silent,
    on_certificate: Callable[[Any], None] | None = None,
    on_time: Callable[[float], None] | None = None,
    on_stage: Callable[[str], Any] | None = None,
    **settings: Any,
) -> Any:
    """Generate with latents or a direction pushed up or down, beside plain text and a random direction of the same size.

    `scope.steer("runs/demo/dictionary", latent=12, strength=0.3, prompt="In the morning")` says what `scope steer` says with
    flags. Returns a `SteeringRun`; with `evaluate`, `tasks` or `refusals` the run with its `SideEffects`; with `sweep`, a
    `Sweep`, with `moderate` too a `ModeratedSweep`; with `replay`, the run made again. `on_stage(title)` gives the
    `on_progress` of one measurement of side effects. `on_time` is called with the seconds that a sweep will probably take,
    measured on short texts before it begins.

    `scope.steer(model, sae, edits, prompts)` steers with objects in memory; see `scope.steering.compare.steer.steer`.

    Raises:
        EditError: no target or several kinds of target, an unknown latent, an edit that cannot be.
        DictionaryError: the SAE does not fit the model. PackError: the pack is about another SAE.
    """
    from scope.steering.compare.steer import steer as steer_in_memory

    if rest or "edits" in settings:
        return steer_in_memory(config, *rest, **settings)
    job = resolve(Steer, config, settings, first="sae")
    from scope.fit import check_fit
    from scope.sae.files import read_sae
    from scope.steering.compare.saved_runs import read_saved
    from scope.steering.compare.sweep import estimate, sweep
    from scope.workflows.certificate import certified

    saved = read_saved(job.replay) if job.replay else None
    made_with = {} if saved is None else getattr(saved, "runs", [saved])[0].dictionaries
    needs_none = bool(job.forget) or job.intervention is not None
    without = job.sae == DEMO and (needs_none if saved is None else not made_with)
    if not without:
        refuse_missing_demo(job.sae)
    sae = None if without else read_sae(job.sae, job.device, job.site)
    if saved is not None:
        run = getattr(saved, "runs", [saved])[0]
        return saved.replay(
            _pictured(job, job.load_model({"model": run.model} if sae is None else sae.provenance, pictures=True), run.picture),
            sae,
        )
    handed_over = _handed_over(job)
    _check_targets(job)
    job.side_effects.check()
    judge = _judge(job)
    units = None if sae is None else _strength_units(job, sae)
    if job.latent:
        _edits(job, sae, None)  # refuses before the model is loaded
    made_for = handed_over.provenance if handed_over else {} if sae is None else sae.provenance
    model = job.load_model(made_for, pictures=True)
    if handed_over and not job.any_model:
        handed_over.check(model)
    if sae is not None:
        check_fit(model, sae, job.any_model, reconstructs=True)
        certified(model, sae, job.sae, job.certificate, on_note, on_certificate, job.any_model)
    model = _pictured(job, model)
    edits = handed_over.edits if handed_over else _edits(job, sae, model)
    units = handed_over.strength_units if handed_over else units
    prompts = _prompts(job, model)
    how = {"n": job.n, "strength_units": units, "control_seed": job.control_seed, "instruction": job.instruction}
    how["any_model"] = job.any_model
    if not job.sweep:
        run = steer_in_memory(model, sae, edits, prompts, job.sampling, job.conditions, **how)
        return _measured_and_exported(job, run, model, sae, judge, on_note, on_stage)
    usual = Steer.__dataclass_fields__["conditions"].default
    how["conditions"] = None if job.conditions == usual else job.conditions
    seconds = estimate(model, sae, edits, prompts, job.sweep, job.sampling, **how)
    if on_time is not None:
        on_time(seconds)
    swept = sweep(model, sae, edits, prompts, job.sweep, job.sampling, on_progress=on_progress, **how)
    return swept if judge is None else _judged_sweep(job, swept, judge)


def _handed_over(job: Steer) -> Any:
    """The intervention of a folder, None where none is named.

    Raises:
        EditError: the folder holds none; flags that cannot go together; something else where --export shall write.
    """
    from scope.errors import EditError

    if job.export is not None:
        from scope.steering.export.intervention import refuse_other_folder

        refuse_other_folder(job.export.expanduser())
    if job.sweep and (job.export or job.side_effects.any):
        raise EditError(
            "--export, --evaluate, --tasks and --refusals take one strength. Leave --sweep out and give --strength."
        )
    if job.intervention is None:
        return None
    from scope.steering.export.intervention import load_intervention

    changed = [name for name in ("strength", "when", "unit", "positions") if getattr(job, name)]
    if changed or job.edit != "add":
        raise EditError(f"An intervention brings its strength and positions with it; leave --{(changed or ['edit'])[0]} out.")
    return load_intervention(job.intervention)


def _measured_and_exported(
    job: Steer, run: Any, model: Any, sae: Any, judge: Any, on_note: OnNote, on_stage: Callable[[str], Any] | None
) -> Any:
    """The run, with what was measured beside it if anything was; with --export it is written into a folder too."""
    from scope.workflows.side_effects import side_effects

    result = run
    if job.side_effects.any:
        result = side_effects(run, model, sae, job.side_effects, chat=job.chat, judge=judge, on_progress=on_stage)
    if job.export is not None:
        from scope.steering.export.intervention import effect_of, export_run

        measured = effect_of(run) | (result.measured() if job.side_effects.any else {})
        watch = on_stage("Recording texts") if on_stage else None
        made = export_run(run, model, sae, job.export, measured=measured, on_progress=watch)
        if made.hook is not None and made.hook["dtype"] != "float32":
            on_note(
                f"The texts were recorded in {made.hook['dtype']}, where other kernels round to other tokens. With --dtype "
                "float32 transformers writes them again token by token."
            )
        for form, why in made.forms.items():
            on_note(f"{job.export}: no {form}, since {why}." if why else f"{job.export}: {form} written.")
    return result


def _judged_sweep(job: Steer, swept: Any, judge: tuple[Any, Any]) -> Any:
    from scope.moderation.moderated_sweep import moderated_sweep

    return moderated_sweep(swept, *judge, job.budget)


def _pictured(job: Steer, model: Any, copy: str | None = None) -> Any:
    """The model, with --picture one that reads every prompt after it; without, after the copy that a run holds.

    Raises:
        EditError: a model that reads pictures without one.
        ConfigError: a picture for a model that reads none. PictureError: it cannot be read.
    """
    from scope.errors import EditError
    from scope.models.face import VisionModel
    from scope.models.paligemma.pictured import with_picture
    from scope.models.pictures.copies import picture_of_copy

    if job.picture is None and copy is not None:
        return with_picture(model, picture_of_copy(copy))
    if job.picture is None and isinstance(model, VisionModel):
        raise EditError(f"A {model.cfg.family_name} continues text about a picture. Give one: --picture FILE")
    if job.picture is None:
        return model
    return with_picture(model, job.picture)


def _judge(job: Steer) -> tuple[Any, Any] | None:
    """A moderator and the policy that it judges by; it is loaded before anything is written.

    Raises:
        ModerationError: nothing to judge, a budget that is no probability, an unknown policy, or a model that is no moderator.
    """
    if job.moderate is None:
        return None
    from scope.moderation.moderated_sweep import check_budget
    from scope.moderation.moderator import Moderator
    from scope.moderation.policies import ModerationError, find_policies
    from scope.moderation.prompt import Item

    if not job.sweep and not job.side_effects.refusals:
        raise ModerationError(
            "--moderate judges the texts of a sweep, or the answers to --refusals. Give strengths too: --sweep 0.2 0.4 0.6; or "
            "prompts: --refusals FILE"
        )
    check_budget(job.budget)
    (policy,) = find_policies(job.moderate)
    moderator = Moderator(job.of_another(job.moderator).load_model())
    moderator.judge([Item("Hello", "Hello")], policy)
    return moderator, policy


def refuse_missing_demo(sae: Path) -> None:
    """A default is a folder on this machine, and never a name on the hub.

    Raises:
        DictionaryError: the SAE is the default, and no demo was made here.
    """
    from scope.errors import DictionaryError

    if sae == DEMO and not sae.exists():
        raise DictionaryError(
            f"There is no SAE in {DEMO.absolute()}, where scope demo leaves one.\n"
            "  Make it: scope demo --no-app\n  Or say which to take: --sae DICTIONARY"
        )


def _prompts(job: Steer, model: Any) -> list[str]:
    """
    Raises:
        ConfigError: --chat or --prompts beside --infill, --prompt beside --prompts.
        EditError: no text in the file. TokensError: no chat template.
    """
    from scope.errors import ConfigError, EditError
    from scope.texts import texts_of_file

    if job.infill:
        if job.chat or job.prompts:
            raise ConfigError("--infill writes between its two texts; leave --prompts and --chat out.")
        return [_infill_prompt(job, model)]
    if job.prompts and job.prompt != Steer.__dataclass_fields__["prompt"].default:
        raise ConfigError("--prompt and --prompts are both given; leave one of them out.")
    texts = texts_of_file(job.prompts, EditError) if job.prompts else list(job.prompt)
    return [model.words.chat([{"role": "user", "content": text}]) for text in texts] if job.chat else texts


def _infill_prompt(job: Steer, model: Any) -> str:
    """
    Raises:
        TokensError: the model was not made for infilling, an unknown form, or marks in the texts.
        ConfigError: a file that cannot be read.
    """
    from scope.errors import ConfigError
    from scope.models.text.infill import infill_text
    from scope.typed_json import read_bytes

    way_out = "Give text files with --infill-files."
    files = [read_bytes(file, ConfigError, way_out).decode(errors="replace") for file in job.infill_files]
    return infill_text(model.words, *job.infill, job.infill_form, files)


def _check_targets(job: Steer) -> None:
    """
    Raises:
        EditError: no target, several kinds of target, or half of one.
    """
    from scope.errors import EditError

    targets = [bool(job.latent), job.direction is not None, bool(job.toward or job.away), bool(job.forget)]
    targets.append(job.intervention is not None)
    if job.forget and job.edit != "add":
        raise EditError("--forget is an edit by itself; leave --edit out.")
    if not any(targets):
        raise EditError(f"Say which latent to edit, as in --latent 12.{_candidates(job)}")
    if sum(targets) > 1:
        raise EditError(
            "Give --latent, or --direction, or --toward and --away, or --forget, or --intervention: one run edits one kind of "
            "target."
        )
    if bool(job.toward) != bool(job.away):
        raise EditError("A difference of means needs prompts on both sides: --toward and --away.")
    if job.probe and not job.toward:
        raise EditError("A probe separates two sets of prompts: give them with --toward and --away.")


def _edits(job: Steer, sae: Any, model: Any) -> Any:
    """One edit for each target.

    Raises:
        EditError: strengths that do not pair with latents, or an edit that cannot be.
    """
    from scope.errors import EditError
    from scope.steering.edits.directions import Direction
    from scope.steering.edits.interventions import KINDS, Edits, Forget, Hold, Span, When

    targets: list[Any] = list(job.latent)
    if job.direction is not None:
        targets = [Direction.from_file(job.direction, sae.site, job.key)]
    elif job.toward:
        make = Direction.probe if job.probe else Direction.between
        targets = [make(model, sae.site, job.toward, job.away)]
    elif job.forget:
        targets = [Span.parsed(words) for words in job.forget]
    kind = KINDS["forget" if job.forget else job.edit.replace("-", " ")]
    given = job.strength or (1.0 if kind in (Forget, Hold) else 0.5,)
    if len(given) not in (1, len(targets)):
        what = f"{len(targets)} {'spans' if job.forget else 'latents'} and {len(given)} strengths"
        raise EditError(f"{what}: give one strength, or one for each.")
    how: dict[str, Any] = {"when": When.of(job.when) if job.when else None}
    if job.positions is not None:
        how["positions"] = job.positions
    strengths = given if len(given) > 1 else given * len(targets)
    if kind in (Forget, Hold) or kind.kind == "scale":
        return Edits(kind(t, s, **how) for t, s in zip(targets, strengths, strict=True))
    if kind.has_amount:
        unit = job.unit or (None if job.strength else "norm")
        return Edits(kind(t, s, unit=unit, **how) for t, s in zip(targets, strengths, strict=True))
    return Edits(kind(t, **how) for t in targets)


def _pack(job: Steer) -> Any:
    from scope.features.face import Pack

    name = name_where_no_folder_is(str(job.sae))
    beside = job.sae.parent / "pack" if name is None else name.lab / "pack"
    if job.pack is None and not (beside / "manifest.json").exists():
        return None
    return Pack.open(job.pack or beside)


def _strength_units(job: Steer, sae: Any) -> Any:
    """The typical norm and the maxima from the pack, if there is one.

    Raises:
        PackError: the pack is about another SAE.
    """
    from scope.errors import PackError
    from scope.steering.apply.strength_units import StrengthUnits
    from scope.steering.edits.interventions import When

    pack = _pack(job)
    if pack is None:
        return None
    if (pack.site, pack.d_sae) != (sae.site, sae.d_sae):
        raise PackError(
            f"The pack {pack.folder} is about {pack.d_sae} latents at {pack.site}; the SAE {job.sae} has "
            f"{sae.d_sae} at {sae.site}.\n  Give the SAE's own pack with --pack."
        )
    return StrengthUnits.of_pack(pack, [*job.latent, *([When.of(job.when).latent] if job.when else [])])


def _candidates(job: Steer) -> str:
    """The latents of the pack that are best to steer with, as the end of a refusal."""
    pack = _pack(job)
    if pack is None:
        return "\n  scope features makes a pack, which says what each latent is about."
    best = pack.steerable(8)
    lines = [f"  {i:>6}  {row.label}  promotes {' '.join(row.promotes[:4])!r}" for i, row in best.iterrows()]
    return "\n".join([f" With the highest output scores in {pack.folder}:", *lines])
