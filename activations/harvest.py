"""`harvest`: run a model over a corpus and record what flows past its sites, in shards that survive whatever happens.

Every shard is a pure function of the manifest and its number: an interrupted run, given again, makes the same bytes as one
that was left alone, and a run with a larger budget the same as one that had it from the start.
"""

import fnmatch
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from activations import manifest as recording
from activations.contexts import PACKING, TextTokenizer
from activations.corpus import Corpus
from activations.errors import ActivationsError, RecordingError, UnknownSiteError
from activations.files import only_writer
from activations.hdf5 import ITEM_BYTES
from activations.run import OnProgress, Run
from activations.shards import size
from activations.store import ActivationStore

RULES = ("bos", "special", "pad")
_SEGMENT_BYTES = 65_536  # what is read and checked at once while shuffling; below it a disk loses most of its speed


@runtime_checkable
class Recorder(Protocol):
    """A model, as harvesting sees it. If it has a `device`, tokens are given to it there."""

    def record(self, tokens: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """Activations [batch pos width] of each site for tokens [batch pos]."""
        ...

    def sites(self) -> dict[str, int]:
        """Every site that can be recorded, with its width."""
        ...


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """What to record. Each field is also a flag of `scope harvest`, and the line under it is the flag's help."""

    sites: tuple[str, ...] = ()
    """Where to listen: names such as blocks.3.hook_resid_post, globs such as 'blocks.*.hook_resid_post', or all."""

    tokens: int = 1_000_000
    """Tokens to run, <bos> included, rounded up to whole contexts. Raise it later to extend a recording."""

    context: int = 256
    """Tokens per context: <bos>, then text."""

    batch_contexts: int = 16
    """Contexts run at once."""

    shard_rows: int = 65_536
    """Tokens per shard, about. A shard is what one file holds."""

    dtype: str = "bfloat16"
    """How activations are stored: bfloat16 or float32."""

    seed: int = 0
    """Order of the documents."""

    exclude: tuple[str, ...] = RULES
    """Tokens whose activations are not stored: bos, special (control and turn tokens), pad."""

    def __post_init__(self):
        for name in ("tokens", "batch_contexts", "shard_rows"):
            if getattr(self, name) < 1:
                raise ActivationsError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.context < 2:
            raise ActivationsError(f"context is {self.context}; <bos> and one token of text need at least 2.")
        if self.dtype not in ("bfloat16", "float32"):
            raise ActivationsError(f"dtype is {self.dtype!r}; activations are stored as bfloat16 or float32.")
        unknown = sorted(set(self.exclude) - set(RULES))
        if unknown:
            raise ActivationsError(f"exclude has {', '.join(unknown)}; the rules are {', '.join(RULES)}.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a harvest will make, before it runs. Bytes are those of a recording without any token excluded."""

    sites: dict[str, int]
    tokens: int
    bytes_per_token: int
    nbytes: int
    free: int


def plan(recorder: Recorder, config: HarvestConfig, out: Path) -> Plan:
    """Sites, size and room.

    Raises:
        UnknownSiteError: a pattern that matches no site.
        RecordingError: the disk has less room than what is still to be recorded.
    """
    sites = match_sites(config.sites, recorder.sites())
    per_token = sum(width * ITEM_BYTES[config.dtype] + 4 for width in sites.values()) + 20
    tokens = recording.contexts_for(config.tokens, config.context) * config.context
    there = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    done = recording.read_recording(out).n_contexts * config.context if (out / recording.MANIFEST).exists() else 0
    needed = max(0, tokens - done) * per_token
    if needed > free:
        raise RecordingError(
            f"{tokens:,} tokens at {per_token:,} bytes need {size(needed)} more; {size(free)} are free in {there}.\n"
            "  Lower --tokens, record fewer sites, or give another disk to --out."
        )
    return Plan(sites=sites, tokens=tokens, bytes_per_token=per_token, nbytes=tokens * per_token, free=free)


def match_sites(patterns: Sequence[str], known: dict[str, int]) -> dict[str, int]:
    """The sites that names and globs mean, in the model's order, with their widths.

    Raises:
        UnknownSiteError: a pattern that matches nothing; the message lists the nearest sites.
    """
    if not patterns:
        raise UnknownSiteError("No site is given. Name one, such as blocks.3.hook_resid_post, or a glob, or all.")
    wanted: set[str] = set()
    for pattern in patterns:
        found = known if pattern == "all" else [s for s in known if s == pattern or fnmatch.fnmatchcase(s, pattern)]
        if not found:
            near = get_close_matches(pattern, known, n=6, cutoff=0.3) or list(known)[:6]
            raise UnknownSiteError(
                f"This model has no site {pattern}.\n  Nearest: {', '.join(near)}\n  It has: {', '.join(_families(known))}\n"
                "  Globs and `all` work too."
            )
        wanted.update(found)
    return {site: width for site, width in known.items() if site in wanted}


def _families(known: Sequence[str] | dict[str, int]) -> list[str]:
    """The sites with their numbers of blocks drawn together: blocks.0-3.hook_resid_post."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for site in known:
        found = re.fullmatch(r"(.*?\.)(\d+)(\..*)", site)
        numbers.setdefault((found[1], found[3]) if found else (site, ""), []).append(int(found[2]) if found else 0)
    spans = {key: f"{min(n)}-{max(n)}" if len(n) > 1 else f"{n[0]}" for key, n in numbers.items()}
    return [f"{before}{spans[before, after]}{after}" if after else before for before, after in numbers]


def harvest(
    recorder: Recorder,
    tokenizer: TextTokenizer,
    corpus: Corpus,
    config: HarvestConfig,
    out: Path,
    provenance: dict,
    on_progress: OnProgress | None = None,
) -> ActivationStore:
    """Record `config.tokens` tokens of a corpus into `out`, or what is still missing there. Stop it at any time.

    Raises:
        UnknownSiteError: a site that the model does not have.
        CorpusError: the corpus holds no text.
        RecordingError: `out` holds something else, is being written, or its disk is full; activations are NaN or Inf.
    """
    out = Path(out)
    planned = plan(recorder, config, out)
    config = replace(config, sites=tuple(planned.sites))
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        recorded = recording.begin(out, _manifest(planned.sites, tokenizer, corpus, config, provenance))
        Run(recorder, tokenizer, corpus, config, out, recorded, on_progress).run()
    return ActivationStore.open(out)


def _manifest(sites: dict[str, int], tokenizer: TextTokenizer, corpus: Corpus, config: HarvestConfig, provenance: dict) -> dict:
    batch = config.batch_contexts * config.context
    widest = max(sites.values()) * ITEM_BYTES[config.dtype]
    made = {
        "format": recording.FORMAT,
        "version": recording.VERSION,
        "model": provenance,
        "tokenizer": {"sha256": tokenizer.sha256, "bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad},
        "corpus": corpus.identity,
        "config": asdict(config),
        "layout": {
            "widths": sites,
            "contexts_per_shard": max(1, round(config.shard_rows / batch)) * config.batch_contexts,
            "segment_rows": min(256, max(8, _SEGMENT_BYTES // widest)),
            "packing": PACKING,
        },
        "versions": recording.versions(),
    }
    return json.loads(json.dumps(made))  # as it will be read back: tuples are lists
