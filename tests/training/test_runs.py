"""Trainings found in folders: finished, stopped, running and damaged ones."""

import json

import pytest

from scope.training.runs import find_trainings, read_training
from scope.training.trainer import train_all
from scope.whole_files import is_held, only_writer
from tests.training.planted import SITES, TwoSites, grid


class Stop(Exception):
    pass


def stop(done, total, numbers):
    if done >= 25:
        raise Stop


@pytest.fixture
def folder(tmp_path):
    """Three finished dictionaries of one training, and three of one that stopped at step 25 with a checkpoint at 21."""
    train_all(grid(tmp_path / "done"), TwoSites(), tmp_path / "done")
    with pytest.raises(Stop):
        train_all(grid(tmp_path / "left"), TwoSites(), tmp_path / "left", stop)
    return tmp_path


def test_finished_and_stopped_trainings_are_told_with_what_they_came_to(folder):
    found = {t.folder.removeprefix(f"{folder}/"): t for t in find_trainings([folder])}
    assert list(found) == [f"{group}/{name}" for group in ("done", "left") for name in "abc"]
    done, left = found["done/c"], found["left/b"]
    assert (done.state, done.site, done.step, done.d_sae, done.target) == ("finished", SITES[1], 50, 64, 4.0)
    assert (left.state, left.step, left.steps, left.d_sae, left.target) == ("stopped", 25, 50, 96, 8.0)
    assert 0 < done.fvu < 1
    assert json.dumps([t.as_json() for t in found.values()])


def test_a_training_whose_folder_is_held_is_running_and_asking_does_not_let_go(folder):
    with only_writer(folder / "left"):
        assert read_training(folder / "left" / "a").state == "running"
        assert is_held(folder / "left")
    assert read_training(folder / "left" / "a").state == "stopped"


def test_damaged_logs_and_descriptions_are_said_and_the_others_still_read(folder):
    log = folder / "done" / "a" / "log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:3], "\x00\x01 nonsense", *lines[4:]]))
    (folder / "done" / "b" / "training.json").write_text('{"kind"')
    (folder / "left" / "c" / "log.jsonl").write_text('{"step": 5, "l')
    settings = json.loads((folder / "left" / "a" / "training.json").read_text())
    settings["dictionary"]["d_sae"] = "64"
    (folder / "left" / "a" / "training.json").write_text(json.dumps(settings))
    found = {t.folder.removeprefix(f"{folder}/"): t for t in find_trainings([folder])}
    assert any("damaged after line 3" in note for note in found["done/a"].notes)
    assert found["done/b"].state == "damaged"
    assert found["left/a"].state == "damaged"
    assert "dictionary.d_sae" in found["left/a"].notes[0]
    assert (found["left/c"].step, found["left/c"].l0) == (0, None)
    assert found["done/c"].state == "finished"
