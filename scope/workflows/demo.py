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
    """What each stage made, and the seconds it took. `run` is None for a model that reads pictures, which is not steered."""

    recording: Any
    sae: Any
    evaluation: Any
    pack: Any
    run: Any
    seconds: dict[str, float]


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
    """Harvest, train, evaluate, collect features, steer (a model of text). Stages that are finished are not repeated; stopped
    anywhere, the same call goes on.

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

    run = None
    if not seeing:
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
            run.to_json(job.out / "steering.json")
    seconds["total"] = time.monotonic() - began
    return DemoResult(store, sae, evaluation, pack, run, seconds)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - began
