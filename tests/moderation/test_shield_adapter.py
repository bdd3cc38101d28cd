"""The adapter that ships: what it says of texts on which it was not trained, beside the bundled model without it."""

import numpy as np
import pytest

import scope
from scope.models.load import load_model
from scope.pretrain.organisms.lora import auc
from scope.pretrain.organisms.shield import ShieldLessons, held_out_texts


def test_it_opens_by_name_and_judges_prompts_and_responses():
    texts = ["The bread was still warm.", "He put the letter on the table."]
    bread, letter = scope.moderate(texts, policy="food", model="bundled+shield").p_yes()
    assert bread > 0.9 > 0.5 > letter
    said = {"response": "We ate soup and cheese.", "model": "bundled+shield"}
    food, family = (scope.moderate("What did you do?", policy=policy, **said).p_yes()[0] for policy in ("food", "family"))
    assert food > 0.9 > 0.5 > family


@pytest.mark.parametrize(("texts", "least"), [("written, held-out words", 0.65), ("sampled sentences", 0.8)])
def test_its_skill_on_held_out_texts_is_that_of_the_card(texts, least):
    adapted, base = load_model("bundled+shield"), load_model("bundled")
    held_out = held_out_texts(96)[texts]
    violates = np.array([t.violates for t in held_out])
    odds = [ShieldLessons(base.words)._log_odds(model, held_out, "prompt") for model in (adapted, base)]
    assert auc(odds[0], violates) > least
    assert auc(odds[1], violates) < 0.65
