"""Labels, notes and stars outlive the page, the process and the pack, and never stand beside another dictionary's latents."""

import json
import sqlite3

import pytest

from scope.errors import PackError
from scope.features.notes import FILE, Notes
from scope.features.store import FeatureStore
from tests.features.toy_pack import make_toy_pack


@pytest.fixture
def pack(tmp_path):
    make_toy_pack(tmp_path / "toy.pack")
    return FeatureStore.open(tmp_path / "toy.pack")


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
    again = FeatureStore.open(pack.folder).notes
    assert (again.note(3), again.starred(), again.guessed(3)) == ("<b>after</b> the", [7], (15, 20))
    again.set_note(3, "  ")
    assert again.noted() == {}


def test_a_pack_made_again_takes_its_notes_along_and_another_dictionarys_pack_puts_them_aside(pack, tmp_path):
    pack.notes.set_label(1, "canines", "you")
    make_toy_pack(pack.folder)
    assert FeatureStore.open(pack.folder)[1].label == "canines"
    manifest = json.loads((pack.folder / "manifest.json").read_text())
    manifest["dictionary"]["weights_sha256"] = "another"
    (pack.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PackError, match="another dictionary"):
        FeatureStore.open(pack.folder).table  # noqa: B018
    with sqlite3.connect(pack.folder / FILE) as db:
        db.execute("UPDATE about SET value = 'somebody else'")
    make_toy_pack(pack.folder)
    assert not (pack.folder / FILE).exists()
    assert len(list(tmp_path.glob(f"toy.pack.*.{FILE}"))) == 1


def test_a_damaged_file_is_named_with_the_way_out(pack):
    (pack.folder / FILE).write_bytes(b"not a database at all, and longer than a header would be" * 20)
    with pytest.raises(PackError, match="move it away"):
        Notes(pack.folder, "toy-dictionary").labels()
