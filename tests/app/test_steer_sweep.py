"""The Steering page's sweeps, effects and directions: what it shows is what the library says."""

import json
import math
import shutil

import numpy as np
import pytest
from scope.app.serve.jobs import Job, ModelQueue
from scope.app.steer import work
from scope.app.steer.picker import read_vector
from scope.app.steer.state import Grid
from scope.app.steer.strengths import parse_strengths, total_length

from scope.circuits.attribution import attribute
from scope.circuits.effects import effects
from scope.errors import EditError
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.compare.saved_runs import Runs
from scope.steering.compare.sweep import Sweep, sweep
from scope.steering.edits.interventions import Ablate, Add, Direction, Edits
from tests.app.conftest import said
from tests.app.test_steer_page import captions, opened_run, press, row
from tests.help.components import values

CONDITIONS = ("plain", "steered", "random")


@pytest.fixture
def page(open_app, folder):
    def opened(view="Sweep", **params):
        at = open_app("steer", packs=[folder / "pack"], **params)
        at.default_timeout = 60
        at.segmented_control(key="steer view").set_value(view).run()
        return at

    return opened


@pytest.fixture
def small(page):
    """A sweep of two strengths over two prompts, ready to be pressed."""
    at = page(f=3)
    at.text_area(key="steer sweep prompts").set_value("the dog\na cat sat")
    at.text_input(key="steer sweep strengths").set_value("0.5; 0.25")
    at.number_input(key="steer tokens").set_value(3)
    return at.run()


def test_a_sweep_says_beforehand_how_much_it_is_and_how_long_it_takes(small):
    assert "2 strengths × 2 prompts × 1 × 7 conditions = 28 texts of up to 3 tokens." in captions(small)
    press(small, "Estimate time")
    assert not small.error
    assert "on this machine" in captions(small)
    small.number_input(key="steer sweep n").set_value(2).run()
    assert "on this machine" not in captions(small)  # measured for another grid


def test_a_sweep_is_shown_kept_and_brought_back_by_its_link(small, page, folder):
    press(small, "Sweep")
    assert not small.exception
    assert not small.error
    kept = Runs.of_pack(folder / "pack").load(opened_run(small))
    assert isinstance(kept, Sweep)
    assert kept.strengths == (0.25, 0.5)
    best = kept.best
    tiles = values(small)
    assert float(tiles["Chosen strength"]) == best["strength"]
    assert float(tiles["Score, held out"]) == pytest.approx(best["score"], abs=1e-3)
    (texts,) = [frame.value for frame in small.dataframe if "text" in frame.value]
    assert len(texts) == len(kept.rows)
    assert len(small.get("plotly_chart")) == 1
    assert {b.proto.label for b in small.get("download_button")} == {"Texts as CSV", "JSON", "HTML"}
    again = page(run=opened_run(small))
    assert again.text_input(key="steer sweep strengths").value == "0.25, 0.5"
    assert values(again) == tiles
    press(again, "Replay")
    assert [s.value for s in again.success] == ["Replayed\\: all 28 texts are the same\\, token by token\\."]


@pytest.mark.parametrize(
    ("strengths", "prompts", "told"),
    [
        ("0.25, half", "the dog\na cat", "'half' is not a number"),
        ("nan", "the dog\na cat", "'nan' is not a number"),
        (" , ", "the dog\na cat", "There are no strengths"),
        ("0.5", "the dog", "at least two prompts"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(page, strengths, prompts, told):
    at = page(f=3)
    at.text_area(key="steer sweep prompts").set_value(prompts)
    at.text_input(key="steer sweep strengths").set_value(strengths).run()
    assert told in said(at)
    assert not at.exception


def test_an_edit_without_a_strength_cannot_be_swept(page):
    at = page(f=3)
    row(at, 1, "operation").set_value("ablate").run()
    press(at, "Sweep")
    assert "None of these edits has a strength" in said(at)


def test_strengths_are_read_in_order_each_once():
    assert parse_strengths("1, 0.25;0.5  .5 -1") == [-1, 0.25, 0.5, 1]


def swept(store, lab, job_kind=Job, strengths=(0.25, 0.5, 0.75)):
    model, sae = lab
    grid = Grid(("the dog", "a cat sat"), strengths, 1, CONDITIONS, "share")
    sampling = SamplingConfig(max_new_tokens=4)
    task = work.dose_response(store, model, sae, Edits([Add(3, 0.5)]), grid, sampling, 1.0)
    job = job_kind("sweep", task, ModelQueue()).start()
    assert job.wait(60)
    assert job.error is None
    return job


def test_a_sweep_that_gives_way_between_strengths_is_the_librarys(store, lab, folder):
    from scope.steering.compare.sweep import sweep

    model, sae = lab
    mine = Runs.of_pack(folder / "pack").load(swept(store, lab).result)
    edits = Edits([Add(3, 0.5)])
    how = {"conditions": CONDITIONS, "strength_units": work.strength_units(store, edits)}
    theirs = sweep(model, sae, edits, ["the dog", "a cat sat"], [0.25, 0.5, 0.75], SamplingConfig(max_new_tokens=4), **how)
    assert mine.same_texts(theirs)
    assert mine.best == theirs.best


def test_a_stopped_sweep_keeps_the_strengths_that_were_finished(store, lab, folder):
    class Stopped(Job):
        @property
        def stopping(self):
            return self.progress.get("done", 0) > 1.2  # in the second strength

    kept = Runs.of_pack(folder / "pack").load(swept(store, lab, Stopped).result)
    assert kept.strengths == (0.25,)
    assert kept.stopped


def test_the_effects_are_the_librarys(page, store, lab):
    at = page("Effects", f=3)
    at.text_area(key="steer prompt").set_value("the dog")
    press(at, "Measure the edits")
    assert not at.error
    model, sae = lab
    edits = Edits([Add(3, 0.3)])
    wanted = effects(model, sae, edits, "the dog", strength_units=work.strength_units(store, edits))
    tiles = values(at)
    assert float(tiles["KL to plain"]) == pytest.approx(wanted.kl, abs=1e-4)
    assert float(tiles["Logit difference"]) == pytest.approx(wanted.logit_difference[1], abs=1e-3)
    (table,) = [f.value for f in at.dataframe if "edited" in f.value]
    assert table["edited"].tolist() == pytest.approx([t["edited"] for t in wanted.tokens])


def test_the_attribution_is_the_librarys_and_adds_up(page, lab, monkeypatch):
    monkeypatch.setattr("scope.circuits.attribution._CLOSE", 10.0)  # no more than the first points of the integral
    at = page("Effects", f=3)
    at.text_area(key="steer prompt").set_value("the dog")
    press(at, "Attribute to latents")
    assert not at.error
    table = next(f.value for f in at.dataframe if "part" in f.value)
    assert "error" in table["part"].tolist()
    total = table.loc[table["part"] == "sum", "effect"].item()
    assert total == pytest.approx(table.loc[table["part"] != "sum", "effect"].sum(), abs=1e-4)
    assert total == pytest.approx(attribute(*lab, "the dog", method="gradient").logit_difference, abs=1e-4)


def test_an_empty_prompt_has_no_effects(page):
    at = page("Effects", f=3)
    at.text_area(key="steer prompt").set_value(" ")
    assert "prompt is empty" in said(press(at, "Measure the edits"))


def test_the_total_is_the_length_of_the_sum_of_all_added_vectors(lab):
    _, sae = lab
    rows = sae.W_dec.detach().double()
    unit = rows / rows.norm(dim=1, keepdim=True)
    wanted = float((0.5 * unit[3] - 0.25 * unit[5]).norm())
    edits = Edits([Add(3, 0.5), Add(5, -0.25), Ablate(6)])
    assert total_length(edits, sae)[0] == pytest.approx(wanted, rel=1e-5)
    assert total_length(edits)[0] == 0.75
    assert total_length(edits)[1] == "at most; 1 more depends on the text"
    assert total_length(Edits([Add(3, 0.5), Add(3, -0.5)]), sae)[0] == pytest.approx(0, abs=1e-6)


def test_strengths_of_a_sweep_are_named_in_the_unit_of_the_edit_that_gets_them(page, lab, store):
    at = page(f=3)
    row(at, 1, "unit").set_value("max").run()
    assert at.text_input(key="steer sweep strengths").label == "Strengths × largest"
    assert at.text_input(key="steer sweep strengths").value == "0.25, 0.5, 0.75, 1"
    made = sweep(*lab, Add(3, 0.5, unit="raw"), ["a dog", "a cat"], [1.0, 2.0], SamplingConfig(max_new_tokens=2))
    assert made.plot(("score",)).layout.xaxis.title.text == "strength, raw activation"


def test_the_total_converts_other_units_by_the_pack(lab, store):
    raw = Add(3, 2.0, unit="raw")
    wanted = 2.0 * float(lab[1].W_dec[3].detach().norm()) / store.norm_median
    assert total_length(Edits([raw]), None, store)[0] == pytest.approx(wanted, rel=1e-5)
    assert total_length(Edits([raw, Add(3, -wanted)]), lab[1], store)[0] == pytest.approx(0, abs=1e-6)


def test_a_vector_from_a_file_becomes_a_direction_and_a_pickle_does_not(tmp_path):
    np.save(tmp_path / "v.npy", np.arange(4.0))
    made = read_vector("my vector.npy", (tmp_path / "v.npy").read_bytes(), "blocks.1.hook_resid_post", None)
    assert made == Direction((0.0, 1.0, 2.0, 3.0), "blocks.1.hook_resid_post", "my vector")
    with pytest.raises(EditError, match=r"^v\.npy cannot be read"):
        read_vector("v.npy", b"\x80\x04.", "s", None)
    with pytest.raises(EditError, match="pickle"):
        read_vector("v.pt", b"", "s", None)
    with pytest.raises(EditError):
        read_vector("../../../etc/x.json", json.dumps({"a": 1}).encode(), "s", None)
    assert not math.isnan(made.unit().norm())


def test_a_later_dictionary_of_the_same_model_can_be_asked(folder, store, tmp_path, monkeypatch):
    from scope.app.steer.effects import later_packs

    other = shutil.copytree(folder / "pack", tmp_path / "later" / "pack")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "site": "blocks.3.hook_resid_post"}))
    monkeypatch.setenv("SCOPE_PACKS", json.dumps([str(folder / "pack"), str(other)]))
    assert later_packs(store) == ["later"]
