"""`scope.evaluate`: a dictionary's scores beside their baselines."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scope.errors import ConfigError
from scope.evaluation.result import EvaluateConfig
from scope.progress import OnProgress
from scope.typed_json import typed
from scope.workflows.notes import OnNote, silent
from scope.workflows.settings import ModelSettings, resolve
from scope.workflows.text import PictureSettings

REPORT = "evaluation.json"
"""Name of the report in the dictionary's folder."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(ModelSettings):
    """Which dictionary to score, on which text. Each field is also a flag of `scope evaluate`."""

    dictionary: str
    """Folder that `scope train` wrote, a SAELens folder, a params.npz, or the name of a published SAE: SAELens' release with
    the id in it, a hub id with the folder in it, or Neuronpedia's id."""

    site: str | None = None
    """Where it reads, e.g. blocks.12.hook_resid_post, for a file that does not say, as a params.npz. None: as it says."""

    recording: Path | None = None
    """Take the text from this recording (its contexts, not its activations)."""

    corpus: str | None = None
    """Take the text from here: anything that `scope harvest --corpus` takes. Given with --recording, what that recording
    was made from: then only documents are taken of which it holds nothing, so the text is held out."""

    context: int = 256
    """Tokens per context, <bos> included, when the text comes from --corpus."""

    beside: tuple[str, ...] = ()
    """Further dictionaries of the same site, each a column of its own, as one trained from another seed; the report also says
    how many directions they share."""

    certificate: bool = True
    """First check on about 2,000 tokens that the dictionary fits this model and site; kept beside it, so made once."""

    config: EvaluateConfig = field(default_factory=EvaluateConfig)

    pictures: PictureSettings = field(default_factory=PictureSettings)


def evaluate(
    config: Any = None,
    *rest: Any,
    on_progress: OnProgress | None = None,
    on_note: OnNote = silent,
    on_certificate: Callable[[Any], None] | None = None,
    **settings: Any,
) -> Any:
    """Score a dictionary: L0, FVU, delta loss and more, each beside its baselines; returns the `Evaluation`.

    `scope.evaluate("runs/dictionary", recording="runs/recording", corpus="bundled")` says what `scope evaluate` says with
    flags. Nothing is written: `.save(file)` keeps the result.

    `scope.evaluate(model, sae, tokens, config)` scores an SAE in memory on tokens; see `scope.evaluation.evaluate.evaluate`.

    Raises:
        ConfigError: a setting that cannot be; a recording of another tokenizer.
        DictionaryError: the dictionary is damaged, or does not fit the model.
    """
    if rest or "sae" in settings:
        from scope.evaluation.evaluate import evaluate as evaluate_on_tokens

        return evaluate_on_tokens(config, *rest, on_progress=on_progress, **settings)
    job = resolve(Evaluate, config, settings, first="dictionary")
    from scope.activations.corpus.sources import open_corpus
    from scope.activations.read.store import ActivationStore
    from scope.evaluation.evaluate import evaluate as evaluate_on_tokens
    from scope.sae.files import read_sae
    from scope.workflows.certificate import certified
    from scope.workflows.text import contexts_held_out, contexts_of_corpus, contexts_of_recording, reads_pictures

    if job.recording is None and job.corpus is None:
        raise ConfigError("Say where the text comes from: --recording FOLDER, --corpus SPEC, or both for held-out text.")
    store = None if job.recording is None else ActivationStore.open(job.recording)
    sae = read_sae(job.dictionary, job.device, job.site)
    model = job.load_model(sae.provenance, pictures=True)
    certified(model, sae, job.dictionary, job.certificate, on_note, on_certificate)
    others = {name: read_sae(name, job.device, job.site) for name in job.beside}
    for name, other in others.items():
        certified(model, other, name, job.certificate, on_note, on_certificate)
    if reads_pictures(model):
        return _on_pictures(job, model, sae, others, store, on_progress)
    corpus = None if job.corpus is None else open_corpus(job.corpus)
    if store is not None and store.manifest.tokenizer.get("sha256") != model.tokenizer.sha256:
        raise ConfigError(f"{job.recording} was made with another tokenizer than the model has. Give its --model.")
    if store is not None and corpus is not None:
        tokens, documents, text = contexts_held_out(store, corpus, model.tokenizer, job.config.contexts)
    elif store is not None:
        tokens, documents, text = contexts_of_recording(store, job.recording)
    else:
        n = 4 * job.config.contexts
        tokens, documents, text = contexts_of_corpus(model, corpus, job.context, n, job.config.seed)
    evaluation = evaluate_on_tokens(model, sae, tokens, job.config, on_progress, documents=documents, beside=others)
    evaluation.provenance["text"] = text
    folder = Path(job.dictionary)
    evaluation.training.extend(training_curve(folder))
    known = notes_on_overlap(sae.provenance.get("recording") or {}, text, store)
    evaluation.notes.extend(known or notes_on_text_read(folder, evaluation, tokens, documents))
    return evaluation


def _on_pictures(job: Evaluate, model: Any, sae: Any, others: dict[str, Any], store: Any, on_progress: Any) -> Any:
    """The evaluation on pictures of a corpus, held out from a recording where one is given."""
    from scope.evaluation.pictures.evaluate_pictures import evaluate_pictures
    from scope.workflows.text import pictures_to_score

    if job.corpus is None:
        raise ConfigError(
            "A recording holds no pictures that the model could read again, only small ones.\n"
            "  Give --corpus too, which it was made from: its pictures behind the recorded ones are then scored, held out."
        )
    n = job.config.contexts
    inputs, text = pictures_to_score(model, sae.site, job.corpus, n, job.config.seed, job.pictures, store)
    evaluation = evaluate_pictures(model, sae, inputs, job.config, on_progress, beside=others)
    evaluation.provenance["text"] = text
    evaluation.training.extend(training_curve(Path(job.dictionary)))
    evaluation.notes.extend(notes_on_overlap(sae.provenance.get("recording") or {}, text, store))
    return evaluation


def notes_on_overlap(trained: dict[str, Any], text: dict[str, Any], store: Any) -> list[str]:
    """Notes on text that the training may have read. Documents are held out of one recording; a dictionary that was trained on
    another recording of the same corpus, or on a running model, may have read them (P7)."""
    if not trained.get("corpus") or trained["corpus"] != text["corpus"]:
        return []
    if "held_out" not in text:
        return ["This is text of the corpus that the dictionary was trained on: not held out."]
    config, tokens = trained.get("config"), trained.get("tokens")
    if (config, tokens) == (store.manifest.to_json()["config"], store.n_rows):
        return []
    return [
        "The dictionary was trained on this corpus, but not on this recording: it may have read this text. Give the recording "
        "that it was trained on."
    ]


def notes_on_text_read(folder: Path, evaluation: Any, tokens: Any, documents: Any) -> list[str]:
    """Notes on how much of the scored text was read in training, by its runs of tokens, whatever the corpus is called. The
    number is kept in the report's provenance (P7)."""
    from scope.evaluation.overlap import load_hashes, overlap

    read, drawn = load_hashes(folder), evaluation.provenance["drawn"]["contexts"]
    if read is None:
        return ["What this dictionary was trained on is not known in full: it may have read this text."]
    shared = overlap(read, tokens[drawn].numpy(), None if documents is None else documents[drawn].numpy())
    evaluation.provenance["text"]["read_in_training"] = {"shared": shared.shared, "compared": shared.compared}
    return [shared.sentence()] if shared.shared or not shared.compared else []


def training_curve(folder: Path, points: int = 60) -> list[dict[str, Any]]:
    """Rows of the training log beside a dictionary, evenly thinned, the last among them; [] without one."""
    from scope.training.progress import read_log

    if not (folder / "log.jsonl").is_file():
        return []
    rows = read_log(folder)
    return rows[::-1][:: max(1, -(-len(rows) // points))][::-1]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The entries of a report's provenance that say which dictionary was scored and how."""

    parameters_sha256: str
    config: EvaluateConfig


def save_report(evaluation: Any, folder: Path, config: EvaluateConfig) -> Path | None:
    """Keep an evaluation beside its dictionary; None where a report of the same dictionary there says more.

    It says more if it has more contexts, or baselines where these settings leave them out.
    """
    from scope.evaluation.evaluate import Evaluation

    file = folder / REPORT
    try:
        there = typed(Evaluation.load(file).provenance, Scored, file, ConfigError)
    except ConfigError:  # none yet, or none that can be read
        return evaluation.save(file)
    says_more = there.config.contexts > config.contexts or (there.config.nulls and not config.nulls)
    if says_more and there.parameters_sha256 == evaluation.provenance["parameters_sha256"]:
        return None
    return evaluation.save(file)
