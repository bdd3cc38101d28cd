"""`scope pages`: index pages with a ColPali, search them, and say why a page was found."""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from scope.cli.flags import config_of, flags_of
from scope.workflows.pages import (
    CountLatents,
    ExplainHit,
    IndexPages,
    MapQuery,
    OpenIndex,
    RemovePages,
    SearchPages,
    SuppressLatents,
    WeighIndex,
    ask_index,
    index_pages,
)

INDEX = flags_of(
    IndexPages,
    positional=("sources",),
    doc="""Embed pictures and pages of PDFs with a ColPali, and keep their vectors on disk.

Stopped with Ctrl-C it goes on with the same command; new files of a folder are added by it too.
""",
)

SEARCH = flags_of(
    SearchPages,
    positional=("index", "query"),
    doc="""Find the pages of an index that answer a query best.

Every page is compared by MaxSim, so the ranks are exact; the score of the median page stands beside them.
""",
)


MAP = flags_of(
    MapQuery,
    positional=("index", "query", "page"),
    doc="Say where on a page each token of a query finds its match, and draw it.",
)

EXPLAIN = flags_of(
    ExplainHit,
    positional=("index", "query", "page"),
    doc="""Take the score of a page apart: pairs of a latent of the query and a latent of the page, and where they meet.

The score is the sum of all pairs, of what the biases add, and of what the SAE misses. Each token's best position, and every
division of the head, are held at their values.
""",
)

SUPPRESS = flags_of(
    SuppressLatents,
    positional=("index", "query"),
    commas=("latents",),
    doc="""Take latents out of every page and search again: which ranks move, beside random latents of equal firing rate.

The index on disk is not changed.
""",
)

LATENTS = flags_of(
    CountLatents,
    positional=("index",),
    doc="Say on which share of pages and vectors each latent fires: which never do, and which do everywhere.",
)

WEIGH = flags_of(
    WeighIndex,
    positional=("index", "judgements"),
    commas=("keep",),
    doc="""Say how much of an index is needed: nDCG@5 beside bytes, with patches or latents left out, beside random choices.""",
)


REMOVE = flags_of(
    RemovePages,
    positional=("index", "names"),
    doc="""Take pages out of an index, with their vectors and pictures.

Stopped at any moment the index is as it was, and the same command does it. `scope pages index` of a folder that still holds
them adds them again.
""",
)


@dataclass(frozen=True, kw_only=True)
class Show:
    """What an index holds: its model, its pages, and which were blank or could not be read."""

    index: tyro.conf.Positional[Path]
    """Folder that `scope pages index` wrote."""

    verify: bool = False
    """Read every vector against its checksum too."""


_ACTIONS = {
    "index": (INDEX, IndexPages),
    "search": (SEARCH, SearchPages),
    "map": (MAP, MapQuery),
    "explain": (EXPLAIN, ExplainHit),
    "suppress": (SUPPRESS, SuppressLatents),
    "latents": (LATENTS, CountLatents),
    "weigh": (WEIGH, WeighIndex),
    "remove": (REMOVE, RemovePages),
}


def flags(argv: Sequence[str]) -> Any:
    kinds = {name: kind for name, (kind, _) in _ACTIONS.items()} | {"show": Show}
    return functools.reduce(operator.or_, (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items()))


def run(parsed: Any) -> None:
    if isinstance(parsed, Show):
        _show(parsed)
        return
    config = next(config_of(config, parsed) for kind, config in _ACTIONS.values() if isinstance(parsed, kind))
    if isinstance(config, RemovePages):
        _remove(config)
    else:
        _index(config) if isinstance(config, IndexPages) else _ask(config)


def _remove(config: RemovePages) -> None:
    from scope.cli.progress import console
    from scope.pages.derive import remove_pages
    from scope.pages.index import Index

    n = remove_pages(config.index, config.names)
    console.print(f"Removed: {n:,} page{'s' * (n != 1)}. {Index.open(config.index)!r}", soft_wrap=True)


def _index(config: IndexPages) -> None:
    from scope.cli.progress import console, progress_bar

    with progress_bar("Indexing", unit="files") as on_progress:
        index = index_pages(config, on_progress=on_progress)
    console.print(repr(index), soft_wrap=True)
    _print_odd_pages(index)
    console.print(f'To search it: scope pages search {config.out} "a query"', soft_wrap=True)


def _ask(config: OpenIndex) -> None:
    from scope.cli.progress import console, progress_bar

    with progress_bar("Reading", unit="pages") as on_progress:
        answer = ask_index(config, on_progress=on_progress)
    for result in answer if isinstance(answer, list) else [answer]:
        top = getattr(config, "top", getattr(config, "k", None))
        text = result.text(top) if hasattr(result, "text") and callable(result.text) else str(result)
        console.print(text, soft_wrap=True)
    for file in filter(None, (getattr(config, name, None) for name in ("csv", "png", "out"))):
        console.print(f"Written: {file}", soft_wrap=True)


def _show(command: Show) -> None:
    from scope.cli.progress import console
    from scope.pages.index import Index

    index = Index.open(command.index)
    console.print(repr(index), soft_wrap=True)
    console.print(f"  from {', '.join(index.manifest.sources)}; patches {index.manifest.grid[0]} x {index.manifest.grid[1]}")
    _print_odd_pages(index)
    if command.verify:
        n = sum(len(vectors) for _, _, vectors, _ in index.shards())
        console.print(f"All {n:,} vectors are as they were written.")


def _print_odd_pages(index: Any) -> None:
    from scope.cli.progress import print_note

    for page in index.pages:
        if page.blank:
            print_note(f"{page.name} has nothing on it")
    for skip in index.skipped:
        print_note(f"skipped: {' '.join(skip.reason.split())}")
