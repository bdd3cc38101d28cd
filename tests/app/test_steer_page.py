"""The Steering page on a real pack of a tiny model: the edits, the conditions, their files, and everything that is refused."""

import json
import re
import shutil
from threading import Timer
from types import SimpleNamespace

import pytest
from scope.app.serve import models
from scope.app.serve.jobs import Job, ModelQueue
from scope.app.steer import conditions, strengths, work
from scope.app.steer.state import Comparison

from scope.features.face import Pack
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.compare.saved_runs import Runs
from scope.steering.compare.steer import SteeringRun
from scope.steering.edits.interventions import Add, Clamp, Direction, Edits
from tests.app.conftest import said

HOSTILE = "<img src=x onerror=alert(1)> [a](http://b)"


@pytest.fixture(autouse=True)
def no_runs(folder):
    """Each test begins without kept runs."""
    shutil.rmtree(folder / "pack" / "steering", ignore_errors=True)


@pytest.fixture
def page(open_app, folder):
    def opened(**params):
        at = open_app("steer", packs=[folder / "pack"], **params)
        at.default_timeout = 30
        return at

    return opened


def press(at, label: str):
    next(b for b in at.button if b.label == label).click()
    return at.run()


def written(at, prompt: str = "the dog", tokens: int = 4):
    at.text_area(key="steer prompt").set_value(prompt)
    at.number_input(key="steer tokens").set_value(tokens)
    return press(at, "Generate")


def opened_run(at) -> str:
    """The name of the run in the address."""
    name = at.query_params["run"]
    return name if isinstance(name, str) else name[0]


def captions(at) -> str:
    return "\n".join(c.value.replace("\\", "") for c in at.caption)


def heads(at) -> set[str]:
    return {m.value for m in at.markdown if m.value.startswith("**")}


def strips(at) -> list[dict]:
    return [data for c in at.get("bidi_component") if "rows" in (data := json.loads(c.proto.json))]


def row(at, number: int, name: str):
    """A control of a row of the stack, by the number that stays."""
    key = f"steer row {number} {name}"
    return next(
        w
        for kind in (at.slider, at.selectbox, at.toggle, at.checkbox, at.number_input, at.button)
        for w in kind
        if w.key == key
    )


def test_the_page_opens_on_the_latent_in_its_address_and_tells_its_strength_in_other_units(page, store):
    at = page(f=3)
    assert not at.exception
    assert any("\\#3" in m.value for m in at.markdown)
    assert row(at, 1, "strength").value == 0.3
    raw = 0.3 * store.norm_median / store[3].row["dec_norm"]
    assert f"raw {raw:+.3g}" in captions(at)
    assert f"{raw / store[3].row['max']:+.2f} × its largest activation" in captions(at)


def test_generating_shows_the_conditions_keeps_the_run_and_puts_it_into_the_address(page, folder, lab):
    at = written(page(f=3))
    assert not at.exception
    assert not at.error
    assert {"**Plain**", "**Steered**", "**Random direction**"} <= heads(at)
    (kept,) = (folder / "pack" / "steering").glob("*.json")
    assert opened_run(at) == kept.stem
    run = SteeringRun.from_json(kept)
    assert run.prompts == ["the dog"]
    assert run.replay(*lab).same_texts(run)
    assert "edited" in captions(at)
    again = page(run=kept.stem)
    assert not again.exception
    assert heads(again) == heads(at)


def test_a_stack_grows_by_search_and_any_row_can_be_taken_away_without_touching_the_others(page):
    at = page(f=3)
    at.text_input(key="steer find").set_value("#5").run()
    assert at.selectbox(key="steer found").options[0].startswith("#5 ")
    at.button(key="steer add latent").click().run()
    at.text_input(key="steer find").set_value("7").run()
    at.button(key="steer add latent").click().run()
    row(at, 2, "strength").set_value(-0.75)
    row(at, 3, "strength").set_value(1.5).run()
    row(at, 2, "remove").click().run()
    assert not at.exception
    assert row(at, 1, "strength").value == 0.3
    assert row(at, 3, "strength").value == 1.5
    assert "become incoherent" in captions(at)
    row(at, 1, "remove").click().run()
    row(at, 3, "remove").click().run()
    assert "No edit is switched on" in captions(at)
    assert next(b for b in at.button if b.label == "Generate").disabled


def test_a_search_looks_at_labels_and_tokens_and_without_words_the_presets_stand_there(page, store):
    at = page(f=3)
    assert at.selectbox(key="steer found").options[0].startswith(f"#{store.steerable(1).index[0]} ")
    token = store[3].promoted[0][0].strip()
    at.text_input(key="steer find").set_value(token).run()
    found = [int(option.split()[0][1:]) for option in at.selectbox(key="steer found").options]
    assert found == [int(i) for i in store.find(token).index[:30]]


def test_a_latent_that_is_not_there_is_refused_with_the_nearest(page):
    assert "no latent 999" in said(page(f=999)).lower()
    at = page(f=3)
    at.text_input(key="steer find").set_value("#999").run()
    assert "nearest: 47" in said(at)


def test_every_control_of_a_row_reaches_the_run(page, folder):
    at = page(f=3)
    row(at, 1, "operation").set_value("at least")
    row(at, 1, "where").set_value("from")
    row(at, 1, "if").set_value(True).run()
    row(at, 1, "from").set_value(2)
    row(at, 1, "if latent").set_value(7)
    row(at, 1, "if above").set_value(0.125)
    row(at, 1, "strength").set_value(0.25).run()
    at.number_input(key="steer temperature").set_value(0.9)
    at.number_input(key="steer seed").set_value(5)
    at.number_input(key="steer n").set_value(2)
    at.checkbox(key="steer condition random").set_value(False)
    at.checkbox(key="steer condition prompt").set_value(True).run()
    at.text_input(key="steer ask").set_value("dogs: ").run()
    written(at)
    assert not at.error
    run = Runs.of_pack(folder / "pack").load(opened_run(at))
    assert str(run.edits) == "at least latent 3 +0.25 of the residual norm, from position 2 on, where latent 7 > 0.125"
    assert (run.sampling.temperature, run.sampling.seed, run.n) == (0.9, 5, 2)
    assert [arm.name for arm in run.conditions] == ["plain", "steered", "prompt"]
    assert run.instruction == "dogs: "


def test_a_row_that_is_switched_off_is_left_out(page, folder):
    at = page(f=3)
    at.button(key="steer add latent").click().run()
    row(at, 1, "on").set_value(False).run()
    run = Runs.of_pack(folder / "pack").load(opened_run(written(at)))
    assert [edit.latent for edit in run.edits] == [at.session_state["steer rows tiny"][1].target]


def test_a_link_to_a_run_brings_back_its_controls(page, store, lab):
    model, sae = lab
    edits = Edits([Add(3, 0.75), Add(5, -0.25, positions="generated")])
    asked = Comparison("a cat", None, SamplingConfig(max_new_tokens=3, seed=9), 2, ("plain", "steered", "other"), None)
    job = Job("compare", work.compare(store, model, sae, edits, asked), ModelQueue()).start()
    assert job.wait(60)
    at = page(run=job.result)
    assert row(at, 1, "strength").value == 0.75
    assert (row(at, 2, "strength").value, row(at, 2, "where").value) == (-0.25, "generated")
    assert at.text_area(key="steer prompt").value == "a cat"
    assert (at.number_input(key="steer seed").value, at.number_input(key="steer n").value) == (9, 2)
    assert [at.checkbox(key=f"steer condition {name}").value for name in ("plain", "random", "other")] == [True, False, True]
    assert opened_run(press(at, "Generate")) == job.result  # the same controls make the same run, so it is kept once


def test_a_replay_at_a_temperature_says_that_the_texts_are_the_same(page, folder):
    at = page(f=3)
    at.number_input(key="steer temperature").set_value(1.0)
    at = page(run=opened_run(written(at, tokens=8)))
    press(at, "Replay")
    assert [s.value for s in at.success] == ["Replayed\\: all 3 texts are the same\\, token by token\\."]


def test_a_replay_says_where_the_texts_differ(page, folder):
    runs = Runs.of_pack(folder / "pack")
    raw = json.loads(runs.load(opened_run(written(page(f=3)))).to_json())
    raw["arms"][1]["samples"][0]["new_ids"][2] = 7
    at = press(page(run=runs.save(SteeringRun.from_dict(raw))), "Replay")
    assert "The first difference: steered, text 1, token 3" in said(at)
    assert not at.success


def test_a_link_to_a_run_that_is_not_here_is_refused_and_the_page_goes_on(page):
    for name in ("0123456789ab", "../../etc/passwd"):
        at = page(run=name)
        assert "No saved run" in said(at)
        assert not at.exception


def test_a_run_can_be_forgotten(page, folder):
    at = written(page(f=3))
    press(at, "Delete this run")
    assert not at.exception
    assert not list((folder / "pack" / "steering").glob("*.json"))


def test_kept_runs_are_listed_and_taken_away_as_files(page):
    at = written(page(f=3), HOSTILE[:20])
    assert {b.proto.label for b in at.get("download_button")} == {"JSON", "HTML", "Python", "Notebook"}
    at.segmented_control(key="steer view").set_value("Saved runs").run()
    assert not at.exception
    (link,) = [one for one in at.get("page_link") if "run=" in one.proto.query_string]
    assert "add latent 3" in link.proto.label.replace("\\", "")
    assert not re.search(r"(?<!\\)<", link.proto.label)


def test_tokens_that_were_edited_are_dotted_and_the_parting_is_marked(page, folder):
    at = page(f=3)
    row(at, 1, "strength").set_value(2.0).run()
    run = Runs.of_pack(folder / "pack").load(opened_run(written(at, tokens=5)))
    by_arm = dict(zip([arm.name for arm in run.conditions], strips(at), strict=True))
    marks = {name: [cell[3] for cell in told["rows"][0]["cells"]] for name, told in by_arm.items()}
    assert not any(marks["plain"])
    assert sum("d" in mark for mark in marks["steered"]) == sum(run["steered"].report.touched(0, 5))
    (parting,) = [cell[5] for cell in by_arm["steered"]["rows"][0]["cells"] if "x" in cell[3]]
    assert parting == run["steered"].samples[0].diverges_at


def test_tokens_can_be_coloured_by_how_far_the_edit_moves_them(page):
    at = written(page(f=3))
    before = strips(at)
    key = next(c.key for c in at.segmented_control if c.key.startswith("colour"))
    at.segmented_control(key=key).set_value(conditions.KL).run()
    assert not at.exception
    assert strips(at)[1] != before[1]
    assert all(cell[1] == 0 for cell in strips(at)[0]["rows"][0]["cells"])  # plain text is 0 away from itself


def test_hostile_text_is_shown_and_never_obeyed(page):
    at = written(page(f=3), HOSTILE)
    assert not at.exception
    assert not at.error
    everything = [*at.markdown, *at.caption, *at.info, *at.warning]
    ours = r"<bos>|:gray\[One text proves little: a sweep compares many\.\]"
    assert not [e.value for e in everything if re.search(r"(?<!\\)[<\]]", re.sub(ours, "", e.value))]
    assert "<img src=x" in captions(at)


@pytest.mark.parametrize(("prompt", "told"), [("  ", "prompt is empty"), ("the dog " * 60, "this model takes 63")])
def test_a_prompt_that_cannot_be_continued_is_refused_and_the_next_one_works(page, prompt, told):
    at = written(page(f=3), prompt)
    assert told in said(at)
    assert not at.exception
    written(at)
    assert not at.error
    assert "run" in at.query_params


def test_an_edit_that_is_far_too_strong_is_refused(page, monkeypatch):
    monkeypatch.setattr("scope.steering.apply.resolve.STRONGEST", 0.1)
    assert "typical norm: such numbers are not finite" in said(written(page(f=3)))


def test_a_kept_strength_beyond_the_usual_range_is_brought_back_as_it_was(page, store, lab):
    asked = Comparison("a cat", None, SamplingConfig(max_new_tokens=2), 1, ("plain", "steered"), None)
    job = Job("compare", work.compare(store, *lab, Edits([Add(3, -4.5)]), asked), ModelQueue()).start()
    assert job.wait(60)
    at = page(run=job.result)
    assert row(at, 1, "strength").value == -4.5
    assert row(at.run(), 1, "strength").value == -4.5
    assert opened_run(press(at, "Generate")) == job.result


def test_everything_that_a_run_was_drawn_with_is_in_the_controls_that_a_link_to_it_fills(page, store, lab):
    sampling = SamplingConfig(max_new_tokens=3, top_k=7, stop=("zzz\n", " ", "\\q"), stop_at_eos=False)
    asked = Comparison("a cat", None, sampling, 1, ("plain", "steered"), None)
    edits = Edits([Add(3, 2.5, unit="raw"), Clamp(5, 1.25, unit="max")])
    job = Job("compare", work.compare(store, *lab, edits, asked), ModelQueue()).start()
    assert job.wait(60)
    at = page(run=job.result)
    assert not at.exception
    assert (at.number_input(key="steer top k").value, at.checkbox(key="steer at eos").value) == (7, False)
    assert at.text_area(key="steer stops").value == "zzz\\n\n\\s\n\\\\q"
    assert [row(at, i, "unit").value for i in (1, 2)] == ["raw", "max"]
    assert (row(at, 1, "strength raw").value, row(at, 2, "strength max").value) == (2.5, 1.25)
    assert opened_run(press(at, "Generate")) == job.result  # the same controls make the same run, so it is kept once


def test_top_k_and_stop_strings_reach_the_run(page, folder):
    at = page(f=3)
    at.number_input(key="steer top k").set_value(1)
    at.text_area(key="steer stops").set_value("never said\n\n\\n\\n").run()
    sampling = Runs.of_pack(folder / "pack").load(opened_run(written(at))).sampling
    assert (sampling.top_k, sampling.stop, sampling.stop_at_eos) == (1, ("never said", "\n\n"), True)


def test_another_unit_keeps_the_edit_and_tells_the_others(page, store, folder):
    at = page(f=3)
    figures = store[3].row
    raw = 0.3 * store.norm_median / figures["dec_norm"]
    row(at, 1, "unit").set_value("raw").run()
    assert not at.exception
    assert row(at, 1, "strength raw").value == pytest.approx(raw, rel=1e-3)
    assert "+0.3 of the typical norm" in captions(at)
    row(at, 1, "unit").set_value("max").run()
    assert row(at, 1, "strength max").value == pytest.approx(raw / figures["max"], rel=1e-3)
    assert "0.30 of the typical norm" in at.get("progress")[0].proto.text
    run = Runs.of_pack(folder / "pack").load(opened_run(written(at)))
    assert (run.edits[0].unit, run.sheet[0]["strength"]) == ("max", pytest.approx(0.3, rel=1e-3))


def test_a_direction_and_a_silent_latent_have_no_largest_activation_to_be_measured_by(store):
    direction = Direction((1.0, 0.0), store.site)
    assert strengths.unit_sizes(store, direction) == {"norm": 1.0, "raw": pytest.approx(1 / store.norm_median), "max": None}
    silent = SimpleNamespace(row={"dec_norm": 2.0, "max": 0.0})
    known = {"site": store.site, "norm_median": 8.0, "__getitem__": lambda self, i: silent}
    pack = object.__new__(type("Pack", (Pack,), known))
    assert strengths.unit_sizes(pack, 3) == {"norm": 1.0, "raw": 0.25, "max": None}


def test_an_edit_without_effect_says_so_and_why(page):
    at = page(f=3)
    row(at, 1, "operation").set_value("scale").run()
    row(at, 1, "factor").set_value(1.0).run()
    assert "No effect" in said(written(at))


def test_a_pack_whose_model_is_gone_says_so_when_text_is_asked_for(open_app):
    at = open_app("steer", f=1)
    assert not at.exception
    at.default_timeout = 30
    press(at, "Generate")
    assert not at.exception
    assert said(at)


def test_chat_is_greyed_with_the_reason_where_there_is_no_template(page):
    at = page(f=3)
    assert at.toggle(key="steer chat").disabled
    assert "no chat template" in captions(at)


def test_a_chat_is_laid_out_by_the_template(page, open_app, folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "chatty")
    template = "<bos>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (own / "checkpoint" / "chat_template.jinja").write_text(template)
    manifest = json.loads((own / "pack" / "manifest.json").read_text())
    manifest["model"]["model"] = str(own / "checkpoint")
    (own / "pack" / "manifest.json").write_text(json.dumps(manifest))
    at = open_app("steer", packs=[own / "pack"], f=3)
    at.default_timeout = 30
    at.toggle(key="steer chat").set_value(True).run()
    press(at, "Add a turn")
    at.text_area(key="steer message 0").set_value("a dog")
    at.text_area(key="steer message 1").set_value("a cat").run()
    at.number_input(key="steer tokens").set_value(3)
    press(at, "Generate")
    assert "Turn 2, of the model, is empty" in said(at)
    at.text_area(key="steer reply 1").set_value("yes").run()
    press(at, "Generate")
    assert not at.error
    run = Runs.of_pack(own / "pack").load(opened_run(at))
    assert run.prompts == ["<bos>user: a dog\nassistant: yes\nuser: a cat\n"]


def test_a_list_from_another_page_becomes_the_stack(open_app, folder, monkeypatch):
    at = open_app("overview", packs=[folder / "pack"])
    at.session_state["stacks"] = {"tiny": [5, 9, 11]}
    at.switch_page("steer/page.py").run()
    assert [r.target for r in at.session_state["steer rows tiny"]] == [5, 9, 11]


def test_the_page_says_what_a_reload_keeps_and_what_it_loses(page):
    assert "a reload keeps them; a direction is lost by it" in captions(page(f=3))


def test_the_stack_is_still_there_after_another_page_was_looked_at(page):
    at = page(f=3)
    row(at, 1, "strength").set_value(1.25).run()
    at.text_area(key="steer prompt").set_value("a cat sat").run()
    del at.query_params["f"]
    at.switch_page("overview/page.py").run()
    at.switch_page("steer/page.py").run()
    assert not at.exception
    assert row(at, 1, "strength").value == 1.25
    assert at.text_area(key="steer prompt").value == "a cat sat"


def test_a_stopped_generation_keeps_what_was_written(store, lab, folder):
    model, sae = lab

    class Stopped(Job):
        @property
        def stopping(self):
            return len(self.progress.get("ids", [[]])[0]) >= 3

    asked = Comparison("the dog", None, SamplingConfig(max_new_tokens=40), 1, ("plain", "steered"), None)
    job = Stopped("compare", work.compare(store, model, sae, Edits([Add(3, 0.5)]), asked), ModelQueue()).start()
    assert job.wait(60)
    run = Runs.of_pack(folder / "pack").load(job.result)
    assert run.stopped_after == 3
    assert all(len(sample.new_ids) == 3 for arm in run.conditions for sample in arm.samples)
    assert run.replay(model, sae).same_texts(run)


def test_a_generation_waits_while_somebody_else_has_the_model(page, folder):
    at = page(f=3)
    ticket = models.queue().join()
    let_go = Timer(1.5, models.queue().leave, [ticket])
    let_go.start()
    written(at)
    assert let_go.finished.is_set()
    assert not at.error
    assert "run" in at.query_params
    after = models.queue().join()
    assert models.queue().ahead(after) == 0
    models.queue().leave(after)


def test_a_direction_between_prompts_becomes_a_row_and_steers(page, folder):
    at = page(f=3)
    row(at, 1, "remove").click().run()
    at.segmented_control(key="steer source").set_value("Prompts").run()
    at.text_area(key="steer toward").set_value("the dog ran\na dog sat")
    press(at, "Compute and add")
    assert "at least one prompt on both sides" in said(at)
    at.text_area(key="steer away").set_value("the cat ran\na cat sat")
    press(at, "Compute and add")
    assert not at.error
    run = Runs.of_pack(folder / "pack").load(opened_run(written(at)))
    assert str(run.edits[0].latent) == "'the dog ran' minus 'the cat ran'"
    again = page(run=opened_run(at))
    assert not again.exception
    assert again.session_state["steer rows tiny"][0].target == run.edits[0].latent


def test_words_that_plain_does_not_have_are_marked_token_by_token():
    before, after = ["The", " old", " king", " sat"], ["The", " old", "est", " queen", " sat", "<0xC3>", "<0xA9>"]
    assert conditions.words_changed(before, after) == [False, True, True, True, True, True, True]
    assert conditions.words_changed(before, before) == [False] * 4
    assert conditions.words_changed(before, []) == []
