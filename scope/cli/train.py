"""`scope train`: a recording or a running model in, one dictionary or many out."""

from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from scope.activations.config import LiveConfig
from scope.cli.flags import flags_of, peek
from scope.cli.harvest import Count, count
from scope.cli.reading import provenance
from scope.errors import ConfigError
from scope.sae.kinds import KINDS
from scope.training.config import TrainConfig
from scope.training.grid import SWEPT, Cell, cells
from scope.training.presets import PRESETS, resolve

__all__ = ["command_for", "provenance"]

TRAINABLE = tuple(name for name, kind in KINDS.items() if kind.trainable)


@dataclass(frozen=True)
class _Base:
    """Train sparse dictionaries on a recording, or straight from a running model.

    Give several values with commas between (--target-l0 32,64,128 --seed 0,1), several sites or a glob: every combination is
    trained in one pass over the activations, each in its own folder below --out, and each as if it were alone.

    Activations are scaled to a mean square norm of 1 and the scale is folded back on saving, so a dictionary reads activations
    as the model makes them. Its folder is SAELens' layout with a scope.json beside it. Stopped with Ctrl-C, SIGTERM or
    worse, the same command continues and ends in the same weights. Under `torchrun --nproc-per-node N -m scope.cli train …`
    processes share the work.
    """

    out: Path
    """Folder for the dictionary (of several: for their folders), its log and its checkpoint."""

    recording: tyro.conf.Positional[Path | None] = None
    """Folder that `scope harvest` wrote; or leave it out and give --model and --corpus."""

    site: str | None = None
    """Where to read, e.g. blocks.2.hook_resid_post; with commas, 'blocks.*.hook_resid_post' or all: several. May be left out
    if the recording holds one site only."""

    kind: Literal[TRAINABLE] = "jumprelu"  # type: ignore[valid-type]
    """Kind of dictionary. --help lists the flags of the one that is given."""

    preset: Literal[tuple(PRESETS)] = "small-budget"  # type: ignore[valid-type]
    """Recipe: small-budget converges in a few million tokens, gemma-scope is the paper's, gemma-scope-2 its successor's. Flags
    go before it."""

    tokens: Count | None = None
    """Activations to train on, e.g. 20M, instead of --steps; with neither, the preset says."""

    model: str | None = None
    """Read from this model while it runs, nothing stored: bundled, a checkpoint's folder, or a hub id."""

    corpus: str | None = None
    """The text that the model reads: a file, a folder, docs, docs:numpy,torch, bundled, or a hub id owner/name[:split]."""

    text_field: str = "text"
    """JSONL field or column that holds the text."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    compute_dtype: str = "float32"
    """What the model computes in: float32, bfloat16 or float16."""

    shuffle_mb: int = 512
    """MiB of one site's activations that are held for shuffling; several sites take as many times that."""

    device: str = "cpu"
    """Where dictionaries (and a model) compute: cpu, cuda, cuda:1, mps. Under torchrun cuda is each process's own."""

    parallel: Literal["data", "site", "width"] | None = None
    """Under torchrun: data, each process takes a share of every batch; site, each takes some of the dictionaries; width, each
    holds a share of every dictionary's latents. By default site where there are enough dictionaries, else data."""

    tensorboard: bool = False
    """Also write for TensorBoard, into tensorboard/ in each dictionary's folder."""

    wandb: str | None = None
    """Also log to this project of Weights & Biases (offline with WANDB_MODE=offline)."""

    def run(self) -> None:
        from scope.cli.training import run

        run(self)

    def jobs(self, sites: list[str], widths: dict[str, int]) -> list[tuple[Cell, Any, TrainConfig]]:
        """Every combination: its site and name, the dictionary's config, and how it is trained.

        Raises:
            ConfigError: a setting that cannot be.
        """
        values = {name: given for part in (self.sae, self.train) for name in SWEPT if (given := getattr(part, name, None))}
        found, kind = [], KINDS[self.kind].config
        for name, given in values.items():
            if len(set(given)) < len(given):
                raise ConfigError(
                    f"{name} has the same value twice: {', '.join(map(str, given))}. Each combination is trained once."
                )
        for cell in cells(sites, values):
            told = {f.name: getattr(self.sae, f.name) for f in fields(self.sae)}
            told |= {k: v for k, v in cell.values.items() if k in told} | {"d_in": self._width(cell.site, widths[cell.site])}
            how = {f.name: getattr(self.train, f.name) for f in fields(self.train)}
            how |= {k: v for k, v in cell.values.items() if k in how} | {"order_seed": self.order}
            found.append((cell, kind(**told), TrainConfig(**how)))
        return found

    def _width(self, site: str, width: int) -> int:
        if self.sae.d_in not in (0, width):
            raise ConfigError(f"d_in is {self.sae.d_in}, and {site} is {width} wide. Leave --d-in out.")
        return width

    @property
    def order(self) -> int:
        """Seed of the order in which activations are read."""
        return self.train.seed[0] if self.train.order_seed is None else self.train.order_seed


def command_for(argv: list[str]) -> type:
    """The command with the flags of the kind that `argv` names, whose defaults are those of the preset at its size.

    Raises:
        ConfigError: the preset is not one for that kind; --steps and --tokens are both given.
    """
    kind, preset = peek(argv, "kind", "jumprelu") or "", peek(argv, "preset", "small-budget") or ""
    kind = kind if kind in TRAINABLE else "jumprelu"  # the parser will refuse the others
    sizes = {name: _number(peek(argv, name)) for name in ("d-sae", "tokens", "steps", "batch-size")}
    if sizes["steps"] and sizes["tokens"]:
        raise ConfigError("--steps and --tokens both say how long to train. Give one of them.")
    config = KINDS[kind].config
    d_sae = sizes["d-sae"] or next(f.default for f in fields(config) if f.name == "d_sae")
    preset = preset if preset in PRESETS else "small-budget"
    train, sae = resolve(preset, kind, d_sae, sizes["tokens"], sizes["steps"], sizes["batch-size"])
    _refuse_flags_of_other_kinds(argv, kind)
    swept = set(SWEPT)
    Sae = flags_of("Sae", config, sae, swept)
    Train = flags_of("Train", TrainConfig, train, swept)
    Live = flags_of("Live", LiveConfig, {})
    parts = [("sae", Sae), ("train", Train), ("live", Live)]
    made = [(name, Annotated[part, tyro.conf.arg(name="")], field(default_factory=part)) for name, part in parts]
    command = make_dataclass("Command", made, bases=(_Base,), frozen=True)
    command.__doc__ = _Base.__doc__
    return command


def _refuse_flags_of_other_kinds(argv: list[str], kind: str) -> None:
    own = {f.name for f in fields(KINDS[kind].config)}
    for arg in argv:
        name = arg.partition("=")[0].removeprefix("--").replace("-", "_")
        others = [k for k in TRAINABLE if any(f.name == name for f in fields(KINDS[k].config))]
        if arg.startswith("--") and name not in own and others:
            raise ConfigError(
                f"{arg.partition('=')[0]} is a flag of {', '.join(others)}, and this is {kind}. Give --kind {others[0]}, or "
                f"leave it out.\n  `scope train --kind {kind} --help` lists the flags of {kind}."
            )


def _number(text: str | None) -> int | None:
    """The greatest of the numbers that a flag gives; None where the parser will refuse it."""
    try:
        return max(count(part) for part in text.split(",") if part) if text else None
    except ValueError:
        return None
