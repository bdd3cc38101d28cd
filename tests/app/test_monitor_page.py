"""The Monitor page: a text's score by token, the alarm, and the card's numbers beside their nulls; without one, the command."""

import json
import shutil

import pytest

import scope
from tests.app.conftest import said
from tests.help.components import values
from tests.monitor.conftest import rows
from tests.steering.conftest import SITE

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    """A lab with a monitor beside its pack."""
    lab = shutil.copytree(folder, tmp_path_factory.mktemp("monitored") / "lab")
    settings = {"model": str(folder / "checkpoint"), "site": SITE, "nulls": 1, "fpr": 0.1, "aggregation": "max"}
    scope.fit_monitor(rows(100), difference=True, positive="true", out=lab / "monitors" / "river", **settings)
    return lab


def strips_of(at) -> list[dict]:
    found = [json.loads(c.proto.json) for c in at.get("bidi_component")]
    return [row for data in found if "rows" in data for row in data["rows"]]


def test_the_page_scores_a_text_token_by_token_and_says_whether_the_alarm_sounds(open_app, place):
    monitor = scope.open_monitor(place / "monitors" / "river")
    at = open_app("monitor", packs=[place / "pack"])
    assert not at.exception
    shown = values(at)
    assert shown["AUC"] == f"{monitor.scores[0].auc:.3f}"
    assert shown["Bag of words"] == f"{monitor.scores[1].auc:.3f}"
    assert shown["False alarms"] == f"{monitor.test_fpr.share:.1%}"
    table = next(frame.value for frame in at.dataframe if "detector" in frame.value)
    assert table["detector"].tolist() == [s.name for s in monitor.scores]

    at.text_area(key="monitor text").set_value(f"the dog runs to the river {MARKUP}").run()
    row = scope.run_monitor(place / "monitors" / "river", text=f"the dog runs to the river {MARKUP}").rows[0]
    shown = values(at)
    assert shown["Score"] == f"{row.score:.4g}"
    words = [*(box.value for box in at.error), *(box.value for box in at.success)]
    assert ("ALARM" in words[0]) == row.alarm
    (strip,) = strips_of(at)
    assert strip["value"] == f"{row.score:.3g}"
    assert strip["cells"][1][2] == f"{row.values[1]:.3g}"
    assert strip["cells"][0][2] == ""


def test_without_a_monitor_the_page_says_the_command_and_damage_is_named(open_app, folder, place, monkeypatch):
    at = open_app("monitor", packs=[folder / "pack"])
    assert "scope monitor fit LABELLED.jsonl" in said(at)
    damaged = shutil.copytree(place / "monitors" / "river", place.parent / "damaged")
    (damaged / "monitor.json").write_text("{}")
    monkeypatch.setenv("SCOPE_MONITORS", json.dumps([str(damaged), str(place / "monitors" / "river")]))
    at = open_app("monitor", packs=[folder / "pack"])
    assert "is damaged" in said(at)
    chosen = next(box for box in at.selectbox if box.label == "Monitor")
    assert chosen.options == ["river: true, difference, blocks.1.hook_resid_post"]
