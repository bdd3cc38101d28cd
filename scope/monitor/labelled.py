"""Labelled texts from files or rows, what is left out of them and why, and their split into training, validation and test."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from scope.activations.corpus.document import Document, clean
from scope.activations.corpus.files import PLAIN, check, open_text
from scope.activations.corpus.readers import known_form, read_file
from scope.errors import ScopeError
from scope.null_seeds import null_seed
from scope.whole_files import file_sha256


class MonitorError(ScopeError):
    """Labelled texts that no monitor can be fitted to, or a monitor that is missing, damaged or of another model."""


SPLITS = ("train", "validation", "test")
SHARES = (0.5, 0.25, 0.25)
"""Shares of the texts in each split, where the file names none."""

FEWEST = {"train": 8, "validation": 4, "test": 4}
"""Texts of each label that a split has to have."""

_SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation"}
_SPLIT_NAMES |= {"dev": "validation", "test": "test", "testing": "test", "eval": "test"}
_POSITIVE = {"1", "true", "yes", "positive", "pos", "unsafe", "harmful", "toxic", "violates", "spam"}
_NEGATIVE = {"0", "-1", "false", "no", "negative", "neg", "safe", "harmless", "ok", "benign", "ham"}


@dataclass(frozen=True)
class Record(Document):
    """A document with its label, group and split, as its file writes them."""

    label: Any = None
    group: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class RecordReader:
    """Reads labelled texts from records (`RecordFields` of the readers): which fields hold what."""

    text: str = "text"
    label: str | None = "label"
    group: str | None = "group"
    split: str | None = "split"

    @property
    def identity(self) -> dict[str, Any]:
        return {"fields": [self.text, self.label, self.group, self.split]}

    def columns(self, there: Collection[str]) -> list[str]:
        for name, flag in ((self.text, "--text-field"), (self.label, "--label-field")):
            if name is not None and name not in there:
                raise MonitorError(f'There is no column "{name}"; there are: {", ".join(there)[:500]}. Name one with {flag}.')
        return [name for name in (self.text, self.label, self.group, self.split) if name in there]

    def document(self, record: Mapping[str, Any], source: str, name: str) -> Document:
        self.columns(record.keys())
        text = record[self.text]
        if text is not None and not isinstance(text, str):
            raise MonitorError(f'{source}, holds a {type(text).__name__} in "{self.text}" instead of a text.')
        group, split = record.get(self.group or ""), record.get(self.split or "")
        return Record(
            name,
            clean(text or ""),
            label=None if self.label is None else record[self.label],
            group=None if group is None else str(group),
            split=None if split is None else str(split).strip().lower(),
        )


def read_texts(file: Path, fields: RecordReader) -> Iterator[Record]:
    """The records of a file, one after another; of plain text, a record a line. Its labels are None where `fields` has none.

    Raises:
        MonitorError, CorpusError: no such file, a kind that is not read, no such field.
    """
    if not file.is_file():
        raise MonitorError(
            f"There is no file {file}. Give texts as .jsonl, .csv, .tsv, .json or .parquet, or .txt, a line each."
        )
    form = known_form(file)
    check(file, form)
    if form.kind not in PLAIN:
        yield from (record for record in read_file(file, file.name, fields) if isinstance(record, Record))
        return
    if fields.label is not None:
        raise MonitorError(f"{file} holds plain text, which has no labels. Give .jsonl, .csv or .parquet.")
    with open_text(file) as lines:
        for number, line in enumerate(lines, 1):
            yield Record(f"{file.name}:{number}", line.rstrip("\n"))


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Texts with one of two labels each, in three splits."""

    texts: tuple[str, ...]
    labels: np.ndarray
    """bool [text]: whether it is positive."""
    groups: tuple[str | None, ...]
    splits: np.ndarray
    """Integers [text]: index into `SPLITS`."""
    clusters: np.ndarray
    """Integers [text]: texts of one cluster are in one split."""
    positive: str
    negative: str
    notes: tuple[str, ...]
    identity: dict[str, Any] = field(default_factory=dict)

    def only(self, keep: np.ndarray, note: str) -> "Labelled":
        """Some of the texts, by a mask, with a note on the others."""
        pick = np.flatnonzero(keep)
        texts, groups = (tuple(rows[i] for i in pick) for rows in (self.texts, self.groups))
        arrays = {name: getattr(self, name)[pick] for name in ("labels", "splits", "clusters")}
        rest = replace(self, texts=texts, groups=groups, **arrays, notes=(*self.notes, note))
        refuse_too_few(rest, True)
        return rest

    def where(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def __len__(self) -> int:
        return len(self.texts)


def rows_of(data: Any) -> list[Mapping[str, Any]]:
    """The rows of a pandas table, of a list of mappings, or of (text, label) pairs."""
    if hasattr(data, "to_dict"):
        return data.to_dict("records")
    return [row if isinstance(row, Mapping) else {"text": row[0], "label": row[1]} for row in data]


def labelled(
    data: Any,
    fields: RecordReader,
    positive: str | None = None,
    by_group: bool = False,
    seed: int = 0,
) -> Labelled:
    """Labelled texts from a file or rows: cleaned, one of each text, and split without leakage.

    Texts that are equal but for case and white space, and with `by_group` texts of one group, come into one split.

    Raises:
        MonitorError: no two labels, too few texts of one, or a group in two splits.
    """
    if isinstance(data, str | Path):
        file = Path(data).expanduser()
        records = list(read_texts(file, fields))
        identity = {"name": file.name, "sha256": file_sha256(file)} | fields.identity
    else:
        rows = rows_of(data)
        records = [fields.document(row, f"row {i}", str(i)) for i, row in enumerate(rows)]
        digest = hashlib.sha256(json.dumps([[r.text, str(r.label), r.group, r.split] for r in records]).encode())  # type: ignore[attr-defined]
        identity = {"name": f"{len(rows)} rows", "sha256": digest.hexdigest()} | fields.identity
    notes: list[str] = []
    chosen = _usable([r for r in records if isinstance(r, Record)], notes)
    labels, positive, negative = _two_labels(chosen, positive, notes)
    keep = _once(chosen, labels, notes)
    chosen, labels = [chosen[i] for i in keep], labels[keep]
    if by_group and any(r.group is None for r in chosen):
        raise MonitorError(
            f'Some texts have no group in "{fields.group}". Name the field with --group-field, or leave out --by-group.'
        )
    clusters = _clusters(chosen, by_group)
    if any(r.split for r in chosen):
        splits, left_out = _stated_splits(chosen, clusters, labels, seed, by_group, notes)
        rest = np.flatnonzero(~left_out)
        chosen, labels, clusters, splits = [chosen[i] for i in rest], labels[rest], clusters[rest], splits[rest]
    else:
        splits = assign(clusters, labels, SHARES, seed)
    made = Labelled(
        texts=tuple(r.text for r in chosen),
        labels=labels,
        groups=tuple(r.group for r in chosen),
        splits=splits,
        clusters=clusters,
        positive=positive,
        negative=negative,
        notes=tuple(notes),
        identity=identity | {"seed": seed, "by_group": by_group},
    )
    refuse_too_few(made, any(r.split for r in chosen))
    return made


def _usable(records: list[Record], notes: list[str]) -> list[Record]:
    def missing(value: Any) -> bool:
        return value is None or str(value).strip().lower() in ("", "nan", "null", "none")

    unlabelled = [r for r in records if missing(r.label)]
    if unlabelled:
        notes.append(
            f"{len(unlabelled):,} of {len(records):,} texts have no label and are left out (first: {unlabelled[0].name})."
        )
    rest = [r for r in records if not missing(r.label)]
    empty = [r for r in rest if not r.text.strip()]
    if empty:
        notes.append(f"{len(empty):,} texts are empty and are left out (first: {empty[0].name}).")
    return [r for r in rest if r.text.strip()]


def _name(label: Any) -> str:
    """A label as text: true for True, and 1 for 1.0, as pandas writes whole numbers beside missing ones."""
    text = str(label).strip()
    return text.lower() if isinstance(label, bool | np.bool_) else re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def _two_labels(records: list[Record], positive: str | None, notes: list[str]) -> tuple[np.ndarray, str, str]:
    """(which are positive, name of the positive label, name of the others).

    Raises:
        MonitorError: a single label, or it is not clear which of them the alarm is for.
    """
    names = [_name(r.label) for r in records]
    counts = Counter(names)
    there = ", ".join(f"{name!r} ({n:,})" for name, n in counts.most_common(12)) or "none"
    if len(counts) < 2:
        raise MonitorError(f"A monitor tells two labels apart; the texts have these: {there}. Add texts of another label.")
    if positive is None:
        sides = {name for name in counts if name.lower() in _POSITIVE}
        if len(counts) == 2 and len(sides) == 1:
            positive = sides.pop()
        elif len(counts) == 2 and sum(name.lower() in _NEGATIVE for name in counts) == 1:
            positive = next(name for name in counts if name.lower() not in _NEGATIVE)
        else:
            raise MonitorError(f"For which label should the alarm sound? There are {there}.\n  Name it: --positive LABEL")
    matching = [name for name in counts if name.lower() == positive.strip().lower()]
    if not matching:
        raise MonitorError(f"No text has the label {positive!r}; there are {there}.")
    others = [name for name in counts if name not in matching]
    if not others:
        raise MonitorError(f"All texts have the label {positive!r}. Add texts of another label.")
    if len(others) > 1:
        notes.append(f"The label {positive!r} stands against {len(others)} others: {', '.join(sorted(others))[:200]}.")
    return np.array([name in matching for name in names]), matching[0], others[0] if len(others) == 1 else f"not {matching[0]}"


def _once(records: list[Record], labels: np.ndarray, notes: list[str]) -> np.ndarray:
    """Indices of the texts without repetitions, and without those that have both labels."""
    first: dict[str, int] = {}
    seen: dict[str, set[bool]] = {}
    for i, record in enumerate(records):
        first.setdefault(record.text, i)
        seen.setdefault(record.text, set()).add(bool(labels[i]))
    both = {text for text, sides in seen.items() if len(sides) > 1}
    again = len(records) - len(first)
    if both:
        notes.append(f"{len(both):,} texts occur with both labels and are left out (first: {next(iter(both))[:60]!r}).")
    if again:
        notes.append(f"{again:,} repetitions of a text are left out: each text counts once.")
    return np.array([i for text, i in first.items() if text not in both], dtype=int)


def _clusters(records: list[Record], by_group: bool) -> np.ndarray:
    """A number for each text, equal for those that are alike but for case and white space, and for those of one group."""
    parent: dict[Any, Any] = {}

    def root(key: Any) -> Any:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    keys = [("text", " ".join(r.text.casefold().split())) for r in records]
    for key, record in zip(keys, records, strict=True):
        if by_group:
            parent[root(key)] = root(("group", record.group))
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(root(key), len(numbers)) for key in keys], dtype=int)


def assign(clusters: np.ndarray, labels: np.ndarray, shares: Iterable[float], seed: int) -> np.ndarray:
    """A part for each text: clusters in a random order, the largest first, each into the part that lacks most of its labels."""
    sizes = np.array(list(shares))
    totals = np.array([(~labels).sum(), labels.sum()])
    counts = np.zeros((clusters.max() + 1, 2), dtype=int)
    np.add.at(counts, (clusters, labels.astype(int)), 1)
    order = np.random.default_rng(null_seed("splits of labelled texts", seed)).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    have, part = np.zeros((len(sizes), 2)), np.zeros(len(counts), dtype=int)
    for cluster in order:
        lack = 1 - have / np.maximum(sizes[:, None] * totals, 1e-9)  # share of each label that a part still lacks
        part[cluster] = int(np.argmax(lack @ counts[cluster]))
        have[part[cluster]] += counts[cluster]
    return part[clusters]


def _stated_splits(
    records: list[Record], clusters: np.ndarray, labels: np.ndarray, seed: int, by_group: bool, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(splits as the file names them, which texts are left out since another split has them too).

    Raises:
        MonitorError: an unknown name, no split called train or test, or a group in two splits.
    """
    unknown = sorted({r.split or "" for r in records} - _SPLIT_NAMES.keys())
    if unknown:
        names = ", ".join(repr(name) for name in unknown)[:200]
        raise MonitorError(
            f"Splits are called {names}; known are train, validation and test. Another field: --split-field NAME."
        )
    splits = np.array([SPLITS.index(_SPLIT_NAMES[r.split or ""]) for r in records])
    if missing := [SPLITS[i] for i in (0, 2) if not (splits == i).any()]:
        raise MonitorError(
            f"No text is in the split {missing[0]}. Without a field of splits they are drawn: --split-field none"
        )
    left_out = np.zeros(len(records), dtype=bool)
    for later in (1, 2):
        shared = np.isin(clusters, clusters[splits < later]) & (splits == later)
        if shared.any() and by_group:
            group = records[int(np.flatnonzero(shared)[0])].group
            raise MonitorError(
                f"The group {group!r} is in the split {SPLITS[later]} and in an earlier one. Put each into one split."
            )
        if shared.any():
            notes.append(
                f"{int(shared.sum()):,} texts of the split {SPLITS[later]} are in an earlier one too, and are left out of it."
            )
        left_out |= shared
    if not (splits == 1).any():
        train = np.flatnonzero(splits == 0)
        cut = assign(np.unique(clusters[train], return_inverse=True)[1], labels[train], (2 / 3, 1 / 3), seed)
        splits[train[cut == 1]] = 1
        notes.append("The file names no validation split: a third of the training texts was taken for it.")
    return splits, left_out


def refuse_too_few(data: Labelled, stated: bool) -> None:
    for split, fewest in FEWEST.items():
        for side, name in ((True, data.positive), (False, data.negative)):
            n = int((data.labels[data.where(split)] == side).sum())
            if n < fewest:
                total = int((data.labels == side).sum())
                most = max(fewest / share for fewest, share in zip(FEWEST.values(), SHARES, strict=True))
                need = "" if stated else f" {round(most)} texts of each label are enough for a first look."
                if (n_clusters := len(np.unique(data.clusters))) < 12:
                    clusters = "1 cluster, which is" if n_clusters == 1 else f"{n_clusters} clusters, which are"
                    need += f" They hang together in {clusters} not split."
                raise MonitorError(
                    f"There are too few texts: of {total:,} with the label {name!r}, {n} would be in the split {split}, "
                    f"which needs {fewest}.{need}\n  So few show nothing about errors. Add texts."
                )
