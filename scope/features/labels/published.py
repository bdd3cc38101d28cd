"""Labels that others published: read from Neuronpedia's export files, and kept in a pack with who wrote them and their score.

    MODEL/SOURCE/explanations/batch-0.jsonl.gz    its public bucket, s3://neuronpedia-datasets/v1; also unpacked, or one file
    [{...}, ...] or {"explanations": [...]}       its older export, and what its API says of one latent

A row names its source (modelId and layer) and its latent (index). Rows of another source are counted and left out.
"""

import gzip
import io
import math
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scope.errors import PackError
from scope.features.pack.data import PackData
from scope.features.pack.table import BY_TOKENS
from scope.progress import OnProgress
from scope.sae.hub.neuronpedia import neuronpedia_url
from scope.typed_json import json_lines, parse_json, read_bytes, typed

BUCKET = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com/v1"
AUTHOR = "Neuronpedia"
LARGEST = 512 * 2**20
"""Bytes of a file once it is unpacked; the public ones have about 3 MB."""

_TIMEOUT = 30.0  # seconds without an answer
_MOST = 100_000  # files of a folder on the web
_WAY_OUT = "Fetch the file again."


@dataclass(frozen=True, kw_only=True)
class _Score:
    value: float | int | None = None
    explanationScoreTypeName: str | None = None
    explanationScoreModelName: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A line of an export; `layer` is Neuronpedia's name of a source."""

    description: str | None = None
    index: int | str | None = None
    feature: int | str | None = None
    modelId: str | None = None
    layer: str | int | None = None
    saeId: str | None = None
    typeName: str | None = None
    explanationModelName: str | None = None
    notes: str | None = None
    scores: list[_Score] | None = None

    @property
    def latent(self) -> int | None:
        text = str(self.index if self.index is not None else self.feature).strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None

    @property
    def source(self) -> str | None:
        """MODEL/SOURCE in lower case; None where the row names neither, as those of some hand-made files."""
        layer = self.saeId if self.layer is None else str(self.layer)
        return None if self.modelId is None or layer is None else f"{self.modelId}/{layer}".lower()

    @property
    def author(self) -> str:
        return self.explanationModelName or "an author that it does not name"

    @property
    def best(self) -> _Score | None:
        """The highest score that says what it measures."""
        known = [s for s in self.scores or [] if s.value is not None and math.isfinite(s.value) and s.explanationScoreTypeName]
        return max(known, key=lambda score: score.value or 0.0, default=None)


@dataclass(frozen=True)
class Imported:
    """What became of the rows: how many labels were kept, and why others were not."""

    source: str
    labels: int
    authors: dict[str, int] = field(default_factory=dict)
    scored: int = 0
    of_persons: int = 0
    """Latents whose label a person wrote."""
    of_models: int = 0
    """Latents that another model had labelled, and whose label was not to be replaced."""
    further: int = 0
    """Rows about a latent that had a better one; their texts are kept beside the label."""
    empty: int = 0
    unknown: int = 0
    """Rows about latents that the pack does not have."""
    without: int = 0
    """Rows that name no latent."""
    elsewhere: dict[str, int] = field(default_factory=dict)
    """Rows of other sources."""

    def __str__(self) -> str:
        by = ", ".join(f"{author} {n:,}" for author, n in self.authors.items())
        lines = [
            f"{self.labels:,} labels of {self.source} imported{f' (by {by})' if by else ''}, {self.scored:,} with a score."
        ]
        for n, what in (
            (self.of_persons, "latents keep the label that a person gave them"),
            (self.of_models, "latents keep the label of a model here; --replace takes the published ones"),
            (self.further, "more labels of these latents are kept in the details of theirs"),
            (self.empty, "rows have no text"),
            (self.unknown, "rows are about latents that the pack does not have"),
            (self.without, "rows name no latent: the field index is missing or no number"),
            (sum(self.elsewhere.values()), f"rows are of other SAEs ({', '.join(list(self.elsewhere)[:4])}) and left out"),
        ):
            lines += [f"{n:,} {what}."] if n else []
        return "\n".join(lines)


def import_labels(
    pack: PackData,
    place: str | Path | None = None,
    *,
    source: str | None = None,
    by: str | None = None,
    replace: bool = False,
    on_progress: OnProgress | None = None,
) -> Imported:
    """Keep published labels in a pack. `place` is a file, a folder of files, or an address of either; without one, the public
    bucket of Neuronpedia, at the source that the pack's SAE has there.

    `source` is that source (gemma-2-2b/12-gemmascope-res-16k) for a pack that does not know it. `by` takes labels of one
    author model alone. A person's label stays; one that another model gave here stays unless `replace`. Of several labels of a
    latent the one with the highest score is taken, else the first.

    Raises:
        PackError: nothing can be read there, or it is about another SAE; then nothing is kept.
    """
    source = _source(pack, source)
    pack.notes.require_writable()
    rows, elsewhere, empty, unknown, without = {}, Counter[str](), 0, 0, 0
    for row in _rows(place, source, on_progress):
        if row.source not in (None, source.lower()):
            elsewhere[row.source or ""] += 1
        elif row.latent is None:
            without += 1
        elif row.latent >= pack.d_sae:
            unknown += 1
        elif not (row.description or "").strip():
            empty += 1
        elif by is None or by.lower() == (row.explanationModelName or "").lower():
            rows.setdefault(row.latent, []).append(row)
    if elsewhere and not rows:
        others = ", ".join(f"{name} ({n:,} rows)" for name, n in elsewhere.most_common(4))
        raise PackError(
            f"{place} holds labels of {others}; this pack is about {source}, whose latents mean other things.\n"
            f"  Give the files of {source}: {BUCKET}/{source}/explanations"
        )
    if without and not rows:
        raise PackError(
            f"{place} names no latent that this pack has: in {without:,} rows the field index is missing or no number.\n"
            '  A row is Neuronpedia\'s, or at least: {"index": 12, "description": "what the latent means"}'
        )
    labels, kept = pack.notes.labels(), []
    persons = {i for i in rows if i in labels and labels[i].source == "you"}
    ours = {BY_TOKENS} | {label.source for label in labels.values() if label.source.startswith(f"{AUTHOR}, ")}
    models = {i for i in rows if i in labels and i not in persons and labels[i].source not in ours and not replace}
    for latent in sorted(set(rows) - persons - models):
        best, *others = sorted(rows[latent], key=lambda row: -(row.best.value or 0.0) if row.best else 1.0)
        kept.append((latent, str(best.description), f"{AUTHOR}, {best.author}", *_scored(best, others, source, latent)))
    pack.notes.set_labels(kept)
    return Imported(
        source=source,
        labels=len(kept),
        authors=dict(Counter(name.removeprefix(f"{AUTHOR}, ") for _, _, name, *_ in kept).most_common()),
        scored=sum(score is not None for *_, score, _ in kept),
        of_persons=len(persons),
        of_models=len(models),
        further=sum(len(rows[latent]) - 1 for latent, *_ in kept),
        empty=empty,
        unknown=unknown,
        without=without,
        elsewhere=dict(elsewhere),
    )


def _scored(row: _Row, others: list[_Row], source: str, latent: int) -> tuple[float | None, dict[str, Any]]:
    """(the score, if it is a share; what is known of the label besides)."""
    best = row.best
    detail: dict[str, Any] = {"published": neuronpedia_url(source, latent), "author": row.author, "type": row.typeName}
    if best is not None:
        judge = f" by {best.explanationScoreModelName}" if best.explanationScoreModelName else ""
        detail["measure"] = f"{best.explanationScoreTypeName}{judge}, as published"
        detail["scores"] = [{"value": s.value, "measure": s.explanationScoreTypeName} for s in row.scores or []]
    if row.notes:
        detail["notes"] = row.notes
    if others:
        detail["others"] = [{"text": other.description, "author": other.author} for other in others]
    share = best is not None and 0 <= (best.value or 0) <= 1
    return (float(best.value or 0) if best is not None and share else None), detail


def _source(pack: PackData, stated: str | None) -> str:
    if stated is not None and pack.neuronpedia not in (None, stated):
        raise PackError(f"This pack is about {pack.neuronpedia}, not about {stated}: its latents mean other things.")
    source = stated or pack.neuronpedia
    if source is None or source.count("/") != 1:
        raise PackError(
            f"{pack.folder} does not say which source of Neuronpedia its latents are"
            f"{'' if source is None else f', and {source!r} is none'}.\n"
            "  Where you know it, say so: --source gemma-2-2b/12-gemmascope-res-16k (model and layer, as in its addresses)"
        )
    return source


def _rows(place: str | Path | None, source: str, on_progress: OnProgress | None) -> Iterator[_Row]:
    text = str(place or f"{BUCKET}/{source}/explanations")
    if text.startswith(("http:/", "https:/")):
        yield from _fetched(text.replace(":/", "://", 1).replace(":///", "://"), on_progress)
        return
    path = Path(text).expanduser()
    files = _files(path)
    for done, file in enumerate(files, 1):
        yield from _parsed(read_bytes(file, PackError, _WAY_OUT, LARGEST), str(file))
        if on_progress:
            on_progress(done, len(files), {})


def _files(path: Path) -> list[Path]:
    """The files of an export in a folder, or in its explanations/; a file itself."""
    if not path.is_dir():
        return [path]
    inner = path / "explanations"
    folder = inner if inner.is_dir() else path
    files = sorted((f for f in folder.iterdir() if f.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz"))), key=str)
    if not files:
        there = ", ".join(sorted(f.name for f in folder.iterdir())[:6]) or "nothing"
        raise PackError(f"{folder} holds no batch-0.jsonl.gz nor another .jsonl, .jsonl.gz or .json. It holds: {there}.")
    return files


def _fetched(url: str, on_progress: OnProgress | None) -> Iterator[_Row]:
    """The rows of a file on the web, or of batch-0.jsonl.gz, batch-1.jsonl.gz, ... in a folder there, as far as there are."""
    if url.split("?")[0].endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")) or "?" in url:
        yield from _parsed(_get(url), url)
        return
    for number in range(_MOST):
        file = f"{url.rstrip('/')}/batch-{number}.jsonl.gz"
        data = _get(file, may_lack=number > 0)
        if data is None:
            return
        yield from _parsed(data, file)
        if on_progress:
            on_progress(number + 1, number + 2, {})


def _get(url: str, may_lack: bool = False) -> bytes | None:
    """
    Raises:
        PackError: no answer, a refusal, or more than LARGEST bytes.
    """
    import requests

    way_out = "Or fetch the files by other means, and give their folder."
    try:
        with requests.get(url, timeout=_TIMEOUT, stream=True) as answer:
            if may_lack and answer.status_code in (403, 404):  # the bucket says 403 of what it does not have
                return None
            if answer.status_code != 200:
                raise PackError(f"{url} cannot be fetched: the server says {answer.status_code} {answer.reason}.\n  {way_out}")
            data = bytearray()
            for piece in answer.iter_content(1 << 20):
                data += piece
                if len(data) > LARGEST:
                    raise PackError(f"{url} sends more than {LARGEST:,} bytes, which no file of labels has.")
            return bytes(data)
    except requests.RequestException as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PackError(f"{url} cannot be fetched: {reason}\n  Check the network. {way_out}") from None


def _parsed(data: bytes | None, name: str) -> Iterator[_Row]:
    """The rows of a file: lines, or one value, packed or not."""
    data = data or b""
    if data[:2] == b"\x1f\x8b":
        data = _unpacked(data, name)
    begin = data[:4096].lstrip()[:1]
    whole = begin == b"[" or (begin == b"{" and not name.split("?")[0].removesuffix(".gz").endswith(".jsonl"))
    if not whole:
        yield from (_typed(row, name) for row in json_lines(data, name, PackError, _WAY_OUT))
        return
    value = parse_json(data, name, PackError, _WAY_OUT)
    about: dict[str, Any] = {}
    if isinstance(value, dict):
        about = {key: value[key] for key in ("modelId", "layer", "saeId", "index") if key in value}
        value = value.get("explanations", [value])
    if not isinstance(value, list):
        raise PackError(f"{name} holds no list of labels. Give a file of Neuronpedia's explanations.")
    yield from (_typed({**about, **row} if isinstance(row, dict) else row, name) for row in value)


def _unpacked(data: bytes, name: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            plain = file.read(LARGEST + 1)
    except (zlib.error, OSError, EOFError) as error:
        raise PackError(f"{name} is damaged or was cut short ({error}). {_WAY_OUT}") from None
    if len(plain) > LARGEST:
        raise PackError(f"{name} unpacks to more than {LARGEST:,} bytes, which no file of labels has.")
    return plain


def _typed(row: Any, name: str) -> _Row:
    return typed(row, _Row, f"a row of {name}", PackError, "Give a file of Neuronpedia's explanations.")
