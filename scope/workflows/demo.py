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

STRENGTH = 0.3  # of the typical norm: enough to be seen in a small model, and not yet too much for its grammar
PROMPTS = ("In the morning", "The first thing that", "This is")
_HELD_OUT = 64  # contexts on which the dictionary is scored


@dataclass(frozen=True, kw_only=True)
class Demo(ModelSettings):
    """The whole way on one model. Each field is also a flag of `scope demo`."""

    out: Path = Path("runs/demo")
    """Folder for the recording, the dictionary, the pack and the report."""

    model: str = "bundled"
    """Model: bundled, a checkpoint's folder, a hub id, BASE+ADAPTER, or an adapter that names its base."""

    corpus: str = "bundled"
    """Text: bundled, docs, a file, a folder, or a hub data set."""

    site: str | None = None
    """Where to read; by default the residual stream after the middle layer."""

    tokens: int = 400_000
    """Tokens to harvest."""

    d_sae: int = 2048
    """Latents of the dictionary."""

    target_l0: float = 28.0
    """Latents meant to fire per token."""

    steps: int = 1600
    """Training steps, of 1024 tokens each."""

    seed: int = 0
    """Random seed for the order of the text, the start weights, and every draw."""


@dataclass(frozen=True)
class DemoResult:
    """What each stage made, and the seconds it took."""

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
    """Harvest, train, evaluate, collect features, steer. Stages that are finished are not repeated; stopped anywhere, the same
    call goes on.

    Raises:
        ScopeError: a stage refuses its settings.
    """
    from scope.activations.errors import CorpusError
    from scope.errors import ConfigError, PackError
    from scope.evaluation.evaluate import Evaluation
    from scope.features.collect.health import find_health
    from scope.features.face import Pack
    from scope.sae.files import parameters_sha256
    from scope.workflows.evaluate import REPORT, evaluate
    from scope.workflows.features import collect_features
    from scope.workflows.harvest import harvest
    from scope.workflows.steer import steer
    from scope.workflows.train import train

    job = resolve(Demo, config, settings, first="out")
    seconds: dict[str, float] = {}
    began = time.monotonic()
    cfg = job.load_model().cfg
    place = {"model": job.model, "adapter": job.adapter, "device": job.device, "revision": job.revision}
    place |= {"window_convention": job.window_convention}
    model = place | {"dtype": job.dtype}
    site = job.site or f"blocks.{cfg.n_layers // 2}.hook_resid_post"
    recording, dictionary, folder = job.out / "recording", job.out / "dictionary", job.out / "pack"

    with _timed(seconds, "harvest"), bars("Harvesting", "tokens") as on_progress:
        store = harvest(
            **place,
            compute_dtype=job.dtype,
            corpus=job.corpus,
            sites=site,
            tokens=job.tokens,
            context=min(256, cfg.n_ctx),
            batch_contexts=16,
            seed=job.seed,
            out=str(recording),
            on_progress=on_progress,
        )
    if store.exhausted and store.tokens.size < job.tokens:
        on_note(f"the corpus ended at {store.tokens.size:,} of {job.tokens:,} tokens; the demo goes on with these.")

    with _timed(seconds, "train"), bars("Training", "steps") as on_progress:
        sae = train(
            recording,
            out=dictionary,
            device=job.device,
            site=site,
            d_sae=job.d_sae,
            target_l0=job.target_l0,
            steps=job.steps,
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
                    evaluation = evaluate(dictionary, corpus=job.corpus, on_progress=on_progress, **how)
                except CorpusError:  # a short corpus ends with the recording; the report notes that its text is not held out
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

    with _timed(seconds, "steer"):
        run = steer(
            dictionary,
            **model,
            latent=int(pack.steerable(1).index[0]),
            strength=STRENGTH,
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
