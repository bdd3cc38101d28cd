"""`scope demo`: the whole way in one command, each stage as its own command does it, and a report at the end."""

import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HELD_OUT = 64  # contexts on which the dictionary is scored
_STRENGTH = 0.3  # of the typical norm: enough to be seen in a small model, and not yet too much for its grammar


@dataclass(frozen=True, kw_only=True)
class Command:
    """Go the whole way on the bundled model: harvest, train, evaluate, collect features, steer, open the app.

    Takes a few minutes on two CPU cores and no network. Stop it at any moment; the same command picks up what is finished.
    """

    out: Path = Path("runs/demo")
    """Folder for the recording, the dictionary, the pack and the report."""

    model: str = "bundled"
    """Model: bundled, a checkpoint's folder, or a hub id."""

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
    """Of the order of the text, the start weights, and every draw."""

    port: int = 8501
    """Port of the app; the next free one is taken."""

    app: bool = True
    """Open the app at the end. --no-app is for scripts."""

    def run(self) -> None:
        from scope.activations.corpus.sources import open_corpus
        from scope.cli.progress import console
        from scope.models.load import load_model

        began = time.monotonic()
        corpus, model = open_corpus(self.corpus), load_model(self.model)
        site = self.site or default_site(model)
        took: dict[str, float] = {}
        with _timed(took, "harvest"):
            store = self._harvest(model, corpus, site)
        with _timed(took, "train"):
            sae = self._train(store, site)
        with _timed(took, "evaluate"):
            evaluation = self._evaluate(model, sae, store, corpus)
        with _timed(took, "features"):
            pack = self._features(model, sae, store)
        with _timed(took, "steer"):
            run = self._steer(model, sae, pack)
        took["total"] = time.monotonic() - began
        self._report(console, model, sae, evaluation, pack, run, took)
        if self.app:
            self._open()

    def _harvest(self, model, corpus, site: str):
        from scope.activations.config import HarvestConfig
        from scope.activations.harvest.harvest import harvest
        from scope.cli.progress import console, progress_bar

        config = HarvestConfig(
            sites=(site,), tokens=self.tokens, context=min(256, model.cfg.n_ctx), batch_contexts=16, seed=self.seed
        )
        with progress_bar("Harvesting", unit="tokens") as on_progress:
            store = harvest(model, model.tokenizer, corpus, config, self.out / "recording", model.provenance, on_progress)
        if store.exhausted and store.tokens.size < self.tokens:
            ended = f"the corpus ended at {store.tokens.size:,} of {self.tokens:,} tokens; the demo goes on with these."
            console.print(f"[yellow]note:[/] {ended}")
        return store

    def _train(self, store, site: str):
        from scope.cli.progress import progress_bar
        from scope.cli.train import provenance
        from scope.evaluation.overlap import keep, smallest
        from scope.sae.jumprelu import JumpReLUConfig
        from scope.sae.kinds import make_sae
        from scope.training.config import TrainConfig
        from scope.training.presets import resolve
        from scope.training.trainer import train

        training, dictionary = resolve("small-budget", "jumprelu", self.d_sae, steps=self.steps)  # as `scope train` does
        config = TrainConfig(**training, seed=self.seed)
        dictionary |= {"d_in": store.sites[site], "d_sae": self.d_sae, "target_l0": self.target_l0}
        sae = make_sae(JumpReLUConfig(**dictionary), site)
        sae.provenance = provenance(store, site)
        batches, folder = store.shuffled(site, config.batch_size, self.seed), self.out / "dictionary"
        with progress_bar("Training", unit="steps") as on_progress:
            trained = train(sae, batches, config, folder, on_progress)
        keep(folder, smallest(store.tokens, store.documents))
        return trained

    def _evaluate(self, model, sae, store, corpus):
        import numpy as np
        import torch

        from scope.activations.errors import CorpusError
        from scope.activations.read.heldout import following_documents
        from scope.cli.progress import progress_bar
        from scope.errors import ConfigError
        from scope.evaluation.evaluate import EvaluateConfig, Evaluation, evaluate

        file = self.out / "dictionary" / "evaluation.json"
        try:
            found = Evaluation.load(file)
            if found.provenance.get("dictionary") == sae.provenance.get("weights_sha256"):
                return found
        except ConfigError:
            pass  # none yet, a torn one, or one of an older form: it is made now
        text: dict[str, Any] = {"corpus": corpus.identity}
        try:
            held_out, documents = following_documents(store, corpus, model.tokenizer, _HELD_OUT)
        except CorpusError:  # a short corpus ends with the recording
            held_out, documents = store.tokens[:0], store.documents[:0]
        if len(held_out) >= 2:
            text["held_out"] = "documents after the recording's last"
        else:
            held_out, documents = np.asarray(store.tokens), np.asarray(store.documents)
        tokens, documents = torch.from_numpy(held_out).long(), torch.from_numpy(documents).long()
        with progress_bar("Scoring", unit="contexts") as on_progress:
            scored = EvaluateConfig(contexts=_HELD_OUT, seed=self.seed)
            evaluation = evaluate(model, sae, tokens, scored, on_progress, documents=documents)
        evaluation.provenance["text"] = text
        if "held_out" not in text:
            evaluation.notes.append("The corpus is used up: this is the text that the dictionary was trained on, not held out.")
        evaluation.save(file)
        return evaluation

    def _features(self, model, sae, store):
        from scope.cli.certificate import certified
        from scope.cli.progress import progress_bar
        from scope.errors import PackError
        from scope.features.collect.collect import CollectConfig, collect
        from scope.features.pack.health import find_health
        from scope.features.pack.store import FeatureStore
        from scope.sae.files import parameters_sha256

        folder, dictionary = self.out / "pack", self.out / "dictionary"
        try:
            pack = FeatureStore.open(folder)
            made = pack.manifest["dictionary"]["parameters_sha256"], pack.manifest["config"]["seed"]
            told = (pack.health or {}).get("evaluation") == (find_health(dictionary) or {}).get("evaluation")
            if made == (parameters_sha256(sae), self.seed) and told:
                return pack
        except PackError:
            pass  # none yet, or one that was not finished: it is made now
        config = CollectConfig(seed=self.seed)
        certificate = certified(model, sae, dictionary, True)
        with progress_bar("Collecting", unit="tokens") as on_progress:
            return collect(
                model,
                sae,
                store,
                config,
                folder,
                on_progress,
                health=find_health(dictionary, certificate=certificate),
                dictionary=str(dictionary.resolve()),
            )

    def _steer(self, model, sae, pack):
        """Push the latent with the best output score, beside plain text and a random direction of the same size."""
        from scope.lab import Lab
        from scope.models.text.sampling_config import SamplingConfig

        latent = int(pack.steerable(1).index[0])
        sampling = SamplingConfig(max_new_tokens=48, seed=self.seed)
        prompts = ["In the morning", "The first thing that", "This is"]
        run = Lab(pack, sae, model).steer(latent, _STRENGTH).compare(prompts, **vars(sampling))
        run.to_json(self.out / "steering.json")
        return run

    def _report(self, console, model, sae, evaluation, pack, run, took) -> None:
        import json

        from rich.rule import Rule
        from rich.text import Text

        from scope.cli.steer import print_run
        from scope.evaluation.report import table

        console.print(Rule("What was found", style="dim"))
        console.print(
            f"{model.provenance['model']}: {model.cfg.n_layers} layers, {sum(p.numel() for p in model.parameters()):,} "
            f"parameters; {sae.site}, {sae.d_sae:,} latents\n",
            markup=False,
        )
        console.print(table(evaluation))
        dead = float((pack.table["count"] == 0).mean())
        console.print(f"Dead: {dead:.1%} of the latents never fired on the {pack.n_tokens:,} recorded tokens.\n")
        for latent in pack.steerable(3).index:
            console.print(_described(pack[int(latent)]))
        console.print(Rule(f"Latent {run.edits[0].latent}, added at {_STRENGTH} of the typical norm", style="dim"))
        print_run(run, console)
        figures = {"seconds": {k: round(v, 1) for k, v in took.items()}, "dead": dead, "evaluation": evaluation.to_json()}
        (self.out / "report.json").write_text(json.dumps(figures, indent=1))
        spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
        console.print(Text(f"\n{spent}. Everything is in {self.out}: recording/ dictionary/ pack/ report.json", style="dim"))
        console.print(Text(f"To look again: scope app {self.out / 'pack'}", style="dim"))

    def _open(self) -> None:
        from scope.cli.app import Command as App
        from scope.cli.app import refuse_taken
        from scope.errors import ConfigError

        port = self.port
        while True:
            try:
                refuse_taken(port)
                break
            except ConfigError:
                if port >= self.port + 20:
                    raise
                port += 1
        App(packs=(self.out / "pack",), port=port).run()


def default_site(model) -> str:
    """The residual stream after the middle block."""
    return f"blocks.{model.cfg.n_layers // 2}.hook_resid_post"


def _described(feature) -> Any:
    """A latent in a few lines: its label, what it promotes, its strongest contexts with the peak marked."""
    from rich.text import Text

    from scope.escape import visible_token

    text = Text(f"Latent {feature.id}: {feature.label}", style="bold")
    promoted = " ".join(visible_token(token, mark_space=True) for token, _ in feature.promoted[:6])
    text.append(f"\n  promotes {promoted}   output score {feature.row['out_score']:+.3f}", style="cyan not bold")
    for example in feature.examples("top", n=3):
        low, high = max(0, example.peak - 12), example.peak + 6
        text.append(f"\n  {example.value:7.2f}  ", style="dim not bold")
        for i in range(low, min(high, len(example.tokens))):
            strong = example.acts[i] > 0.5 * example.value
            style = "bold black on yellow" if i == example.peak else "yellow not bold" if strong else "not bold"
            text.append(visible_token(example.tokens[i]), style=style)
    return text.append("\n")


@contextmanager
def _timed(took: dict[str, float], name: str):
    began = time.monotonic()
    yield
    took[name] = time.monotonic() - began
