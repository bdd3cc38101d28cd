"""The notebook's face: a model, its dictionary and what is known of its latents, opened together.

lab = scope.open("runs/demo")
lab.find("dogs")
lab[1208]
lab.steer(1208, 0.5).compare("My favourite hobby is", n=3)
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import pandas as pd

from scope.circuits.attribution import Attribution, attribute
from scope.circuits.effects import Effects, effects
from scope.circuits.logit_lens import logit_lens
from scope.circuits.memory import memory
from scope.circuits.memory_result import Memory
from scope.circuits.patching import Patching, patch
from scope.circuits.picture_attribution import attribute_picture
from scope.errors import DictionaryError, EditError, PackError, TokensError
from scope.evaluation.certificate.certify import Certificate, certify
from scope.features.face import Pack
from scope.features.pack.feature import Feature
from scope.fit import check_fit
from scope.models.face import LanguageModel
from scope.models.griffin.shares import layer_of
from scope.models.text.generate import generate
from scope.models.text.sampling_config import sampling_of
from scope.progress import OnProgress
from scope.provenance import ModelId
from scope.renamed import old_attribute, old_keywords
from scope.sae.files import read_sae
from scope.sae.hub.names import is_name, name_where_no_folder_is
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import at_each_layer, check_sites, resolve
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.apply.transformers_hooks import steered_transformers
from scope.steering.compare.cost import Cost, cost
from scope.steering.compare.steer import OnToken, SteeringRun, steer
from scope.steering.compare.sweep import Sweep, estimate, sweep
from scope.steering.edits.interventions import Ablate, Add, Direction, Edit, Edits, ProjectOut
from scope.steering.export.intervention import Intervention, export_intervention
from scope.texts import list_of_texts
from scope.workflows.published import published_pack
from scope.workflows.settings import ModelSettings

_CONTEXTS = 8  # of a pack, on which the typical norm of a further site is measured
DEMO = Path("runs/demo")


class CollectingWarning(UserWarning):
    """A pack is collected before a lab opens, which takes time."""


def open(
    folder: str | Path = "bundled",
    *,
    model: Any = None,
    adapter: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    window_convention: str | None = None,
    certify: bool = True,
    on_progress: OnProgress | None = None,
) -> "Lab":
    """A lab from a folder that holds dictionary/ and pack/. "bundled" is runs/demo, made by `scope demo`, here or further up.

    Also from the name of a published SAE: scope.open("gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical"), a hub id
    and the folder in it, or Neuronpedia's gemma-2-2b/12-gemmascope-res-16k. Where runs/ has no pack of it, that is collected
    first, with a CollectingWarning; `on_progress` is told how far it is.

    `model` is a model, a checkpoint's folder or a hub id; without it, the one that the dictionary names. `adapter`, `device`,
    `dtype`, `revision` and `window_convention` are as the flags of the commands: by default cuda, else mps,
    else cpu, and bfloat16 on cuda. With `certify`, the dictionary is checked against the model on about 2,000 tokens when that
    is loaded (`lab.certificate`); without, the lab says so.

    Raises:
        PackError: the folder lacks a pack or a dictionary.
    """
    place = {"adapter": adapter, "dtype": dtype, "revision": revision, "window_convention": window_convention}
    if str(folder) != "bundled" and name_where_no_folder_is(str(folder)) is not None:
        known = model if isinstance(model, str | Path | None) else ModelId.of(model.provenance).name
        name, where = str(folder), ModelSettings(model=None if known is None else str(known), device=device, **place)
        ways = {"on_progress": on_progress, "on_note": lambda note: warn(note, CollectingWarning, stacklevel=4)}
        ready = published_pack(name, where, certificate=certify, **ways)
        return Lab(Pack.open(ready), read_sae(name, device), model, device, name if certify else None, **place)
    folder = _demo() if str(folder) == "bundled" else Path(folder).expanduser()
    missing = [name for name in ("dictionary", "pack") if not (folder / name).is_dir()]
    dictionary: str | Path = folder / "dictionary"
    if missing == ["dictionary"] and (stated := Pack.open(folder / "pack").dictionary.path) and is_name(stated):
        dictionary, missing = stated, []
    if missing:
        raise PackError(
            f"{folder} has no {' and no '.join(missing)}, so it is no lab.\n"
            "  To make one of the bundled model, in a few minutes: scope demo\n"
            "  By hand: scope train RECORDING --out LAB/dictionary, then scope features LAB/dictionary ... --out LAB/pack"
        )
    pack, sae = Pack.open(folder / "pack"), read_sae(dictionary, device)
    return Lab(pack, sae, model, device, dictionary if certify else None, **place)


def _demo() -> Path:
    """runs/demo here, or in a folder above, so that a notebook in its own folder finds it too."""
    here = Path.cwd()
    return next((base / DEMO for base in (here, *here.parents) if (base / DEMO).is_dir()), DEMO)


class Lab:
    """`lab.model` is loaded on first use; `lab.sae` and `lab.pack` are there at once.

    Given `certified`, the folder or name of the dictionary, the dictionary is checked against the model as that is loaded.
    """

    def __init__(
        self,
        pack: Pack,
        sae: Any,
        model: Any = None,
        device: str | None = None,
        certified: Path | str | None = None,
        *,
        adapter: str | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        window_convention: str | None = None,
    ):
        sae.site = sae.site or pack.site  # a params.npz names none
        if (pack.site, pack.d_sae) != (sae.site, sae.d_sae):
            raise DictionaryError(
                f"The pack is about {pack.d_sae} latents at {pack.site}; the dictionary has {sae.d_sae} at {sae.site}. "
                "Collect its features again."
            )
        self.pack, self.sae, self._model, self._certified = pack, sae, model, certified
        device = device or str(next(sae.parameters()).device)
        self._place = ModelSettings(
            adapter=adapter, device=device, dtype=dtype, revision=revision, window_convention=window_convention
        )
        self.certificate: Certificate | None = None
        self.dictionaries: dict[str, Any] = {sae.site: sae}
        self._strength_units: dict[str, StrengthUnits] = {}

    @cached_property
    def model(self):
        """The language model.

        Raises:
            DictionaryError: it is not the one that the dictionary was trained on, or the dictionary does not fit it.
        """
        model = self._model
        if model is None or isinstance(model, str | Path):
            chosen = replace(self._place, model=None if model is None else str(model))
            model = chosen.load_model({"model": self.pack.model.to_json()}, pictures=True)
        check_fit(model, self.sae)
        if self._certified is not None:
            self.certificate = certify(model, self.sae, self._certified)
        return model

    def add(self, dictionary: Any) -> "Lab":
        """Take in a dictionary of another site (a folder or an SAE), to steer or to look at beside the lab's own. One from
        a folder is certified, as the lab's own was.

        Raises:
            DictionaryError: it is of another model or does not fit it, or its site has one.
        """
        folder = dictionary if isinstance(dictionary, str | Path) else None
        sae = dictionary if folder is None else read_sae(folder, self._place.device)
        if sae.site in self.dictionaries:
            raise DictionaryError(f"This lab has a dictionary at {sae.site} already.")
        check_fit(self.model, sae, reconstructs=True)
        if folder is not None and self._certified is not None:
            certify(self.model, sae, folder)
        self.dictionaries[sae.site] = sae
        return self

    gauges = old_attribute("gauges", "strength_units")

    def strength_units(self, edits: Edits) -> dict[str, StrengthUnits]:
        """What strengths are fractions and multiples of, by site: from the pack, elsewhere measured on its first contexts."""
        own = self.pack.site
        edits = at_each_layer(self.model, edits) if any(edit.on_tokens for edit in edits) else edits
        here = [e for e in edits if e.site in (None, own)]
        found = {own: StrengthUnits.of_pack(self.pack, Edits(here).latents())}
        for site in {*self.dictionaries, *(e.site for e in edits if e.site)} - {own}:
            if site not in self._strength_units:
                self.model.match(site)
                self._strength_units[site] = StrengthUnits.on_contexts(self.model, site, self.pack.contexts[:_CONTEXTS])
            found[site] = self._strength_units[site]
        return found

    def direction(self, toward: Sequence[str], away: Sequence[str], probe: bool = False, site: str | None = None) -> Direction:
        """From the prompts of `away` to those of `toward`: a difference of means, or a probe's weights. For `steer`."""
        make = Direction.probe if probe else Direction.between
        return self._bound(make(self.model, site or self.sae.site, toward, away))

    def probe(self, toward: Sequence[str], away: Sequence[str], site: str | None = None) -> Direction:
        """A linear probe that tells the prompts of `toward` from those of `away`, as a direction to steer with. Its `accuracy`
        is on prompts left out in turn, and `chance` what 95 % of probes reach on the same prompts with sides exchanged."""
        return self.direction(toward, away, probe=True, site=site)

    def _bound(self, direction: Direction) -> Direction:
        """The direction, with the model and the SAE at its site for `top_tokens()` and `nearest_latents()`."""
        return direction.of(self.model, self.dictionaries.get(direction.site))

    def find(self, text: str):
        """Latents whose label, top token or promoted tokens contain the text."""
        return self.pack.find(text)

    def __getitem__(self, latent: int) -> Feature:
        return self.pack[latent]

    def best(self, n: int = 10, words: bool = True):
        """Latents that move the next token most towards what they promote: the ones to steer with.

        Dense latents are left out, and with `words` those that promote mostly marks, spaces or fragments of a letter, whose
        effect is large and hard to see.
        """
        return self.pack.steerable(n, words)[["label", "promotes", "out_score", "density"]]

    def readable(self, n: int = 8) -> pd.DataFrame:
        """Of the `n` best latents, which make the most readable texts, and at which strength; takes a second for each.

        Chosen on prompts of its own (`scope.steering.compare.readable.PROMPTS`), so look at others.
        """
        from scope.steering.compare.readable import most_readable

        found = most_readable(self.model, self.sae, map(int, self.best(n).index))
        rows = pd.DataFrame([vars(each) for each in found]).drop_duplicates("latent").set_index("latent")
        return rows.assign(label=self.pack.table["label"].loc[rows.index])

    def read(self, text: str | Iterable[str]):
        """Which latents fire where in a text; for several texts, a list."""
        return self.pack.read(text, self.model, self.sae)

    def read_picture(self, picture: Any, text: str | None = None, answer: str | None = None):
        """Which latents fire on which patch of a picture, and on the text beside it; see `Pack.read_picture`."""
        return self.pack.read_picture(picture, self.model, self.sae, text, answer)

    def activations(
        self, texts: str | Iterable[str], latents: int | Feature | Iterable[int | Feature] | None = None
    ) -> pd.DataFrame:
        """Activations of latents on texts: a row for each text (by its number), position, token, latent and value.

        With `latents`, at every token that counts, silent ones as 0; without, every firing. Special tokens never count, and no
        text is padded.

        Raises:
            PackError: a latent that this lab has not. TokensError: no text, or more than the context holds.
        """
        if latents is not None:
            latents = [latents] if isinstance(latents, Feature) or not isinstance(latents, Iterable) else list(latents)
            latents = [self.pack.latent_id(j.id if isinstance(j, Feature) else j) for j in latents]
        parts = []
        for number, view in enumerate(self.read(list_of_texts(texts, TokensError))):
            if latents is None:
                position, latent = np.nonzero(view.latents)
            else:
                counted = np.flatnonzero(view.counted)
                position, latent = np.repeat(counted, len(latents)), np.tile(np.array(latents, dtype=int), len(counted))
            values = view.latents[position, latent].astype(float)
            columns = {"text": number, "position": position, "token": [view.pieces[i] for i in position]}
            parts.append(pd.DataFrame(columns | {"latent": latent, "value": values}))
        return pd.concat(parts, ignore_index=True)

    def logit_lens(self, text: str | Iterable[str], sites: Iterable[str] | str | None = None, k: int = 5) -> Any:
        """What each layer would predict next, at every token; for several texts, a list. See `scope.circuits.logit_lens`."""
        return logit_lens(self.model, text, sites, k)

    def patch(self, clean: str, corrupted: str, token: Any = None, other: Any = None, **how: Any) -> Patching:
        """Which activations of the clean prompt bring its answer back in a run of the corrupted one, by site and position: a
        heat map. `token` and `other` are the two answers; `sites` a pattern. See `scope.circuits.patching`."""
        return patch(self.model, clean, corrupted, token, other, **how)

    def ablate(self, *targets: Any, **how: Any) -> "Steering":
        """Latents (numbers, Features) whose contribution is taken away, or Directions that are projected out; used as what
        `steer` returns. `how` goes to the edits: positions="generated", when=When(7), ...
        """
        flat = [t for target in targets for t in (target if isinstance(target, list | tuple | range) else [target])]
        edits = [
            ProjectOut(t, **how) if isinstance(t, Direction) else Ablate(t.id if isinstance(t, Feature) else t, **how)
            for t in flat
        ]
        return Steering(self, Edits.of(edits))

    def steer(self, target: Any, strength: float = 0.5, **how: Any) -> "Steering":
        """Edits that are ready to use. `target` is a latent's number, a Feature, a Direction, or edits made by hand.

        `strength` is a fraction of the site's typical residual norm; about 0.5 is usually right. `how` goes to `Add`:
        positions="generated", unit="max", ...
        """
        if isinstance(target, Edit | Edits | list | tuple):
            return Steering(self, Edits.of(target))
        target = target.id if isinstance(target, Feature) else target
        return Steering(self, Edits.of(Add(target, strength, **how)))

    def attribute(
        self,
        prompt: str | Iterable[str],
        token: str | int | None = None,
        other: str | int | None = None,
        site: str | None = None,
        **how: Any,
    ) -> Attribution | list[Attribution]:
        """Which latents make the model say `token` rather than `other` after the prompt; for several prompts, a list. See
        `scope.circuits.attribution`.

        With `picture=`, which patch and latent of the picture: see `scope.circuits.picture_attribution`.
        """
        how["pack"] = self._labels(site)
        if "picture" in how:
            picture = how.pop("picture")
            return attribute_picture(self.model, self._dictionary(site), picture, prompt, token, other, **how)
        return attribute(self.model, self._dictionary(site), prompt, token, other, **how)

    def effects(
        self, target: Any, prompt: str | Iterable[str], strength: float | None = None, **how: Any
    ) -> Effects | list[Effects]:
        """What an edit does to the next token after a prompt, and to latents further on; for several prompts, a list. See
        `scope.circuits.effects`.

        A latent's number or a Feature alone means that it is ablated; with a strength, that it is added.
        """
        target = target.id if isinstance(target, Feature) else target
        if isinstance(target, Edit | Edits | list | tuple):
            edits = Edits.of(target)
        else:
            edits = Edits.of(Ablate(target) if strength is None else Add(target, strength))
        units = self.strength_units(edits)
        later = how.pop("downstream", tuple(d for s, d in self.dictionaries.items() if s != self.sae.site))
        return effects(self.model, [*self.dictionaries.values()], edits, prompt, strength_units=units, downstream=later, **how)

    def memory(self, text: Any, latents: Sequence[int] | None = None, **how: Any) -> Memory | list[Memory]:
        """What is left of each token of a text in the states of a recurrent model, and what it adds to latents where the lab's
        SAE reads a state or its writes; see `scope.circuits.memory`."""
        sae = next((one for one in self.dictionaries.values() if layer_of(one.site) is not None), None)
        return memory(self.model, text, sae, latents, **how)

    def _dictionary(self, site: str | None):
        if site is not None and site not in self.dictionaries:
            raise DictionaryError(f"This lab has no dictionary at {site}; it has {', '.join(self.dictionaries)}.")
        return self.dictionaries[site or self.sae.site]

    def _labels(self, site: str | None) -> Pack | None:
        return self.pack if site in (None, self.pack.site) else None

    def generate(self, prompts: str | Iterable[str], n: int = 1, **sampling: Any) -> list[str]:
        """`scope.generate` with the lab's model and whatever edits are at work around the call; gives the new texts alone, the
        same on each call only with a `seed`."""
        rows = list_of_texts(prompts, TokensError)
        return [g.text for g in generate(self.model, rows, n=n, seeded="seed" in sampling, **sampling)]

    def __repr__(self) -> str:
        unchecked = "" if self._certified is not None else ", dictionary not checked against the model"
        others = [site for site in self.dictionaries if site != self.sae.site]
        beside = f", beside it SAEs at {', '.join(others)}" if others else ""
        return (
            f"Lab({self.pack.title}, {self.pack.n_tokens:,} tokens, {str(self.pack.folder.parent)!r}, "
            f"model {'loaded' if 'model' in vars(self) else 'not loaded yet'}{beside}{unchecked})"
        )


@dataclass
class Steering:
    """Edits in a lab. `+` joins them; `.compare` shows what they do; within `with`, every run of the model is edited."""

    lab: Lab
    edits: Edits
    _entered: list = field(default_factory=list, init=False, repr=False)

    def __add__(self, other: "Steering | Edit | Edits") -> "Steering":
        return Steering(self.lab, self.edits + (other.edits if isinstance(other, Steering) else other))

    gauge = old_attribute("gauge", "strength_units")

    def strength_units(self) -> StrengthUnits:
        """What the strengths at the lab's own site are fractions and multiples of, from the pack."""
        return self.lab.strength_units(self.edits)[self.lab.pack.site]

    @old_keywords(arms="conditions")
    def compare(
        self,
        prompts: str | Iterable[str],
        n: int = 1,
        conditions: Sequence[str] = (),
        instruction: str | None = None,
        control_seed: int = 0,
        on_token: OnToken | None = None,
        **sampling: Any,
    ) -> SteeringRun:
        """Plain, steered, and a random direction of the same size, with the same noise; see `scope.steering.compare.steer`."""
        how = {"conditions": tuple(conditions)} if conditions else {}
        how |= {"instruction": instruction, "control_seed": control_seed, "on_token": on_token}
        return steer(
            *self._with(prompts), sampling_of(None, sampling), n=n, strength_units=self.lab.strength_units(self.edits), **how
        )

    @old_keywords(arms="conditions")
    def sweep(
        self,
        prompts: str | Iterable[str],
        strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        n: int = 1,
        conditions: Sequence[str] | None = None,
        on_progress: Callable[[int, int, dict], None] | None = None,
        **sampling: Any,
    ) -> Sweep:
        """The same comparison over several strengths: the effect by strength beside its controls, and a strength to use."""
        how = {
            "n": n,
            "conditions": conditions,
            "strength_units": self.lab.strength_units(self.edits),
            "on_progress": on_progress,
        }
        return sweep(*self._with(prompts), strengths, sampling_of(None, sampling), **how)

    def estimate(
        self, prompts: str | Iterable[str], strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0), n: int = 1, **sampling: Any
    ) -> float:
        """Seconds that such a sweep will take on this machine."""
        return estimate(
            *self._with(prompts),
            strengths,
            sampling_of(None, sampling),
            n=n,
            strength_units=self.lab.strength_units(self.edits),
        )

    def cost(self, texts: str | Iterable[str]) -> Cost:
        """What the edits cost on ordinary texts: the loss with them, without, and with a random direction of the same size."""
        return cost(*self._with(texts), strength_units=self.lab.strength_units(self.edits))

    def export(self, folder: str | Path, prompts: str | Iterable[str], **how: Any) -> Intervention:
        """Write the edits into a folder, to be handed over; see `scope.export_intervention`."""
        units = self.lab.strength_units(self.edits)
        return export_intervention(*self._with(list_of_texts(prompts, EditError)), folder, strength_units=units, **how)

    def _with(self, prompts: str | Iterable[str]) -> tuple:
        return self.lab.model, [*self.lab.dictionaries.values()], self.edits, prompts

    def _editing(self) -> Editing:
        lab, units = self.lab, self.lab.strength_units(self.edits)
        edits = at_each_layer(lab.model, self.edits)
        check_sites(lab.model, lab.dictionaries, edits)
        return Editing(lab.model, lab.dictionaries, [resolve(edit, lab.dictionaries, units) for edit in edits])

    def on(self, model: Any):
        """A context manager in which a `transformers` model of the same weights is steered: its `generate`, its forward."""
        return steered_transformers(model, self._editing(), self.lab.model)

    def __enter__(self) -> Editing:
        """Installs the hooks; what it yields counts what they do (`.report()`)."""
        editing, stack = self._editing(), ExitStack()
        stack.enter_context(self.lab.model.hooks(editing.hooks(), must_fire=False))
        self._entered.append(stack)
        return editing

    def __exit__(self, *exc: Any) -> None:
        self._entered.pop().__exit__(*exc)

    def __repr__(self) -> str:
        return f"Steering({self.edits})"


def hooked_sae_transformer(model: LanguageModel | str = "bundled") -> Any:
    """A HookedSAETransformer with a copy of the model's weights: `add_sae`, `reset_saes`, `run_with_saes`,
    `run_with_cache_with_saes`, `run_with_hooks_with_saes` and `with model.saes(...)` take SAEs of SAELens and of ours, and
    `use_error_term=True` adds what the SAE misses to its output, edits of latents included.

        model = scope.hooked_sae_transformer(scope.load_model("google/gemma-2-2b"))
        logits, cache = model.run_with_cache_with_saes(tokens, saes=[sae], use_error_term=True)
        cache[sae.site + ".hook_sae_acts_post"]  # latents
    """
    from scope.models.load import load_model
    from scope.models.transformer_lens import bridge
    from scope.sae.formats.sae_lens_object import to_sae_lens

    return bridge.hooked_sae_transformer(load_model(model) if isinstance(model, str) else model, to_sae_lens)
