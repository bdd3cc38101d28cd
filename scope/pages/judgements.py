"""Judgements of which pages answer which queries, in the layouts of BEIR and ViDoRe, and nDCG by them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from scope.pages.errors import PagesError
from scope.typed_json import json_lines, read_bytes

RankedScores = Float[np.ndarray, "query page"]

_NAMES = {
    "query": ("query", "query-id", "query_id", "qid"),
    "page": ("page", "corpus-id", "corpus_id", "docid", "image_filename"),
    "relevance": ("relevance", "score", "rel"),
    "id": ("_id", "id", "query-id", "query_id", "qid"),
    "text": ("text", "query"),
}
"""What a field may be called, ours first."""

_WAY_OUT = (
    'Write a line for each: {"query": "...", "page": "report.pdf#3", "relevance": 1}; a table (.csv, .tsv, .parquet) needs the '
    "same columns."
)


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """Queries, and for each the pages of an index that answer it, with how well."""

    queries: tuple[str, ...]
    relevant: tuple[dict[int, int], ...]
    """For each query: number of a page -> relevance, 1 or more."""

    unanswered: int = 0
    """Queries without a relevant page in the index, which are left out."""

    def ndcg(self, scores: RankedScores, k: int = 5) -> float:
        """nDCG@k, the mean over queries, as trec_eval computes it: gain is the relevance, discount log2(1 + rank)."""
        import pytrec_eval

        run = {str(i): {str(page): float(s) for page, s in enumerate(row)} for i, row in enumerate(scores)}
        judged = {str(i): {str(page): grade for page, grade in pages.items()} for i, pages in enumerate(self.relevant)}
        results = pytrec_eval.RelevanceEvaluator(judged, {f"ndcg_cut.{k}"}).evaluate(run)
        return float(np.mean([result[f"ndcg_cut_{k}"] for result in results.values()]))


def read_judgements(index: Any, file: Path | str, queries: Path | str | None = None) -> Judgements:
    """From a file with a row per query and page: JSON lines, .csv, .tsv or .parquet. Fields are `query`, `page` and `relevance`
    (1 where it is left out), or BEIR's `query-id`, `corpus-id` and `score`; `queries` then has the texts, as `_id` and `text`.

    Raises:
        PagesError: a file that cannot be read, a missing field, a page that the index does not have, or nothing relevant.
    """
    texts = None
    if queries is not None:
        rows = _rows(Path(queries))
        texts = {str(_value(r, "id", queries)): str(_value(r, "text", queries)) for r in rows}
    return judgements(index, _rows(Path(file)), texts, str(file))


def judgements(
    index: Any, rows: list[dict[str, Any]], texts: dict[str, str] | None = None, source: str = "The list"
) -> Judgements:
    """The same from rows in memory; `texts` maps ids of queries to what they ask."""
    relevant: dict[str, dict[int, int]] = {}
    for row in rows:
        query, grade = str(_value(row, "query", source)), _grade(row, source)
        if texts is not None and query not in texts:
            raise PagesError(f"{source} judges query {query!r}, which the file of queries does not have.")
        pages = relevant.setdefault(query if texts is None else texts[query], {})
        if grade > 0:
            pages[index.number(str(_value(row, "page", source)))] = grade
    answered = {query: pages for query, pages in relevant.items() if pages}
    if not answered:
        raise PagesError(f"{source} names no relevant page, so there is nothing to score. {_WAY_OUT}")
    return Judgements(queries=tuple(answered), relevant=tuple(answered.values()), unanswered=len(relevant) - len(answered))


def _rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix.lower() in (".csv", ".tsv", ".parquet"):
        import pandas as pd

        try:
            if file.suffix.lower() == ".parquet":
                table = pd.read_parquet(file)
            else:
                table = pd.read_csv(file, sep="\t" if file.suffix.lower() == ".tsv" else ",", dtype=str, keep_default_na=False)
        except Exception as error:  # whatever the readers of pandas raise on a damaged file
            raise PagesError(f"{file} cannot be read: {str(error).splitlines()[0]}. {_WAY_OUT}") from None
        return table.to_dict("records")
    rows = list(json_lines(read_bytes(file, PagesError, _WAY_OUT), file, PagesError, _WAY_OUT))
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise PagesError(f"{file} holds {str(wrong[0])[:60]!r}, which is no object. {_WAY_OUT}")
    return rows


def _value(row: dict[str, Any], field: str, source: Any) -> Any:
    name = next((name for name in _NAMES[field] if name in row), None)
    if name is None:
        raise PagesError(f"{source} has a row without {field}: it has {', '.join(map(str, row)) or 'nothing'}. {_WAY_OUT}")
    return row[name]


def _grade(row: dict[str, Any], source: Any) -> int:
    value = next((row[name] for name in _NAMES["relevance"] if name in row), 1)
    try:
        grade = int(value)
        if isinstance(value, bool) or grade != float(value) or not 0 <= grade < 2**31:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise PagesError(f"{source} has a relevance of {str(value)[:40]!r}; it is a whole number from 0. {_WAY_OUT}") from None
    return grade
