"""`scope.memory`: what a recurrent model remembers of a text, token by token."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.progress import OnProgress
from scope.whole_files import refuse_unwritable, write_whole
from scope.workflows.settings import ModelSettings, resolve


@dataclass(frozen=True, kw_only=True)
class Remember(ModelSettings):
    """What to read. Each field is also a flag of `scope memory`."""

    text: tuple[str, ...] = ()
    """Texts. Each is read by itself."""

    model: str | None = None
    """A model with recurrent layers: bundled-recurrent (the default), a checkpoint's folder or a hub id. With --sae by default
    the one that it was trained on."""

    sae: Path | None = None
    """SAE of a state (blocks.N.rec.hook_state) or of its writes (hook_write): say too what each token adds to its latents."""

    latent: tuple[int, ...] = ()
    """With --sae: latents to read. By default those that fire strongest."""

    layers: tuple[int, ...] = ()
    """Recurrent layers to read; by default all."""

    times: tuple[int, ...] = ()
    """Positions after which the state is taken apart; by default all, or 256 of a longer text."""

    chat: bool = False
    """Read each text as a user's turn, in the model's chat template."""

    needle: bool = False
    """Read no text, but ask for what stood n tokens earlier, at each of --distances: a code word, and random tokens that are
    repeated. This is for any model."""

    beside: tuple[str, ...] = ()
    """With --needle: models to ask too, such as bundled."""

    distances: tuple[int, ...] = (0, 4, 8, 16, 32, 64, 128)
    """With --needle: tokens between; those that a model's context does not hold are left out."""

    trials: int = 64
    """With --needle: texts for each distance and task."""

    corpus: str = "bundled"
    """With --needle: text that stands between, as in `scope harvest --corpus`."""

    seed: int = 0
    """With --needle: random seed for words and texts."""

    save: Path | None = None
    """Write the result here; `Memory.load` reads it, or with --needle `Recall.load`. Of several texts the last."""

    html: Path | None = None
    """Write a page with the heat maps tokens x time here. Of several texts the last."""

    csv: Path | None = None
    """Write a row per layer and token here, or with --needle per model, task and distance. Of several texts the last."""

    any_model: bool = False
    """Allow an SAE that was trained on other weights than the model's."""

    def __post_init__(self):
        if self.model is None and self.sae is None:
            object.__setattr__(self, "model", "bundled-recurrent")


def memory(config: Any = None, *rest: Any, on_progress: OnProgress | None = None, **settings: Any) -> Any:
    """Take the states of a recurrent model apart into what each token of a text left in them.

    `scope.memory("The code word is apple.", model="bundled-recurrent")` says what `scope memory` says with flags, and
    `scope.memory(model, text, sae)` reads with objects in memory; see `scope.circuits.memory`. Returns a `Memory`, or a list
    for several texts; with `needle` a `Recall`.

    Raises:
        ConfigError: a model without recurrent layers, a layer or time that there is not.
        DictionaryError: an SAE of another site or model. TokensError: no text, or one longer than the context.
    """
    from scope.circuits.memory import memory as in_memory
    from scope.errors import TokensError

    if rest or ("text" in settings and config is not None):
        return in_memory(config, *rest, **settings)
    job = resolve(Remember, config, settings, first="text")
    from scope.sae.files import read_sae

    if job.needle:
        result = _recalled(job, on_progress)
        _written(job, result)
        return result
    if not job.text:
        raise TokensError('Give a text to read: scope memory "The code word is apple. ..."')
    for file in filter(None, (job.save, job.html, job.csv)):
        refuse_unwritable(file)
    sae = None if job.sae is None else read_sae(job.sae, job.device)
    model = job.load_model({} if sae is None else sae.provenance)
    texts = [[{"role": "user", "content": text}] for text in job.text] if job.chat else list(job.text)
    how = {"latents": job.latent or None, "layers": job.layers or None, "times": job.times or None, "any_model": job.any_model}
    results = [in_memory(model, text, sae, **how) for text in texts]
    _written(job, results[-1])
    return results[0] if len(results) == 1 else results


def _recalled(job: Remember, on_progress: OnProgress | None) -> Any:
    from scope.activations.corpus.sources import open_corpus
    from scope.circuits.recall import recall

    beside = [name for name in dict.fromkeys(job.beside) if name != job.model]
    models = [job.load_model(), *(job.of_another(name).load_model() for name in beside)]
    texts = [document.text for _, document in zip(range(400), open_corpus(job.corpus).documents(job.seed), strict=False)]
    how = {"distances": job.distances, "trials": job.trials, "corpus": job.corpus, "seed": job.seed}
    return recall(models, texts, on_progress=on_progress, **how)


def _written(job: Remember, result: Any) -> None:
    if job.save:
        result.save(job.save)
    if job.html:
        result.to_html(job.html)
    if job.csv:
        write_whole(job.csv, result.to_frame().to_csv(index=False))
