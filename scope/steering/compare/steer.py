"""`steer`: the same prompts and the same noise, plain, with the edits, and in the arms that the edits must be told from."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from scope.errors import EditError
from scope.fit import check_fit
from scope.models.hooks import HookedModule
from scope.models.text.generate import Generation, generate
from scope.models.text.sampling_config import SamplingConfig
from scope.sae.base import SAE
from scope.steering.apply.controls import other_latents, rows_in_place
from scope.steering.apply.editing import Editing
from scope.steering.apply.gauge import Gauge
from scope.steering.apply.resolve import Resolved, dictionaries, resolve
from scope.steering.compare.caveats import notes
from scope.steering.compare.prompt_baseline import before, instruction_for
from scope.steering.compare.run import Arm, Sample, SteeringRun
from scope.steering.compare.scores import Reader, promoted
from scope.steering.edits.interventions import Direction, Edit, Edits
from scope.versions import version_of

ARMS = {
    "plain": "the prompt, nothing edited",
    "steered": "the edits",
    "random": "the same amounts along a random direction; random:K are further ones",
    "other": "the same amounts along another latent that fires as often; other:K are further ones",
    "prompt": "nothing edited, but the prompt begins by asking for what the latent promotes",
}
USUAL = ("plain", "steered", "random")
SWEPT = ("plain", "steered", "random", "random:1", "random:2", "other", "prompt")
OnToken = Callable[[int, list[int | None]], bool | None]


def steer(
    model: HookedModule,
    sae: SAE | Sequence[SAE] | None,
    edits: Edit | Edits | Sequence[Edit],
    prompts: str | Sequence[str],
    sampling: SamplingConfig | None = None,
    arms: Sequence[str] = USUAL,
    *,
    n: int = 1,
    gauges: Gauge | dict[str, Gauge] | None = None,
    control_seed: int = 0,
    instruction: str | None = None,
    any_model: bool = False,
    on_token: OnToken | None = None,
) -> SteeringRun:
    """Continue every prompt `n` times in every arm, in one batch, and score the texts.

    Text i of every arm draws the same noise, so arms differ only by what `ARMS` says of them. `gauges` says what strengths are
    measured against, by site where there are several; without it the typical norm is measured on the prompts, and the run says
    so. `instruction` is what the arm "prompt" puts before each prompt. `on_token(step, ids)` sees one id a row, arm by arm
    (None where a row has ended), and stops everything by returning True; Ctrl-C stops it too, and what was written is kept.

    Raises:
        EditError: an edit that cannot be applied, an empty prompt, an unknown arm, numbers that are not finite.
        DictionaryError: a dictionary of another model or site.
        TokensError: a prompt longer than the context.
        KeyboardInterrupt: Ctrl-C before anything was written.
    """
    sampling, edits, saes = sampling or SamplingConfig(), Edits.of(edits), dictionaries(sae)
    prompts = _prompts(prompts)
    if n < 1:
        raise EditError(f"n is {n}; ask for at least one text.")
    _check_arms(arms)
    for one in saes.values():
        check_fit(model, one, any_model, reconstructs=True)
    check_sites(model, saes, edits)
    gauges = gauges_for(model, saes, edits, prompts, gauges)
    resolved = [resolve(edit, saes, gauges) for edit in edits]
    texts = [p for p in prompts for _ in range(n)]
    controls, others, matched = _controls(arms, resolved, saes, gauges, control_seed)
    if "prompt" in arms and instruction is None:
        instruction = instruction_for(model, [promoted(model, e.row) for e in resolved])
    given = {name: [before(t, instruction) for t in texts] if name == "prompt" else texts for name in arms}
    editings = {
        name: Editing(model, saes, resolved, slice(i * len(texts), (i + 1) * len(texts)), controls[name])
        for i, name in enumerate(arms)
        if name in controls
    }
    hooks = [pair for editing in editings.values() for pair in editing.hooks()]
    made, steps = _write(model, [t for name in arms for t in given[name]], sampling, hooks, on_token, len(texts))
    by_arm = {name: made[i * len(texts) : (i + 1) * len(texts)] for i, name in enumerate(arms)}
    reader = Reader(model, saes, resolved, gauges)
    found = []
    for name, rows in by_arm.items():
        samples = []
        for i, (text, one) in enumerate(zip(texts, rows, strict=True)):
            fresh = Editing(model, saes, resolved, control=controls[name]) if name in controls else None
            samples.append(_sample(model, reader, text, one, by_arm.get("plain", [None] * len(texts))[i], fresh))
        found.append(Arm(name, samples, editings[name].report() if name in editings else None))
    fvu = {site: share for site, texts in reader.unexplained.items() if (share := texts.fvu()) is not None}
    told = notes(found, resolved, gauges, fvu)
    if others and not matched:
        told.append('The latents of the arm "other" were drawn from the whole dictionary: how often latents fire is not known.')
    if steps is not None:
        told.insert(0, f"Stopped after {steps} tokens.")
    return SteeringRun(
        edits=edits,
        sheet=[r.sheet() for r in resolved],
        promoted={name: model.words.pieces(ids) for name, ids in reader.promoted.items()},
        prompts=prompts,
        n=n,
        sampling=sampling,
        control_seed=control_seed,
        arms=found,
        notes=told,
        gauges=gauges,
        model=dict(model.provenance),
        dictionaries={site: _identity(one) for site, one in saes.items()},
        versions={"torch": torch.__version__, "scope": version_of()},
        instruction=instruction if "prompt" in arms else None,
        others=others,
        stopped_after=steps,
        fvu=fvu,
    )


def _write(
    model: HookedModule, given: list[str], sampling: SamplingConfig, hooks: Sequence, on_token: OnToken | None, noise_rows: int
) -> tuple[list[Generation], int | None]:
    """The texts, and after how many steps somebody stopped, if somebody did. Ctrl-C keeps what was written before it."""
    said: list[list[int | None]] = []
    stopped: list[int] = []

    def watch(step: int, ids: list[int | None]) -> bool:
        said.append(list(ids))
        if on_token and on_token(step, ids):
            stopped.append(step + 1)
        return bool(stopped)

    try:
        made = generate(model, given, sampling, fwd_hooks=hooks, on_token=watch, noise_rows=noise_rows)
    except KeyboardInterrupt:
        if not said:
            raise
        stopped.append(len(said))
        made = []
        for i, text in enumerate(given):
            new = [ids[i] for ids in said if ids[i] is not None]
            ended = said[-1][i] is None
            made.append(
                Generation(
                    tuple(model.words.encode(text)), tuple(new), model.words.decode(new), "eos" if ended else "cancelled"
                )
            )
    return made, stopped[0] if stopped else None


def _prompts(prompts: str | Sequence[str]) -> list[str]:
    found = [prompts] if isinstance(prompts, str) or not isinstance(prompts, Iterable) else list(prompts)
    if not found or not all(isinstance(p, str) and p.strip() for p in found):
        raise EditError('A prompt is empty. Give some text to continue, such as "My favourite hobby is".')
    return found


def _check_arms(arms: Sequence[str]) -> None:
    for name in arms:
        kind, colon, seed = name.partition(":")
        if kind not in ARMS or (colon and (kind not in ("random", "other") or not seed.isdecimal())):
            told = "\n".join(f"  {arm:<8} {meaning}" for arm, meaning in ARMS.items())
            raise EditError(f"There is no arm {name!r}. There are:\n{told}")
    if len(set(arms)) < len(arms) or "steered" not in arms:
        raise EditError(f'arms are {", ".join(arms)}; name "steered" once, and no other twice.')


def _controls(
    arms: Sequence[str], edits: list[Resolved], saes: dict[str, SAE], gauges: dict[str, Gauge], control_seed: int
) -> tuple[dict[str, Any], dict[str, list[int]], bool]:
    """Edited arm -> where its amounts go (None means where they should), the other latents, and whether those are alike."""
    controls: dict[str, Any] = {}
    others: dict[str, list[int]] = {}
    matched = True
    for name in arms:
        kind, _, seed = name.partition(":")
        number = control_seed + int(seed or 0)
        if kind == "steered":
            controls[name] = None
        elif kind == "random":
            controls[name] = number
        elif kind == "other":
            others[name], alike = other_latents(edits, saes, gauges, number)
            controls[name] = rows_in_place(edits, others[name], saes)
            matched = matched and alike
    return controls, others, matched


def check_sites(model: HookedModule, saes: dict[str, SAE], edits: Edits) -> None:
    """That every edit acts on the residual stream, as wide as the model.

    Raises:
        EditError: a direction or a dictionary of another width.
        UnknownSite: the model has no such site.
    """
    sites = model.sites()
    for edit in edits:
        if not isinstance(edit.latent, Direction):
            continue
        model.match(edit.latent.site)
        if sites.get(edit.latent.site) != model.cfg.d_model or len(edit.latent.vector) != model.cfg.d_model:
            raise EditError(
                f"{edit.latent} is {len(edit.latent.vector)} wide; {edit.latent.site} is {sites.get(edit.latent.site)} wide, "
                f"and edits act on sites of the residual stream, {model.cfg.d_model} wide."
            )
    for site in saes:
        if sites[site] != model.cfg.d_model:
            raise EditError(
                f"Edits act on sites as wide as the residual stream ({model.cfg.d_model}); {site} has {sites[site]}."
            )


def gauges_for(
    model: HookedModule, saes: dict[str, SAE], edits: Edits, prompts: Sequence[str], given: Gauge | dict[str, Gauge] | None
) -> dict[str, Gauge]:
    """What was given, and for sites without, the typical norm measured on the prompts."""
    sites = [*saes, *(e.latent.site for e in edits if isinstance(e.latent, Direction))]
    wanted = dict.fromkeys(sites)
    known = {} if given is None else given if isinstance(given, dict) else dict.fromkeys(list(wanted)[:1], given)
    return {site: known.get(site) or Gauge.measured(model, site, prompts) for site in wanted}


def _sample(
    model: HookedModule, reader: Reader, prompt: str, made: Generation, plain: Generation | None, editing: Editing | None
) -> Sample:
    return Sample(
        prompt=prompt,
        prompt_ids=list(made.prompt_ids),
        new_ids=list(made.new_ids),
        pieces=model.words.pieces(made.new_ids),
        text=made.text,
        stopped_by=made.stopped_by,
        scores=reader.scores(model.words.encode(prompt), made.new_ids, editing),
        diverges_at=None if plain is None else first_difference(plain.new_ids, made.new_ids),
    )


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first token at which two texts part, None if they are equal. A text that ends earlier parts there."""
    for i, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def _identity(sae: SAE) -> dict[str, Any]:
    known = ("weights_sha256", "model", "recording")
    return {"site": sae.site, "d_sae": sae.d_sae} | {k: sae.provenance[k] for k in known if k in sae.provenance}
