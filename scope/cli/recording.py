"""`scope recording`: what a recording holds, whether every byte of it is as it was written, and its ways in and out."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from rich.table import Table

    from scope.activations.read.store import ActivationStore


@dataclass(frozen=True)
class Command:
    """Show, verify, repair or convert a recording.

    `show` prints what it was made from and what it holds. `verify` reads every byte against its checksum and names the
    shard, the site and the rows of whatever fails. `repair` moves damaged shards into quarantine/ inside the recording: the
    rest can be read and trained on, and the same `scope harvest` as before makes them again. `convert` writes a recording as
    SAELens' cached activations or as safetensors, and makes a recording of either.
    """

    action: tyro.conf.Positional[Literal["show", "verify", "repair", "convert"]]
    """What to do."""

    recording: tyro.conf.Positional[Path]
    """Folder that `scope harvest` wrote; for convert also a folder of SAELens' cached activations, or of safetensors."""

    out: Path | None = None
    """convert: a new folder."""

    to: Literal["sae-lens", "safetensors"] = "sae-lens"
    """convert: what to make of a recording."""

    site: str | None = None
    """convert to sae-lens: which site. May be left out if the recording holds one only."""

    window: Annotated[int | None, tyro.conf.arg(aliases=["--context"])] = None
    """convert to sae-lens: rows to a window, which SAELens calls context_size."""

    dtype: Literal["bfloat16", "float32"] | None = None
    """convert to a recording: how to store; by default so that nothing is lost."""

    outlier_times: float = 10.0
    """convert to a recording: rows whose norm exceeds this multiple of the site's median are flagged as outliers, stored and
    not trained on. An export's own rule takes precedence. 0: no rule."""

    def run(self) -> None:
        from scope.activations.errors import HolesWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HolesWarning)  # each action says it in its own way
            {"show": self._show, "verify": self._verify, "repair": self._repair, "convert": self._convert}[self.action]()

    def _show(self) -> None:
        from scope.activations.read.store import ActivationStore
        from scope.cli.progress import console, print_note

        store = ActivationStore.open(self.recording)
        console.print(summary(store))
        for text in store.loose_ends:
            print_note(text)

    @property
    def _place(self) -> str:
        """The recording as it was named; a Path eats a slash of an address."""
        from scope.activations.format.remote import address

        return address(self.recording) or str(self.recording)

    def _verify(self) -> None:
        from scope.activations.errors import RecordingError
        from scope.activations.harvest.repair import examine
        from scope.cli.progress import console, print_note, progress_bar

        with progress_bar("Verifying", unit="bytes") as on_progress:
            found = examine(self.recording, on_progress)
        for note in found.notes:
            print_note(note)
        for hole in found.quarantined:
            print_note(f"shard {hole.shard}, rows {_span(hole.rows)}, is in quarantine: {hole.why[0]}")
        if found.damaged:
            faults = [fault.text for damage in found.damaged for fault in damage.faults]
            lost = "\n".join(
                f"  shard {d.shard} ({d.file}) holds rows {_span(d.rows)}: {_counted(len(d.faults), 'fault')}"
                for d in found.damaged
            )
            raise RecordingError(
                "\n  ".join([f"{_counted(len(faults), 'fault')} in {self._place}:", *faults[:40]])
                + (f"\n  and {len(faults) - 40} more" if len(faults) > 40 else "")
                + f"\n{lost}\n  "
                + ("" if self._place == str(self.recording) else "Copied into a folder it can be repaired: ")
                + f"`scope recording repair {self.recording.name if '://' in self._place else self.recording}` moves "
                f"{_counted(len(found.damaged), 'shard')} aside; the rest can then be read."
            )
        if not found.shards:
            console.print(
                f"{self._place}: no shard is finished yet, so there is nothing to verify. `scope harvest` goes on with it."
            )
            return
        console.print(f"{self._place}: {_counted(found.shards, 'shard')}, {found.rows:,} rows, all as they were written.")

    def _repair(self) -> None:
        from scope.activations.harvest.repair import examine, repair
        from scope.cli.progress import console, progress_bar

        with progress_bar("Repairing", unit="bytes") as on_progress:
            moved = repair(self.recording, on_progress)
        for damage in moved:
            where = f"moved to {damage.moved}" if damage.moved else "there was no file to move"
            console.print(f"shard {damage.shard}, rows {_span(damage.rows)}: {where}")
            for fault in damage.faults:
                console.print(f"  {fault.text}", style="dim")
        found = examine(self.recording) if moved else None
        if found is None:
            console.print(f"{self._place}: nothing is damaged, nothing was moved.")
        else:
            console.print(
                f"{self._place}: {found.rows:,} rows in {_counted(found.shards, 'shard')} can be read, numbered without the "
                f"{_counted(len(found.quarantined), 'shard')} in quarantine.\n"
                "  To make what is missing again, give the same `scope harvest` as before."
            )

    def _convert(self) -> None:
        from scope.activations.read.from_other_libraries import import_activations
        from scope.activations.read.store import ActivationStore
        from scope.activations.read.to_other_libraries import to_sae_lens, to_safetensors
        from scope.cli.progress import console, print_note, progress_bar
        from scope.errors import ConfigError
        from scope.progress import size

        if self.out is None:
            raise ConfigError("convert writes a new folder: say which with --out.")
        if self._place == str(self.recording) and not (self.recording / "manifest.json").is_file():
            with progress_bar("Importing", unit="rows") as on_progress:
                store = import_activations(self.recording, self.out, self.dtype, on_progress, self.outlier_times)
            console.print(summary(store))
            return
        store = ActivationStore.open(self.recording)
        if store.holes:
            print_note(store.holes)
        with progress_bar("Exporting", unit="rows") as on_progress:
            if self.to == "safetensors":
                made = to_safetensors(store, self.out, on_progress)
            else:
                made = to_sae_lens(store, self._one_site(store), self.out, self.window, on_progress)
        console.print(f"{made.folder}: {made.rows:,} rows, {size(made.nbytes)} in {_counted(made.files, 'file')}.")
        for site in store.sites if self.to == "sae-lens" else ():
            if self.site in (None, site) and (n := store.n_outliers(site)):
                print_note(f"{_counted(n, 'row')} of them are outliers by the rule; SAELens will train on them.")
        if made.window:
            console.print(f"  For SAELens: cached_activations_path={str(made.folder)!r}, context_size={made.window}")
        if made.left_over:
            print_note(f"the last {_counted(made.left_over, 'row')} fill no window of {made.window}: left out.")

    def _one_site(self, store: "ActivationStore") -> str:
        from scope.errors import ConfigError

        if self.site is None and len(store.sites) > 1:
            raise ConfigError(f"SAELens caches one site: say which with --site. {store.place} holds {', '.join(store.sites)}.")
        return self.site or next(iter(store.sites))


def summary(store: "ActivationStore") -> "Table":
    """What a recording holds, on one screen."""
    from rich.table import Table
    from rich.text import Text

    from scope.progress import size

    manifest = store.manifest
    table = Table(title=store.place, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    model = manifest.model
    weights = f"  weights {str(model['weights_sha256'])[:12]}" if model.get("weights_sha256") else ""
    computed = f"  in {model['dtype']}" if model.get("dtype") else ""
    table.add_row("model", f"{model.get('model') or 'unknown'}{weights}{computed}")
    if manifest.imported:
        table.add_row("imported", f"from {manifest.imported['from']}; unknown: {', '.join(manifest.unknown) or 'nothing'}")
        table.add_row("rows", f"{store.n_rows:,}")
        _outlier_row(table, store)
    else:
        table.add_row(
            "corpus", ", ".join(f"{k} {_short(v)}" for k, v in manifest.corpus.items()) + f", order seed {manifest.config.seed}"
        )
        _text_rows(table, store)
    if store.left_out:
        lost = sum(hole.rows[1] - hole.rows[0] for hole in store.left_out)
        shards = ", ".join(str(hole.shard) for hole in store.left_out)
        noun = "shard" if len(store.left_out) == 1 else "shards"
        table.add_row(
            Text("missing", "yellow"), f"{lost:,} rows of {noun} {shards}, in quarantine; `scope harvest` makes them again"
        )
    table.add_row(
        "size", f"{size(sum(e.bytes for e in store.entries))} in {_counted(len(store.entries), 'shard')}, {store.dtype}"
    )
    for site, width in store.sites.items():
        norms, rule = store.norms(site), store.outlier_rule
        above = f"; {_counted(store.n_outliers(site), 'outlier')} above {rule.threshold.get(site) or 0:.4g}" if rule else ""
        table.add_row(
            site,
            f"width {width}; norm: median {norms.median:.4g}, root mean square {norms.mean_square**0.5:.4g}, "
            f"largest {norms.max:.4g}{above}",
        )
        for kind, rows in store.by_kind(site).items():
            table.add_row(
                "",
                f"{rows.rows:,} {kind} rows: median {rows.norms.median:.4g}, largest {rows.norms.max:.4g}; "
                f"{_counted(rows.outliers, 'outlier')}",
            )
    return table


def _text_rows(table: "Table", store: "ActivationStore") -> None:
    from rich.text import Text

    config, tokens = store.manifest.config, store.n_contexts * store.context
    short = int((store.reader(len(store.entries) - 1).small("documents") < 0).sum())  # only a last context is padded
    table.add_row(
        "tokens",
        f"{tokens:,} in {_counted(store.n_contexts, 'context')} of {store.context}, "
        f"{_counted(store.journal[-1].documents[1], 'document')}",
    )
    whole = store.journal[-1].contexts[1] * store.context
    if whole < config.tokens:
        why = "the corpus ended there" if store.exhausted else "the same `scope harvest` records the rest"
        table.add_row(
            Text("unfinished", "yellow") if not store.exhausted else "ended", f"{config.tokens:,} were asked for; {why}"
        )
    table.add_row(
        "rows",
        f"{store.n_rows:,}; left out: {tokens - store.n_rows:,} by {', '.join(config.exclude) or 'no rule'} "
        f"({short:,} padding)",
    )
    _outlier_row(table, store)
    dropped = store.journal[-1].cursor.dropped if store.journal[-1].cursor else 0
    if replaced := store.manifest.replacement_characters:
        table.add_row("no UTF-8", f"{replaced:,} characters U+FFFD in the text")
    if skipped := store.manifest.skipped_documents:
        named = [n for n, facts in zip(store.document_names, store.document_facts, strict=True) if "skipped" in facts]
        some = ", ".join(named[:5]) + (f" and {len(named) - 5:,} more" if len(named) > 5 else "")
        table.add_row(Text("skipped", "yellow"), f"{_counted(skipped, 'document')} that could not be used: {some}")
    if dropped:
        table.add_row("dropped", f"{dropped:,} <bos> or <pad> that the text itself contained")


def _outlier_row(table: "Table", store: "ActivationStore") -> None:
    if rule := store.outlier_rule:
        table.add_row(
            "outliers",
            f"{rule.rule}; times {rule.times:g}, sample of {rule.sample['rows']:,} rows: flagged and stored, left out "
            "of shuffled reading",
        )


def _span(rows) -> str:
    return f"{rows[0]:,} to {rows[1] - 1:,}"


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + "s" * (n != 1)


def _short(value) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k} {_short(v)}" for k, v in value.items()) + ")"
    text = str(value)
    return text[:12] if len(text) == 64 else text
