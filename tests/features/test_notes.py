"""Labels, notes and stars outlive the page, the process and the pack, and never stand beside another dictionary's latents."""

import json
import shutil
import sqlite3
import subprocess
import sys

import pytest

from scope.errors import PackError
from scope.features.face import Pack
from scope.features.pack.notes import FILE, Notes, NotSaved, Said
from tests.features.toy_pack import make_toy_pack


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notes") / "toy.pack"
    make_toy_pack(folder)
    return folder


@pytest.fixture
def pack(toy, tmp_path):
    return Pack.open(shutil.copytree(toy, tmp_path / "toy.pack"))


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path, "toy-dictionary")


def test_reading_what_was_never_written_writes_nothing(pack):
    notes = pack.notes
    assert (notes.labels(), notes.note(1), notes.starred(), notes.guessed(1)) == ({}, "", [], (0, 0))
    assert not (pack.folder / FILE).exists()


def test_a_label_replaces_the_packs_own_and_says_its_source_and_score(pack):
    before = pack.table["label"].iat[1]
    pack.notes.set_label(1, "canines", "some-model", 0.8, {"prompt": "v1"})
    pack.refresh()
    assert pack[1].label == "canines"
    assert (pack[1].label_source, pack[1].row["label_score"]) == ("some-model", 0.8)
    assert pack.find("canines").index[0] == 1
    pack.notes.set_label(1, "", "some-model")
    pack.refresh()
    assert pack[1].label == before


def test_a_model_does_not_overwrite_what_a_person_wrote(pack):
    pack.notes.set_label(1, "mine", "you")
    pack.notes.set_label(1, "its", "some-model")
    assert pack.notes.label(1).text == "mine"
    pack.notes.set_label(1, "mine again", "you")
    assert pack.notes.label(1).text == "mine again"


def test_notes_stars_and_guesses_are_kept_and_taken_back(pack):
    notes = pack.notes
    notes.set_note(3, "<b>after</b> the")
    notes.set_star(3, True)
    notes.set_star(7, True)
    notes.set_star(3, False)
    notes.add_guess(3, 8, 10)
    notes.add_guess(3, 7, 10)
    again = Pack.open(pack.folder).notes
    assert (again.note(3), again.starred(), again.guessed(3)) == ("<b>after</b> the", [7], (15, 20))
    again.set_note(3, "  ")
    assert again.noted() == {}


def test_a_pack_made_again_takes_its_notes_and_saved_runs_along_and_another_dictionarys_pack_puts_the_notes_aside(
    pack, tmp_path
):
    pack.notes.set_label(1, "canines", "you")
    runs = [pack.folder / "steering" / "0123456789ab.json", pack.folder / "prompts" / "ba9876543210.json"]
    for run in runs:
        run.parent.mkdir()
        run.write_text(f"saved as {run.name}")
    make_toy_pack(pack.folder)
    assert Pack.open(pack.folder)[1].label == "canines"
    assert [run.read_text() for run in runs] == [f"saved as {run.name}" for run in runs]
    manifest = json.loads((pack.folder / "manifest.json").read_text())
    manifest["dictionary"]["weights_sha256"] = "another"
    (pack.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PackError, match="another dictionary"):
        Pack.open(pack.folder).table  # noqa: B018
    with sqlite3.connect(pack.folder / FILE) as db:
        db.execute("UPDATE about SET value = 'somebody else'")
    make_toy_pack(pack.folder)
    assert not (pack.folder / FILE).exists()
    assert len(list(tmp_path.glob(f"toy.pack.*.{FILE}"))) == 1


def test_a_damaged_file_is_named_with_the_way_out(pack):
    (pack.folder / FILE).write_bytes(b"not a database at all, and longer than a header would be" * 20)
    with pytest.raises(PackError, match="move it away"):
        Notes(pack.folder, "toy-dictionary").labels()


def test_lists_keep_their_order_and_are_gone_with_their_last_latent(pack):
    notes = pack.notes
    notes.add_to_list("animals", [7, 1])
    notes.add_to_list(" animals ", [3, 7])
    notes.add_to_list("to look at", [1])
    assert notes.lists() == {"animals": [7, 1, 3], "to look at": [1]}
    assert notes.about(1).lists == ["animals", "to look at"]
    notes.take_from_list("to look at", [1])
    assert list(notes.lists()) == ["animals"]
    with pytest.raises(PackError, match="needs a name"):
        notes.add_to_list("  ", [1])


def test_all_that_was_said_of_a_latent_is_read_at_once(pack):
    notes = pack.notes
    assert notes.about(4) == Said(None, "", False, [], (0, 0))
    notes.set_label(4, "cats", "you", detail={"author": "ann"})
    notes.set_note(4, "hm")
    notes.set_star(4, True)
    notes.add_guess(4, 8, 10)
    said = notes.about(4)
    assert (said.label.text, said.label.detail["author"], said.note, said.starred, said.guessed) == (
        "cats",
        "ann",
        "hm",
        True,
        (8, 10),
    )


def test_a_file_from_before_there_were_lists_is_read(pack):
    pack.notes.set_star(2, True)
    with sqlite3.connect(pack.folder / FILE) as db:
        db.execute("DROP TABLE lists")
    assert pack.notes.lists() == {}
    assert pack.notes.about(2).starred
    pack.notes.add_to_list("new", [2])
    assert pack.notes.lists() == {"new": [2]}


def test_a_star_leaves_the_table_and_a_label_renews_only_what_it_changes(pack):
    table, order = pack.table, pack.index.order("max")
    pack.notes.set_star(1, True)
    pack.refresh()
    assert pack.table is table
    pack.notes.set_label(1, "canines", "some-model", 0.9)
    pack.refresh()
    assert pack[1].label == "canines"
    assert pack.index.order("max") is order
    assert pack.index.column("label_score")[1] == 0.9
    assert pack.find("canines").index.tolist() == [1]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from scope.features.pack.notes import Notes

folder, rng = Path(sys.argv[1]), random.Random(0)
for number in range(60):
    notes = Notes(folder, "d")
    child = os.fork()
    if not child:
        notes.set_label(3, "dogs", "you")
        os._exit(0)
    time.sleep(rng.random() * 0.004)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = notes.labels()
    assert not found or found[3].text == "dogs", found
    notes.to_json(), notes.about(3)
    if number % 2:
        notes.set_star(5, True)
        assert notes.starred() == [5]
    for file in folder.iterdir():
        file.unlink()
"""

BESIDE = """
import os, sys
from pathlib import Path
from scope.features.pack.notes import Notes

folder, bad = Path(sys.argv[1]), 0
for number in range(20):
    (folder / str(number)).mkdir()
    notes = Notes(folder / str(number), "d")
    readers = []
    for _ in range(3):
        if child := os.fork():
            readers.append(child)
            continue
        while not notes.starred():
            notes.labels(), notes.about(1)
        os._exit(0)
    notes.set_label(1, "dogs", "you")
    notes.set_star(1, True)
    bad += sum(os.waitpid(child, 0)[1] != 0 for child in readers)
assert not bad, bad
"""


@pytest.mark.parametrize("experiment", [KILLED, BESIDE], ids=["killed 60 times", "read meanwhile"])
def test_the_first_writing_locks_nobody_out(tmp_path, experiment):
    done = subprocess.run([sys.executable, "-c", experiment, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""


@pytest.mark.parametrize("tables", [0, 1, 3])
def test_a_file_without_its_tables_counts_as_empty_and_is_written_on(notes, tables):
    with sqlite3.connect(notes.file) as db:  # as version 0.1.0 left it when it was killed
        db.execute("PRAGMA journal_mode = WAL")
        for name in ["about", "labels", "notes"][:tables]:
            db.execute(f"CREATE TABLE {name} (name TEXT PRIMARY KEY, value TEXT)" if name == "about" else _TABLE_OF[name])
    db.close()
    assert notes.to_json()["labels"] == []
    assert (notes.starred(), notes.about(1).note) == ([], "")
    notes.set_label(1, "canines", "you")
    assert notes.label(1).text == "canines"


_TABLE_OF = {
    "labels": "CREATE TABLE labels (latent INTEGER PRIMARY KEY, text TEXT NOT NULL, source TEXT NOT NULL, score REAL, "
    "detail TEXT NOT NULL, made REAL NOT NULL)",
    "notes": "CREATE TABLE notes (latent INTEGER PRIMARY KEY, text TEXT NOT NULL, made REAL NOT NULL)",
}


def test_what_cannot_be_saved_is_in_the_message(notes):
    (notes.file).mkdir()  # as good as a disk that takes nothing
    for write in (
        lambda: notes.set_label(4, "my long thoughts on cats", "you"),
        lambda: notes.set_note(4, "my long thoughts on cats"),
        lambda: notes.set_labels([(4, "my long thoughts on cats", "m", 0.5, {}), (5, "dogs", "m", 0.5, {})]),
    ):
        with pytest.raises(NotSaved, match="my long thoughts on cats") as refusal:
            write()
        assert "my long thoughts on cats" in refusal.value.text


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE labels SET detail = 'x'",
        "UPDATE labels SET detail = '[]'",
        "UPDATE labels SET text = x'ff'",
        "UPDATE labels SET score = 'high'",
        "UPDATE labels SET made = 'x'",
        "UPDATE notes SET text = x'00ff'",
        "UPDATE lists SET name = x'ff'",
        "UPDATE about SET value = x'ff'",
        "DROP TABLE lists; CREATE TABLE lists (a)",
    ],
)
def test_a_forged_file_is_refused_by_name(notes, change):
    notes.set_label(4, "cats", "you")
    notes.set_note(4, "hm")
    notes.add_to_list("animals", [4])
    db = sqlite3.connect(notes.file)
    db.executescript(change)
    db.close()
    with pytest.raises(PackError, match=r"notes\.sqlite"):
        notes.to_json()


def test_a_note_with_a_lone_surrogate_is_kept(notes):
    notes.set_note(1, "dogs \ud800")
    notes.set_label(1, "\udfff dogs", "you")
    notes.add_to_list("\ud800 list", [1])
    assert (notes.note(1), notes.label(1).text, notes.about(1).lists) == ("dogs ?", "? dogs", ["? list"])


def test_on_a_file_system_without_locks_every_opening_of_the_notes_takes_none(tmp_path, monkeypatch):
    """One that asks for a lock would fail there, and a copy would wait for it without end."""
    places, connect = [], sqlite3.connect
    monkeypatch.setattr("scope.features.pack.notes.has_locks", lambda folder: False)
    monkeypatch.setattr(sqlite3, "connect", lambda place, **settings: (places.append(place), connect(place, **settings))[1])
    (tmp_path / "copy").mkdir()
    notes = Notes(tmp_path, "d")
    notes.set_note(3, "a cat")
    notes.copy_to(tmp_path / "copy")
    assert Notes(tmp_path / "copy", "d").note(3) == "a cat"
    assert len(places) == 4
    assert all("vfs=unix-none" in place for place in places)
