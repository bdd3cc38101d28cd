"""`scope.demo`: the whole way, in five calls."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.progress import OnProgress
from scope.workflows.notes import OnNote, silent
from scope.workflows.settings import ModelSettings, resolve

PROMPTS = ("In the morning", "Once upon a time", "He opened the door and")
SCENES = "scenes:20000"
"""What a model that reads pictures is shown. Scenes are drawn as they are needed, and more of them than a demo records."""

_SIZES: dict[bool, dict[str, Any]] = {
    False: {"tokens": 400_000, "d_sae": 2048, "target_l0": 28.0, "steps": 1600},
    True: {"tokens": 120_000, "d_sae": 768, "target_l0": 16.0, "steps": 700},
}
"""The sizes of a demo: of a model of text, and of one that reads pictures."""

_HELD_OUT = 64  # contexts on which the dictionary is scored
_LOOKED_AT, _ASKED, _STEERED = 200, 3, 8  # pictures among which are those with questions, questions, and latents to steer


@dataclass(frozen=True, kw_only=True)
class Demo(ModelSettings):
    """The whole way on one model. Each field is also a flag of `scope demo`."""

    out: Path = Path("runs/demo")
    """Folder for the recording, the dictionary, the pack and the report."""

    model: str = "bundled"
    """Model: bundled, a checkpoint's folder, a hub id, BASE+ADAPTER, or an adapter that names its base."""

    corpus: str = "bundled"
    """Text: bundled, docs, a file, a folder, or a hub data set. For a model that reads pictures: synthetic scenes, or a folder
    of pictures, a file with pictures, or a hub data set."""

    site: str | None = None
    """Where to read; by default the residual stream after the middle layer."""

    tokens: int | None = None
    """Tokens to harvest. None: 400,000, or 120,000 rows of pictures and text."""

    d_sae: int | None = None
    """Latents of the dictionary. None: 2048, or 768 of a model that reads pictures."""

    target_l0: float | None = None
    """Latents meant to fire per token. None: 28, or 16 of a model that reads pictures."""

    steps: int | None = None
    """Training steps, of 1024 tokens each. None: 1600, or 700 of a model that reads pictures."""

    seed: int = 0
    """Random seed for the order of the text, the start weights, and every draw."""


@dataclass(frozen=True)
class DemoResult:
    """What each stage made, and the seconds it took. `run` is None for a model that says no words, which is not steered."""

    recording: Any
    sae: Any
    evaluation: Any
    pack: Any
    run: Any
    seconds: dict[str, float]
    answers: str = ""
    """The answers of `run` about a picture, and how many changed, beside random directions; "" for a model of text."""


Bars = Callable[[str, str], AbstractContextManager[OnProgress | None]]
"""A progress bar for (title, unit)."""


def demo(
    config: Any = None,
    *,
    bars: Bars = lambda title, unit: nullcontext(),
    on_note: OnNote = silent,
    on_certificate: Callable[[Any], None] | None = None,
    **settings: Any,
) -> DemoResult:
    """Harvest, train, evaluate, collect features, steer (a model that writes). Stages that are finished are not
    repeated; stopped anywhere, the same call goes on.

    Raises:
        ScopeError: a stage refuses its settings.
    """
    from scope.activations.errors import CorpusError
    from scope.errors import ConfigError, PackError
    from scope.evaluation.evaluate import Evaluation
    from scope.features.collect.health import find_health
    from scope.features.face import Pack
    from scope.sae.files import parameters_sha256
    from scope.steering.compare.readable import most_readable
    from scope.workflows.evaluate import REPORT, evaluate
    from scope.workflows.features import collect_features
    from scope.workflows.harvest import harvest, middle_residual
    from scope.workflows.steer import steer
    from scope.workflows.text import reads_pictures
    from scope.workflows.train import train

    job = resolve(Demo, config, settings, first="out")
    seconds: dict[str, float] = {}
    began = time.monotonic()
    loaded = job.load_model(pictures=True)
    seeing = reads_pictures(loaded)
    sizes = _SIZES[seeing] | {name: value for name in _SIZES[seeing] if (value := getattr(job, name)) is not None}
    place = {"model": job.model, "adapter": job.adapter, "device": job.device, "revision": job.revision}
    place |= {"window_convention": job.window_convention}
    model = place | {"dtype": job.dtype}
    usual = middle_residual(loaded.sites()) if seeing else f"blocks.{loaded.cfg.n_layers // 2}.hook_resid_post"
    site, corpus = job.site or usual, SCENES if seeing and job.corpus == "bundled" else job.corpus
    recording, dictionary, folder = job.out / "recording", job.out / "dictionary", job.out / "pack"

    with _timed(seconds, "harvest"), bars("Harvesting", "tokens") as on_progress:
        store = harvest(
            **place,
            compute_dtype=job.dtype,
            corpus=corpus,
            sites=site,
            tokens=sizes["tokens"],
            context=None if seeing else min(256, loaded.cfg.n_ctx),
            batch_contexts=16,
            seed=job.seed,
            out=str(recording),
            on_progress=on_progress,
        )
    if store.exhausted and store.tokens.size < sizes["tokens"]:
        on_note(f"the corpus ended at {store.tokens.size:,} of {sizes['tokens']:,} tokens; the demo goes on with these.")

    with _timed(seconds, "train"), bars("Training", "steps") as on_progress:
        sae = train(
            recording,
            out=dictionary,
            device=job.device,
            site=site,
            d_sae=sizes["d_sae"],
            target_l0=sizes["target_l0"],
            steps=sizes["steps"],
            seed=job.seed,
            on_progress=on_progress,
        )

    with _timed(seconds, "evaluate"):
        try:
            evaluation = Evaluation.load(dictionary / REPORT)
            fresh = evaluation.provenance.get("parameters_sha256") == parameters_sha256(sae)
        except ConfigError:  # none yet, a torn one, or one of an older form
            fresh = False
        if not fresh:
            with bars("Scoring", "contexts") as on_progress:
                how = model | {"recording": recording, "contexts": _HELD_OUT, "seed": job.seed}
                try:
                    evaluation = evaluate(dictionary, corpus=corpus, on_progress=on_progress, **how)
                except CorpusError:  # a short corpus ends with the recording; the report notes that its text is not held out
                    how = how | ({"recording": None, "corpus": corpus} if seeing else {})
                    evaluation = evaluate(dictionary, on_progress=on_progress, **how)
            evaluation.save(dictionary / REPORT)

    with _timed(seconds, "features"):
        try:
            pack = Pack.open(folder)
            of = pack.dictionary.parameters_sha256, pack.manifest.config.get("seed")
            reports = [(health or {}).get("evaluation") for health in (pack.health, find_health(dictionary))]
            fresh = of == (parameters_sha256(sae), job.seed) and reports[0] == reports[1]
        except PackError:  # none yet, or one that was not finished
            fresh = False
        if not fresh:
            with bars("Collecting", "tokens") as on_progress:
                pack = collect_features(
                    dictionary,
                    **model,
                    recording=recording,
                    out=folder,
                    seed=job.seed,
                    on_progress=on_progress,
                    on_note=on_note,
                    on_certificate=on_certificate,
                )

    run, answers = None, ""
    if seeing:
        with _timed(seconds, "steer"):
            run, answers = _steer_pictures(loaded, sae, pack, store, job.seed)
    else:
        with _timed(seconds, "steer"):
            best = most_readable(loaded, sae, map(int, pack.steerable(8).index))[0]
            run = steer(
                dictionary,
                **model,
                latent=best.latent,
                strength=best.strength,
                prompt=PROMPTS,
                max_new_tokens=48,
                seed=job.seed,
            )
    if run is not None:
        run.to_json(job.out / "steering.json")
    seconds["total"] = time.monotonic() - began
    return DemoResult(store, sae, evaluation, pack, run, seconds, answers)


def best_labelled(pack: Any, n: int) -> list[int]:
    """The latents whose labels fit best, of those that are not dense; those that go with words beside pictures come first."""
    from scope.features.pack.table import BY_WORDS

    table = pack.table[~pack.table["flags"].str.contains("dense|dead|rare")]
    table = table.assign(by_words=table["label_source"] == BY_WORDS)
    return table.sort_values(["by_words", "label_score"], ascending=False, kind="stable").index[:n].tolist()


def _steer_pictures(model: Any, sae: Any, pack: Any, store: Any, seed: int) -> tuple[Any, str]:
    """(a run in which a latent at a picture's patches changed the answer to a question and a random direction did not, else
    the first; how many answers changed of all that were tried). None and "" where there is no question to steer."""
    from scope.errors import ConfigError
    from scope.models.paligemma.pictured import check_says_words, with_picture
    from scope.models.text.sampling_config import SamplingConfig
    from scope.steering.compare.steer import steer
    from scope.steering.edits.interventions import Add

    try:
        check_says_words(model)
    except ConfigError:
        return None, ""
    asked = [i for i, facts in enumerate(store.document_facts[:_LOOKED_AT]) if facts.get("question") and store.thumbnail(i)]
    latents = best_labelled(pack, _STEERED)
    if not (sae.site.startswith("blocks.") and asked and latents):
        return None, ""
    chosen, changed, by_random = None, 0, 0
    for i in asked[:_ASKED]:
        pictured, question = with_picture(model, store.thumbnail(i)), str(store.document_facts[i]["question"])
        for latent in latents:
            edit, sampling = Add(latent, 1.0, positions="image"), SamplingConfig(max_new_tokens=8, temperature=0.0, seed=seed)
            run = steer(pictured, sae, edit, question, sampling)
            plain, steered, random = (run.texts()[name][0].strip() for name in ("plain", "steered", "random"))
            changed, by_random = changed + (steered != plain), by_random + (random != plain)
            if chosen is None or (steered != plain == random and chosen[1] == chosen[2]):
                chosen = run, plain, steered, random, f"{question!r} of {store.document_names[i]}", latent
    run, plain, steered, random, what, latent = chosen
    n = len(asked[:_ASKED]) * len(latents)
    return run, (
        f"Asked {what}: {plain!r}; with latent {latent} ({pack[latent].label}) added at the picture's patches: {steered!r}; "
        f"with a random direction of equal length: {random!r}. Of {n} answers with one of {len(latents)} latents added so, "
        f"{changed} changed; with random directions {by_random}."
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - began
