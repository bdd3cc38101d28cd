"""`scope features`: a dictionary and a recording (or text) in, a pack out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from scope.features.collect.config import CollectConfig


@dataclass(frozen=True)
class Command:
    """Collect everything the browser shows about each latent into a pack.

    One pass over the activations of a recording, or of a model on a corpus, gathers all latents at once; then each
    latent's effect on the next token is measured beside random directions. The pack can be browsed without the model:
    scope app PACK. Stopped, the same command goes on where it stopped. Several processes share the work, on one machine or
    with one disk: torchrun --nproc-per-node N -m scope.cli features ...
    """

    dictionary: tyro.conf.Positional[str]
    """Folder that `scope train` wrote, a SAELens folder, a params.npz, or a hub id with the folder in it."""

    recording: Path | None = None
    """Recording to read, as `scope harvest` wrote it. Or give --corpus."""

    corpus: str | None = None
    """Text to run the model on instead: a file, a folder, docs, bundled, or a hub data set."""

    model: str | None = None
    """The model. None: the one that the dictionary or the recording names."""

    site: str | None = None
    """Where the dictionary reads, e.g. blocks.2.hook_resid_post. None: as the dictionary says."""

    out: Path = Path("runs/pack")
    """Folder for the pack; an older pack there is replaced when the new one is complete."""

    context: int = 256
    """Tokens of a context, <bos> included, when a corpus is read."""

    evaluation: Path | None = None
    """Report of `scope evaluate` to keep in the pack. None: evaluation.json in the dictionary's folder, if there is one."""

    device: str = "cpu"
    """Where model and dictionary run: cpu, cuda, cuda:1, mps."""

    certificate: bool = True
    """First check on about 2,000 tokens that the dictionary fits this model and site; kept beside it, so made once."""

    config: Annotated[CollectConfig, tyro.conf.arg(name="")] = field(default_factory=CollectConfig)

    def run(self) -> None:
        from scope.activations.harvest.ranks import Ranks
        from scope.cli.certificate import certified
        from scope.cli.progress import console, progress_bar
        from scope.errors import ConfigError
        from scope.features.collect.collect import collect
        from scope.features.pack.health import find_health
        from scope.models.load import load_model
        from scope.sae.files import read_sae

        if (self.recording is None) == (self.corpus is None):
            raise ConfigError("Give either --recording RECORDING or --corpus TEXT: the latents are read on its tokens.")
        ranks = Ranks.of_environment()
        device = f"cuda:{ranks.local}" if self.device == "cuda" and ranks.world > 1 else self.device
        sae = read_sae(self.dictionary, device=device)
        if self.site:
            sae.site = self.site
        find_health(Path(self.dictionary), self.evaluation)  # a report that is not there is refused before the work
        store, named = self._recording()
        model = load_model(self.model or named or _named(sae.provenance) or "bundled", device=device)
        certificate = certified(model, sae, self.dictionary, self.certificate) if ranks.leads else None
        health = find_health(Path(self.dictionary), self.evaluation, certificate)
        described: dict = {}
        if store is None:
            store, described = self._tokens(model)
        if ranks.leads:
            _plan(console, self.config, model, sae, store, ranks)
        with progress_bar("Collecting", unit="tokens") as on_progress:
            pack = collect(
                model,
                sae,
                store,
                self.config,
                self.out,
                on_progress if ranks.leads else None,
                health=health,
                corpus=described,
                dictionary=str(Path(self.dictionary).resolve()) if Path(self.dictionary).exists() else self.dictionary,
                ranks=ranks,
            )
        if pack is not None:
            _report(console, pack)

    def _recording(self):
        """(store, the model that it names), or nothing when a corpus is read."""
        from scope.activations.read.store import ActivationStore

        if self.recording is None:
            return None, None
        store = ActivationStore.open(self.recording)
        return store, _named(store.manifest)

    def _tokens(self, model):
        """Contexts of the corpus, and what it is."""
        import torch

        from scope.activations.corpus.contexts import Packer
        from scope.activations.corpus.sources import open_corpus
        from scope.errors import ConfigError

        if not 2 <= self.context <= model.cfg.n_ctx:
            raise ConfigError(f"context is {self.context}; this model takes 2 to {model.cfg.n_ctx} tokens.")
        corpus = open_corpus(self.corpus)
        budget = self.config.tokens or 500_000
        packed = Packer(corpus.documents(self.config.seed), model.tokenizer, self.context).take(-(-budget // self.context))
        described = {"corpus": corpus.identity, "context": self.context, "seed": self.config.seed}
        return torch.from_numpy(packed.tokens).long(), described


def _named(described: dict) -> str | None:
    """The model that a provenance names."""
    model = described.get("model") or described.get("model_name")
    return model.get("model") if isinstance(model, dict) else model


def _plan(console, config: CollectConfig, model, sae, store, ranks) -> None:
    """What it will take, in a line."""
    from scope.cli.progress import size
    from scope.features.collect.plan import plan

    recorded = hasattr(store, "n_rows")
    n_ctx = int(store.tokens.shape[1]) if recorded else int(store.shape[1])
    there = int(store.n_rows) if recorded else store.numel()
    n_tokens = there if config.tokens is None else min(there, config.tokens)
    training = (sae.provenance or {}).get("training") or {}
    l0 = training.get("l0") if isinstance(training.get("l0"), int | float) else None
    found = plan(sae.W_dec.shape[0], sae.W_enc.shape[0], model.cfg.d_vocab, n_tokens, n_ctx, config, l0)
    shared = f", shared by {ranks.world} processes" if ranks.world > 1 else ""
    console.print(
        f"{n_tokens:,} tokens{shared}: at most {size(found.peak)} of memory beside model and dictionary, "
        f"{size(found.building)} of disk while it is built, about {size(found.pack)} for the pack",
        style="dim",
        highlight=False,
    )


def _report(console, pack) -> None:
    """What was found, in a few lines."""
    from rich.markup import escape
    from rich.table import Table

    from scope.escape import visible_token

    table, null = pack.table, pack.manifest["output_score"]
    flagged = {name: int(table["flags"].str.contains(name).sum()) for name in ("dead", "dense", "single-token", "duplicate")}
    told = ", ".join(f"{n:,} {name}" for name, n in flagged.items())
    made = f"{pack.d_sae:,} latents on {pack.n_tokens:,} tokens, L0 {pack.manifest['l0']:.1f}"
    console.print(f"{made}, in {pack.manifest['seconds']:.0f} s: {told}")
    if null.get("null_p95") is not None:
        above, best = int(table["flags"].str.contains("output").sum()), table["out_score"].max()
        console.print(
            f"Output score: {above:,} latents above {null['null_p95']:+.4f}, which 5 % of {null['random']} random "
            f"directions reach; best {best:+.3f}"
        )
    shown = Table("latent", "label", "density", "promotes (weights)", "output score", box=None)
    for i, row in table.sort_values(["out_score", "label_score"], ascending=False, na_position="last").head(8).iterrows():
        words = " ".join(visible_token(t, mark_space=True) for t in row["promotes"][:5])
        shown.add_row(str(i), escape(row["label"]), f"{row['density']:.2%}", escape(words), f"{row['out_score']:+.3f}")
    console.print(shown)
    console.print(f"To browse it: scope app {escape(str(pack.folder))}")
