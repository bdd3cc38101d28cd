import json
import re
from contextlib import nullcontext

import pytest
from scope.activations.corpus.survey import Survey
from scope.activations.format.manifest import LOCK
from scope.activations.harvest.plan import Plan
from scope.activations.read.store import ActivationStore

from scope.cli.flags import count
from scope.cli.harvest import agreed
from scope.cli.main import run
from scope.progress import duration
from scope.whole_files import only_writer
from scope.workflows.harvest import middle_residual


@pytest.fixture
def corpus(tmp_path, toy_text):
    path = tmp_path / "toy.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in toy_text))
    return path


@pytest.fixture
def scope_harvest(tmp_path, corpus, tiny_model, monkeypatch):
    """`scope harvest` with a tiny model in the place of the bundled one; returns the exit code."""
    monkeypatch.setattr("scope.models.load.load_model", lambda *args, **kwargs: tiny_model)

    def call(*flags: str) -> int:
        return run(["harvest", "--corpus", str(corpus), "--out", str(tmp_path / "r"), "--context", "32", *flags])

    return call


def test_the_middle_residual_is_recorded_when_no_site_is_named(tmp_path, scope_harvest, capsys):
    assert scope_harvest("--tokens", "2k") == 0
    store = ActivationStore.open(tmp_path / "r")
    assert list(store.sites) == ["blocks.2.hook_resid_post"]
    assert store.tokens.size == 2016
    assert store.manifest.model["model"] == "tiny"
    shown = " ".join(capsys.readouterr().out.split())
    assert "sites blocks.2.hook_resid_post (1 site, 32 wide)" in shown
    assert "tokens 2,016 at 88 bytes a token" in shown
    assert re.search(r"size \d+ kB; .* are free time about .* tokens/s: an estimate from the first 512 tokens", shown)


def test_several_sites_are_recorded_in_one_pass_each_in_its_place(tmp_path, scope_harvest, tiny_model):
    import torch

    sites = ["blocks.*.hook_resid_post", "blocks.1.attn.hook_z", "blocks.3.hook_mlp_out"]
    assert scope_harvest("--tokens", "1000", *[part for s in sites for part in ("--site", s)], "--dtype", "float32") == 0
    store = ActivationStore.open(tmp_path / "r")
    assert len(store.sites) == 6
    tokens = torch.from_numpy(store.tokens[:16]).long()
    for site, x in tiny_model.record(tokens, list(store.sites)).items():
        rows = slice(0, store.rows_of_context(16).start)
        where = torch.from_numpy(store.contexts_of[rows]), torch.from_numpy(store.positions[rows])
        assert torch.equal(store[site][rows], x[where])


def test_a_larger_budget_extends_and_a_changed_corpus_is_refused(tmp_path, scope_harvest, corpus, capsys):
    assert scope_harvest("--tokens", "1000") == 0
    assert scope_harvest("--tokens", "3000") == 0
    assert ActivationStore.open(tmp_path / "r").tokens.size == 3008
    corpus.write_text('{"text": "something else"}')
    assert scope_harvest("--tokens", "4000") == 2
    assert "corpus.sha256: recorded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--site", "blocks.9.hook_resid_post"], "no site blocks.9.hook_resid_post"),
        (["--corpus", "nowhere.txt"], "There is no corpus nowhere.txt"),
        (["--context", "65"], "Contexts of 65 tokens do not fit: this model reads 64 at most"),
        (["--out", "nosuch://bucket/r"], "nosuch://bucket/r cannot be opened"),
        (["--tokens", "9000B"], "are free in"),
        (["--dtype", "int8"], "int8"),
    ],
)
def test_bad_input_gets_a_message_and_exit_code_2(scope_harvest, capsys, flags, message):
    try:
        code = scope_harvest(*flags)
    except SystemExit as stopped:  # the parser's own refusals
        code = stopped.code
    assert code == 2
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert "Traceback" not in said.err
    assert "Harvesting" not in said.out  # no bar was drawn


def test_a_file_where_the_recording_should_go_is_a_message_and_exit_code_2(tmp_path, scope_harvest, capsys):
    (tmp_path / "taken").write_text("")
    for out in ("taken", "taken/inside"):
        assert scope_harvest("--tokens", "1000", "--out", str(tmp_path / out)) == 2
        assert "Give another path" in capsys.readouterr().err


def test_a_recording_is_shown_on_one_screen_and_verified(tmp_path, scope_harvest, capsys):
    scope_harvest("--tokens", "1000")
    capsys.readouterr()
    assert run(["recording", "show", str(tmp_path / "r")]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 24
    assert re.search(r"rows +9\d\d; left out: \d+ by bos, special, pad", shown)
    assert run(["recording", "verify", str(tmp_path / "r")]) == 0
    path = next((tmp_path / "r").glob("shard-*.h5"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert run(["recording", "verify", str(tmp_path / "r")]) == 2
    assert f"{path.name} is damaged" in "".join(capsys.readouterr().err.split("\n"))


def test_a_recording_that_was_stopped_says_how_much_was_asked_for(tmp_path, scope_harvest, tiny_model, monkeypatch, capsys):
    record, calls = tiny_model.record, []

    def stop(tokens, sites):
        calls.append(len(tokens))
        if sum(calls) > 100:
            raise KeyboardInterrupt
        return record(tokens, sites)

    monkeypatch.setattr(tiny_model, "record", stop)
    assert scope_harvest("--tokens", "4000", "--shard-rows", "1000") == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert run(["recording", "show", str(tmp_path / "r")]) == 0
    assert "unfinished 4,000 were asked for; the same `scope harvest`" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("key", ["", "n", "y"])
def test_only_a_yes_goes_on(scope_harvest, monkeypatch, capsys, key):
    def answer(question):
        if not key:
            raise EOFError
        return key

    monkeypatch.setattr("scope.cli.harvest._ASK_ABOVE", 1000)
    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert scope_harvest("--tokens", "1000") == 0
    said = capsys.readouterr().out
    assert ("Nothing was recorded." in said) is (key != "y")
    assert ("Harvesting" in said) is (key == "y")


@pytest.mark.parametrize(
    ("text", "number"), [("200000", 200_000), ("200_000", 200_000), ("200k", 200_000), ("1.5M", 1_500_000)]
)
def test_numbers_are_read_as_people_write_them(text, number):
    assert count(text) == number


def test_a_number_that_is_none_is_refused():
    for text in ("many", "1.5", "", "inf", "nan"):
        with pytest.raises(ValueError, match=r"could not convert|whole number"):
            count(text)


def test_the_middle_residual_of_a_model_with_layers_has_as_many_below_as_above():
    sites = {f"blocks.{i}.hook_resid_post": 1 for i in range(5)} | {"ln_final.hook_normalized": 1}
    assert middle_residual(sites) == "blocks.2.hook_resid_post"


@pytest.mark.parametrize("change", ["corpus", "seed", "model", "lock"])
def test_no_bar_is_drawn_before_a_refusal(tmp_path, scope_harvest, corpus, tiny_model, capsys, change):
    assert scope_harvest("--tokens", "1000") == 0
    assert "Harvesting" in capsys.readouterr().out
    flags = ["--tokens", "4000"]
    with only_writer(tmp_path / "r", LOCK) if change == "lock" else nullcontext():
        if change == "corpus":
            corpus.write_text('{"text": "something else"}')
        elif change == "seed":
            flags += ["--seed", "3"]
        elif change == "model":
            tiny_model.provenance = tiny_model.provenance | {"weights_sha256": "another"}
        assert scope_harvest(*flags) == 2
    said = capsys.readouterr()
    assert "Harvesting" not in said.out
    named = {
        "corpus": "corpus.sha256",
        "seed": "seed: recorded 0, asked 3",
        "model": "model.weights_sha256: recorded random-0, asked",
    }
    assert named.get(change, "is being written by process") in said.err


def test_a_finished_recording_is_told_to_be_there_and_the_model_does_not_run(scope_harvest, tiny_model, monkeypatch, capsys):
    assert scope_harvest("--tokens", "1000") == 0
    monkeypatch.setattr(tiny_model, "record", None)
    assert scope_harvest("--tokens", "1000") == 0
    assert "none: all of it is there" in capsys.readouterr().out


@pytest.mark.parametrize(("gigabytes", "seconds", "asked"), [(1, 10, False), (3, 10, True), (1, 1000, True)])
def test_leave_is_asked_for_what_is_large_or_slow(monkeypatch, gigabytes, seconds, asked):
    questions = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "n")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    look = Survey(contexts=16, rows=4000, median={}, tokens_per_second=1000.0)
    tokens = 1000 * seconds
    made = {"sites": {}, "tokens": tokens, "recorded": 0, "bytes_per_token": gigabytes * 10**9 // tokens, "nbytes": 0}
    planned = Plan(**made, free=None, survey=look, context=256)
    assert agreed(planned, yes=False) is not asked
    assert len(questions) == asked
    assert agreed(planned, yes=True)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (80, "80 s"), (600, "10 min"), (12_000, "3 h 20 min"), (190_000, "2 days 4 h")]
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said


def test_a_recording_goes_to_a_store_and_is_shown_from_there(tmp_path, scope_harvest, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    url = f"file://{tmp_path}/bucket/r"
    assert scope_harvest("--tokens", "1000", "--out", url) == 0
    assert (tmp_path / "bucket" / "r" / "journal.jsonl").exists()
    assert run(["recording", "show", url]) == 0
    said = capsys.readouterr().out
    assert "blocks.2.hook_resid_post" in said
    assert url in said.replace("\n", "")
    assert run(["recording", "verify", url]) == 0
    assert run(["recording", "convert", url, "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("flags", "contexts"),
    [
        ([], 16),
        (["--streamed"], 16_384 // 32),
        (["--streamed", "--batch-contexts", "16"], 16),
        (["--streamed", "--batch-contexts", "3"], 3),
        (["--batch-contexts", "5"], 5),
    ],
)
def test_a_streamed_batch_is_large_unless_another_is_asked_for(tmp_path, scope_harvest, flags, contexts):
    assert scope_harvest("--tokens", "600", *flags) == 0
    assert json.loads((tmp_path / "r" / "manifest.json").read_text())["config"]["batch_contexts"] == contexts
