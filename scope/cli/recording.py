"""`scope recording`: what a recording holds, and whether every byte of it is as it was written."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from rich.table import Table

    from activations.store import ActivationStore


@dataclass(frozen=True)
class Command:
    """Show or verify a recording.

    `show` prints what it was made from and what it holds. `verify` reads every byte against its checksum and names the shard,
    the site and the rows of whatever fails.
    """

    action: tyro.conf.Positional[Literal["show", "verify"]]
    """What to do."""

    recording: tyro.conf.Positional[Path]
    """Folder that `scope harvest` wrote."""

    def run(self) -> None:
        from activations.errors import RecordingError
        from activations.store import ActivationStore
        from scope.cli.progress import console, progress_bar

        if self.action == "show":
            console.print(summary(ActivationStore.open(self.recording)))
            return
        store = ActivationStore.open(self.recording, whole=False)
        with progress_bar("Verifying", unit="bytes") as on_progress:
            faults = store.verify(on_progress)
        if faults:
            raise RecordingError("\n  ".join([f"{_counted(len(faults), 'fault')} in {self.recording}:", *faults]))
        console.print(
            f"{self.recording}: {_counted(len(store.entries), 'shard')}, {store.n_rows:,} rows, all as they were written."
        )


def summary(store: "ActivationStore") -> "Table":
    """What a recording holds, on one screen."""
    from rich.table import Table

    from activations.shards import size

    manifest, config = store.manifest, store.manifest["config"]
    corpus = manifest["corpus"]
    short = len(store.tokens) and int((store.documents < 0).sum())
    table = Table(title=str(store.folder), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    model = manifest["model"]
    table.add_row("model", f"{model.get('model')}  weights {str(model.get('weights_sha256'))[:12]}  in {model.get('dtype')}")
    table.add_row("corpus", ", ".join(f"{k} {_short(v)}" for k, v in corpus.items()) + f", order seed {config['seed']}")
    table.add_row(
        "tokens",
        f"{store.tokens.size:,} in {store.n_contexts:,} contexts of {store.context}, {len(store.document_names):,} documents",
    )
    left_out = store.tokens.size - store.n_rows
    table.add_row(
        "rows", f"{store.n_rows:,}; left out: {left_out:,} by {', '.join(config['exclude']) or 'no rule'} ({short:,} padding)"
    )
    dropped = store.entries[-1]["cursor"]["dropped"]
    if dropped:
        table.add_row("dropped", f"{dropped:,} <bos> or <pad> that the text itself contained")
    table.add_row(
        "size", f"{size(sum(e['bytes'] for e in store.entries))} in {_counted(len(store.entries), 'shard')}, {store.dtype}"
    )
    for site, width in store.sites.items():
        norms, sinks = store.norms(site), len(store.sinks(site))
        table.add_row(
            site,
            f"width {width}; norm: median {norms.median:.4g}, root mean square {norms.mean_square**0.5:.4g}, "
            f"largest {norms.max:.4g}; {sinks:,} rows above 10 medians",
        )
    return table


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + "s" * (n != 1)


def _short(value) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k} {_short(v)}" for k, v in value.items()) + ")"
    text = str(value)
    return text[:12] if len(text) == 64 else text
