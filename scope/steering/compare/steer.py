"""`steer`: the same prompts and the same noise under every condition: plain, with the edits, and the controls beside them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from scope.errors import EditError
from scope.fit import check_fit
from scope.models.face import LanguageModel
from scope.models.pictures.copies import copy_of, picture_of_copy, pixels_sha256
from scope.models.text.generate import Generation, generate
from scope.models.text.sampling_config import SamplingConfig
from scope.provenance import DictionaryId, ModelId
from scope.renamed import old_attribute, old_keywords
from scope.result import Result, bar_figure
from scope.sae.base import SAE
from scope.steering.apply.controls import other_latents, rows_in_place
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import Resolved, at_each_layer, check_sites, check_tokens, dictionaries, resolve, sheets
from scope.steering.apply.strength_units import StrengthUnits, units_for
from scope.steering.compare import show
from scope.steering.compare.caveats import notes_on
from scope.steering.compare.run import Condition, RunData, Sample
from scope.steering.compare.text_scorer import TextScorer
from scope.steering.edits.interventions import Edit, Edits
from scope.texts import list_of_texts
from scope.versions import version_of

CONDITIONS = {
    "plain": "the prompt, nothing edited",
    "steered": "the edits",
    "random": "the same amounts along a random direction; random:K are further ones",
    "other": "the same amounts along another latent that fires as often, or other tokens of equal share; other:K: further ones",
    "prompt": "nothing edited, but the prompt begins by asking for what the latent promotes",
}
USUAL = ("plain", "steered", "random")
SWEPT = ("plain", "steered", "random", "random:1", "random:2", "other", "prompt")
OnToken = Callable[[int, list[int | None]], bool | None]


_MEASURED = ("log_prob", "repetition", "distinct", "off_target", "kl")


class SteeringRun(RunData, Result):
    """Everything about one comparison. Prints as text, shows as HTML in a notebook, travels as JSON, can be replayed."""

    arms, gauges = old_attribute("arms", "conditions"), old_attribute("gauges", "strength_units")

    def replay(self, model: LanguageModel, sae: SAE | Sequence[SAE] | None, on_token: OnToken | None = None) -> "SteeringRun":
        """Make it again, from what it records. On the same machine and versions the texts are the same.

        `on_token` sees every step and may stop it, as in `steer`.

        Raises:
            EditError: the model or a dictionary is not the one that made it.
        """

        def watch(step: int, ids: list[int | None]) -> bool:
            return bool(on_token and on_token(step, ids)) or (self.stopped_after is not None and step + 1 >= self.stopped_after)

        _check_same("model", ModelId.of(self.model), ModelId.of(model.provenance))
        if not self._is_about(model.provenance.get("picture_sha256")):
            raise EditError(
                f"This run was made {'about another picture' if self.model.get('picture_sha256') else 'without a picture'}.\n"
                "  Give the model as it was: scope.with_picture(model, FILE), or --picture FILE on the command line."
            )
        again = steer(
            model,
            sae,
            self.edits,
            self.prompts,
            self.sampling,
            tuple(c.name for c in self.conditions),
            n=self.n,
            strength_units=self.strength_units,
            control_seed=self.control_seed,
            others=self.others,
            instruction=self.instruction,
            any_model=True,
            on_token=watch,
        )
        for site, identity in self.dictionaries.items():
            _check_same(f"dictionary at {site}", DictionaryId.of(identity), DictionaryId.of(again.dictionaries.get(site)))
        return again

    def _is_about(self, picture_sha256: str | None) -> bool:
        """Whether that is the run's picture, or the copy that it holds."""
        known = self.model.get("picture_sha256")
        copied = known and self.picture and pixels_sha256(picture_of_copy(self.picture))
        return picture_sha256 == known or (picture_sha256 is not None and picture_sha256 == copied)

    def to_frame(self):
        """A row for each text with its scores, as a pandas table; those of the first target."""
        import pandas as pd

        target, has_plain = next(iter(self.promoted)), any(c.name == "plain" for c in self.conditions)
        judged = self.judged(target) if has_plain else {}
        rows = []
        for c in self.conditions:
            for i, s in enumerate(c.samples):
                row = {"condition": c.name, "prompt": s.prompt, "text": s.text, "stopped_by": s.stopped_by}
                if s.scores:
                    row |= {name: getattr(s.scores, name)[target] for name in ("concept", "share", "mass")}
                    row |= {
                        name: getattr(s.scores, name) for name in ("log_prob", "repetition", "distinct", "off_target", "kl")
                    }
                if judged and judged[c.name][i]:
                    row |= {name: getattr(judged[c.name][i], name) for name in ("relevance", "fluency", "score")}
                rows.append(row)
        return pd.DataFrame(rows)

    def plot(self):
        """Concept, promoted tokens and, beside plain texts, fluency and score: means by condition, as a Plotly figure."""
        means = self.to_frame().groupby("condition", sort=False).mean(numeric_only=True).reset_index()
        return bar_figure(means, "condition", *(name for name in ("concept", "share", "fluency", "score") if name in means))

    def __str__(self) -> str:
        return show.as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return show.as_html(self)


@old_keywords(arms="conditions", gauges="strength_units")
def steer(
    model: LanguageModel,
    sae: SAE | Sequence[SAE] | None,
    edits: Edit | Edits | Sequence[Edit],
    prompts: str | Iterable[str],
    sampling: SamplingConfig | None = None,
    conditions: Sequence[str] = USUAL,
    *,
    n: int = 1,
    strength_units: StrengthUnits | Mapping[str, StrengthUnits] | None = None,
    control_seed: int = 0,
    others: Mapping[str, Sequence[int]] | None = None,
    instruction: str | None = None,
    any_model: bool = False,
    on_token: OnToken | None = None,
) -> SteeringRun:
    """Continue every prompt `n` times under every condition, in one batch, and score the texts.

    Text i of every condition draws the same noise, so conditions differ only by what `CONDITIONS` says of them. Without
    `strength_units` (by site where there are several) the typical norm is measured on the prompts, and the run says so.
    `others` names the latents of conditions "other"; without it they are drawn. `instruction` is what the condition "prompt"
    puts before each prompt. `on_token(step, ids)` sees one id a row, condition by condition (None where a row has ended), and
    stops everything by returning True; Ctrl-C stops it too, and what was written is kept.

    Raises:
        EditError: an edit that cannot be applied, an empty prompt, an unknown condition, numbers that are not finite.
        DictionaryError: a dictionary of another model or site.
        TokensError: a prompt longer than the context.
        KeyboardInterrupt: Ctrl-C before anything was written.
    """
    sampling, edits, saes = sampling or SamplingConfig(), Edits.of(edits), dictionaries(sae)
    prompts = _prompts(prompts)
    if n < 1:
        raise EditError(f"n is {n}; ask for at least one text.")
    _check_conditions(conditions)
    for one in saes.values():
        check_fit(model, one, any_model, reconstructs=True)
    each = at_each_layer(model, edits)
    check_sites(model, saes, each)
    check_tokens(model, each, prompts)
    units = units_for(model, saes, each, prompts, strength_units)
    resolved = [resolve(edit, saes, units) for edit in each]
    scorer = TextScorer(model, saes, resolved, units, prompts)
    texts = [p for p in prompts for _ in range(n)]
    controls, others, matched = _controls(conditions, resolved, saes, units, control_seed, others or {})
    if "prompt" in conditions and instruction is None:
        instruction = instruction_for(model, list(scorer.promoted.values()))
    beginnings = {name: [before(t, instruction) for t in texts] if name == "prompt" else texts for name in conditions}
    editings = {
        name: Editing(model, saes, resolved, slice(i * len(texts), (i + 1) * len(texts)), controls[name])
        for i, name in enumerate(conditions)
        if name in controls
    }
    hooks = [pair for editing in editings.values() for pair in editing.hooks()]
    written, steps = _write(model, [t for name in conditions for t in beginnings[name]], sampling, hooks, on_token, len(texts))
    by_condition = {name: written[i * len(texts) : (i + 1) * len(texts)] for i, name in enumerate(conditions)}
    done = []
    for name, rows in by_condition.items():
        samples = []
        for text, row, plain in zip(texts, rows, by_condition.get("plain", [None] * len(texts)), strict=True):
            fresh = Editing(model, saes, resolved, control=controls[name]) if name in controls else None
            samples.append(_sample(model, scorer, text, row, plain, fresh))
        done.append(Condition(name, samples, editings[name].report() if name in editings else None))
    fvu = scorer.fvu()
    notes = notes_on(done, resolved, units, fvu)
    if scorer.measured:
        notes.append(
            f"No direct way leads from {' and '.join(scorer.measured)} to the words: the promoted tokens are those that a push "
            "of half the norm, or forgetting all, raises most, as measured on these prompts."
        )
    if others and not matched:
        notes.append(
            'The latents of the condition "other" were drawn from the whole dictionary: how often latents fire is not known.'
        )
    if steps is not None:
        notes.insert(0, f"Stopped after {steps} tokens.")
    return SteeringRun(
        edits=edits,
        sheet=sheets(edits, resolved),
        promoted={name: model.words.pieces(ids) for name, ids in scorer.promoted.items()},
        prompts=prompts,
        n=n,
        sampling=sampling,
        control_seed=control_seed,
        conditions=done,
        notes=notes,
        strength_units=units,
        model=dict(model.provenance),
        dictionaries={site: _identity(one) for site, one in saes.items()},
        versions={"torch": torch.__version__, "scope": version_of()},
        instruction=instruction if "prompt" in conditions else None,
        others=others,
        stopped_after=steps,
        fvu=fvu,
        picture=copy_of(model.picture, model.cfg.pictures) if "picture_sha256" in model.provenance else None,
    )


def _write(
    model: LanguageModel,
    prompts: list[str],
    sampling: SamplingConfig,
    hooks: Sequence,
    on_token: OnToken | None,
    noise_rows: int,
) -> tuple[list[Generation], int | None]:
    """The texts, and after how many steps somebody stopped, if somebody did. Ctrl-C keeps what was written before it."""
    steps: list[list[int | None]] = []
    stopped: list[int] = []

    def watch(step: int, ids: list[int | None]) -> bool:
        steps.append(list(ids))
        if on_token and on_token(step, ids):
            stopped.append(step + 1)
        return bool(stopped)

    try:
        texts = generate(model, prompts, sampling, fwd_hooks=hooks, on_token=watch, noise_rows=noise_rows)
    except KeyboardInterrupt:
        if not steps:
            raise
        stopped.append(len(steps))
        texts = []
        for i, text in enumerate(prompts):
            new = [ids[i] for ids in steps if ids[i] is not None]
            end = "eos" if steps[-1][i] is None else "cancelled"
            texts.append(Generation(tuple(model.words.encode(text)), tuple(new), model.words.decode(new), end))
    return texts, stopped[0] if stopped else None


def _prompts(prompts: str | Iterable[str]) -> list[str]:
    texts = list_of_texts(prompts, EditError)
    if not all(p.strip() for p in texts):
        raise EditError('A prompt is empty. Give some text to continue, such as "My favourite hobby is".')
    return texts


def _check_conditions(conditions: Sequence[str]) -> None:
    for name in conditions:
        kind, colon, seed = name.partition(":")
        if kind not in CONDITIONS or (colon and (kind not in ("random", "other") or not _is_seed(seed))):
            known = "\n".join(f"  {condition:<8} {meaning}" for condition, meaning in CONDITIONS.items())
            raise EditError(f"There is no condition {name!r}. There are:\n{known}")
    if len(set(conditions)) < len(conditions) or "steered" not in conditions:
        raise EditError(f'conditions are {", ".join(conditions)}; name "steered" once, and no other twice.')


def _is_seed(text: str) -> bool:
    return text.isdecimal() and len(text) < 16


def _controls(
    conditions: Sequence[str],
    edits: list[Resolved],
    saes: dict[str, SAE],
    units: dict[str, StrengthUnits],
    control_seed: int,
    recorded: Mapping[str, Sequence[int]],
) -> tuple[dict[str, Any], dict[str, list[int]], bool]:
    """Edited condition -> where its amounts go (None: where they should), the other latents, and whether those are alike."""
    controls: dict[str, Any] = {}
    others: dict[str, list[int]] = {}
    matched = True
    for name in conditions:
        kind, _, seed = name.partition(":")
        number = control_seed + int(seed or 0)
        if kind == "steered":
            controls[name] = None
        elif kind == "random":
            controls[name] = number
        elif kind == "other":
            of_latents = [e for e in edits if not e.edit.on_tokens]
            others[name], alike = other_latents(of_latents, saes, units, number, recorded.get(name))
            rows = iter(rows_in_place(of_latents, others[name], saes))
            controls[name] = [number if e.edit.on_tokens else next(rows) for e in edits]
            matched = matched and alike
    return controls, others, matched


_TURN = "<start_of_turn>user\n"
_WORDS = 3


def instruction_for(model: LanguageModel, promoted: Sequence[Sequence[int]]) -> str:
    """ "Talk about ..." with the first words among the promoted tokens of each edit; where they are no words, "Write ...".

    Raises:
        EditError: no edit promotes tokens by the weights, as beside the residual stream.
    """
    words: list[str] = []
    marks: list[str] = []
    for ids in promoted:
        pieces = list(dict.fromkeys(piece.strip() or piece for piece in model.words.pieces(ids)))
        known = {w.casefold() for w in words}
        new = {p.casefold(): p for p in reversed(pieces) if sum(map(str.isalpha, p)) > 1 and p.casefold() not in known}
        words += list(new.values())[::-1][:_WORDS]
        marks += pieces[:_WORDS]
    if words:
        return f"Talk about {_listed(words)}. "
    if not marks:
        raise EditError(
            'The condition "prompt" asks in words for what a latent promotes, and directions at this site promote no tokens by '
            "themselves.\n  Give the words: instruction=..., or --instruction; or leave the condition out."
        )
    return f"Write {_listed([repr(mark) for mark in dict.fromkeys(marks)])} often. "


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def before(prompt: str, instruction: str) -> str:
    """The prompt with the instruction at its head; in a chat, at the head of the last thing that the user says."""
    head, turn, tail = prompt.rpartition(_TURN)
    return f"{head}{turn}{instruction}{tail}"


def _sample(
    model: LanguageModel,
    scorer: TextScorer,
    prompt: str,
    text: Generation,
    plain: Generation | None,
    editing: Editing | None,
) -> Sample:
    return Sample(
        prompt=prompt,
        prompt_ids=list(text.prompt_ids),
        new_ids=list(text.new_ids),
        pieces=model.words.pieces(text.new_ids),
        text=text.text,
        stopped_by=text.stopped_by,
        scores=scorer.scores(model.words.encode(prompt), text.new_ids, editing),
        diverges_at=None if plain is None else first_difference(plain.new_ids, text.new_ids),
    )


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first token at which two texts differ, None if they are equal. A text that ends earlier differs there."""
    for i, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def _identity(sae: SAE) -> dict[str, Any]:
    known = ("weights_sha256", "model", "recording")
    return {"site": sae.site, "d_sae": sae.d_sae} | {k: sae.provenance[k] for k in known if k in sae.provenance}


def _check_same(what: str, expected: ModelId | DictionaryId, actual: ModelId | DictionaryId) -> None:
    for name in ("weights_sha256", "tokenizer_sha256"):
        wanted, there = getattr(expected, name, None), getattr(actual, name, None)
        by_old_rule = name == "weights_sha256" and isinstance(expected, ModelId) and expected.same_weights(actual)
        if wanted and wanted != there and not by_old_rule:
            load = expected.name if isinstance(expected, ModelId) else expected.model.name or expected.site
            raise EditError(
                f"This run was made with another {what}: {name} {wanted[:12]} there, {str(there)[:12]} here. "
                f"Load that {what}: {load}."
            )
    windows = [getattr(identity, "window_convention", None) for identity in (expected, actual)]
    if windows[0] != windows[1]:
        said, there = (window or "as its config.json says" for window in windows)
        raise EditError(f"This run was made with window_convention {said}; this model has {there}. Load it as it was then.")
