"""Refusals by rules and by a moderator: rates with intervals, and the paired test against plain."""

import json

import pytest

from scope.moderation.moderator import Moderator
from scope.moderation.policies import ModerationError, Policy
from scope.moderation.refusals import Answer, LabelledPrompt, Refusals, compare_refusals, read_labelled_prompts, refuses


def test_the_rules_read_the_beginning_of_an_answer_whatever_its_case_and_apostrophes():
    for text in ("I’m sorry, but no.", "I CANNOT do that", "As an AI, I would rather not", "Well. I can't help with that."):
        assert refuses(text)
    for text in ("Take a hammer.", "The king cannot swim.", "", "x" * 250 + " I cannot"):
        assert not refuses(text)


def answers(**refused: list[bool]) -> Refusals:
    rows = [
        Answer(name, f"p{i}", "harmful", "", value, 0.9 - 0.2 * i)
        for name, values in refused.items()
        for i, value in enumerate(values)
    ]
    return Refusals(answers=tuple(rows), chat=False, policy="hate", moderator="tiny")


def test_a_rate_has_its_interval_and_the_pairs_in_which_one_alone_refuses():
    made = answers(plain=[True] * 6 + [False], steered=[False] * 6 + [False], random=[True] * 7)
    plain, steered, random = (r for r in made.rates if r.what == "refusal")
    assert (plain.k, plain.n, plain.p) == (6, 7, 1.0)
    assert (steered.k, steered.this_alone, steered.plain_alone) == (0, 0, 6)
    assert steered.p == pytest.approx(2 / 64)
    assert steered.low == 0 < steered.high < 0.5
    assert (random.this_alone, random.plain_alone) == (1, 0)
    judged = [r for r in made.rates if r.what == "violates hate"]
    assert [r.k for r in judged] == [2, 2, 2]
    assert "it alone 0, plain alone 6" in str(made)


def test_every_condition_answers_every_prompt_and_a_moderator_judges_each_answer(tiny_model):
    prompts = [LabelledPrompt("the dog runs", "harmful"), LabelledPrompt("my sister", "harmless")]
    seen = []

    class Judge(Moderator):
        def __init__(self):
            self.model = tiny_model

        def judge(self, items, policies, batch=8, on_progress=None):
            seen.extend((item.text, item.response) for item in items)
            return type("Verdicts", (), {"p_yes": lambda self: [0.8] * len(items)})()

    push = [("blocks.1.hook_resid_post", lambda x, hook: x + 30.0)]
    how = {"max_new_tokens": 4, "moderator": Judge(), "policy": Policy("hate", "No hate.", "No hate.")}
    made = compare_refusals(tiny_model, {"plain": [], "steered": push}, prompts, **how)
    assert [(a.condition, a.prompt) for a in made.answers] == [(c, p.prompt) for c in ("plain", "steered") for p in prompts]
    assert made.answers[0].text != made.answers[2].text
    assert all(a.harm == 0.8 for a in made.answers if a.text.strip())
    assert len(seen) == len(set(seen))


def test_prompts_come_from_one_file_with_kinds_or_from_two_without(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "b", "kind": "harmless"}) + "\n")
    pair = [LabelledPrompt("a", "harmful"), LabelledPrompt("b", "harmless")]
    assert read_labelled_prompts([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]) == pair
    assert read_labelled_prompts([tmp_path / "b.jsonl"]) == pair[1:]
    with pytest.raises(ModerationError, match="kind"):
        read_labelled_prompts([tmp_path / "a.jsonl"])
    with pytest.raises(ModerationError, match="cannot be read"):
        read_labelled_prompts([tmp_path / "none.jsonl"])
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(ModerationError, match="no prompt"):
        read_labelled_prompts([tmp_path / "b.jsonl"])
