"""What `scope train` does: find the activations, say what will be trained and what it needs, train, say what came of it."""

from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from scope.cli.reading import Recorded, bytes_to_shuffle, live_provenance, match_recorded, provenance
from scope.errors import ConfigError
from scope.evaluation.overlap import keep, smallest
from scope.sae.base import SAE
from scope.sae.kinds import make_sae
from scope.training.folder import describe
from scope.training.learner import Job
from scope.training.plan import Plan, plan, refuse_what_does_not_fit
from scope.training.ranks import Ranks, join, launched, leave


def run(command) -> None:
    from scope.cli.progress import console, progress_bar
    from scope.training.trainer import train_all

    rank, world, _ = launched()
    _refuse_flags(command, world)
    device = find_device(command.device)
    source = _Source.of(command, device)
    jobs = command.jobs(source.sites, source.widths)
    mode = command.parallel or ("site" if len(jobs) >= world else "data")
    ranks = join(mode, device)
    try:
        mine = ranks.deal(jobs, [config.d_in * config.d_sae for _, config, _ in jobs])
        own = [s for s in source.sites if any(cell.site == s for cell, *_ in mine)]
        how = mine[0][2]
        reading = bytes_to_shuffle(own, source.widths, source.sites, command.shuffle_mb)
        batches = source.batches(own, how, reading)
        split = ranks.world if mode == "width" and ranks.talks else 1
        planned = plan([config for _, config, _ in mine], how.batch_size, min(reading, source.most), device, split)
        if rank == 0:
            console.print(said(planned, [cell.site for cell, *_ in jobs], how, source, ranks), markup=False)
        refuse_what_does_not_fit(planned, device)
        made = []
        for cell, config, how in mine:
            sae = make_sae(config, cell.site)
            sae.provenance = source.provenance(batches, cell.site, how) | {"preset": command.preset}
            made.append(Job(sae.to(device), how, command.out / cell.name if len(jobs) > 1 else command.out))
        boards = _boards(command, made) if ranks.writes else None
        try:
            with progress_bar("Training", unit="steps") if rank == 0 else nullcontext() as on_progress:
                trained = train_all(made, batches, command.out, on_progress, ranks, boards)
        finally:
            if boards:
                boards.close()
        if ranks.writes and (read := source.read()) is not None:
            for job in made:
                keep(job.out, read)
        for job, sae in zip(made, trained, strict=False):
            console.print(summary(job.out, sae))
        for note in source.notes(batches, how):
            console.print(f"[yellow]note:[/] {note}")
    except RuntimeError as error:
        if not ranks.talks or not _lost_another(error):
            raise
        raise ConfigError(
            "Another process of this training ended, so this one had to.\n"
            "  Give the same command to go on from the last checkpoint."
        ) from None
    finally:
        leave()


def _lost_another(error: RuntimeError) -> bool:
    return isinstance(error, torch.distributed.DistError) or "onnection" in str(error)  # gloo's own have no type


def _refuse_flags(command, world: int) -> None:
    if (command.recording is None) == (command.model is None):
        both = "Both a recording and --model are given" if command.recording else "Neither a recording nor a --model is given"
        raise ConfigError(
            f"{both}.\n  Give the folder that `scope harvest` wrote, or --model and --corpus to read from a running model."
        )
    if command.model is not None and (command.corpus is None or command.site is None):
        raise ConfigError("--model needs --corpus, the text that it reads, and --site, where to listen.")
    if command.corpus is not None and command.model is None:
        raise ConfigError("--corpus is the text for a --model; a recording brings its own. Leave it out.")
    if command.shuffle_mb < 1:
        raise ConfigError(f"shuffle_mb is {command.shuffle_mb}; give 1 MiB at least.")
    if command.parallel and world == 1:
        raise ConfigError(
            f"--parallel {command.parallel} divides the work among processes, and this is the only one. Start several:\n"
            f"  torchrun --nproc-per-node 2 -m scope.cli train … --parallel {command.parallel}"
        )


def find_device(name: str) -> torch.device:
    """
    Raises:
        ConfigError: this machine has no such device, or fewer GPUs than processes.
    """
    _, world, local = launched()
    try:
        device = torch.device(f"cuda:{local}" if name == "cuda" and world > 1 else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch says either of a device that is not there
        raise ConfigError(f"Device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@dataclass
class _Source:
    """Where activations come from: a recording, or a model with a corpus."""

    sites: list[str]
    widths: dict[str, int]
    most: int
    """Bytes that can be held for shuffling at all."""

    store: Any = None
    model: Any = None
    corpus: Any = None
    live: Any = None
    name: str = ""
    opened: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, command, device: torch.device) -> "_Source":
        if command.recording is not None:
            from scope.activations.format.hdf5 import ITEM_BYTES
            from scope.activations.read.store import ActivationStore

            store = ActivationStore.open(command.recording)
            sites = match_recorded(command.site, list(store.sites), str(command.recording))
            whole = store.n_rows * sum(store.sites[s] for s in sites) * ITEM_BYTES[store.dtype]
            return cls(sites, dict(store.sites), whole, store, name=str(command.recording))
        from scope.activations.config import LiveConfig
        from scope.activations.corpus.sources import open_corpus
        from scope.activations.harvest.harvest import match_sites
        from scope.models.load import load_model

        corpus = open_corpus(command.corpus, command.text_field)
        model = load_model(command.model, dtype=command.compute_dtype, device=str(device), revision=command.revision)
        widths = match_sites(command.site.split(","), model.sites())
        live = LiveConfig(**{f.name: getattr(command.live, f.name) for f in fields(command.live)})
        longest = getattr(getattr(model, "cfg", None), "n_ctx", live.context)
        live = replace(live, context=min(live.context, longest))
        return cls(list(widths), widths, 1 << 62, None, model, corpus, live, f"{command.model} reading {corpus.spec}")

    def batches(self, sites: list[str], how, memory: int):
        if self.store is None:
            from scope.activations.read.live import LiveBatches

            args = self.model, self.model.tokenizer, self.corpus, sites, how.batch_size
            return LiveBatches(*args, self.live, how.order, memory)
        if how.batch_size > self.store.n_rows:
            raise ConfigError(
                f"batch_size is {how.batch_size}, and {self.store.folder} holds {self.store.n_rows} rows: a batch would hold "
                f"some of them twice.\n  Give --batch-size {self.store.n_rows} or less, or harvest more --tokens."
            )
        return Recorded(self.store, sites, how.batch_size, how.order, memory)

    def provenance(self, batches, site: str, how) -> dict[str, Any]:
        if self.store is None:
            return live_provenance(self.model, batches, site, how.steps * how.batch_size)
        return provenance(self.store, site)

    def read(self):
        """Hashes of the text that is read, or None where nobody knows it once it was read: from a running model, or a
        recording without token ids."""
        from scope.activations.errors import RecordingError

        try:
            return None if self.store is None else smallest(self.store.tokens, self.store.documents)
        except RecordingError:
            return None

    def notes(self, batches, how) -> list[str]:
        if self.store is None and batches.passes > 1:
            return [f"The corpus was read {batches.passes} times, each in another order; a longer one would teach more."]
        passes = how.steps * how.batch_size / self.store.n_rows if self.store is not None else 0
        return [f"Every activation was seen {passes:.0f} times. A longer recording would teach more."] if passes > 10 else []


def said(planned: Plan, sites: list[str], how, source: _Source, ranks: Ranks) -> str:
    """The plan in one or two sentences."""
    from scope.cli.progress import size

    n, tokens = len(sites), how.steps * how.batch_size
    length = f"{tokens:,} tokens in {how.steps:,} steps of {how.batch_size:,}"
    over = sites[0] if len(set(sites)) == 1 else f"{len(set(sites))} sites"
    many = f"{n} dictionaries over {over}" if n > 1 else f"One dictionary over {over}"
    moments = f"{size(planned.weights)} of weights, {size(planned.optimiser)} of gradients and Adam"
    free = f"; {size(planned.free)} are free" if planned.free is not None else ""
    ways = {
        "data": "each taking a share of every batch",
        "width": "each with a share of all latents",
        "site": "each with its own",
    }
    shared = f" {ranks.world} processes, {ways[ranks.mode]}." if ranks.world > 1 else ""
    mine = f"{planned.parameters:,} parameters" + (" for this process" if ranks.world > 1 else "")
    return (
        f"{many} from {source.name}: {length}.{shared} {mine}: {moments}, "
        f"{size(planned.work)} to compute in, {size(planned.reading)} at most to shuffle{free}."
    )


def summary(out: Path, sae: SAE) -> str:
    """What came of one dictionary, and its notes."""
    from rich.markup import escape

    result = sae.provenance["training"]
    notes = "".join(f"\n[yellow]note:[/] {escape(note)}" for note in result["notes"])
    return (
        f"{escape(str(out))}: {sae.d_sae} latents over {sae.site}, FVU {result['fvu']:.3f} at L0 {result['l0']:.1f}, "
        f"{result['dead']:.1%} dead, {result['tokens']:,} tokens (means over the last tenth of the training){notes}"
    )


def _boards(command, jobs: list[Job]):
    from scope.training.boards import Boards, TensorBoard, Wandb

    boards: list[Any] = [TensorBoard()] if command.tensorboard else []
    if command.wandb:
        boards.append(Wandb(command.wandb, command.out, {job.out: describe(job.sae, job.config) for job in jobs}))
    return Boards(boards) if boards else None
