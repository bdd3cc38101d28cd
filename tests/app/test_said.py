"""Labels, stars, notes, lists and guesses, written on a latent's page and found again on the others."""

import shutil
from pathlib import Path

import pytest
from scope.app.feature import notes, own_texts
from scope.app.features.listing import LIST

from scope.features.face import Pack
from scope.features.labels.guess import draw_windows
from tests.app.conftest import said
from tests.app.test_pages import pressed
from tests.help.components import edited, heading, tiles


@pytest.fixture
def mine(tmp_path, toy_folder):
    """A pack that a test may write into."""
    return Path(shutil.copytree(toy_folder, tmp_path / "mine" / "pack"))


def test_a_label_is_edited_in_place_and_keeps_author_and_time(open_app, mine, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    at = edited(open_app("feature", packs=[mine], f=9))
    at.text_input(key="label 9").set_value("what <b>I</b> think")
    at = pressed(at, "Save")
    assert not at.exception
    assert heading(at)["label"] == "what <b>I</b> think"
    label = Pack.open(mine).notes.label(9)
    assert (label.text, label.source, label.detail["author"]) == ("what <b>I</b> think", "you", "ann")
    assert Pack.open(mine).table["label_source"][9] == "ann"
    assert heading(at)["source"] == f"label by ann · {notes.moment(label.made)}"
    assert open_app("features", packs=[mine], q="think", **{"in": "label"}).dataframe[0].value["id"].tolist() == [9]


def test_labels_are_given_in_a_row_and_taken_back(open_app, mine):
    at = pressed(open_app("feature", packs=[mine], f=9), "Label many")
    for latent, text in ((9, "one"), (10, "two")):
        at.text_input(key=f"label {latent}").set_value(text)
        at = pressed(at, "Save and next")
        assert not at.exception
    assert {i: label.text for i, label in Pack.open(mine).notes.labels().items()} == {9: "one", 10: "two"}
    assert at.query_params["f"] == "11"
    at = pressed(at, "Undo")
    assert set(Pack.open(mine).notes.labels()) == {9}
    assert at.query_params["f"] == "10"
    assert pressed(at, "Skip").query_params["f"] == "11"


def test_a_star_and_a_list_narrow_the_table(open_app, mine):
    at = pressed(open_app("feature", packs=[mine], f=9, tab="Notes"), "Star")
    assert Pack.open(mine).notes.starred() == [9]
    at.multiselect(key="lists 9").set_value([]).run()
    Pack.open(mine).notes.add_to_list("animals", [3, 12])
    assert open_app("features", packs=[mine], only="starred").dataframe[0].value["id"].tolist() == [9]
    assert sorted(open_app("features", packs=[mine], only=LIST + "animals").dataframe[0].value["id"]) == [3, 12]
    assert 9 not in open_app("features", packs=[mine], only="labelled").get("arrow_data_frame")
    assert pressed(open_app("feature", packs=[mine], f=9), "Starred").button
    assert Pack.open(mine).notes.starred() == []


def test_a_note_is_kept_as_it_was_written(open_app, mine):
    at = open_app("feature", packs=[mine], f=9, tab="Notes")
    at.text_area(key="note 9").set_value("=1+1 <script>").run()
    assert not at.exception
    assert Pack.open(mine).notes.note(9) == "=1+1 <script>"
    assert open_app("feature", packs=[mine], f=9, tab="Notes").text_area(key="note 9").value == "=1+1 <script>"


def test_a_pack_that_cannot_be_written_says_so_and_is_browsed_on(open_app, mine, monkeypatch):
    def locked(self, *args, **kwargs):
        from scope.errors import PackError

        raise PackError("notes.sqlite cannot be written: attempt to write a readonly database.")

    monkeypatch.setattr("scope.features.pack.notes.Notes.set_star", locked)
    at = pressed(open_app("feature", packs=[mine], f=9), "Star")
    assert not at.exception
    assert "cannot be written" in said(at)
    assert tiles(at)


def test_a_round_of_the_guess_game_is_counted(open_app, mine):
    at = pressed(open_app("feature", packs=[mine], f=9, tab="Guessing game"), "Play")
    kept = at.session_state["guess"]
    windows = draw_windows(Pack.open(mine)[9], kept["seed"])
    right = [n for n, w in enumerate(windows, 1) if w.peak is not None]
    at.button_group(key=f"guessed {kept['seed']}").set_value(right).run()
    at = pressed(at, "Show solution")
    assert not at.exception
    assert any("10 of 10 right" in text.value for text in at.markdown)
    assert Pack.open(mine).notes.guessed(9) == (10, 10)
    at = pressed(at, "Again")
    assert any("So far 10 of 10 right, 100" in caption.value for caption in at.caption)


def test_ticked_latents_are_put_on_a_list_or_steered(open_app, mine):
    at = open_app("features", packs=[mine], sort="max", dense="true")
    listed = at.dataframe[0].value["id"].tolist()
    at.session_state["table mine 1 23 0"] = {"selection": {"rows": [0, 2], "columns": [], "cells": []}}
    at.run()
    at.text_input(key="list name").set_value("two").run()
    at = pressed(at, "Add")
    assert Pack.open(mine).notes.lists() == {"two": [listed[0], listed[2]]}
    assert pressed(at, "Steer these").session_state["steer mine"]


def test_latents_stand_side_by_side_by_their_address(open_app, toy_folder):
    at = open_app("features", view="Compare", ids="9, 3")
    assert not at.exception
    assert [b.label for b in at.button if b.label.startswith("Open")] == ["Open #9", "Open #3"]
    assert "run from 0 to 23" in said(open_app("features", view="Compare", ids="3,99"))


def test_texts_are_split_by_line_and_the_last_ten_are_kept():
    assert own_texts.split("a\n\n b \n", True) == ["a", " b "]
    assert own_texts.split("a\nb", False) == ["a\nb"]
    kept = []
    for n in range(14):
        own_texts.keep(kept, [{"text": f"text {n % 12}"}])
    assert [r["text"] for r in kept][:3] == ["text 1", "text 0", "text 11"]
    assert len(kept) == len({r["text"] for r in kept}) == 10


def test_filters_by_figures_and_the_one_to_relax(open_app, toy_folder):
    table = Pack.open(toy_folder).table
    floor = float(table["max"].median())
    ids = open_app("features", dense="true", **{"least max": floor}).dataframe[0].value["id"].tolist()
    assert sorted(ids) == table.index[(table["max"] >= floor) & (table["count"] > 0)].tolist()
    at = open_app("features", dense="true", **{"least max": 1e9})
    assert any("Without “Largest activation”" in info.value for info in at.info)
    assert len(pressed(at, "Drop “Largest activation”").dataframe[0].value) == 23
