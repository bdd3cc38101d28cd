"""Tries the documents of a corpus before the model runs, so that a broken picture is found before hours are spent.

For half of the time each document is made into inputs as the run will make them, in the order of the run; after that only what
costs little is checked, such as the header of a picture. What the time did not reach is found when it is read.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from scope.activations.corpus.document import Document
from scope.activations.errors import CorpusError

from scope.progress import OnProgress

SECONDS = 60.0
"""Time for which documents are tried."""

_NAMED = 20  # documents that cannot be used of which the names are listed
_QUIET = 1.0  # seconds without a report: small corpora are done by then


@runtime_checkable
class TriesDocuments(Protocol):
    """An `InputMaker` some of whose documents may be unusable, as those of pictures are."""

    @property
    def skips(self) -> bool:
        """Whether such documents are left out; otherwise the work ends at the first."""
        ...

    def problem_of(self, document: Document, context: int, whole: bool = True) -> str | None:
        """Why a document cannot be used, or None. Not `whole`: only what costs little is checked."""
        ...


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The result for `whole` documents that were tried in full, and `partly` whose header alone was checked."""

    whole: int
    partly: int
    ended: bool
    """Whether this was every document of the run; the others are tried when they are read."""

    unusable: int
    named: tuple[str, ...]
    """Number, name and reason of the first of them."""

    def __str__(self) -> str:
        n = self.whole + self.partly
        tried = f"{n:,} document{'s' * (n != 1)} tried before the model runs"
        tried += f", {self.partly:,} of them by their header alone" if self.partly else ""
        tried += "" if self.ended else "; the rest is tried when it is read"
        return f"{tried}: {f'{self.unusable:,} cannot' if self.unusable else 'all can'} be used"


def scan(
    maker: TriesDocuments,
    documents: Iterator[Document],
    context: int,
    n: int,
    first: int = 0,
    seconds: float = SECONDS,
    on_progress: OnProgress | None = None,
) -> Scan:
    """Try the documents of the next `n` contexts, from document `first` on.

    Raises:
        CorpusError: some cannot be used, and such are to be refused. The first of them are named.
    """
    began, whole, partly, usable, named = time.monotonic(), 0, 0, 0, []
    unusable, ended = 0, False
    for _ in range(first):
        next(documents, None)
    while usable < n:
        elapsed = time.monotonic() - began
        if elapsed > seconds:
            break
        document = next(documents, None)
        if document is None:
            ended = True
            break
        in_full = elapsed <= seconds / 2
        problem = maker.problem_of(document, context, in_full)
        if problem is None:
            usable += 1
        else:
            unusable += 1
            if len(named) < _NAMED:
                named.append(f"Document {first + whole + partly:,}, {document.name[:200]}: {problem.splitlines()[0]}")
        whole, partly = whole + in_full, partly + (not in_full)
        if on_progress is not None and elapsed > _QUIET:
            on_progress(whole + partly, n + unusable, {"unusable": unusable})
    if on_progress is not None and time.monotonic() - began > _QUIET:
        on_progress(whole + partly, whole + partly, {"unusable": unusable})
    scanned = Scan(whole=whole, partly=partly, ended=ended or usable >= n, unusable=unusable, named=tuple(named))
    if unusable and not maker.skips:
        more = f"\n  and {unusable - len(named):,} more" if unusable > len(named) else ""
        listed = "\n  ".join(named)
        raise CorpusError(
            f"{scanned}, and nothing more was recorded.\n  {listed}{more}\n"
            "  Mend or remove them, or leave such documents out with --bad-pictures skip: they are counted and named in the "
            "recording."
        )
    return scanned
