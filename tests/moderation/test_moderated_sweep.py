"""A sweep's texts judged: harm beside concept and fluency, the largest strength within a budget, on held-out prompts."""

import json
from dataclasses import replace

import pytest

from scope.models.text.sampling_config import SamplingConfig
from scope.moderation.moderated_sweep import ModeratedSweep, moderated_sweep
from scope.moderation.policies import POLICIES, ModerationError
from scope.moderation.prompt import Item
from scope.steering.compare.sweep import Sweep, sweep
from scope.steering.edits.interventions import Add
from tests.conftest import random_gemma
from tests.steering.conftest import random_sae

SHORT = SamplingConfig(max_new_tokens=4, temperature=1.0, top_p=None, repetition_penalty=1.0)
PROMPTS = ["the dog", "a cat", "my sister", "the teacher"]


@pytest.fixture(scope="module")
def swept(tiny_config, toy_tokenizer) -> Sweep:
    return sweep(random_gemma(tiny_config, toy_tokenizer), random_sae(), Add(3, 0.5), PROMPTS, [0.3, 0.6, 0.9], SHORT)


def with_harm(swept: Sweep, budget: float, harm) -> ModeratedSweep:
    """As if a moderator had said `harm(strength, condition, prompt)` of each text."""
    values = tuple(harm(row["strength"], row["condition"], row["prompt_index"]) for row in swept.rows)
    return ModeratedSweep(swept, POLICIES["hate"], budget, "response", values, {})


def test_every_text_is_judged_as_a_response_to_its_prompt(swept, moderator):
    found = moderated_sweep(swept, moderator, "hate", 0.5)
    row = next(r for r in found.rows if r["condition"] == "steered" and r["strength"] == 0.9 and r["prompt_index"] == 2)
    (alone,) = moderator.judge([Item("my sister", row["text"])], "hate").verdicts
    assert row["harm"] == pytest.approx(alone.p_yes, abs=1e-5)
    assert len(found.harm) == len(swept.rows)
    alone = moderated_sweep(swept, moderator, "hate", 0.5, mode="prompt")
    assert alone.rows[0]["harm"] == pytest.approx(moderator.judge([Item(swept.rows[0]["text"])], "hate").p_yes()[0], abs=1e-5)


def test_the_largest_strength_within_the_budget_is_chosen_on_even_prompts_and_told_on_odd_ones(swept):
    def harm(strength, condition, prompt):
        if condition == "steered":
            return {0.3: 0.1, 0.6: 0.4, 0.9: 0.8}[strength] + (0.05 if prompt % 2 else 0.0)
        return 0.2 if condition == "random" else 0.0

    chosen = with_harm(swept, 0.5, harm).choice
    assert chosen["strength"] == 0.6
    assert chosen["harm_there"] == pytest.approx(0.4)
    assert chosen["steered"]["harm"] == pytest.approx(0.45)
    assert chosen["random"]["harm"] == pytest.approx(0.2)
    assert chosen["plain"]["harm"] == 0.0
    assert chosen["difference"] == pytest.approx(0.25)
    assert (chosen["chosen_on"], chosen["told_on"]) == (2, 2)
    text = str(with_harm(swept, 0.5, harm))
    assert "The largest strength within 0.5 is 0.6" in text
    assert "0.450 [0.450, 0.450]" in text


def test_a_strength_beyond_one_that_exceeds_the_budget_is_not_chosen(swept):
    found = with_harm(swept, 0.5, lambda strength, condition, prompt: {0.3: 0.1, 0.6: 0.9, 0.9: 0.2}[strength])
    assert found.choice["strength"] == 0.3


def test_no_strength_within_the_budget_is_said(swept):
    found = with_harm(swept, 0.05, lambda strength, condition, prompt: 0.1)
    assert found.choice is None
    assert "No strength keeps" in found.verdict()


def test_a_choice_that_fails_on_the_other_prompts_says_so(swept):
    found = with_harm(swept, 0.5, lambda strength, condition, prompt: 0.9 if prompt % 2 else 0.1)
    assert "exceeds the budget" in found.verdict()


def test_the_figure_has_harm_beside_concept_and_fluency_with_the_budget(swept):
    figure = with_harm(swept, 0.5, lambda strength, condition, prompt: 0.1).plot()
    assert [a.text for a in figure.layout.annotations] == ["concept", "fluency", "harm"]
    assert sorted({shape.line.dash for shape in figure.layout.shapes}) == ["dash", "dot"]


def test_the_file_is_a_sweep_that_replays_and_holds_what_the_moderator_said(swept, tmp_path):
    found = with_harm(swept, 0.5, lambda strength, condition, prompt: 0.1)
    found.to_json(tmp_path / "sweep.json")
    assert Sweep.from_json(tmp_path / "sweep.json").same_texts(swept)
    moderation = json.loads((tmp_path / "sweep.json").read_text())["moderation"]
    assert moderation["harm"] == [0.1] * len(swept.rows)
    assert moderation["policy"]["guideline"] == POLICIES["hate"].response


def test_texts_of_white_space_are_not_judged(swept, moderator):
    def blank(sample):
        return replace(sample, text=" ")

    conditions = [replace(c, samples=[blank(s) for s in c.samples]) for c in swept.runs[0].conditions]
    silent = replace(swept, strengths=(0.3,), runs=[replace(swept.runs[0], conditions=conditions)])
    assert all(h != h for h in moderated_sweep(silent, moderator, "hate").harm)


def test_a_budget_that_is_no_probability_is_refused(swept, moderator):
    with pytest.raises(ModerationError, match="from 0 to 1"):
        moderated_sweep(swept, moderator, "hate", 1.5)
