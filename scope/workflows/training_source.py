"""The source of a training's activations: a recording, or a model with a corpus."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scope.activations.config import LiveConfig
from scope.activations.corpus.roles import QUERIES, KindOfRows, left_out_by
from scope.errors import ConfigError
from scope.sites import match_sites
from scope.training.config import TrainConfig


def bytes_to_shuffle(sites: Sequence[str], widths: Mapping[str, int], every: Sequence[str], megabytes: int) -> int:
    """Memory for the rows of some sites such that their order is that of the widest site read alone with `megabytes`.

    The order depends on how many rows are held, so sites of one width come in the order in which each would come alone.
    """
    return (megabytes << 20) * sum(widths[s] for s in sites) // max(widths[s] for s in every)


@dataclass
class Source:
    """Where activations come from: a recording, or a model with a corpus."""

    sites: list[str]
    widths: dict[str, int]
    most: int
    """Bytes that can be held for shuffling at all."""

    store: Any = None
    model: Any = None
    corpus: Any = None
    live: Any = None
    maker: Any = None
    """Turns documents into contexts for a running model."""
    text_from: dict[str, Any] = field(default_factory=dict)
    """Where the text lies (`scope.sae.claims.TextFrom`)."""
    name: str = ""
    rows: KindOfRows = "all"
    """Which rows are read."""

    @classmethod
    def of(cls, command: Any) -> "Source":
        if command.recording is not None:
            from scope.activations.format.hdf5 import ITEM_BYTES
            from scope.activations.read.store import ActivationStore

            store = ActivationStore.open(command.recording)
            sites, where = list(store.sites), str(command.recording)
            if command.site is None and len(sites) > 1:
                raise ConfigError(f"{where} holds several sites; say which with --site.\n  It has: {', '.join(sites)}")
            sites = sites if command.site is None else match_sites(command.site, sites, where)
            whole = store.n_rows * sum(store.sites[s] for s in sites) * ITEM_BYTES[store.dtype]
            about = {"recording": _place(command.recording), **_fim(store.manifest.tokenizer)}
            about |= {"queries": True} if store.manifest.tokenizer.get("rows") == QUERIES else {}
            where += "" if command.rows == "all" else f", {command.rows} rows"
            return cls(sites, dict(store.sites), whole, store, name=where, text_from=about, rows=command.rows)
        from scope.workflows.text import corpus_for, inputs_for, reads_pictures

        model = command.load_model(pictures=True)
        known = model.sites()
        sites = match_sites(command.site, known)
        corpus = corpus_for(model, command.corpus, sites, command.text_field, command.pictures)
        inputs = inputs_for(model, sites, command.pictures, command.fim, command.fim_seed)
        if reads_pictures(model):
            context = None if command.live.context == LiveConfig().context else command.live.context
            exclude = (*command.live.exclude, *left_out_by(command.rows))
            live = replace(command.live, context=inputs.context_for(context), exclude=exclude)
        elif command.rows == "image":
            raise ConfigError(f"{command.model} reads text: it has no rows of image patches. Leave out --rows image.")
        else:
            live = replace(command.live, context=min(command.live.context, model.cfg.n_ctx))
        name = f"{command.model} reading {corpus.spec}" + (f" as infilling examples ({command.fim})" if command.fim else "")
        about = {"corpus": _place(command.corpus), "text_field": command.text_field}
        about |= _fim({"fim": command.fim, "fim_seed": command.fim_seed}) if command.fim else {}
        about |= {"prompt": command.pictures.prompt} if reads_pictures(model) else {}
        about |= {"queries": True} if command.pictures.queries else {}
        widths = {s: known[s] for s in sites}
        return cls(sites, widths, 1 << 62, None, model, corpus, live, inputs, about, name, command.rows)

    def batches(self, sites: list[str], training: TrainConfig, memory: int) -> Any:
        if self.store is None:
            from scope.activations.read.live import LiveBatches

            args = self.model, self.maker, self.corpus, sites, training.batch_size
            return LiveBatches(*args, self.live, training.order, memory)
        if training.batch_size > self.store.n_rows:
            raise ConfigError(
                f"batch_size is {training.batch_size}, and {self.store.folder} holds {self.store.n_rows} rows: a batch would "
                f"hold some of them twice.\n  Give --batch-size {self.store.n_rows} or less, or harvest more --tokens."
            )
        return RecordedBatches(self.store, sites, training.batch_size, training.order, memory, self.rows)

    def provenance(self, batches: Any, site: str, training: TrainConfig) -> dict[str, Any]:
        if self.store is None:
            provenance = live_provenance(self.model, batches, site, training.steps * training.batch_size)
        else:
            provenance = recorded_provenance(self.store, site)
        if self.rows != "all":
            provenance["recording"] |= {"rows": self.rows}
        return provenance | {"text_from": self.text_from}

    def text_read(self) -> Any:
        """Hashes of the text that is read; None where it is not known afterwards: from a running model, or a recording without
        token ids."""
        from scope.activations.errors import RecordingError
        from scope.evaluation.overlap import smallest

        try:
            return None if self.store is None else smallest(self.store.tokens, self.store.documents)
        except RecordingError:
            return None

    def notes(self, batches: Any, training: TrainConfig) -> list[str]:
        if self.store is None and batches.whole_corpus is not None:
            times = training.steps * training.batch_size / batches.whole_corpus
            return [
                f"The corpus has {batches.whole_corpus:,} activations, fewer than the shuffle buffer takes: all were held, and "
                f"each was seen {times:,.0f} times. A longer corpus would teach more."
            ]
        if self.store is None and batches.passes > 1:
            return [f"The corpus was read {batches.passes} times, each in another order; a longer one would teach more."]
        if self.store is None:
            return []
        passes = training.steps * training.batch_size / batches.n_rows
        notes = [f"Every activation was seen {passes:.0f} times. A longer recording would teach more."] if passes > 10 else []
        kinds = self.store.by_kind(batches.sites[0])
        read = sum(kind.rows for name, kind in kinds.items() if self.rows in ("all", name)) if kinds else self.store.n_rows
        if read > batches.n_rows:
            notes.append(
                f"{read - batches.n_rows:,} of {read:,} rows are outliers by the recording's rule (norm above "
                f"{self.store.outlier_rule.times:g} x the median): not trained on, and FVU is that of the others."
            )
        if len(kinds) > 1 and self.rows == "all":
            apart = " and ".join(f"{kind.norms.median:.3g} of {kind.rows:,} {name} rows" for name, kind in kinds.items())
            notes.append(
                f"Image and text rows were trained on together, with one scale: their median norms are {apart}. "
                "--rows image or --rows text trains on one kind."
            )
        return notes


class RecordedBatches:
    """Batches of a recording that know where their rows lie."""

    def __init__(
        self, store: Any, sites: Sequence[str], batch_size: int, seed: int, memory_bytes: int, rows: KindOfRows = "all"
    ):
        self.store, self.sites = store, tuple(sites)
        one_or_many = self.sites if len(sites) > 1 else sites[0]
        self.batches = store.shuffled(one_or_many, batch_size, seed, memory_bytes=memory_bytes, kind=rows)

    @property
    def left_out(self) -> int:
        """Rows that the recording's rule flags as outliers, and those of another kind."""
        return self.batches.left_out

    @property
    def n_rows(self) -> int:
        """Rows of a pass."""
        return self.batches.n_rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches.load_state_dict(state)

    def where(self, row: int, n: int) -> str:
        """In words, what row `row` of the last batch, of n, is: its number in the recording and its shard."""
        epoch, at = divmod(self.batches.row - n + row, self.batches.n_rows)
        for rows in self.batches.order(epoch):
            if at < len(rows):
                number = int(rows[at])
                entry = next(e for e in self.store.entries if number < e.rows[1])
                return f"row {number:,} of the recording, row {number - entry.rows[0]:,} of its shard {entry.file}"
            at -= len(rows)
        return "a row of the recording"


def _place(name: str | Path) -> str:
    """The whole path of what is a file or a folder; a name or an address as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else str(name)


def _fim(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("fim", "fim_seed") if name in settings}


def recorded_provenance(store: Any, site: str) -> dict[str, Any]:
    """Where the activations of a dictionary come from: the model, the recording, the site."""
    manifest = store.manifest.to_json()
    recording = {"corpus": manifest["corpus"], "config": manifest["config"], "tokens": store.n_rows}
    recording |= {key: manifest[key] for key in ("left_out", "imported") if key in manifest}
    return {"model": manifest["model"], "site": site, "recording": recording}


def live_provenance(model: Any, batches: Any, site: str, tokens: int) -> dict[str, Any]:
    """The same of a model that runs beside the training."""
    config = asdict(batches.config) | {
        "exclude": list(batches.config.exclude),
        "seed": batches.seed,
        "sites": list(batches.sites),
        "contexts_held": batches.contexts,
    }
    recording = {"corpus": batches.corpus.identity, "config": config, "tokens": tokens, "stored": False, **batches.fim}
    return {"model": model.provenance, "site": site, "recording": recording}
