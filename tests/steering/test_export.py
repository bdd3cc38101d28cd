"""Runs on their shelf, and runs as files for somebody else: what is exported makes the same texts, and obeys nobody."""

import ast
import html
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from scope.errors import EditError, TokensError
from scope.models.load import load_model
from scope.models.text.sampling_config import SamplingConfig
from scope.renamed import RenamedWarning
from scope.sae.files import read_sae
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.compare.saved_runs import Runs, read_saved
from scope.steering.compare.steer import SteeringRun, steer
from scope.steering.compare.sweep import sweep
from scope.steering.edits.directions import Direction
from scope.steering.edits.interventions import Ablate, Add, AtLeast, Cap, Clamp, Floor, ProjectOut, Scale, When
from scope.steering.export.page import as_page
from scope.steering.export.script import as_notebook, as_python
from tests.conftest import random_gemma
from tests.help.labs import save_checkpoint
from tests.steering.conftest import SITE, random_sae

PROMPT = "<i src>'\"\u202e dog"
HOSTILE = "<img src=x onerror=alert(1)> '\"''' </script>\u202e{0} dog"


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_config, toy_tokenizer) -> Path:
    """A folder with checkpoint/ and dictionary/."""
    from scope.sae.files import save_sae

    folder = tmp_path_factory.mktemp("export")
    model = load_model(str(save_checkpoint(random_gemma(tiny_config, toy_tokenizer), folder / "checkpoint")))
    sae = random_sae(model.cfg.d_model, 48)
    sae.provenance = {"model": dict(model.provenance), "site": sae.site}
    save_sae(sae, folder / "dictionary")
    return folder


@pytest.fixture(scope="module")
def lab(place):
    return load_model(str(place / "checkpoint")), read_sae(place / "dictionary")


@pytest.fixture(scope="module")
def run(lab):
    """Every kind of edit, a condition, a direction with a hostile name, a hostile prompt, noise."""
    model, sae = lab
    direction = Direction(tuple(np.linspace(-1, 1, sae.d_in).tolist()), sae.site, HOSTILE)
    edits = [
        Add(3, 0.5),
        Add(direction, -0.25, positions="generated"),
        Clamp(4, 1.5, unit="max"),
        AtLeast(5, 2.0, unit="raw", when=When(7, 0.125)),
        Ablate(6, positions="from:2"),
        ProjectOut(7, positions="last_prompt"),
        Scale(8, -1.0),
        Cap(9, 0.5),
        Floor(10, 0.1),
    ]
    units = StrengthUnits(8.0, "given", {4: 3.0}, {3: 2.0}, {3: (1, 2)})
    conditions = ("plain", "steered", "random:1", "prompt")
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.9, top_p=None, seed=3, stop=("zzz",))
    return steer(model, sae, edits, [PROMPT, "the cat"], sampling, conditions, n=2, strength_units=units, instruction="<i>")


def test_the_exported_python_writes_the_same_texts(run, place, monkeypatch, capsys):
    monkeypatch.chdir(place)  # the program names ./checkpoint, and no folder of this machine
    space: dict = {}
    exec(compile(as_python(run, [str(place / "dictionary")]), "steering.py", "exec"), space)
    assert "the same texts: True" in capsys.readouterr().out
    assert space["run"].same_texts(run)
    assert space["run"].edits == run.edits
    assert space["run"].strength_units == run.strength_units


def test_a_character_that_is_spelled_in_bytes_is_shown_as_that_character(run):
    pieces = ["a", "<0xE6>", "<0xB0>", "<0xB4>", "<0xE6>", " b"]
    steered = run["steered"].samples[0]
    scores = replace(steered.scores, readings={name: [0.0, 0.0, 9.0, 0.0, 0.0, 0.0] for name in steered.scores.readings})
    told = replace(steered, pieces=pieces, new_ids=list(range(6)), scores=scores, diverges_at=2)
    conditions = [
        replace(condition, samples=[told if condition.name == "steered" else condition.samples[0]])
        for condition in run.conditions
    ]
    one = replace(run, n=1, prompts=run.prompts[:1], conditions=conditions)
    for page in (as_page(one), one._repr_html_()):
        assert "<0x" not in html.unescape(page)
        marked = re.search(
            r"<span style=\"([^\"]*)\"[^>]*>水</span>", page
        )  # the largest of its bytes' readings, and the parting
        assert "background:" in marked[1]
        assert "border-left" in marked[1]
        assert "⟨E6⟩" in page  # a byte that completes nothing


def test_a_run_that_was_stopped_is_exported_with_where_it_stopped(lab, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    stopped = steer(*lab, Add(3, 0.5), "the dog", on_token=lambda step, ids: step == 2)
    assert stopped.stopped_after == 3
    exec(compile(as_python(stopped, [str(place / "dictionary")]), "steering.py", "exec"), {})
    assert "the same texts: True" in capsys.readouterr().out


def test_the_exported_python_says_when_the_texts_differ(run, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    code = as_python(run, [str(place / "dictionary")]).replace("seed=3", "seed=4")
    exec(compile(code, "steering.py", "exec"), {})
    assert "the same texts: False" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_the_exported_notebook_runs_and_writes_the_same_texts(run, place, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.reads(as_notebook(run, [str(place / "dictionary")]), as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(place)}}).execute()
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "the same texts: True" in said


def test_the_prose_of_a_notebook_holds_nothing_that_a_run_brought(run):
    cells = json.loads(as_notebook(run, []))["cells"]
    prose = "".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    assert "<" not in prose
    assert "dog" not in prose


class Tags(HTMLParser):
    """Every tag and attribute of a page, and the text outside of them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_an_exported_page_is_whole_and_obeys_nobody(run, place):
    page = as_page(run, as_python(run, [str(place / "dictionary")]))
    seen = Tags(page)
    assert not seen.tags & {"script", "img", "iframe", "link", "a", "object", "svg", "form", "base", "i"}
    assert not {name for name in seen.attributes if name.startswith("on")} | (seen.attributes & {"src", "href"})
    assert "default-src 'none'" in page
    assert "\u202e" not in page
    assert "<img src=x onerror=alert(1)>" in seen.text  # shown, as it was written
    for condition in run.conditions:
        assert condition.name in seen.text
    assert "edited" in seen.text
    assert str(run.sampling) in seen.text


def test_a_page_underlines_the_tokens_that_were_edited_and_no_others(lab):
    model, sae = lab
    made = steer(model, sae, Add(3, 0.5, positions="prompt"), "the dog", SamplingConfig(max_new_tokens=5))
    assert "underline dotted" not in as_page(made)
    made = steer(model, sae, Add(3, 0.5), "the dog", SamplingConfig(max_new_tokens=5), n=2)
    counted = sum(sum(made[condition].report.touched(i, 5)) for condition in ("steered", "random") for i in range(2))
    assert counted == 2 * 2 * 4  # the last token of each text is written and never read
    assert as_page(made).count("underline dotted") == counted


def test_which_tokens_were_edited_is_told_row_by_row(lab):
    model, sae = lab
    made = steer(model, sae, Add(3, 0.5, when=When(7, 0.05)), ["the dog", "a cat sat"], SamplingConfig(max_new_tokens=8), n=2)
    report = made["steered"].report
    assert [sum(steps) for steps in report.edited_at] == report.edited_per_row
    assert [sum(steps) for steps in zip(*report.edited_at, strict=True)] == report.edited_per_step


def test_a_sweep_becomes_a_page_with_every_strength(lab):
    made = sweep(
        *lab,
        Add(3, 0.5),
        ["the dog", "a cat"],
        [0.25, 0.5],
        SamplingConfig(max_new_tokens=3),
        conditions=("plain", "steered", "random"),
    )
    seen = Tags(as_page(made))
    assert "Strength 0.25" in seen.text
    assert "Strength 0.5" in seen.text


def test_a_kept_run_is_found_again_and_listed(run, lab, tmp_path):
    shelf = Runs.of_pack(tmp_path / "pack")
    assert shelf.names() == []
    name = shelf.save(run)
    assert shelf.save(run) == name
    made = sweep(
        *lab,
        Add(3, 0.5),
        ["the dog", "a cat"],
        [0.5],
        SamplingConfig(max_new_tokens=2),
        conditions=("plain", "steered", "random"),
    )
    other = shelf.save(made)
    assert set(shelf.names()) == {name, other}
    assert shelf.load(name).same_texts(run)
    assert shelf.load(other).same_texts(made)
    listed, damaged = shelf.newest()
    assert {one.name: (one.prompt, one.sweep) for one in listed} == {name: (PROMPT, False), other: ("the dog", True)}
    assert not damaged
    shelf.forget(name)
    with pytest.raises(EditError, match="No saved run"):
        shelf.load(name)


def test_a_damaged_run_is_told_apart_and_the_others_are_listed(run, tmp_path):
    shelf = Runs(tmp_path)
    name = shelf.save(run)
    (tmp_path / "0123456789ab.json").write_text("{")
    (tmp_path / "0123456789cd.json.tmp").write_text("half")
    listed, damaged = shelf.newest()
    assert [one.name for one in listed] == [name]
    assert damaged == ["0123456789ab"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "0123456789AB", "0123456789ab/..", "0123456789ab"])
def test_a_name_that_is_none_reaches_no_file(tmp_path, name):
    with pytest.raises(EditError, match="No saved run"):
        Runs(tmp_path).load(name)


CODE = "__import__('os').abort()"
NASTY = ["'''", '"""', "\\", "\\'", "\n", "\r", "\x00", "\u2028", "{0}", "%s", f"'+{CODE}+'", f"]);{CODE}#", "</pre>"]


def test_a_saved_run_with_code_for_a_number_is_refused(run):
    """It would stand in the program that is exported from it."""
    edit = json.loads(run.to_json())["edits"][0]
    for change in (
        *({name: CODE} for name in ("n", "control_seed", "stopped_after", "others", "prompts")),
        {"edits": [edit | {"strength": CODE}]},
        {"edits": [edit | {"latent": CODE}]},
        {"sampling": {"seed": CODE}},
        {"gauges": {SITE: {"rho": CODE, "source": "x"}}},
        {"gauges": {SITE: {"rho": 1.0, "source": "x", "p99": {CODE: 1.0}}}},
    ):
        with pytest.raises(EditError, match=r"damaged"):
            SteeringRun.from_json(json.dumps(json.loads(run.to_json()) | change))


def shape(code: str) -> str:
    """A program without its texts and numbers: what it does, whatever a run holds."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.value = None
    return ast.dump(tree)


def with_texts(value, text: str):
    """A JSON value with another text in the place of every text."""
    if isinstance(value, dict):
        return {key: with_texts(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [with_texts(item, text) for item in value]
    return text if isinstance(value, str) else value


@pytest.mark.parametrize("text", NASTY)
def test_whatever_texts_a_run_holds_only_literals_of_its_program_change(run, text):
    raw = json.loads(run.to_json())
    for edit in raw["edits"]:
        edit["site"] = SITE
    before = SteeringRun.from_dict(raw)
    for name in ("prompts", "notes", "model", "dictionaries", "versions", "instruction"):
        raw[name] = with_texts(raw[name], text)
    raw["gauges"] = {text: next(iter(raw["gauges"].values())) | {"source": text}}
    for edit in raw["edits"]:
        edit["site"] = text
        if isinstance(edit["latent"], dict):
            edit["latent"] |= {"name": text, "site": text}
    for arm in raw["arms"]:
        arm["name"] = arm["name"] if arm["name"] in ("plain", "steered") else text + arm["name"]
        for sample in arm["samples"]:
            sample |= {"text": text, "prompt": text, "pieces": [text] * len(sample["pieces"])}
    changed = SteeringRun.from_dict(raw)
    assert shape(as_python(changed, [text], text)) == shape(as_python(before, ["d"], "m"))
    ast.parse(as_python(changed, [text]))
    for cell in json.loads(as_notebook(changed, [text]))["cells"]:
        if cell["cell_type"] == "code":
            ast.parse(cell["source"])
    seen = Tags(as_page(changed, as_python(changed, [text])))
    assert not seen.tags & {"script", "img", "iframe", "link", "a", "object", "svg", "form", "base", "i"}


@pytest.mark.parametrize("folder", ["/a/", "./", "../"])
@pytest.mark.parametrize("end", ["\n", "\r", "\x0c", "\u2028", "\n" + 200 * "long "])
def test_the_comment_about_a_folder_of_another_machine_stays_a_comment(run, folder, end):
    model = run.model | {"model": f"{folder}b{end}{CODE};x=1#", "revision": None}
    forged, honest = replace(run, model=model), replace(run, model=model | {"model": "/a/b"})
    assert shape(as_python(forged, ["d"])) == shape(as_python(honest, ["d"]))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused_on_reading_and_on_writing(run, number):
    with pytest.raises(EditError, match="which is no number"):
        SteeringRun.from_json(run.to_json().replace('"rho": 8.0', f'"rho": {number}'))
    units = {SITE: replace(run.strength_units[SITE], p99={3: float(number)})}
    with pytest.raises(EditError, match="cannot stand in a program"):
        as_python(replace(run, strength_units=units), [])


def test_half_a_character_is_refused_in_a_saved_run_and_in_a_prompt(run, lab):
    with pytest.raises(EditError, match="half of a character"):
        SteeringRun.from_json(run.to_json().replace("the cat", "the \\ud800 cat"))
    with pytest.raises(TokensError, match="half of a surrogate pair"):
        steer(*lab, Add(3, 0.5), "the \udcff dog")


def test_an_export_names_no_folder_of_this_machine(run, place):
    local = SteeringRun.from_json(run.to_json())
    local.dictionaries[SITE]["recording"] = {"corpus": {"path": "/home/somebody/text.txt"}}
    for text in (as_page(local, as_python(local, ["./dictionary"])), as_python(local, []), as_notebook(local, [])):
        assert str(place) not in text
        assert "somebody" not in text
    assert "./checkpoint" in as_python(local, [])
    assert str(place) in as_python(local, [], str(place / "checkpoint")), "a place that is given is written"


def test_a_saved_run_whose_content_is_not_what_its_name_says_is_refused(run, tmp_path):
    shelf = Runs(tmp_path)
    name = shelf.save(run)
    file = tmp_path / f"{name}.json"
    file.write_text(file.read_text().replace("the cat", "the cow"))
    for read in (lambda: shelf.load(name), lambda: read_saved(file)):
        with pytest.raises(EditError, match="not what its name says"):
            read()
    assert shelf.newest() == ([], [name])
    file.rename(tmp_path / "edited.json")
    assert read_saved(tmp_path / "edited.json").prompts[1] == "the cow"


def test_a_program_that_version_0_1_0_exported_still_runs_and_names_the_new_names(place, capsys):
    program = f"""
from scope.models.generate import SamplingConfig
from scope.models.load import load_model
from scope.sae.files import load_sae
from scope.steering.gauge import Gauge
from scope.steering.interventions import Add
from scope.steering.steer import steer

model = load_model({str(place / "checkpoint")!r})
dictionaries = [load_sae({str(place / "dictionary")!r})]
gauges = {{{SITE!r}: Gauge(8.0, 'given', {{4: 3.0}}, {{3: 2.0}}, {{3: (1, 2)}})}}
arms = ('plain', 'steered', 'random')
sampling = SamplingConfig(max_new_tokens=2)
run = steer(model, dictionaries, [Add(3, 0.5)], ['the dog'], sampling, arms=arms, n=1, gauges=gauges, control_seed=0)
print(len(run.arms), run.gauges[{SITE!r}].typical_norm)
"""
    with pytest.warns(RenamedWarning) as warnings:
        exec(compile(program, "steering.py", "exec"), {})
    assert capsys.readouterr().out == "3 8.0\n"
    named = " ".join(str(w.message) for w in warnings)
    for new in ("StrengthUnits", "conditions=", "strength_units=", "SteeringRun.arms is now conditions"):
        assert new in named
