"""`scope evaluate`: a dictionary's scores beside its nulls."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from scope.evaluation.result import EvaluateConfig


@dataclass(frozen=True)
class Command:
    """Score a dictionary: L0, FVU, cosine, delta loss and KL with its reconstructions spliced into the model.

    Each number stands beside what a random dictionary of equal L0, PCA with as many components, the dictionary itself on the
    model with random weights, and mean- and zero-ablation reach, with a 95 % interval over documents. Also with and without
    position 0, special tokens and tokens of huge norm, and by position in the context.
    """

    dictionary: tyro.conf.Positional[str]
    """Folder that `scope train` wrote, a SAELens folder, a params.npz, or a hub id and the folder in it."""

    model: str = "bundled"
    """The model it was trained on: bundled, a checkpoint's folder, or a hub id."""

    recording: Path | None = None
    """Take the text from this recording (its contexts, not its activations)."""

    corpus: str | None = None
    """Take the text from here: anything that `scope harvest --corpus` takes. Given with --recording, what that recording
    was made from: then only documents are taken of which it holds nothing, so the text is held out."""

    context: int = 256
    """Tokens per context, <bos> included, when the text comes from --corpus."""

    beside: tuple[str, ...] = ()
    """Further dictionaries of the same site, each a column of its own, as one trained from another seed; it is also told how
    many directions they share."""

    json: Path | None = None
    """Where to write all numbers; by default evaluation.json in the dictionary's folder, if that is a folder here."""

    certificate: bool = True
    """First check on about 2,000 tokens that the dictionary fits this model and site; kept beside it, so made once."""

    config: Annotated[EvaluateConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluateConfig)

    def run(self) -> None:
        from scope.activations.corpus.sources import open_corpus
        from scope.activations.read.store import ActivationStore
        from scope.cli.certificate import certified
        from scope.cli.progress import console, progress_bar
        from scope.errors import ConfigError
        from scope.evaluation.evaluate import evaluate
        from scope.evaluation.report import table
        from scope.models.load import load_model
        from scope.sae.files import read_sae

        if self.recording is None and self.corpus is None:
            raise ConfigError("Say where the text comes from: --recording FOLDER, --corpus SPEC, or both for held-out text.")
        store = None if self.recording is None else ActivationStore.open(self.recording)
        corpus = None if self.corpus is None else open_corpus(self.corpus)
        sae = read_sae(self.dictionary)
        model = load_model(self.model)
        certified(model, sae, self.dictionary, self.certificate)
        others = {name: read_sae(name) for name in self.beside}
        for name, other in others.items():
            certified(model, other, name, self.certificate)
        tokens, documents, text = self.text(store, corpus, model.tokenizer, model.cfg.n_ctx)
        with progress_bar("Scoring", unit="contexts") as on_progress:
            evaluation = evaluate(model, sae, tokens, self.config, on_progress, documents=documents, beside=others)
        evaluation.provenance["text"] = text
        folder = Path(self.dictionary)
        evaluation.training.extend(training_curve(folder))
        known = seen(sae.provenance.get("recording") or {}, text, store)
        evaluation.notes.extend(known or also_read(folder, evaluation, tokens, documents))
        console.print(table(evaluation))
        file = self.json or (folder / "evaluation.json" if folder.is_dir() else None)
        if file and not self.json and fuller(file, evaluation.provenance["parameters_sha256"], self.config):
            console.print(f"{file} is kept: it tells more than this look. To keep this one, give --json.", markup=False)
        elif file:
            console.print(f"All numbers: {evaluation.save(file)}", soft_wrap=True, markup=False)

    def text(self, store, corpus, tokenizer, n_ctx: int):
        """(contexts of tokens, which document each token is from or None, what text that is).

        Raises:
            ConfigError: a recording of another tokenizer, or a context that the model cannot take.
        """
        import numpy as np
        import torch

        from scope.activations.corpus.contexts import Packer
        from scope.activations.errors import RecordingError
        from scope.activations.read.heldout import following_documents
        from scope.errors import ConfigError

        if store is not None and store.manifest["tokenizer"]["sha256"] != tokenizer.sha256:
            raise ConfigError(f"{self.recording} was made with another tokenizer than {self.model} has. Give its model.")
        if store is not None and corpus is not None:
            said = {"corpus": corpus.identity, "held_out": "documents after the recording's last", "context": store.context}
            found = following_documents(store, corpus, tokenizer, self.config.contexts)
            return (*(torch.from_numpy(part).long() for part in found), said)
        if store is not None:
            said = {"corpus": store.manifest["corpus"], "recording": str(self.recording), "context": store.context}
            try:
                documents = torch.from_numpy(np.asarray(store.documents)).long()
            except RecordingError:  # imported from elsewhere, without them
                documents = None
            return torch.from_numpy(np.asarray(store.tokens)).long(), documents, said
        if not 2 <= self.context <= n_ctx:
            raise ConfigError(f"context is {self.context}; this model takes 2 to {n_ctx} tokens.")
        packed = Packer(corpus.documents(self.config.seed), tokenizer, self.context).take(4 * self.config.contexts)
        said = {"corpus": corpus.identity, "context": self.context, "seed": self.config.seed}
        return torch.from_numpy(packed.tokens).long(), torch.from_numpy(packed.documents).long(), said


def seen(trained: dict, text: dict, store) -> list[str]:
    """What must be told of text that the training may have read. Documents are held out of one recording, and a dictionary
    that learnt from another of the same corpus, or from a running model, may have been given them (P7)."""
    if not trained.get("corpus") or trained["corpus"] != text["corpus"]:
        return []
    if "held_out" not in text:
        return ["This is text of the corpus that the dictionary was trained on: not held out."]
    config, tokens = trained.get("config"), trained.get("tokens")
    if (config, tokens) == (store.manifest.get("config"), store.n_rows):
        return []
    return [
        "The dictionary was trained on this corpus, but not on this recording: it may have read this text. Give the recording "
        "that it was trained on."
    ]


def also_read(folder: Path, evaluation, tokens, documents) -> list[str]:
    """How much of the scored text the dictionary was trained on, by what the text is and not by what its corpus is called; the
    number is kept in the report's provenance (P7)."""
    from scope.evaluation.overlap import kept, overlap

    read, drawn = kept(folder), evaluation.provenance["drawn"]["contexts"]
    if read is None:
        return ["What this dictionary was trained on is not known in full: it may have read this text."]
    found = overlap(read, tokens[drawn].numpy(), None if documents is None else documents[drawn].numpy())
    evaluation.provenance["text"]["read_in_training"] = {"shared": found.shared, "compared": found.compared}
    return [found.said()] if found.shared or not found.compared else []


def fuller(file: Path, dictionary: str, config) -> bool:
    """Whether a report of the same dictionary has more contexts, or the nulls where these settings leave them out."""
    from scope.errors import ConfigError
    from scope.evaluation.evaluate import Evaluation

    try:
        there = Evaluation.load(file).provenance
    except ConfigError:  # none yet, or none that can be read
        return False
    if there["parameters_sha256"] != dictionary:
        return False
    return there["config"]["contexts"] > config.contexts or (there["config"]["nulls"] and not config.nulls)


def training_curve(folder: Path, points: int = 60) -> list[dict]:
    """Rows of the training log beside a dictionary, evenly thinned, the last among them; [] without one."""
    from scope.training.progress import read_log

    if not (folder / "log.jsonl").is_file():
        return []
    rows = read_log(folder)
    return rows[::-1][:: max(1, -(-len(rows) // points))][::-1]
