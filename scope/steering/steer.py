"""`steer`: the same prompts and the same noise, plain, with the edits, and with a random push of the same size."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from scope.errors import EditError
from scope.models.gemma.model import Gemma
from scope.models.generate import Generation, SamplingConfig, generate
from scope.sae.base import SAE
from scope.steering.diagnose import notes
from scope.steering.editing import Editing, Resolved, check_dictionary, dictionaries, resolve
from scope.steering.gauge import Gauge
from scope.steering.interventions import Direction, Edit, Edits
from scope.steering.run import Arm, Sample, SteeringRun
from scope.steering.scores import Reader
from scope.versions import version_of

ARMS = ("plain", "steered", "random")


def steer(
    model: Gemma,
    sae: SAE | Sequence[SAE] | None,
    edits: Edit | Edits | Sequence[Edit],
    prompts: str | Sequence[str],
    sampling: SamplingConfig | None = None,
    arms: Sequence[str] = ARMS,
    *,
    n: int = 1,
    gauges: Gauge | dict[str, Gauge] | None = None,
    control_seed: int = 0,
    any_model: bool = False,
    on_token: Callable[[int, list[int | None]], bool | None] | None = None,
) -> SteeringRun:
    """Continue every prompt `n` times in every arm, in one batch, and score the texts.

    Arms are "plain", "steered", "random", and "random:K" for further random directions. Text i of every arm draws the same
    noise, so arms differ only by what the edit does. `gauges` says what strengths are measured against, by site where there
    are several; without it the typical norm is measured on the prompts, and the run says so. `on_token(step, ids)` sees one id
    a row, arm by arm (None where a row has ended), and stops everything by returning True: what was written is kept.

    Raises:
        EditError: an edit that cannot be applied, an empty prompt, an unknown arm, numbers that are not finite.
        DictionaryError: a dictionary of another model or site.
        TokensError: a prompt longer than the context.
    """
    sampling, edits, saes = sampling or SamplingConfig(), Edits.of(edits), dictionaries(sae)
    prompts = _prompts(prompts)
    if n < 1:
        raise EditError(f"n is {n}; ask for at least one text.")
    _check_arms(arms)
    for one in saes.values():
        check_dictionary(model, one, any_model)
    _check_sites(model, saes, edits)
    gauges = _gauges(model, saes, edits, prompts, gauges)
    resolved = [resolve(edit, saes, gauges) for edit in edits]
    texts = [p for p in prompts for _ in range(n)]
    editings = {
        name: Editing(model, saes, resolved, slice(i * len(texts), (i + 1) * len(texts)), _control(name, control_seed))
        for i, name in enumerate(arms)
        if name != "plain"
    }
    hooks = [pair for editing in editings.values() for pair in editing.hooks()]
    made = generate(model, texts * len(arms), sampling, fwd_hooks=hooks, on_token=on_token, noise_rows=len(texts))
    by_arm = {name: made[i * len(texts) : (i + 1) * len(texts)] for i, name in enumerate(arms)}
    reader = Reader(model, saes, resolved, gauges)
    found = [
        Arm(
            name,
            [
                _sample(
                    model,
                    reader,
                    text,
                    g,
                    by_arm.get("plain", [None] * len(texts))[i],
                    _fresh(model, saes, resolved, name, control_seed),
                )
                for i, (text, g) in enumerate(zip(texts, rows, strict=True))
            ],
            editings[name].report() if name in editings else None,
        )
        for name, rows in by_arm.items()
    ]
    return SteeringRun(
        edits=edits,
        sheet=[r.sheet() for r in resolved],
        promoted={name: model.words.pieces(ids) for name, ids in reader.promoted.items()},
        prompts=prompts,
        n=n,
        sampling=sampling,
        control_seed=control_seed,
        arms=found,
        notes=notes(found, resolved, gauges),
        gauges=gauges,
        model=dict(model.provenance),
        dictionaries={site: _identity(one) for site, one in saes.items()},
        versions={"torch": torch.__version__, "scope": version_of()},
    )


def _prompts(prompts: str | Sequence[str]) -> list[str]:
    found = [prompts] if isinstance(prompts, str) else list(prompts)
    if not found or not all(isinstance(p, str) and p.strip() for p in found):
        raise EditError('A prompt is empty. Give some text to continue, such as "My favourite hobby is".')
    return found


def _check_arms(arms: Sequence[str]) -> None:
    for name in arms:
        kind, _, seed = name.partition(":")
        if kind not in ARMS or (seed and (kind != "random" or not seed.isdecimal())):
            raise EditError(f"There is no arm {name!r}; arms are plain, steered, random, and random:K for other directions.")
    if len(set(arms)) < len(arms) or "steered" not in arms:
        raise EditError(f'arms are {", ".join(arms)}; name "steered" once, and no other twice.')


def _control(name: str, control_seed: int) -> int | None:
    kind, _, seed = name.partition(":")
    return control_seed + int(seed or 0) if kind == "random" else None


def _check_sites(model: Gemma, saes: dict[str, SAE], edits: Edits) -> None:
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


def _gauges(model, saes, edits: Edits, prompts: list[str], given: Gauge | dict[str, Gauge] | None) -> dict[str, Gauge]:
    sites = [*saes, *(e.latent.site for e in edits if isinstance(e.latent, Direction))]
    wanted = dict.fromkeys(sites)
    known = {} if given is None else given if isinstance(given, dict) else dict.fromkeys(list(wanted)[:1], given)
    return {site: known.get(site) or Gauge.measured(model, site, prompts) for site in wanted}


def _fresh(model: Gemma, saes: dict[str, SAE], edits: list[Resolved], arm: str, control_seed: int) -> Editing | None:
    return None if arm == "plain" else Editing(model, saes, edits, control=_control(arm, control_seed))


def _sample(
    model: Gemma, reader: Reader, prompt: str, made: Generation, plain: Generation | None, editing: Editing | None
) -> Sample:
    return Sample(
        prompt=prompt,
        prompt_ids=list(made.prompt_ids),
        new_ids=list(made.new_ids),
        pieces=model.words.pieces(made.new_ids),
        text=made.text,
        stopped_by=made.stopped_by,
        scores=reader.scores(made.prompt_ids, made.new_ids, editing),
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
