import json
import re

import pytest

from activations.store import ActivationStore
from scope.cli.harvest import count, middle_residual
from scope.cli.main import run


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
    assert store.manifest["model"]["model"] == "tiny"
    assert "2,016 tokens of blocks.2.hook_resid_post" in " ".join(capsys.readouterr().out.split())


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
        (["--context", "65"], "65 tokens do not fit"),
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
    shown = capsys.readouterr().err
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown


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
