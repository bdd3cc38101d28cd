"""Other people's boards: refused with the way out where they are not installed, fed where they are."""

import json
import sys
from pathlib import Path

import pytest

from scope.errors import ConfigError
from scope.training.boards import Boards, TensorBoard, Wandb

ROW = {"step": 5, "tokens": 320, "error": 0.5, "l0": 4.0}


@pytest.mark.parametrize(
    ("module", "make"), [("torch.utils.tensorboard", TensorBoard), ("wandb", lambda: Wandb("p", Path("."), {}))]
)
def test_a_board_that_is_not_installed_is_refused_with_the_line_that_installs_it(monkeypatch, module, make):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'scope-workbench\["):
        make()


def test_tensorboard_gets_every_line(tmp_path):
    pytest.importorskip("tensorboard")
    boards = Boards([TensorBoard()])
    for step in (5, 10):
        boards(tmp_path / "a", ROW | {"step": step})
    boards.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("l0")] == [(5, 4.0), (10, 4.0)]


class FakeRun:
    def __init__(self, **given):
        self.given, self.rows = given, []

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self):
        self.rows.append("finished")


def test_wandb_gets_one_run_a_dictionary_whose_name_stays_when_it_goes_on(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    made = []
    monkeypatch.setattr(wandb, "init", lambda **given: made.append(FakeRun(**given)) or made[-1])
    for _ in range(2):
        boards = Boards([Wandb("project", tmp_path, {tmp_path / "a": {"kind": "jumprelu"}})])
        boards(tmp_path / "a", ROW)
        boards(tmp_path / "b", ROW)
        boards.close()
    assert [run.given["name"] for run in made] == ["a", "b", "a", "b"]
    assert made[0].given["id"] == made[2].given["id"] != made[1].given["id"]
    assert (made[0].given["config"], made[0].given["project"]) == ({"kind": "jumprelu"}, "project")
    assert made[0].rows == [(5, {"tokens": 320, "error": 0.5, "l0": 4.0}), "finished"]
    assert json.dumps(made[0].given["config"])
