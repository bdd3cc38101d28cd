"""Labels with their source and score, notes, stars, lists and guesses that people and models add to a pack.

One SQLite file in the pack, notes.sqlite, the only one that is written after the pack is made. Its tables and its owner come in
one transaction, and a file without them counts as empty, so a first writer that was killed leaves nothing to be removed.
It belongs to one dictionary: a pack made anew of the same dictionary takes it along, and one of another dictionary refuses it,
because its words would stand beside other latents.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scope.errors import PackError
from scope.typed_json import parse_json, typed
from scope.whole_files import has_locks, only_writer

FILE = "notes.sqlite"
LONGEST = 20_000
"""Characters of a note or label that are kept."""

_TABLES = (
    "about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "labels (latent INTEGER PRIMARY KEY, text TEXT NOT NULL, source TEXT NOT NULL, score REAL, detail TEXT NOT NULL, "
    "made REAL NOT NULL)",
    "notes (latent INTEGER PRIMARY KEY, text TEXT NOT NULL, made REAL NOT NULL)",
    "stars (latent INTEGER PRIMARY KEY, made REAL NOT NULL)",
    "guesses (id INTEGER PRIMARY KEY, latent INTEGER NOT NULL, correct INTEGER NOT NULL, asked INTEGER NOT NULL, "
    "made REAL NOT NULL)",
    "lists (name TEXT NOT NULL, latent INTEGER NOT NULL, made REAL NOT NULL, PRIMARY KEY (name, latent))",
)
_FIRST = {"about", "labels", "notes", "stars", "guesses"}
"""Tables of the first version; a file that lacks one was never written to the end."""

_WAIT = 10.0
"""Seconds in which another process may finish its writing."""

LONGEST_NAME = 80
"""Characters of a list's name."""


class NotSaved(PackError):
    """What somebody wrote could not be saved. `text` is what they wrote, and stands in the message too."""

    def __init__(self, message: str, text: str):
        super().__init__(f"{message}\n  Not saved: {text}")
        self.text = text


@dataclass(frozen=True)
class Label:
    """A label and where it came from. `score` is its detection score where it was tested, else None; `detail` says how."""

    latent: int
    text: str
    source: str
    score: float | None
    detail: dict[str, Any]
    made: float

    @property
    def author(self) -> str:
        """Who gave it: a person by name, a rule or a model by what it is called, with the version of what wrote it."""
        name, by = self.detail.get("author"), self.detail.get("made_by")
        if self.source == "you":
            return name if isinstance(name, str) and name.strip() else "a person"
        return f"{self.source}, {by}" if isinstance(by, str) else self.source


@dataclass(frozen=True)
class Said:
    """Everything that was said of one latent."""

    label: Label | None
    note: str
    starred: bool
    lists: list[str]
    """Names of the lists it is in, in order of the alphabet."""
    guessed: tuple[int, int]
    """(right answers, questions) of all guess games."""


class Notes:
    """The words of one pack. Each call opens the file, so it may be shared between threads and processes."""

    def __init__(self, folder: Path, dictionary: str):
        self.file, self.dictionary = folder / FILE, dictionary

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """The file, opened for reading alone; None where nothing was ever written.

        Raises:
            PackError: it is damaged, or belongs to another dictionary.
        """
        try:
            if not self.file.is_file() or not self.file.stat().st_size:
                yield None
                return
            with closing(self._connect_to_read()) as db:
                db.execute("BEGIN")
                written = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} >= _FIRST
                if written:
                    self._check_owner(db)
                yield db if written else None
        except (sqlite3.Error, OSError, UnicodeError) as error:
            raise PackError(f"{self.file} cannot be read: {error}.\n  {_MOVE}") from None

    def _connect_to_read(self) -> sqlite3.Connection:
        """A connection that makes no file; it undoes the half writing of a process that was killed."""
        place = f"file:{quote(str(self.file.absolute()))}"
        db = sqlite3.connect(f"{place}?mode=rw{self._vfs}", timeout=_WAIT, uri=True)
        try:
            db.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            # Files of version 0.1.0 cannot be read without a file beside them; on a read-only disk nobody writes meanwhile.
            db.close()
            if error.sqlite_errorname != "SQLITE_CANTOPEN":
                raise
            db = sqlite3.connect(f"{place}?immutable=1", uri=True)
        return db

    @cached_property
    def _vfs(self) -> str:
        """SQLite without locks, where the file system has none."""
        return "" if has_locks(self.file.parent) else "&vfs=unix-none"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other writers out where SQLite cannot.

        Raises:
            FolderInUse: another process has been writing for too long.
        """
        with only_writer(self.file.parent, "notes.lock", patience=_WAIT) if self._vfs else nullcontext():
            yield

    @contextmanager
    def _writing(self, text: str) -> Iterator[sqlite3.Connection]:
        """The file in one transaction, with its tables; `text` is what is to be saved.

        Raises:
            PackError: it belongs to another dictionary; it is damaged, locked, or cannot be written (`NotSaved`).
        """
        try:
            place = f"file:{quote(str(self.file.absolute()))}?mode=rwc{self._vfs}"
            with self._alone(), closing(sqlite3.connect(place, timeout=_WAIT, isolation_level=None, uri=True)) as db:
                db.execute("BEGIN IMMEDIATE")
                for table in _TABLES:
                    db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
                db.execute("INSERT OR IGNORE INTO about VALUES ('dictionary', ?)", (self.dictionary,))
                self._check_owner(db)
                yield db
                db.execute("COMMIT")
        except (sqlite3.Error, OSError, UnicodeError) as error:
            raise NotSaved(f"{self.file} cannot be written: {error}.", text) from None

    def _check_owner(self, db: sqlite3.Connection) -> None:
        owner = db.execute("SELECT value FROM about WHERE name = 'dictionary'").fetchone()
        if owner is not None and owner[0] != self.dictionary:
            raise PackError(
                f"{self.file} holds the notes of another dictionary, whose latents mean other things.\n"
                "  Move it away, or put it beside the pack that it belongs to."
            )

    def require_writable(self) -> None:
        """Refuse a place where nothing could be saved, before the work whose result would be lost.

        Raises:
            PackError: the disk is full or read-only, or the file is another dictionary's.
        """
        with self._writing("nothing yet"):
            pass

    def labels(self, details: bool = True) -> dict[int, Label]:
        """The label of each latent that was given one; a person's stands before a model's. Without details, which are long in
        labels by rules, many are read several times faster."""
        if details:
            return {label.latent: label for label in self._labels()}
        detail = "CASE source WHEN 'you' THEN detail ELSE '{}' END"
        rows = self._rows(f"SELECT latent, text, source, score, {detail}, made FROM labels", _LABEL)
        return {row[0]: self._label(row) if row[2] == "you" else Label(*row[:4], {}, row[5]) for row in rows}

    def label(self, latent: int) -> Label | None:
        return next(iter(self._labels("WHERE latent = ?", latent)), None)

    def _labels(self, where: str = "", *values: Any) -> list[Label]:
        return [self._label(row) for row in self._rows(f"SELECT * FROM labels {where}", _LABEL, *values)]

    def _label(self, row: tuple[int, str, str, float | None, str, float]) -> Label:
        latent, text, source, score, detail, made = row
        about = f"the detail of a label in {self.file}"
        detail = typed(parse_json(detail, about, PackError, _MOVE), dict[str, Any], about, PackError, _MOVE)
        return Label(latent, text, source, score, detail, made)

    def _rows(self, query: str, kind: Any, *values: Any) -> list[Any]:
        """The rows of a query, each of the type `kind`; none where nothing was ever written."""
        with self._reading() as db:
            rows = [] if db is None else db.execute(query, values).fetchall()
        return typed(rows, list[kind], self.file, PackError, _MOVE)

    def set_label(
        self, latent: int, text: str, source: str, score: float | None = None, detail: dict[str, Any] | None = None
    ) -> None:
        """Keep a label; an empty text takes it back. What a person wrote is only replaced by a person ("you")."""
        self.set_labels([(latent, text, source, score, detail)])

    def set_labels(self, labels: Iterable[tuple[int, str, str, float | None, dict[str, Any] | None]]) -> None:
        """Many at once, as (latent, text, source, score, detail); all are kept, or none."""
        rows = [(latent, _storable(text.strip()), source, score, detail) for latent, text, source, score, detail in labels]
        if not rows:
            return
        with self._writing("\n".join(f"{latent}: {text}" for latent, text, *_ in rows)) as db:
            for latent, text, source, score, detail in rows:
                if not text:
                    db.execute("DELETE FROM labels WHERE latent = ?", (latent,))
                    continue
                before = db.execute("SELECT source FROM labels WHERE latent = ?", (latent,)).fetchone()
                if before and before[0] == "you" != source:
                    continue
                row = (latent, text, _storable(source), score, json.dumps(detail or {}), time.time())
                db.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?, ?)", row)

    def restore_label(self, latent: int, text: str, source: str, score: float | None, detail: dict[str, Any]) -> None:
        """Put an earlier label back in place of a person's; an empty text leaves none."""
        self.set_label(latent, "", "you")
        if text:
            self.set_label(latent, text, source, score, detail)

    def about(self, latent: int) -> Said:
        """All of one latent."""
        lists = [name for name, listed in self._listed() if listed == latent]
        return Said(self.label(latent), self.note(latent), latent in self.starred(), lists, self.guessed(latent))

    def note(self, latent: int) -> str:
        return next((text for _, text in self._rows("SELECT latent, text FROM notes WHERE latent = ?", _TEXT, latent)), "")

    def noted(self) -> dict[int, str]:
        """All notes, by latent."""
        return dict(self._rows("SELECT latent, text FROM notes ORDER BY latent", _TEXT))

    def set_note(self, latent: int, text: str) -> None:
        with self._writing(text) as db:
            if text.strip():
                db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (latent, _storable(text), time.time()))
            else:
                db.execute("DELETE FROM notes WHERE latent = ?", (latent,))

    def starred(self) -> list[int]:
        """Latents with a star, the first starred first."""
        return [i for (i,) in self._rows("SELECT latent FROM stars ORDER BY made, latent", tuple[int])]

    def set_star(self, latent: int, star: bool) -> None:
        with self._writing(f"the star of latent {latent}") as db:
            if star:
                db.execute("INSERT OR IGNORE INTO stars VALUES (?, ?)", (latent, time.time()))
            else:
                db.execute("DELETE FROM stars WHERE latent = ?", (latent,))

    def guessed(self, latent: int) -> tuple[int, int]:
        """(right answers, questions) of all guess games played with a latent."""
        return next(iter(self._rows(_GUESSED, tuple[int, int], latent)), (0, 0))

    def add_guess(self, latent: int, correct: int, questions: int) -> None:
        with self._writing(f"{correct} of {questions} guesses right") as db:
            db.execute(
                "INSERT INTO guesses (latent, correct, asked, made) VALUES (?, ?, ?, ?)",
                (latent, correct, questions, time.time()),
            )

    def lists(self) -> dict[str, list[int]]:
        """Latents by the name of each list, in the order in which they were put there; a list without any is none."""
        found: dict[str, list[int]] = {}
        for name, latent in self._listed():
            found.setdefault(name, []).append(latent)
        return found

    def _listed(self) -> list[tuple[str, int]]:
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'lists'", tuple[int]):
            return []  # a file from before there were lists
        return self._rows("SELECT name, latent FROM lists ORDER BY name, made, rowid", tuple[str, int])

    def add_to_list(self, name: str, latents: Iterable[int]) -> None:
        """Put latents on a list, which is made by that; those that are there already stay where they are.

        Raises:
            PackError: a list without a name.
        """
        name = _storable(name.strip())[:LONGEST_NAME]
        if not name:
            raise PackError("A list needs a name.")
        with self._writing(f"the list {name}") as db:
            rows = [(name, int(latent), time.time()) for latent in latents]
            db.executemany("INSERT OR IGNORE INTO lists VALUES (?, ?, ?)", rows)

    def take_from_list(self, name: str, latents: Iterable[int]) -> None:
        with self._writing(f"the list {name}") as db:
            db.executemany("DELETE FROM lists WHERE name = ? AND latent = ?", [(name, int(latent)) for latent in latents])

    def version(self) -> int:
        """Grows with every writing, by whichever process; 0 before the first."""
        return max((f.stat().st_mtime_ns for f in self.file.parent.glob(FILE + "*") if f.exists()), default=0)

    def copy_to(self, folder: Path) -> None:
        """The same file in another folder, whole although others may be writing."""
        with self._reading() as db:
            if db is not None:
                place = (
                    f"file:{quote(str((folder / FILE).absolute()))}?mode=rwc{self._vfs}"  # without locks, backup waits for ever
                )
                with closing(sqlite3.connect(place, uri=True)) as copy:
                    db.backup(copy)

    def to_json(self) -> dict[str, Any]:
        """Everything that people and models said, for an export."""
        labels = [asdict(label) | {"author": label.author} for label in self._labels("ORDER BY latent")]
        notes = [{"latent": i, "text": text} for i, text in self.noted().items()]
        said = {"labels": labels, "notes": notes, "stars": self.starred(), "lists": self.lists()}
        return {"dictionary": self.dictionary, **said}


_GUESSED = "SELECT COALESCE(SUM(correct), 0), COALESCE(SUM(asked), 0) FROM guesses WHERE latent = ?"
_LABEL, _TEXT = tuple[int, str, str, float | None, str, float], tuple[int, str]
_MOVE = "If it is damaged, move it away: the pack itself is whole without it."


def _storable(text: str) -> str:
    """A text that SQLite can hold: at most LONGEST characters, no lone surrogates."""
    return text[:LONGEST].encode("utf-8", "replace").decode()
