"""`scope train`: a recording in, a dictionary out."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from scope.sae.jumprelu import JumpReLUConfig
from scope.training.config import TrainConfig


@dataclass(frozen=True)
class Command:
    """Train a JumpReLU dictionary on a recording.

    Activations are scaled to a mean square norm of 1 and the scale is folded back on saving, so the dictionary reads
    activations as the model makes them. The folder it writes is SAELens' layout with a scope.json beside it. Stopped
    with Ctrl-C, SIGTERM or worse, the same command continues and ends in the same weights.
    """

    recording: tyro.conf.Positional[Path]
    """Folder that `scope harvest` wrote."""

    out: Path
    """Folder for the dictionary, its log and its checkpoint."""

    site: str | None = None
    """Where to read, e.g. blocks.2.hook_resid_post. May be left out if the recording holds one site only."""

    sae: Annotated[JumpReLUConfig, tyro.conf.arg(name="")] = field(default_factory=JumpReLUConfig)

    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)

    def run(self) -> None:
        from activations.store import ActivationStore
        from scope.cli.progress import console, progress_bar
        from scope.errors import ConfigError
        from scope.sae.kinds import make_sae
        from scope.training.trainer import train

        store = ActivationStore.open(self.recording)
        sites = list(store.sites)
        site = self.site or (sites[0] if len(sites) == 1 else None)
        if site not in sites:
            wrong = f"holds no activations of {site}" if site else "holds several sites; say which with --site"
            raise ConfigError(f"{self.recording} {wrong}.\n  It holds: {', '.join(sites)}")
        width = store.sites[site]
        if self.sae.d_in not in (0, width):
            raise ConfigError(f"d_in is {self.sae.d_in}, and {site} in {self.recording} is {width} wide. Leave --d-in out.")
        if self.train.batch_size > store.n_rows:
            raise ConfigError(
                f"batch_size is {self.train.batch_size}, and {self.recording} holds {store.n_rows} rows: a batch would hold "
                f"some of them twice.\n  Give --batch-size {store.n_rows} or less, or harvest more --tokens."
            )
        sae = make_sae(replace(self.sae, d_in=width), site)
        sae.provenance = provenance(store, site)
        batches = store.shuffled(site, self.train.batch_size, self.train.seed)
        with progress_bar("Training", unit="steps") as on_progress:
            trained = train(sae, batches, self.train, self.out, on_progress)
        result = trained.provenance["training"]
        console.print(
            f"{self.out}: {trained.d_sae} latents over {site}, FVU {result['fvu']:.3f} at L0 {result['l0']:.1f}, "
            f"{result['dead']:.1%} dead, {result['tokens']:,} tokens (means over the last tenth of the training)"
        )
        for note in result["notes"]:
            console.print(f"[yellow]note:[/] {note}")


def provenance(store, site: str) -> dict:
    """Where the activations of a dictionary come from: the model, the recording, the site."""
    manifest = store.manifest
    return {
        "model": manifest.get("model") or manifest.get("provenance") or {},
        "site": site,
        "recording": {"corpus": manifest.get("corpus"), "config": manifest.get("config"), "tokens": store.n_rows},
    }
