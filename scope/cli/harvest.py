"""`scope harvest`: a model and a corpus in, a recording out."""

import math
import signal
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from activations.harvest import HarvestConfig, Plan

_ASK_ABOVE = 2_000_000_000  # bytes
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


@dataclass(frozen=True)
class Command:
    """Record activations of a model on a corpus into HDF5 shards.

    Stop it whenever you like, with Ctrl-C, SIGTERM or worse: the same command continues, and the recording is byte for byte
    that of an uninterrupted run. With a larger --tokens it extends the recording. A changed model, corpus or form is refused.
    """

    model: str = "bundled"
    """The model: bundled, a folder with a Hugging Face checkpoint of Gemma 2, or a hub id."""

    corpus: str = "bundled"
    """The text: a .txt, .md, .jsonl or .parquet file, a folder, docs:numpy,torch, bundled, or a hub id owner/name[:split]."""

    out: Path = Path("runs/recording")
    """Folder for the recording."""

    config: Annotated[_Flags, tyro.conf.arg(name="")] = field(default_factory=_Flags)

    text_field: str = "text"
    """JSONL field or column that holds the text."""

    compute_dtype: str = "float32"
    """What the model computes in: float32, bfloat16 or float16."""

    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    yes: bool = False
    """Do not ask before a recording of more than 2 GB."""

    def run(self) -> None:
        from activations.corpus import open_corpus
        from activations.harvest import harvest, plan
        from scope.cli.progress import console, progress_bar
        from scope.models.load import load_model

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop leaves as clean as Ctrl-C
        corpus = open_corpus(self.corpus, self.text_field)
        model = load_model(self.model, dtype=self.compute_dtype, device=self.device, revision=self.revision)
        given = {f.name: getattr(self.config, f.name) for f in fields(HarvestConfig)}
        config = HarvestConfig(**given | {"sites": self.config.sites or (middle_residual(model.sites()),)})
        planned = plan(model, model.tokenizer, corpus, config, self.out, model.provenance)
        console.print(describe(planned, self.out))
        if not agreed(planned, self.yes):
            return
        with progress_bar("Harvesting", unit="tokens") as on_progress:
            store = harvest(model, model.tokenizer, corpus, config, self.out, model.provenance, on_progress)
        from scope.cli.recording import summary

        console.print(summary(store))
        if store.exhausted and store.tokens.size < config.tokens:
            ended = f"the corpus ended at {store.tokens.size:,} of {config.tokens:,} tokens; all of it is recorded."
            console.print(f"[yellow]note:[/] {ended}")


def middle_residual(sites: dict[str, int]) -> str:
    """The residual stream after the middle layer."""
    residuals = [site for site in sites if site.endswith("hook_resid_post")]
    return residuals[len(residuals) // 2]


def describe(planned: Plan, out: Path) -> str:
    """The plan in one sentence."""
    from activations.shards import size

    names = list(planned.sites)
    listed = ", ".join(names) if len(names) <= 3 else f"{len(names)} sites ({names[0]} to {names[-1]})"
    return (
        f"{out}: {planned.tokens:,} tokens of {listed}, {planned.bytes_per_token:,} bytes a token, "
        f"{size(planned.nbytes)} in all; {size(planned.free)} are free."
    )


def agreed(planned: Plan, yes: bool) -> bool:
    """Whether to go on: small recordings need no leave.

    Raises:
        ConfigError: leave is needed and there is nobody to ask.
    """
    from scope.errors import ConfigError

    if yes or planned.nbytes <= _ASK_ABOVE:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("That is more than 2 GB, and there is no terminal to ask at. Add --yes.")
    return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
