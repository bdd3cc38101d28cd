"""`scope.train`: a recording or a running model in, one dictionary or many out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal

from scope.activations.config import LiveConfig
from scope.activations.corpus.roles import KindOfRows
from scope.device import find_device
from scope.errors import ConfigError
from scope.progress import OnProgress
from scope.sae.kinds import KINDS
from scope.training.config import TrainConfig
from scope.training.grid import SWEPT, Cell, cells
from scope.training.presets import PRESETS, resolve
from scope.workflows.notes import OnNote, silent
from scope.workflows.settings import ModelPlace, from_settings
from scope.workflows.text import PictureSettings
from scope.workflows.training_source import Source, bytes_to_shuffle

TRAINABLE = tuple(name for name, kind in KINDS.items() if kind.trainable)


@dataclass(frozen=True, kw_only=True)
class Train(ModelPlace):
    """What to train, on which activations. Each field is also a flag of `scope train`; `config_for` adds the fields of the
    kind's config, of `TrainConfig` and of `LiveConfig`."""

    recording: Path | None = None
    """Folder that `scope harvest` wrote; or leave it out and give --model and --corpus."""

    out: Path = Path("runs/dictionary")
    """Folder for the dictionary (of several: for their folders), its log and its checkpoint."""

    site: str | None = None
    """Where to read, e.g. blocks.2.hook_resid_post; with commas, 'blocks.*.hook_resid_post' or all: several. May be left out
    if the recording holds one site only."""

    kind: Literal[TRAINABLE] = "jumprelu"  # type: ignore[valid-type]
    """Kind of dictionary. --help lists the flags of the one that is given."""

    rows: KindOfRows = "all"
    """Which rows to train on, where there are rows of image patches and of text: all, image, or text. They differ in norm, so a
    scale that fits one kind need not fit the other."""

    preset: Literal[tuple(PRESETS)] = "small-budget"  # type: ignore[valid-type]
    """Recipe: small-budget converges in a few million tokens, gemma-scope is the paper's, gemma-scope-2 its successor's. Flags
    go before it."""

    tokens: int | None = None
    """Activations to train on, e.g. 20M, instead of --steps; with neither, the preset says."""

    model: str | None = None
    """Read from this model while it runs, nothing stored: bundled, a checkpoint's folder, or a hub id."""

    corpus: str | None = None
    """The text that the model reads: a file, a folder, docs, docs:numpy,torch, bundled, or a hub id owner/name[:split]."""

    text_field: str = "text"
    """JSONL field or column that holds the text."""

    fim: str | None = None
    """With --model: read documents as infilling examples, as in psm:0.45,spm:0.45; see `scope harvest --help`."""

    fim_seed: int = 0
    """Random seed for where documents are cut with --fim."""

    compute_dtype: str = "auto"
    """What the model computes in: auto (bfloat16 on cuda, else float32), float32, bfloat16 or float16. --dtype is what is held
    for shuffling."""

    pictures: PictureSettings = field(default_factory=PictureSettings)

    shuffle_mb: int = 512
    """MiB of one site's activations that are held for shuffling; several sites take as many times that."""

    parallel: Literal["data", "site", "width"] | None = None
    """Under torchrun: data, each process takes a share of every batch; site, each takes some of the dictionaries; width, each
    holds a share of every dictionary's latents. By default site where there are enough dictionaries, else data."""

    tensorboard: bool = False
    """Also write for TensorBoard, into tensorboard/ in each dictionary's folder."""

    wandb: str | None = None
    """Also log to this project of Weights & Biases (offline with WANDB_MODE=offline)."""


def train(
    config: Any = None,
    *rest: Any,
    on_progress: OnProgress | None = None,
    on_note: OnNote = silent,
    on_plan: OnNote = silent,
    **settings: Any,
) -> Any:
    """Train dictionaries; returns the SAE, or of several a dict from the name of each to its SAE.

    `scope.train("runs/recording", out="runs/sae", d_sae=4096, target_l0=[32, 64])` says what `scope train` says with flags:
    the first argument is the recording (or a config from `config_for`); settings that may be swept (width, target, seed, rate)
    take lists, and every combination is trained in one pass. Stopped, the same call continues and ends in the same weights.

    `scope.train(sae, batches, config, out)` trains an SAE made by hand on batches made by hand; see
    `scope.training.trainer.train`.

    `on_plan` is called with what will be trained and the memory it needs, in words; `on_note` with remarks on the outcome.

    Raises:
        ConfigError: a setting that cannot be, a folder that holds something else, too little memory; activations that are not
            finite, with their place.
        UnknownSite: the recording or the model has no such site.
    """
    from scope.sae.base import SAE

    if isinstance(config, SAE):
        from scope.training.trainer import train as train_one

        return train_one(config, *rest, on_progress=on_progress, **settings)
    if rest:
        raise ConfigError("Only the recording is given without a name; name the other settings, as in out='runs/sae'.")
    if not isinstance(config, Train):
        settings = settings if config is None else {"recording": config, **settings}
        config = from_settings(config_for(settings), settings)
    elif settings:
        raise ConfigError(f"Give a config or keywords, not both: {', '.join(settings)}.")
    return _run(config, on_progress, on_note, on_plan)


def config_for(settings: Mapping[str, Any]) -> type[Train]:
    """`Train` with the fields of the kind that `settings` name, whose defaults are those of the preset at its size. Fields in
    `SWEPT` hold tuples of values.

    Raises:
        ConfigError: the preset is not one for that kind; steps and tokens are both given; a setting of another kind.
    """
    kind, preset = settings.get("kind", "jumprelu"), settings.get("preset", "small-budget")
    kind = kind if kind in TRAINABLE else "jumprelu"  # the config refuses the others
    sizes = {name: _greatest(settings.get(name)) for name in ("d_sae", "tokens", "steps", "batch_size")}
    if sizes["steps"] and sizes["tokens"]:
        raise ConfigError("steps and tokens both say how long to train. Give one of them: --steps or --tokens.")
    config = KINDS[kind].config
    d_sae = sizes["d_sae"] or next(f.default for f in fields(config) if f.name == "d_sae")
    preset = preset if preset in PRESETS else "small-budget"
    training, dictionary = resolve(preset, kind, d_sae, sizes["tokens"], sizes["steps"], sizes["batch_size"])
    _refuse_settings_of_other_kinds(settings, kind)
    parts = {
        "sae": _swept("Sae", config, dictionary),
        "train": _swept("Train", TrainConfig, training),
        "live": LiveConfig,
    }
    added = [(name, part, field(default_factory=part)) for name, part in parts.items()]
    return make_dataclass("TrainKind", added, bases=(Train,), frozen=True, kw_only=True, namespace={"__doc__": Train.__doc__})


def _swept(name: str, config: type, values: Mapping[str, Any]) -> type:
    """The fields of a config with other defaults; those that may be swept hold tuples."""
    made: list[Any] = []
    for f in fields(config):
        default = values.get(f.name, f.default)
        assert default is not MISSING, f.name
        kind, default = (tuple[f.type, ...], (default,)) if f.name in SWEPT else (f.type, default)  # type: ignore[name-defined]
        made.append((f.name, kind, field(default=default, metadata={"of": config})))
    return make_dataclass(name, made, frozen=True, kw_only=True)


def _greatest(value: Any) -> int | None:
    """The greatest of the numbers that a setting gives; None where the config will refuse it."""
    several = value if isinstance(value, list | tuple) else () if value is None else (value,)
    try:
        return max((int(v) for v in several), default=None)
    except (TypeError, ValueError):
        return None


def _refuse_settings_of_other_kinds(settings: Mapping[str, Any], kind: str) -> None:
    own = {f.name for f in fields(KINDS[kind].config)}
    for name in settings:
        others = [k for k in TRAINABLE if any(f.name == name for f in fields(KINDS[k].config))]
        if name not in own and others:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{flag} is a flag of {', '.join(others)}, and this is {kind}. Give --kind {others[0]}, or leave it out.\n"
                f"  `scope train --kind {kind} --help` lists the flags of {kind}."
            )


def jobs(config: Any, sites: Sequence[str], widths: Mapping[str, int]) -> list[tuple[Cell, Any, TrainConfig]]:
    """Every combination: its site and name, the dictionary's config, and how it is trained.

    Raises:
        ConfigError: a setting that cannot be, or one value given twice.
    """
    values = {name: given for part in (config.sae, config.train) for name in SWEPT if (given := getattr(part, name, None))}
    for name, given in values.items():
        if len(set(given)) < len(given):
            raise ConfigError(
                f"{name} has the same value twice: {', '.join(map(str, given))}. Each combination is trained once."
            )
    order = config.train.seed[0] if config.train.order_seed is None else config.train.order_seed
    combinations = []
    for cell in cells(sites, values):
        width = widths[cell.site]
        if config.sae.d_in not in (0, width):
            raise ConfigError(f"d_in is {config.sae.d_in}, and {cell.site} is {width} wide. Leave --d-in out.")
        dictionary = {f.name: getattr(config.sae, f.name) for f in fields(config.sae)}
        dictionary |= {k: v for k, v in cell.values.items() if k in dictionary} | {"d_in": width}
        training = {f.name: getattr(config.train, f.name) for f in fields(config.train)}
        training |= {k: v for k, v in cell.values.items() if k in training} | {"order_seed": order}
        combinations.append((cell, KINDS[config.kind].config(**dictionary), TrainConfig(**training)))
    return combinations


def _run(command: Any, on_progress: OnProgress | None, on_note: OnNote, on_plan: OnNote) -> Any:
    import torch

    from scope.evaluation.overlap import save_hashes
    from scope.sae.kinds import make_sae
    from scope.training.learner import Job
    from scope.training.plan import plan, refuse_what_does_not_fit
    from scope.training.processes import join, launched, leave
    from scope.training.trainer import train_all

    rank, world, _ = launched()
    _refuse_settings(command, world)
    device = find_device(command.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    source = Source.of(command)
    wanted = jobs(command, source.sites, source.widths)
    ranks = join(command.parallel or ("site" if len(wanted) >= world else "data"), device)
    try:
        mine = ranks.deal(wanted, [sae.d_in * sae.d_sae for _, sae, _ in wanted])
        own = [s for s in source.sites if any(cell.site == s for cell, *_ in mine)]
        training = mine[0][2]
        reading = bytes_to_shuffle(own, source.widths, source.sites, command.shuffle_mb)
        batches = source.batches(own, training, reading)
        split = ranks.world if ranks.mode == "width" and ranks.talks else 1
        planned = plan([sae for _, sae, _ in mine], training.batch_size, min(reading, source.most), device, split)
        if rank == 0:
            on_plan(_in_words(planned, [cell.site for cell, *_ in wanted], training, source, ranks))
        refuse_what_does_not_fit(planned, device)
        made = []
        for cell, config, how in mine:
            sae = make_sae(config, cell.site)
            sae.provenance = source.provenance(batches, cell.site, how) | {"preset": command.preset}
            made.append(Job(sae.to(device), how, command.out / cell.name if len(wanted) > 1 else command.out))
        with _boards(command, made if ranks.writes else []) as boards:
            trained = train_all(made, batches, command.out, on_progress, ranks, boards)
        if ranks.writes and (text := source.text_read()) is not None:
            for job in made:
                save_hashes(job.out, text)
        for note in source.notes(batches, training):
            on_note(note)
    except RuntimeError as error:
        # A failure of gloo has no type of its own.
        if not ranks.talks or not (isinstance(error, torch.distributed.DistError) or "onnection" in str(error)):
            raise
        raise ConfigError(
            "Another process of this training ended, so this one had to.\n"
            "  Give the same command to go on from the last checkpoint."
        ) from None
    finally:
        leave()
    if len(wanted) == 1:
        return trained[0] if trained else None
    return {job.out.name: sae for job, sae in zip(made, trained, strict=False)}


def _refuse_settings(command: Any, world: int) -> None:
    if (command.recording is None) == (command.model is None):
        both = "Both a recording and --model are given" if command.recording else "Neither a recording nor a --model is given"
        raise ConfigError(
            f"{both}.\n  Give the folder that `scope harvest` wrote, or --model and --corpus to read from a running model."
        )
    if command.model is not None and (command.corpus is None or command.site is None):
        raise ConfigError("--model needs --corpus, the text that it reads, and --site, where to listen.")
    if command.corpus is not None and command.model is None:
        raise ConfigError("--corpus is the text for a --model; a recording brings its own. Leave it out.")
    if command.fim is not None and command.model is None:
        raise ConfigError("--fim is for a --model; a recording has the form in which `scope harvest --fim` made it.")
    if command.shuffle_mb < 1:
        raise ConfigError(f"shuffle_mb is {command.shuffle_mb}; give 1 MiB at least.")
    if command.parallel and world == 1:
        raise ConfigError(
            f"--parallel {command.parallel} divides the work among processes, and this is the only one. Start several:\n"
            f"  torchrun --nproc-per-node 2 -m scope.cli train … --parallel {command.parallel}"
        )


def _in_words(planned: Any, sites: list[str], training: TrainConfig, source: Source, ranks: Any) -> str:
    """What will be trained and the memory that it needs, in one or two sentences."""
    from scope.progress import size

    n, tokens = len(sites), training.steps * training.batch_size
    length = f"{tokens:,} tokens in {training.steps:,} steps of {training.batch_size:,}"
    over = sites[0] if len(set(sites)) == 1 else f"{len(set(sites))} sites"
    many = f"{n} dictionaries over {over}" if n > 1 else f"One dictionary over {over}"
    moments = f"{size(planned.weights)} of weights, {size(planned.optimiser)} of gradients and Adam"
    free = f"; {size(planned.free)} are free" if planned.free is not None else ""
    shares = {
        "data": "each taking a share of every batch",
        "width": "each with a share of all latents",
        "site": "each with its own",
    }
    shared = f" {ranks.world} processes, {shares[ranks.mode]}." if ranks.world > 1 else ""
    mine = f"{planned.parameters:,} parameters" + (" for this process" if ranks.world > 1 else "")
    return (
        f"{many} from {source.name}: {length}.{shared} {mine}: {moments}, "
        f"{size(planned.work)} to compute in, {size(planned.reading)} at most to shuffle{free}."
    )


@contextmanager
def _boards(command: Any, jobs: list[Any]) -> Iterator[Callable[..., None] | None]:
    """TensorBoard and Weights & Biases for the jobs of this process, where they are asked for."""
    from scope.training.boards import Boards, TensorBoard, Wandb
    from scope.training.folder import describe

    boards: list[Any] = [TensorBoard()] if command.tensorboard and jobs else []
    if command.wandb and jobs:
        boards.append(Wandb(command.wandb, command.out, {job.out: describe(job.sae, job.config) for job in jobs}))
    if not boards:
        yield None
        return
    open_boards = Boards(boards)
    try:
        yield open_boards
    finally:
        open_boards.close()
