"""Labels with their source and score, notes, stars, lists and guesses that people and models add to a pack.

One SQLite file in the pack, notes.sqlite, the only one that is written after the pack is made; write-ahead logging lets many
read while one writes. It belongs to one dictionary: a pack made anew of the same dictionary takes it along, and one of
another dictionary refuses it, because its words would stand beside other latents.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scope.errors import PackError

FILE = "notes.sqlite"
LONGEST = 20_000
"""Characters of a note or label that are kept."""

_TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS labels (latent INTEGER PRIMARY KEY, text TEXT NOT NULL, source TEXT NOT NULL, score REAL,
    detail TEXT NOT NULL, made REAL NOT NULL);
CREATE TABLE IF NOT EXISTS notes (latent INTEGER PRIMARY KEY, text TEXT NOT NULL, made REAL NOT NULL);
CREATE TABLE IF NOT EXISTS stars (latent INTEGER PRIMARY KEY, made REAL NOT NULL);
CREATE TABLE IF NOT EXISTS guesses (id INTEGER PRIMARY KEY, latent INTEGER NOT NULL, correct INTEGER NOT NULL,
    asked INTEGER NOT NULL, made REAL NOT NULL);
CREATE TABLE IF NOT EXISTS lists (name TEXT NOT NULL, latent INTEGER NOT NULL, made REAL NOT NULL, PRIMARY KEY (name, latent));
"""
LONGEST_NAME = 80
"""Characters of a list's name."""


@dataclass(frozen=True)
class Label:
    """A label and where it came from. `score` is its detection score where it was tested, else None; `detail` says how."""

    latent: int
    text: str
    source: str
    score: float | None
    detail: dict[str, Any]
    made: float


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
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection | None]:
        """The file, made on the first writing; None where nothing was ever written.

        Raises:
            PackError: it is damaged, belongs to another dictionary, is locked, or cannot be written.
        """
        if not write and not self.file.exists():
            yield None
            return
        try:
            with closing(sqlite3.connect(self.file, timeout=10)) as db, db:
                if write:
                    db.execute("PRAGMA journal_mode = WAL")
                    db.executescript(_TABLES)
                    db.execute("INSERT OR IGNORE INTO about VALUES ('dictionary', ?)", (self.dictionary,))
                owner = db.execute("SELECT value FROM about WHERE name = 'dictionary'").fetchone()
                if owner is None or owner[0] != self.dictionary:
                    raise PackError(
                        f"{self.file} holds the notes of another dictionary, whose latents mean other things.\n"
                        "  Move it away, or put it beside the pack that it belongs to."
                    )
                yield db
        except sqlite3.Error as error:
            raise PackError(
                f"{self.file} cannot be {'written' if write else 'read'}: {error}.\n"
                "  If it is damaged, move it away: the pack itself is whole without it."
            ) from None

    def labels(self) -> dict[int, Label]:
        """The label of each latent that was given one; a person's stands before a model's."""
        return {label.latent: label for label in self._labels()}

    def label(self, latent: int) -> Label | None:
        return next(iter(self._labels("WHERE latent = ?", latent)), None)

    def _labels(self, where: str = "", *values: Any) -> list[Label]:
        with self._open() as db:
            rows = [] if db is None else db.execute(f"SELECT * FROM labels {where}", values).fetchall()
        return [_label(row) for row in rows]

    def set_label(
        self, latent: int, text: str, source: str, score: float | None = None, detail: dict[str, Any] | None = None
    ) -> None:
        """Keep a label; an empty text takes it back. What a person wrote is only replaced by a person ("you")."""
        self.set_labels([(latent, text, source, score, detail)])

    def set_labels(self, labels: Iterable[tuple[int, str, str, float | None, dict[str, Any] | None]]) -> None:
        """Many at once, as (latent, text, source, score, detail); all are kept, or none."""
        rows = list(labels)
        if not rows:
            return
        with self._open(write=True) as db:
            for latent, text, source, score, detail in rows:
                text = text.strip()[:LONGEST]
                if not text:
                    db.execute("DELETE FROM labels WHERE latent = ?", (latent,))
                    continue
                before = db.execute("SELECT source FROM labels WHERE latent = ?", (latent,)).fetchone()
                if before and before[0] == "you" != source:
                    continue
                row = (latent, text, source, score, json.dumps(detail or {}), time.time())
                db.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?, ?)", row)

    def about(self, latent: int) -> Said:
        """All of one latent, in one reading of the file."""
        with self._open() as db:
            if db is None:
                return Said(None, "", False, [], (0, 0))
            label = db.execute("SELECT * FROM labels WHERE latent = ?", (latent,)).fetchone()
            note = db.execute("SELECT text FROM notes WHERE latent = ?", (latent,)).fetchone()
            star = db.execute("SELECT 1 FROM stars WHERE latent = ?", (latent,)).fetchone()
            lists = db.execute("SELECT name FROM lists WHERE latent = ? ORDER BY name", (latent,)) if _listed(db) else []
            lists = [name for (name,) in lists]
            guesses = db.execute(_GUESSED, (latent,)).fetchone()
        return Said(label and _label(label), note[0] if note else "", bool(star), lists, guesses)

    def note(self, latent: int) -> str:
        with self._open() as db:
            found = db and db.execute("SELECT text FROM notes WHERE latent = ?", (latent,)).fetchone()
        return found[0] if found else ""

    def noted(self) -> dict[int, str]:
        """All notes, by latent."""
        with self._open() as db:
            return {} if db is None else dict(db.execute("SELECT latent, text FROM notes ORDER BY latent").fetchall())

    def set_note(self, latent: int, text: str) -> None:
        with self._open(write=True) as db:
            if text.strip():
                db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (latent, text[:LONGEST], time.time()))
            else:
                db.execute("DELETE FROM notes WHERE latent = ?", (latent,))

    def starred(self) -> list[int]:
        """Latents with a star, the first starred first."""
        with self._open() as db:
            return [] if db is None else [i for (i,) in db.execute("SELECT latent FROM stars ORDER BY made, latent")]

    def set_star(self, latent: int, star: bool) -> None:
        with self._open(write=True) as db:
            if star:
                db.execute("INSERT OR IGNORE INTO stars VALUES (?, ?)", (latent, time.time()))
            else:
                db.execute("DELETE FROM stars WHERE latent = ?", (latent,))

    def guessed(self, latent: int) -> tuple[int, int]:
        """(right answers, questions) of all guess games played with a latent."""
        with self._open() as db:
            if db is None:
                return 0, 0
            return db.execute(_GUESSED, (latent,)).fetchone()

    def add_guess(self, latent: int, correct: int, questions: int) -> None:
        with self._open(write=True) as db:
            db.execute(
                "INSERT INTO guesses (latent, correct, asked, made) VALUES (?, ?, ?, ?)",
                (latent, correct, questions, time.time()),
            )

    def lists(self) -> dict[str, list[int]]:
        """Latents by the name of each list, in the order in which they were put there; a list without any is none."""
        found: dict[str, list[int]] = {}
        with self._open() as db:
            rows = db.execute("SELECT name, latent FROM lists ORDER BY name, made, rowid") if db and _listed(db) else []
            for name, latent in rows:
                found.setdefault(name, []).append(latent)
        return found

    def add_to_list(self, name: str, latents: Iterable[int]) -> None:
        """Put latents on a list, which is made by that; those that are there already stay where they are.

        Raises:
            PackError: a list without a name.
        """
        name = name.strip()[:LONGEST_NAME]
        if not name:
            raise PackError("A list needs a name.")
        with self._open(write=True) as db:
            rows = [(name, int(latent), time.time()) for latent in latents]
            db.executemany("INSERT OR IGNORE INTO lists VALUES (?, ?, ?)", rows)

    def take_from_list(self, name: str, latents: Iterable[int]) -> None:
        with self._open(write=True) as db:
            db.executemany("DELETE FROM lists WHERE name = ? AND latent = ?", [(name, int(latent)) for latent in latents])

    def version(self) -> int:
        """Grows with every writing, by whichever process; 0 before the first."""
        return max((f.stat().st_mtime_ns for f in self.file.parent.glob(FILE + "*") if f.exists()), default=0)

    def copy_to(self, folder: Path) -> None:
        """The same file in another folder, whole although others may be writing."""
        with self._open() as db:
            if db is not None:
                with closing(sqlite3.connect(folder / FILE)) as copy:
                    db.backup(copy)

    def to_json(self) -> dict[str, Any]:
        """Everything that people and models said, for an export."""
        labels = [asdict(label) for label in self._labels("ORDER BY latent")]
        notes = [{"latent": i, "text": text} for i, text in self.noted().items()]
        said = {"labels": labels, "notes": notes, "stars": self.starred(), "lists": self.lists()}
        return {"dictionary": self.dictionary, **said}


_GUESSED = "SELECT COALESCE(SUM(correct), 0), COALESCE(SUM(asked), 0) FROM guesses WHERE latent = ?"


def _label(row: tuple) -> Label:
    latent, text, source, score, detail, made = row
    return Label(latent, text, source, score, json.loads(detail), made)


def _listed(db: sqlite3.Connection) -> bool:
    """Whether the file knows of lists; those written before there were any do not."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'lists'").fetchone() is not None
