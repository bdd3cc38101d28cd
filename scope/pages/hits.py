"""The pages that a search finds, by rank: as text, as a table and in notebooks."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from scope.escape import escape, visible
from scope.models.pictures.draw import img_tag
from scope.result import Result


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A page that was found."""

    rank: int
    page: int
    name: str
    score: float
    blank: bool = False


@dataclass(frozen=True, kw_only=True, repr=False)
class Hits(Result):
    """The pages with the highest scores for a query."""

    bars = ("name", "score")

    query: str
    hits: tuple[Hit, ...]
    n_pages: int
    asked: int
    median: float
    """The score of the page in the middle: what a page has that nothing is known of."""

    index: Any = field(compare=False, default=None)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __getitem__(self, i: int) -> Hit:
        return self.hits[i]

    def __len__(self) -> int:
        return len(self.hits)

    def to_frame(self) -> Any:
        """A row per page, as a pandas table."""
        import pandas as pd

        return pd.DataFrame([asdict(hit) for hit in self.hits])

    def _head(self) -> str:
        fewer = f"; {self.asked:,} were asked for" if self.asked > self.n_pages else ""
        return f"{visible(self.query)!r} in {self.n_pages:,} pages{fewer}; the median page scores {self.median:.3f}"

    def __str__(self) -> str:
        rows = [f"{hit.rank:>4}  {hit.score:>8.3f}  {visible(hit.name)}{' (blank)' if hit.blank else ''}" for hit in self.hits]
        return "\n".join([self._head(), *rows])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = []
        for hit in self.hits:
            text = f"{hit.rank}. {escape(hit.name)}{' (blank)' if hit.blank else ''}<br>{hit.score:.3f}"
            picture = "" if self.index is None else img_tag(self.index.shown(hit.page, 160).quantize(64), f"page {hit.name}")
            cells.append(f'<td style="text-align:left;vertical-align:top;padding:4px">{picture}<div>{text}</div></td>')
        return f"<div>{escape(self._head())}</div><table><tr>{''.join(cells)}</tr></table>"
