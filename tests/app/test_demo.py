"""The button that makes a pack where there is none."""

import sys
import time

import pytest
from scope.app.serve import demo
from streamlit.testing.v1 import AppTest

from tests.app.conftest import MAIN, said


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """The app in a folder without packs, with a maker that does what it is told instead of computing for a minute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCOPE_PACKS", raising=False)
    demo._RUNS.clear()

    def opened(script: str):
        made = demo.DemoRun
        monkeypatch.setattr(demo, "DemoRun", lambda folder: made(folder, [sys.executable, "-c", script]))
        return AppTest.from_file(str(MAIN), default_timeout=60).run()

    yield opened
    for run in demo._RUNS.values():
        run.stop()
    demo._RUNS.clear()


def press(at, label: str):
    return next(b for b in at.button if b.label == label).click().run()


def ended(timeout: float = 20.0) -> None:
    run, until = next(iter(demo._RUNS.values())), time.monotonic() + timeout
    while run.running and time.monotonic() < until:
        time.sleep(0.05)
    assert not run.running


def test_the_command_of_the_button_is_the_demos_own():
    import tyro

    from scope.cli.demo import flags

    given = tyro.cli(flags([]), args=["--no-app", "--out", "x", *demo.SIZE])
    assert (given.tokens, given.d_sae, given.app) == (40000, 512, False)


def test_a_demo_that_is_made_opens_by_itself(empty, toy_folder, tmp_path):
    place = tmp_path / "runs" / "quick-demo" / "pack"
    at = empty(f"import shutil; shutil.copytree({str(toy_folder)!r}, {str(place)!r})")
    assert "There are no packs in" in said(at)
    press(at, "Make a demo pack")
    ended()
    at.run()
    assert not at.exception
    assert not at.error
    assert "Pack **quick\\-demo**" in [line.value for line in at.sidebar.markdown]


def test_while_it_runs_its_stage_is_shown_and_it_can_be_stopped(empty, tmp_path):
    at = empty("import time; time.sleep(60)")
    press(at, "Make a demo pack")
    recording = tmp_path / "runs" / "quick-demo" / "recording"
    recording.mkdir()
    (recording / "manifest.json").write_text("{}")
    at.run()
    bar = at.get("progress")[0].proto
    assert bar.text.startswith("Training an SAE")
    assert bar.value == 20
    press(at, "Stop")
    assert not next(iter(demo._RUNS.values())).running


def test_two_presses_make_one_which_ends_with_the_server(empty):
    at = empty("import time; time.sleep(60)")
    press(at, "Make a demo pack")
    first = next(iter(demo._RUNS.values()))
    demo.start(demo.FOLDER)
    assert list(demo._RUNS.values()) == [first]
    demo.stop_all()
    assert not first.running


def test_a_demo_that_fails_shows_its_last_output_and_can_be_started_again(empty):
    at = empty("print('The disk is <b>full</b>.'); raise SystemExit(2)")
    press(at, "Make a demo pack")
    ended()
    at.run()
    assert "The demo did not finish" in said(at)
    assert "The disk is <b>full</b>." in [code.value.strip() for code in at.code]
    assert [b for b in at.button if b.label == "Make a demo pack"]


def test_a_pack_elsewhere_needs_no_demo(open_app, toy_folder):
    assert not [b for b in open_app().button if b.label == "Make a demo pack"]
