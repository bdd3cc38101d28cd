"""`scope pretrain`: corpus, tokenizer, training, evaluation and export in one command that can be stopped anywhere."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from scope.pretrain.config import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train a small Gemma from nothing, as the bundled model was made, and export it as a Hugging Face checkpoint.

    Text is read once, split into training and held-out documents, and tokenised into the corpus folder; training keeps
    checkpoints in OUT and goes on where it was stopped; then the checkpoint in OUT/model is scored on held-out documents.
    Hours on two CPU cores with the defaults; `--steps 200 --d-model 64 --n-layers 2` shows the way in minutes.
    """

    corpus: tuple[str, ...] = ("docs", "code")
    """Where text comes from: .jsonl or .jsonl.xz files or folders of them (one domain a file), `docs` (documentation of
    installed packages), `code` (sources of the standard library)."""

    corpus_folder: Path = Path("runs/corpus")
    """Folder of the tokenised text. Built if absent; found again otherwise."""

    out: Path = Path("runs/pretrain")
    """Folder of the run: checkpoint, loss curve, and the exported model in OUT/model."""

    name: str | None = None
    """Title of the model card; by default the generation."""

    documents: int = 60
    """Held-out documents of each domain that the exported model is scored on."""

    samples: int = 0
    """Characters of text that the finished model writes to OUT/samples, as a corpus that may be shipped with it."""

    organism: Literal["arabic", "fim", "rig", "shield", "siglip", "paligemma", "colpali"] | None = None
    """Instead of a Gemma, train one of the small models that show what its relatives do, in minutes. Adapters of the bundled
    model, with their card in OUT/adapter: arabic (reads another script, as GemmAr), fim (fills in the middle, as CodeGemma),
    rig (asks Data Commons, as DataGemma), shield (judges texts by a policy, as ShieldGemma). Models of synthetic pictures, in
    OUT/model: siglip (captions and scenes), paligemma (answers about scenes, on the tower of bundled-siglip), colpali (finds
    pages, from bundled-paligemma)."""

    config: tyro.conf.OmitArgPrefixes[PretrainConfig] = field(default_factory=PretrainConfig)

    def run(self) -> None:
        if self.organism:
            return self._run_organism(self.organism)
        return self._run_model()

    def _run_organism(self, name: str) -> None:
        from scope.cli.progress import console, progress_bar
        from scope.pretrain.organisms.make import RECIPES, make_organism
        from scope.pretrain.pictures.make import make_picture_model

        steps = None if self.config.steps == PretrainConfig().steps else self.config.steps
        adapter = name in RECIPES
        make = make_organism if adapter else make_picture_model
        with progress_bar("Training") as on_progress:
            result = make(name, self.out, steps, lambda row: on_progress(row["step"], row["steps"], {"loss": row["loss"]}))
        console.print((result.folder / "README.md").read_text())
        what, model = ("adapter", f"bundled+{result.folder}") if adapter else ("model", result.folder)
        console.print(f"The {what} is in {result.folder}. To load it: --model {model}")

    def _run_model(self) -> None:
        import json

        from scope.cli.progress import console, progress_bar
        from scope.models.load import load_model
        from scope.pretrain.build import build_corpus
        from scope.pretrain.card import model_card
        from scope.pretrain.evaluate import evaluate_text, read_held_out, report
        from scope.pretrain.export import export
        from scope.pretrain.trainer import pretrain

        with console.status("Reading and tokenising text"):
            info = build_corpus(self.corpus, self.corpus_folder, self.config.d_vocab, self.config.n_ctx)
        domains = info["domains"]
        console.print(f"{sum(d['tokens'] for d in domains.values()):,} training tokens in {len(domains)} domains")
        with progress_bar("Training") as on_progress:

            def log(row: dict) -> None:
                on_progress(row["step"], row["steps"], {"loss": row["loss"], "tokens/s": row["tokens_per_second"]})

            model = pretrain(self.config, self.corpus_folder, self.out, log)
        folder, tokenizer = self.out / "model", self.corpus_folder / "tokenizer"
        export(model, tokenizer, folder, model_card(self.out, self.corpus_folder, name=self.name))
        documents = read_held_out(self.corpus_folder, self.documents)
        with progress_bar("Scoring", unit="batches") as on_progress:
            evaluation = report(evaluate_text(load_model(str(folder)), documents, on_progress=on_progress))
        (self.out / "evaluation.json").write_text(json.dumps(evaluation, indent=1))
        card = model_card(self.out, self.corpus_folder, evaluation, self.name)
        (folder / "README.md").write_text(card, encoding="utf-8")
        for domain, s in evaluation["domains"].items():
            console.print(f"  {domain:<14} {s['bits_per_byte']:.3f} bits per byte  ({s['low']:.3f} to {s['high']:.3f})")
        console.print(f"Mean {evaluation['mean_bits_per_byte']:.3f} bits per byte on held-out text. The model is in {folder}.")
        if self.samples:
            from scope.pretrain.samples import write_samples

            with progress_bar("Writing", unit="characters") as on_progress:
                write_samples(load_model(str(folder)), self.out / "samples", self.samples, on_progress=on_progress)
