"""Which latents a person means: numbers and ranges, starred ones, or the foremost by a column."""

import re
from typing import TYPE_CHECKING

import numpy as np
from pandas.api.types import is_numeric_dtype

from scope.errors import PackError

if TYPE_CHECKING:
    from scope.features.pack.store import FeatureStore

_WAYS = "numbers and ranges such as 3,17,40-60; starred; or COLUMN:N for the N foremost, as out_score:50 or density:100"


def chosen(store: "FeatureStore", which: str | None) -> list[int]:
    """The latents that `which` names, each once: "3,17,40-60", "starred", "out_score:50" (living ones), parts joined by commas.

    None means all.

    Raises:
        PackError: a part that is none of these, a latent that the pack does not have, or a column without numbers.
    """
    if which is None:
        return list(range(store.d_sae))
    found: dict[int, None] = {}
    for part in filter(None, (p.strip() for p in which.split(","))):
        found.update(dict.fromkeys(_part(store, part)))
    if not found:
        raise PackError(f"{which!r} names no latent of {store.folder.name}. To name some: {_WAYS}.")
    return list(found)


def _part(store: "FeatureStore", part: str) -> list[int]:
    if part == "starred":
        return [i for i in store.notes.starred() if 0 <= i < store.d_sae]
    if match := re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", part):
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise PackError(f"{part} runs backwards; ranges go upwards, as {last}-{first}.")
        store[first], store[last]
        return list(range(first, last + 1))
    if match := re.fullmatch(r"([a-z]\w*):(\d{1,9})", part):
        return _foremost(store, match[1], int(match[2]))
    raise PackError(f"{part!r} names no latents. To name some: {_WAYS}.")


def _foremost(store: "FeatureStore", column: str, n: int) -> list[int]:
    numbers = [name for name in store.table.columns if is_numeric_dtype(store.table[name])]
    if column not in numbers:
        raise PackError(f"There is no column {column} to rank by; there are {', '.join(numbers)}.")
    order = store.index.order(column)
    known = ~np.isnan(store.index.column(column)) & (store.index.column("count") > 0)
    return order[known[order]][:n].tolist()
