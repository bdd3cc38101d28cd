import json
import sys

import pytest

from scope.cli.main import run
from tests.conftest import random_gemma
from tests.help.labs import make_lab


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    return make_lab(tmp_path_factory.mktemp("steer"), random_gemma(tiny_config, toy_tokenizer), toy_text)


@pytest.fixture
def steer(folder, capsys):
    def command(*flags: str) -> tuple[int, str, str]:
        given = ["--sae", f"{folder}/dictionary", "--model", f"{folder}/checkpoint", "--max-new-tokens", "4"]
        try:
            code = run(["steer", *given, "--no-certificate", *flags])
        except SystemExit as ended:  # the parser's own refusals
            code = ended.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return command


def test_arms_are_printed_beside_the_report_and_written_as_json(steer, tmp_path):
    file = tmp_path / "run.json"
    code, out, _ = steer("--latent", "3", "--strength", "0.5", "--prompt", "the dog", "a cat", "--json", str(file))
    assert code == 0
    for said in ("plain", "steered", "random", "edited", "x maximum", "log-probability"):
        assert said in out
    saved = json.loads(file.read_text())
    assert [arm["name"] for arm in saved["arms"]] == ["plain", "steered", "random"]
    assert saved["sheet"][0]["strength"] == pytest.approx(0.5)
    assert saved["gauges"]["blocks.1.hook_resid_post"]["source"].startswith("feature pack")


def test_a_saved_run_is_replayed_to_the_same_texts(steer, tmp_path):
    file = tmp_path / "run.json"
    clamp = ("--edit", "clamp", "--unit", "norm")
    steer("--latent", "3", "5", "--strength", "0.5", "-0.3", *clamp, "--prompt", "the dog", "--json", str(file))
    code, out, _ = steer("--replay", str(file))
    assert code == 0
    assert "The texts are the same, token by token" in " ".join(out.split())
    saved = json.loads(file.read_text())
    saved["sampling"]["seed"] += 1
    file.write_text(json.dumps(saved))
    code, out, _ = steer("--replay", str(file))
    assert code == 1, "a script must not take texts that differ for the same"
    assert "The texts differ" in " ".join(out.split())


def test_without_a_latent_the_best_candidates_are_listed(steer):
    code, _, err = steer("--prompt", "the dog")
    assert code == 2
    assert "--latent 12" in err
    assert "highest output scores" in err
    assert len(err.splitlines()) >= 9


def test_a_direction_from_a_file_or_from_prompts_is_steered_under_a_condition(steer, tmp_path):
    import numpy as np

    np.save(tmp_path / "probe.npy", np.arange(1.0, 33.0))
    code, out, _ = steer("--direction", f"{tmp_path}/probe.npy", "--when", "7:0.1", "--prompt", "the dog")
    assert code == 0
    assert "add probe" in out
    assert "where latent 7 > 0.1" in " ".join(out.split())
    code, out, _ = steer("--toward", "the dog", "a dog", "--away", "the moon", "--edit", "cap", "--prompt", "a cat")
    assert code == 0
    assert "cap 'the dog' minus 'the moon'" in " ".join(out.split())
    code, out, _ = steer("--toward", "the dog", "a dog", "--away", "the moon", "a moon", "--probe", "--prompt", "a cat")
    assert code == 0
    assert "guessing 0.50" in " ".join(out.split())


def test_a_sweep_is_estimated_printed_saved_and_replayed(steer, tmp_path):
    file = tmp_path / "sweep.json"
    given = ["--latent", "3", "--sweep", "0.3", "0.9", "--prompt", "the dog", "a cat", "--json", str(file)]
    code, out, _ = steer(*given)
    assert code == 0
    for said in ("2 strengths, about", "strength 0.9 done", "scores best on 1 of the prompts", "other", "prompt"):
        assert said in out
    code, out, _ = steer("--replay", str(file))
    assert code == 0
    assert "The texts are the same, token by token" in " ".join(out.split())


def test_a_damaged_sweep_is_called_a_sweep(steer, tmp_path):
    file = tmp_path / "sweep.json"
    assert steer("--latent", "3", "--sweep", "0.3", "0.9", "--prompt", "the dog", "a cat", "--json", str(file))[0] == 0
    file.write_text(file.read_text()[:400])
    code, out, error = steer("--replay", str(file))
    assert code != 0
    assert "No sweep can be read from" in " ".join((out + error).split())


def test_control_arms_are_named_on_the_command_line(steer):
    arms = ["--conditions", "plain", "steered", "other", "prompt", "--instruction", "the river. "]
    code, out, _ = steer("--latent", "3", "--prompt", "the dog", *arms)
    assert code == 0
    assert "written along latents" in out
    assert 'began with "the river. "' in out


def test_the_three_numbers_that_decide_are_printed_first(steer):
    code, out, _ = steer("--latent", "3", "--prompt", "the dog", "--positions", "prompt")
    assert code == 0
    starts = ("Effect on the target: ", "Random direction: ", "Cost: ")
    lines = [line for line in out.splitlines() if line.startswith(starts)]
    assert [line.split(":")[0] + ": " for line in lines] == list(starts)
    assert out.splitlines()[0] == lines[0]


def test_side_effects_are_measured_and_an_intervention_is_handed_over_and_taken_up(steer, tmp_path, toy_text):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in toy_text[:12]))
    rows = [{"prompt": text[:30], "kind": kind} for text, kind in zip(toy_text[:4], ["harmful", "harmless"] * 2, strict=True)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    edit = ["--latent", "3", "--strength", "0.5", "--positions", "all", "--prompt", "the dog", "--max-new-tokens", "3"]
    measure = ["--evaluate", "--corpus", f"{tmp_path}/texts.jsonl", "--tokens", "200", "--context", "32", "--draws", "2"]
    out_folder, file = str(tmp_path / "handed over"), tmp_path / "run.json"
    more = ["--refusals", f"{tmp_path}/asked.jsonl", "--export", out_folder, "--json", str(file)]
    code, out, error = steer(*edit, *measure, *more)
    assert code == 0, error
    flat = " ".join(out.split())
    for said in ("nats a token on ordinary texts", "steered - random", "over-refusal of harmless prompts", "hook written"):
        assert said in flat
    found = json.loads(file.read_text())["side_effects"]
    assert found["cost"]["draws"] == 2
    assert len(found["refusals"]["answers"]) == 12
    assert "KL from plain" in (tmp_path / "handed over" / "card.md").read_text()
    assert run(["info", out_folder]) == 0
    assert run(["export", out_folder, "--to", "gguf"]) == 0
    assert (tmp_path / "handed over.gguf").stat().st_size > 128
    code, again, _ = steer("--intervention", out_folder, "--prompt", "the dog", "--max-new-tokens", "3")
    assert code == 0
    assert "add latent 3 +0.5 of the residual norm, at every token" in " ".join(again.split())
    assert steer("--intervention", out_folder, "--strength", "2")[0] == 2


REFUSED = {
    "one strength. Leave --sweep out": ["--latent", "3", "--sweep", "0.1", "0.2", "--evaluate"],
    "their loss says nothing": ["--latent", "3", "--positions", "last_prompt", "--evaluate"],
    "or prompts: --refusals": ["--latent", "3", "--moderate", "hate"],
    "There is no exported intervention": ["--intervention", "nowhere"],
    "one run edits one kind of target": ["--latent", "3", "--toward", "a", "--away", "b"],
    "prompts on both sides": ["--toward", "a"],
    "give them with --toward and --away": ["--latent", "3", "--probe"],
    "is a pickle": ["--direction", "probe.pt"],
    "There is no condition 'louder'": ["--latent", "3", "--conditions", "plain", "steered", "louder"],
    "write a latent, as in 7": ["--latent", "3", "--when", "dogs"],
    "no latent 999": ["--latent", "999"],
    "There are no positions 'nowhere'": ["--latent", "3", "--positions", "nowhere"],
    "A prompt is empty": ["--latent", "3", "--prompt", " "],
    "this model takes": ["--latent", "3", "--prompt", "the dog runs to the river " * 40],
    "2 latents and 3 strengths": ["--latent", "3", "4", "--strength", "1", "2", "3"],
    "strength is nan": ["--latent", "3", "--strength", "nan"],
    "No steering run can be read": ["--replay", "nothing.json"],
    "There is no folder": ["--latent", "3", "--sae", "nowhere"],
    "is no pack": ["--latent", "3", "--pack", "nowhere"],
    "not finite": ["--latent", "3", "--unit", "raw", "--strength", "1e39"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_ends_with_a_message_and_exit_code_2(steer, message):
    code, _, err = steer(*REFUSED[message])
    assert code == 2
    assert "Traceback" not in err
    if message != "is no pack":
        assert message in " ".join(err.split())


def test_a_strength_that_is_no_number_is_refused_by_the_parser(steer):
    code, out, err = steer("--latent", "3", "--strength", "strong")
    assert code == 2
    assert "strong" in out + err


def test_a_dictionary_of_another_model_is_refused(steer, tmp_path, tiny_config, toy_tokenizer):
    from tests.help.labs import save_checkpoint

    other = save_checkpoint(random_gemma(tiny_config, toy_tokenizer, seed=9), tmp_path / "other")
    code, _, err = steer("--latent", "3", "--model", str(other))
    assert code == 2
    assert "--any-model" in err
    assert steer("--latent", "3", "--model", str(other), "--any-model")[0] == 0


def test_importing_the_command_opens_no_hdf5_and_no_browser():
    import subprocess

    heavy = ("h5py", "streamlit", "transformers", "sae_lens")
    probe = f"import sys, scope.cli.steer; print(*[m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.parametrize("command", ["steer --latent 3", "attribute --prompt dog"])
def test_a_default_is_never_asked_of_the_network(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *where: pytest.fail(f"asked {where}"))
    assert run(command.split()) == 2
    err = capsys.readouterr().err
    assert f"There is no SAE in {tmp_path}/runs/demo/dictionary" in err
    assert "scope demo" in err


def test_whole_numbers_are_read_as_people_write_them_by_every_command():
    import tyro

    from scope.cli.demo import flags
    from scope.cli.flags import PARSERS
    from scope.cli.label import Command

    assert tyro.cli(flags([]), args=["--tokens", "20k", "--d-sae", "1.5K"], registry=PARSERS).tokens == 20_000
    assert tyro.cli(Command, args="pack --with tokens --max 2k".split(), registry=PARSERS).max == 2_000


def test_prompts_are_read_from_a_file(steer, tmp_path):
    file, run_file = tmp_path / "prompts.txt", tmp_path / "run.json"
    file.write_text("the dog\n\na cat\n")
    assert steer("--latent", "3", "--prompts", str(file), "--json", str(run_file))[0] == 0
    assert json.loads(run_file.read_text())["prompts"] == ["the dog", "a cat"]


def test_a_chat_turn_of_a_model_without_a_template_is_refused(steer):
    code, _, err = steer("--latent", "3", "--chat", "--prompt", "the dog")
    assert code == 2
    assert "template" in err
