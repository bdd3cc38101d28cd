"""`scope harvest`: a model and a corpus in, a recording out."""

import math
import signal
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from scope.activations.config import STAGING, HarvestConfig
from scope.activations.harvest.harvest import Plan

if TYPE_CHECKING:
    from rich.table import Table

_ASK_ABOVE, _ASK_AFTER = 2_000_000_000, 600  # bytes, seconds
_STREAMED_TOKENS = 16_384  # a batch, if none is given: enough for reading to cost less than computing
_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def count(text: str) -> int:
    """A number as people write it: 200000, 200_000, 200k, 1.5M, 2B.

    Raises:
        ValueError: it is none, or no whole one.
    """
    text = text.strip().lower().replace(",", "").replace("_", "")
    number = float(text[:-1]) * _SUFFIXES[text[-1]] if text[-1:] in _SUFFIXES else float(text)
    if not math.isfinite(number) or number != int(number):
        raise ValueError(f"{text} is no whole number")
    return int(number)


Count = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT|1.5M",
        instance_from_str=lambda args: count(args[0]),
        is_instance=lambda instance: isinstance(instance, int),
        str_from_instance=lambda instance: [str(instance)],
    ),
]


@dataclass(frozen=True, kw_only=True)
class _Flags(HarvestConfig):
    """HarvestConfig, whose budget may be written 50M."""

    sites: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="site", aliases=["--sites"])] = ()
    """Where to listen, once for each: blocks.3.hook_resid_post, 'blocks.*.hook_resid_post', all. None: the middle residual."""

    tokens: Count = HarvestConfig.tokens
    """Tokens to run, <bos> included, up to a whole context: 200000, 200k, 50M. Raise it later to extend a recording."""

    batch_contexts: int | None = None
    """Contexts run at once: 16, or 16,384 tokens with --streamed, if none is given."""

    def __post_init__(self):
        HarvestConfig(**asdict(self) | {"batch_contexts": self.contexts_at_once(streamed=False)})

    def contexts_at_once(self, streamed: bool) -> int:
        if self.batch_contexts is not None:
            return self.batch_contexts
        return max(1, _STREAMED_TOKENS // self.context) if streamed else HarvestConfig.batch_contexts


@dataclass(frozen=True)
class Command:
    """Record activations of a model on a corpus into HDF5 shards.

    Stop it whenever you like, with Ctrl-C, SIGTERM or worse: the same command continues, and the recording is byte for byte
    that of an uninterrupted run. With a larger --tokens it extends the recording. A changed model, corpus or form is refused.
    On several processes: torchrun --nproc-per-node N -m scope.cli harvest ...
    """

    model: str = "bundled"
    """The model: bundled, a folder with a Hugging Face checkpoint of Gemma 2, a hub id, or, for what TransformerLens loads,
    lens:gpt2 or lens:FOLDER."""

    corpus: str = "bundled"
    """The text: a .txt, .md, .jsonl or .parquet file, a folder, docs:numpy,torch, bundled, or a hub data set
    owner/name, owner/name:split, owner/name:config:split."""

    out: str = "runs/recording"
    """Folder for the recording, or an address such as s3://bucket/recording, to which shards are sent whole."""

    config: Annotated[_Flags, tyro.conf.arg(name="")] = field(default_factory=_Flags)

    text_field: str = "text"
    """JSONL field or column that holds the text."""

    compute_dtype: str = "float32"
    """What the model computes in: float32, bfloat16 or float16."""

    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    streamed: bool = False
    """Keep the weights on disk and read one block at a time, for a model larger than memory: each batch of 16,384 tokens, or
    of --batch-contexts, reads them once."""

    staging: Path = STAGING
    """Folder below which the shards for an address are made before they are sent."""

    yes: bool = False
    """Do not ask before more than 2 GB or ten minutes."""

    def run(self) -> None:
        from contextlib import nullcontext

        from scope.activations.corpus.sources import open_corpus
        from scope.activations.harvest.harvest import harvest, plan
        from scope.activations.harvest.ranks import Ranks
        from scope.cli.progress import console, progress_bar
        from scope.cli.room import refuse_without_room
        from scope.models.load import load_model

        leave_in_order()
        ranks = Ranks.of_environment()
        corpus = open_corpus(self.corpus, self.text_field)
        device = f"cuda:{ranks.local}" if self.device == "cuda" and ranks.world > 1 else self.device
        if not self.streamed and device == "cpu":
            refuse_without_room(self.model, self.compute_dtype, self.revision)
        made = {"dtype": self.compute_dtype, "device": device, "revision": self.revision, "streamed": self.streamed}
        model = load_model(self.model, **made)
        given = {f.name: getattr(self.config, f.name) for f in fields(HarvestConfig)}
        given["batch_contexts"] = self.config.contexts_at_once(self.streamed)
        config = HarvestConfig(**given | {"sites": self.config.sites or (middle_residual(model.sites()),)})
        made_of = model, model.tokenizer, corpus, config, self.out, model.provenance
        planned = None
        if ranks.leads:
            planned = plan(*made_of, staging=self.staging)
            console.print(describe(planned, self.out))
            if not agreed(planned, self.yes):
                return
        with progress_bar("Harvesting", unit="tokens") if ranks.leads else nullcontext() as on_progress:
            store = harvest(*made_of, on_progress, planned, self.staging)
        if store is None:
            return
        from scope.cli.recording import summary

        console.print(summary(store))
        tokens = store.n_contexts * store.context
        if store.exhausted and tokens < config.tokens:
            ended = f"the corpus ended at {tokens:,} of {config.tokens:,} tokens; all of it is recorded."
            console.print(f"[yellow]note:[/] {ended}")


def leave_in_order() -> None:
    """Ctrl-C and SIGTERM, as a scheduler sends it, stop once; torchrun sends both, and the second must not break the order."""

    def stop(number: int, frame) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)


def middle_residual(sites: dict[str, int]) -> str:
    """The residual stream after the middle layer."""
    residuals = [site for site in sites if site.endswith("hook_resid_post")]
    return residuals[len(residuals) // 2]


def describe(planned: Plan, out: str) -> "Table":
    """The plan on one screen."""
    from rich.table import Table

    from scope.activations.format.shard_writer import size
    from scope.activations.harvest.harvest import families

    table = Table(title=out, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    n = len(planned.sites)
    widths = sorted(set(planned.sites.values()))
    wide = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    table.add_row("sites", f"{', '.join(families(planned.sites))}  ({n:,} site{'s' * (n != 1)}, {wide} wide)")
    there = f"; {planned.recorded:,} are there" if planned.recorded else ""
    table.add_row("tokens", f"{planned.tokens:,} at {planned.bytes_per_token:,} bytes a token{there}")
    room = f"; {size(planned.free)} are free" if planned.free is not None else ""
    table.add_row("size", f"{size(planned.nbytes)}{room}")
    if planned.seconds is not None and planned.survey:
        rate = f"{planned.survey.tokens_per_second * planned.ranks:,.0f} tokens/s"
        sample = planned.survey.contexts * planned.context
        each = f" with {planned.ranks} processes, if each is as fast as this one" if planned.ranks > 1 else ""
        table.add_row(
            "time", f"about {duration(planned.seconds)} at {rate}{each}: an estimate from the first {sample:,} tokens"
        )
    elif planned.recorded >= planned.tokens:
        table.add_row("time", "none: all of it is there")
    return table


def duration(seconds: float) -> str:
    """Time for people: 40 s, 5 min, 3 h 20 min, 2 days 4 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def agreed(planned: Plan, yes: bool) -> bool:
    """Whether to go on: what is small and quick needs no leave.

    Raises:
        ConfigError: leave is needed and there is nobody to ask.
    """
    from scope.errors import ConfigError

    left = planned.bytes_per_token * max(0, planned.tokens - planned.recorded)
    large, slow = left > _ASK_ABOVE, (planned.seconds or 0) > _ASK_AFTER
    if yes or not (large or slow):
        return True
    if planned.ranks > 1 or not sys.stdin.isatty():
        if not large:
            return True
        raise ConfigError("That is more than 2 GB, and there is no terminal to ask at. Add --yes.")
    try:
        said = input("Go on? [y/N] ").strip().lower()
    except EOFError:  # Ctrl-D
        said = ""
    if said not in ("y", "yes"):
        print("Nothing was recorded.")
    return said in ("y", "yes")
