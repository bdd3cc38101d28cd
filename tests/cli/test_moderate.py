"""`scope moderate`: as a table, as JSON, by files, with an SAE; refusals."""

import json

import pytest

import scope
from scope.cli.main import run
from scope.moderation.policies import ModerationError
from tests.conftest import random_gemma
from tests.help.labs import make_lab
from tests.moderation.conftest import moderator, shield_folder  # noqa: F401 - fixtures
from tests.steering.conftest import random_sae

TEXT = "a cat looks at the river"


@pytest.fixture
def moderate(shield_folder, capsys):  # noqa: F811
    def moderate(*flags):
        code = run(["moderate", *flags, "--model", str(shield_folder)])
        out, err = capsys.readouterr()
        return code, out, err

    return moderate


def test_json_holds_p_yes_of_every_text_and_policy(moderate, shield_folder):  # noqa: F811
    code, out, _ = moderate(TEXT, "nothing", "--policy", "harassment,hate", "--json")
    verdicts = json.loads(out)["verdicts"]
    assert code == 0
    assert [(v["text"], v["policy"]) for v in verdicts] == [(t, p) for t in (TEXT, "nothing") for p in ("harassment", "hate")]
    same = scope.moderate(TEXT, policy="hate", model=str(shield_folder)).p_yes()
    assert same == pytest.approx([verdicts[1]["p_yes"]], abs=1e-5)


def test_a_table_has_a_column_a_policy(moderate):
    code, out, _ = moderate(TEXT, "--policy", "dangerous,sexual")
    assert code == 0
    assert "dangerous" in out
    assert "sexual" in out
    assert TEXT in out


def test_responses_come_from_a_flag_or_a_file(moderate, tmp_path):
    _, out, _ = moderate(TEXT, "--policy", "hate", "--mode", "response", "--response", "her friend", "--json")
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"text": TEXT, "response": "her friend"}) + "\n")
    _, again, _ = moderate("--policy", "hate", "--file", str(file), "--json")
    first, second = json.loads(out)["verdicts"], json.loads(again)["verdicts"]
    assert first == second
    assert first[0]["response"] == "her friend"


def test_a_guideline_of_ones_own_has_the_name_that_is_given(moderate):
    _, out, _ = moderate(TEXT, "--policy", "kings", "--guideline", "No kings.", "--json")
    assert json.loads(out)["verdicts"][0]["policy"] == "kings"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "nothing to judge"),
        ((TEXT,), "No policy is named"),
        ((TEXT, "--policy", "rude"), "no policy 'rude'"),
        ((TEXT, "--policy", "mine", "--guideline", " "), "'mine' has no text"),
        ((TEXT, "--policy", "a,b", "--guideline", "x"), "2 are named"),
        ((TEXT, "--policy", "hate", "--mode", "response"), "has no response"),
        ((TEXT, "--policy", "hate", "--mode", "prompt", "--response", "x"), "would not be read"),
        ((TEXT, "x", "--policy", "hate", "--response", "x"), "--response answers one text"),
        ((" ", "--policy", "hate"), "is empty"),
        ((TEXT, "--policy", "hate", "--template", "none.jinja"), "none.jinja cannot be read"),
    ],
)
def test_refusals_say_the_way_out(moderate, flags, message):
    code, _, err = moderate(*flags)
    assert code == 2
    assert message in err


def test_a_damaged_file_is_refused_with_its_line(shield_folder, tmp_path):  # noqa: F811
    file = tmp_path / "texts.jsonl"
    file.write_text('"a"\n{"response": "x"}\n')
    with pytest.raises(ModerationError, match=r"texts.jsonl is damaged"):
        scope.moderate(policy="hate", file=file, model=str(shield_folder))


def test_an_sae_splits_the_log_odds_of_each_policy_over_its_latents(moderate, moderator, tmp_path):  # noqa: F811
    sae = random_sae(site="blocks.1.hook_resid_post")
    sae.provenance = {"model": moderator.model.provenance}
    scope.save_sae(sae, tmp_path / "sae")
    code, out, _ = moderate(TEXT, "--policy", "hate,sexual", "--sae", str(tmp_path / "sae"), "--json")
    (found,) = json.loads(out)
    assert code == 0
    judged = {v.policy: v.log_odds for v in moderator.judge([scope.moderation.prompt.Item(TEXT)], ["hate", "sexual"]).verdicts}
    for policy, rows in found["policies"].items():
        assert sum(rows["rows"].values()) == pytest.approx(judged[policy], abs=1e-5)
    code, out, _ = moderate(TEXT, "--policy", "hate,sexual", "--sae", str(tmp_path / "sae"), "--top", "3")
    assert code == 0
    assert "further latents" in out
    assert "squeezes the difference" in out


def test_a_sweep_is_judged_and_its_figure_written(shield_folder, tmp_path, tiny_config, toy_tokenizer, toy_text, capsys):  # noqa: F811
    lab = make_lab(tmp_path, random_gemma(tiny_config, toy_tokenizer), toy_text)
    flags = ["--sae", f"{lab}/dictionary", "--model", f"{lab}/checkpoint", "--max-new-tokens", "3", "--no-certificate"]
    flags += ["--latent", "3", "--prompt", "the dog", "a cat", "--moderate", "hate", "--moderator", str(shield_folder)]
    code = run(
        ["steer", *flags, "--sweep", "0.4", "--json", str(tmp_path / "sweep.json"), "--plot", str(tmp_path / "sweep.html")]
    )
    assert code == 0
    assert "within 0.5" in capsys.readouterr().out
    assert "harm" in (tmp_path / "sweep.html").read_text()
    assert json.loads((tmp_path / "sweep.json").read_text())["moderation"]["policy"]["name"] == "hate"
    assert run(["steer", *flags]) == 2
    assert "Give strengths too" in capsys.readouterr().err
    assert run(["steer", *flags, "--sweep", "0.4", "--budget", "2"]) == 2
