"""Nothing that was typed or computed on the Steer page is lost: not on a read-only disk, nor by a reload or a new server."""

import json
import shutil

import pytest
from scope.app.steer import controls, draft, saved

from scope.errors import EditError
from scope.steering.compare.run import write_file
from scope.steering.compare.saved_runs import Runs
from scope.steering.compare.steer import SteeringRun
from scope.steering.edits.interventions import Add, Scale
from tests.app.conftest import said


@pytest.fixture(autouse=True)
def no_runs(folder):
    shutil.rmtree(folder / "pack" / "steering", ignore_errors=True)


@pytest.fixture
def page(open_app, folder):
    return lambda **params: open_app("steer", packs=[folder / "pack"], **params)


def press(at, label: str):
    next(b for b in at.button if b.label == label).click()
    return at.run()


def parameter(at, name: str) -> str | None:
    value = at.query_params.get(name)
    return value[0] if isinstance(value, list) else value


def test_texts_that_cannot_be_saved_are_shown_with_the_reason_and_their_downloads(page, monkeypatch):
    def full(file, text):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("scope.steering.compare.saved_runs.write_file", full)
    at = page()
    at.text_area(key="steer prompt").set_value("the dog")
    at.number_input(key="steer tokens").set_value(3)
    press(at, "Generate")
    assert not at.exception
    assert "This run could not be saved" in said(at)
    assert "Read-only file system" in said(at)
    assert {block.proto.label for block in at.get("download_button")} >= {"JSON", "HTML", "Python", "Notebook"}
    assert [markdown for markdown in at.markdown if "Steered" in markdown.value]
    monkeypatch.setattr("scope.steering.compare.saved_runs.write_file", write_file)
    press(at, "Generate")
    assert "could not be saved" not in said(at)
    assert parameter(at, "run")


def test_what_is_set_stands_in_the_address_and_comes_back_from_it(page):
    at = page()
    assert parameter(at, "draft") is None
    at.text_area(key="steer prompt").set_value("the old king")
    at.number_input(key="steer tokens").set_value(5)
    at.number_input(key="steer top k").set_value(7)
    at.run()
    kept = parameter(at, "draft")
    again = page(draft=kept)
    assert again.text_area(key="steer prompt").value == "the old king"
    assert again.number_input(key="steer tokens").value == 5
    assert again.number_input(key="steer top k").value == 7
    assert parameter(again, "draft") == kept


def test_edits_of_the_address_are_those_of_the_page(page):
    text = json.dumps(
        {"prompt": "x", "edits": [Scale(3, 20.0).to_dict(), Add(5, -0.25, unit="raw", positions="from:2").to_dict()]}
    )
    at = page(draft=text)
    assert not at.exception
    assert [edit["latent"] for edit in json.loads(parameter(at, "draft"))["edits"]] == [3, 5]
    assert json.loads(parameter(at, "draft"))["edits"] == json.loads(text)["edits"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 5000,
        '{"n": "1"}',
        '{"edits": [{"edit": "add", "latent": 999}]}',
        '{"sampling": {"top_p": 7}}',
        '{"view": "x"}',
    ],
)
def test_an_address_of_somebody_else_sets_nothing_that_cannot_be(page, text):
    at = page(draft=text)
    assert not at.exception
    assert "The settings in this address cannot be read" in said(at)
    assert at.text_area(key="steer prompt").value == controls.PROMPT


def test_a_draft_that_is_too_long_for_an_address_is_left_out(page):
    at = page()
    at.text_area(key="steer prompt").set_value("a long text " * 1000)
    at.run()
    assert not at.exception
    assert parameter(at, "draft") is None
    assert draft.LONGEST < 8000


def test_the_files_of_a_run_name_no_folder_of_this_machine(page, folder, monkeypatch):
    at = page()
    at.number_input(key="steer tokens").set_value(2)
    press(at, "Generate")
    run = Runs.of_pack(folder / "pack").load(parameter(at, "run"))
    assert isinstance(run, SteeringRun)
    files = {}
    monkeypatch.setattr("streamlit.download_button", lambda label, make, *rest, **more: files.update({label: make()}))
    from scope.app.steer import saved

    saved.download_buttons(run, "name", [str(folder / "dictionary")])
    assert sorted(files) == ["HTML", "JSON", "Notebook", "Python"]
    for text in files.values():
        assert str(folder) not in text
    assert SteeringRun.from_json(files["JSON"]).same_texts(run)
    assert "load_sae('./dictionary')" in files["Python"]


def test_an_uploaded_file_is_a_run_or_refused_and_never_names_a_file_of_this_machine(page, folder):
    at = page()
    at.number_input(key="steer tokens").set_value(2)
    press(at, "Generate")
    name = parameter(at, "run")
    stored = folder / "pack" / "steering" / f"{name}.json"
    data = stored.read_bytes()
    assert saved.from_upload(data).to_json().encode() == data
    for other in (str(stored).encode(), b"", b"\xff\xfe", b"[]"):
        with pytest.raises(EditError, match="holds no steering run"):
            saved.from_upload(other)
    with pytest.raises(EditError, match="steering run"):
        saved.from_upload(data[: len(data) // 2])
    stored.unlink()
    at = page(tab="Saved runs")
    at.get("file_uploader")[0].set_value((f"steering-{name}.json", data, "application/json")).run()
    assert not at.error
    assert parameter(at, "run") == name
    assert stored.read_bytes() == data


def test_runs_move_with_their_pack_and_those_of_earlier_versions_are_read_and_named(page, folder, open_app, tmp_path):
    at = page()
    at.number_input(key="steer tokens").set_value(2)
    press(at, "Generate")
    name = parameter(at, "run")
    moved = shutil.copytree(folder / "pack", tmp_path / "moved" / "pack")
    again = open_app("steer", packs=[moved], run=name)
    assert not again.error
    old = moved.with_name("pack.steering")
    (moved / "steering").rename(old)
    again = open_app("steer", packs=[moved], run=name)
    assert not again.error
    again.segmented_control(key="steer view").set_value("Saved runs").run()
    assert f"1 runs lie beside the pack, in {old}" in said(again)
    Runs.of_pack(moved).forget(name)
    assert not list(old.iterdir())
