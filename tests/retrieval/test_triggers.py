"""Latents that announce calls, where the answer is known."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from scope.cli.main import run as scope
from scope.errors import ConfigError
from scope.models.text.sampling_config import SamplingConfig
from scope.retrieval import steered_calls
from scope.retrieval.annotate import annotate
from scope.retrieval.calls import write_call
from scope.retrieval.steered_calls import Question, is_right, steer_calls
from scope.retrieval.trigger_result import TriggerResult
from scope.retrieval.triggers import Answer, announcements, before_calls, score, table
from scope.sae.files import parameters_sha256, save_sae
from scope.sae.jumprelu import JumpReLUSAE
from scope.whole_files import file_sha256
from scope.workflows.triggers import find_triggers
from tests.retrieval.test_annotate import Canned
from tests.steering.conftest import random_sae

SITE, ANNOUNCING, OPENING = "blocks.0.hook_resid_pre", 40, 41


@pytest.fixture
def sae(tiny_model):
    """Latent 3 fires on one token and nothing else; the others are random."""
    from scope.sae.configs.jumprelu import JumpReLUConfig

    torch.manual_seed(0)
    sae = JumpReLUSAE(JumpReLUConfig(d_in=32, d_sae=16, target_l0=4.0), SITE)
    with torch.no_grad():
        sae.W_enc.normal_()
        sae.W_dec.normal_()
        used = torch.tensor([2, *range(10, 42)])
        x = tiny_model.record(used[:, None], [SITE])[SITE][:, 0]
        sae.W_enc[:, 3] = torch.linalg.lstsq(x, (used == ANNOUNCING).float()).solution
        reading = x @ sae.W_enc[:, 3]
        sae.b_enc[3] = -reading[used != ANNOUNCING].max()
        assert reading.argmax() == (used == ANNOUNCING).nonzero()
    return sae


def answers(tiny_model, n=40, ahead=2):
    """Random tokens; in every other pair of answers the announcing token stands, and a call opens so many tokens later."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        ids = [2, *map(int, rng.integers(10, 39, 30))]
        openings = ()
        if i % 4 < 2:
            place = int(rng.integers(12, 25))
            ids[place], ids[place + ahead] = ANNOUNCING, OPENING
            openings = (place + ahead,)
        made.append(Answer(tuple(ids), 8, openings))
    return made


def test_the_planted_latent_is_found_with_full_precision_and_recall(tiny_model, sae):
    results = {a.k: a for a in announcements(tiny_model, sae, answers(tiny_model), ahead=(1, 2, 3))}
    assert results[2].latent == 3
    assert (results[2].scores["latent"].precision, results[2].scores["latent"].recall) == (1.0, 1.0)
    assert results[2].scores["token"].f1 == 1.0  # this call is announced by a token, and the baseline says so
    assert results[2].scores["probe"].f1 > 0.9
    assert results[2].scores["null"].f1 < 0.5
    assert max(results[k].scores["latent"].f1 for k in (1, 3)) < 0.5
    assert results[2].n_calls == 10
    assert table(list(results.values())).count("\n") == 4


def test_answers_without_calls_are_refused(tiny_model, sae):
    made = [Answer(a.ids, a.n_prompt, ()) for a in answers(tiny_model)]
    with pytest.raises(ConfigError, match="0 and 0 calls open 1 tokens"):
        announcements(tiny_model, sae, made)


def test_questions_too_few_for_two_halves_are_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "few.jsonl").write_text('{"question": "How many?", "answer": 5}\n' * 3)
    with pytest.raises(ConfigError, match="3 questions; at least 8"):
        find_triggers(tmp_path / "no-sae", questions=tmp_path / "few.jsonl")
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ConfigError, match="0 questions"):
        find_triggers(tmp_path / "no-sae", questions=tmp_path / "none.jsonl")


def test_the_first_token_of_a_call_is_found_in_the_answer_and_not_in_the_question(tiny_model):
    words = tiny_model.words
    prompt = words.encode(f"{write_call('a', '1')} the dog")
    written = words.encode(f" runs to {write_call('b', '2')} her{write_call('c', '')}", bos=False)
    answer = Answer.of(tiny_model, prompt, written)
    assert len(answer.openings) == 2
    for place in answer.openings:
        assert words.decode(answer.ids[place:]).lstrip().startswith("[__DC__")
        assert not words.decode(answer.ids[place + 1 :]).lstrip().startswith("[__DC__")


def test_precision_and_recall_are_shares_of_alarms_and_of_calls():
    alarms, labels = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, True])
    result = score(alarms, labels)
    assert (result.precision, result.recall) == (0.5, pytest.approx(1 / 3))
    assert result.f1 == pytest.approx(0.4)


def test_right_is_the_number_that_is_shown():
    service = Canned({"a": "100"})
    question = Question("How many in 1952?", 100.0)
    assert is_right(question, annotate(write_call("a", "7"), service))  # retrieved
    assert not is_right(question, annotate(write_call("b", "7"), service))
    assert is_right(question, annotate(write_call("b", "101"), service))  # the model's own
    assert is_right(question, annotate("In 1952 it was 99.", service))
    assert not is_right(question, annotate("In 1952.", service))
    assert is_right(Question("Where?", "Asia"), annotate("In Asia.", service))
    assert not is_right(Question("Where?", "Asia"), annotate("In Australasia.", service))


def test_steering_is_scored_on_the_questions_that_did_not_choose_it(tiny_model, sae, monkeypatch):
    monkeypatch.setattr(steered_calls, "HOLDING_BACK", (("ablate", 2), ("add", -0.5)))
    monkeypatch.setattr(steered_calls, "FORCING", (("add", 0.5),))
    monkeypatch.setattr(steered_calls, "PUSHES", {"hold back": (-0.5,), "force": (0.5,)})
    questions = [Question(f"the dog counts {i}", 5.0 if i % 4 < 2 else "apples") for i in range(8)]
    sampling = SamplingConfig(max_new_tokens=3, temperature=0.0)
    directions = before_calls(tiny_model, ["blocks.2.hook_resid_post"], answers(tiny_model, 8))
    results = steer_calls(tiny_model, sae, [3, 1], questions, Canned({}), sampling, directions=directions)
    aims, means = ("hold back", "force"), ("latents", "direction")
    assert [(r.aim, r.means, r.n) for r in results] == [(aim, by, 2) for aim in aims for by in means]
    assert all(set(r.outcomes) == {"plain", "steered", "random"} for r in results)
    assert results[0].outcomes["plain"].calls == 0


def test_the_result_is_written_with_what_makes_it_again_and_says_which_aim_had_no_questions(tmp_path, monkeypatch):
    monkeypatch.setattr(steered_calls, "HOLDING_BACK", (("ablate", 2),))
    monkeypatch.setattr(steered_calls, "PUSHES", {"hold back": (-0.5,)})
    monkeypatch.setattr(steered_calls, "TRIGGERED", (-1.0,))
    monkeypatch.setattr(steered_calls, "_COMPARED", 1)
    monkeypatch.setattr("scope.workflows.triggers._residual_sites", lambda model, site: [site])
    asked = [f"What was the population of {land} in 1952?" for land in ("Chad", "Peru", "Japan", "Italy") * 2]
    lines = "".join(json.dumps({"question": text, "answer": 1.0}) + "\n" for text in asked)
    (tmp_path / "asked.jsonl").write_text(lines)
    sae = random_sae(256, 32, "blocks.2.hook_resid_post")
    save_sae(sae, tmp_path / "lab" / "dictionary")
    out = tmp_path / "new" / "triggers.json"
    files = ["--out", str(out), "--csv", str(tmp_path / "t.csv"), "--html", str(tmp_path / "t.html")]
    asking = ["--questions", str(tmp_path / "asked.jsonl"), "--ahead", "2", "--max-new-tokens", "20", "--any-model"]
    assert scope(["datacommons", "triggers", str(tmp_path / "lab"), *asking, *files]) == 0
    result = TriggerResult.load(out)
    assert [a.k for a in result.announcements] == [2]
    assert [(r.aim, r.means) for r in result.steered] == [("hold back", by) for by in ("latents", "direction", "both")]
    assert "No call was forced: that needs questions with no number" in str(result)
    about = result.provenance
    assert (about["model"]["model"], about["sae"]["parameters_sha256"]) == ("bundled+rig", parameters_sha256(sae))
    assert about["questions_sha256"] == file_sha256(tmp_path / "asked.jsonl")
    rows = pd.read_csv(tmp_path / "t.csv")
    assert list(rows["table"].value_counts(sort=False)) == [5, 9]
    assert "No call was forced" in (tmp_path / "t.html").read_text()
    out.write_text(out.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ConfigError, match="schema 2; this version reads 1"):
        TriggerResult.load(out)


def test_a_direction_points_from_answers_without_a_call_to_the_token_before_one(tiny_model):
    made = answers(tiny_model, 12)
    [direction] = before_calls(tiny_model, [SITE], made)
    acts = [tiny_model.record(torch.tensor([a.ids]), [SITE])[SITE][0] for a in made[0::2]]
    before = [x[a.openings[0] - 1] for x, a in zip(acts, made[0::2], strict=True) if a.openings]
    without = [x[a.n_prompt - 1 : -1] for x, a in zip(acts, made[0::2], strict=True) if not a.openings]
    expected = torch.stack(before).mean(0) - torch.cat(without).mean(0)
    torch.testing.assert_close(torch.tensor(direction.vector), expected, atol=1e-5, rtol=1e-5)
    assert direction.site == SITE
    calling = [a for a in made if a.openings] * 2
    assert "minus elsewhere" in before_calls(tiny_model, [SITE], calling)[0].name


def test_a_forced_call_is_opened_by_the_edit_and_written_without_it(tiny_model):
    bracket = tiny_model.words.encode("[", bos=False)
    likeliest = torch.zeros(tiny_model.cfg.d_vocab)
    likeliest[bracket[-1]] = 1e4
    hooks = [("unembed.hook_out", lambda x, hook: x + likeliest)]
    sampling = SamplingConfig(max_new_tokens=4, temperature=0.0)
    [opened] = steered_calls._texts(tiny_model, ["the dog"], sampling, hooks, until_open=True)
    [plain] = tiny_model.generate(["the dog["], 4, temperature=0.0, return_type="generations")
    assert opened == "[" + plain.text
