"""The cost of an edit on ordinary texts: paired with plain text by text, beside several random directions."""

import numpy as np
import pytest
import torch

from scope.errors import EditError
from scope.evaluation.metrics import kl
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import resolve
from scope.steering.compare.cost import cost
from scope.steering.compare.statistics import paired_p, ratio_interval, wilson
from scope.steering.edits.interventions import Add, Clamp
from tests.steering.conftest import SITE


def test_losses_and_divergences_are_those_of_each_text_alone(tiny_model, sae, units, toy_text):
    texts = [text[:60] for text in toy_text[:5]]
    measured = cost(tiny_model, sae, Add(3, 0.8), texts, strength_units=units, draws=2, context=12)
    resolved = [resolve(Add(3, 0.8), {SITE: sae}, {SITE: units})]
    arms = [None, Editing(tiny_model, {SITE: sae}, resolved)]
    arms += [Editing(tiny_model, {SITE: sae}, resolved, control=seed) for seed in (0, 1)]
    losses, divergences, counts = [], [], []
    for text in texts:
        tokens = tiny_model.to_tokens(text)[:, :12]
        logits = [tiny_model.run_with_hooks(tokens, fwd_hooks=a.hooks() if a else []).detach()[0, :-1] for a in arms]
        losses.append([-float(x.log_softmax(-1).gather(1, tokens[0, 1:, None]).sum()) for x in logits])
        divergences.append(float(kl(logits[0][None], logits[1][None]).sum()))
        counts.append(tokens.shape[1] - 1)
    plain, steered, *random = np.array(losses).sum(0) / sum(counts)
    assert (measured.plain, measured.steered) == (pytest.approx(plain, abs=1e-5), pytest.approx(steered, abs=1e-5))
    assert measured.random == pytest.approx(np.mean(random), abs=1e-5)
    assert measured.random_range == pytest.approx((min(random), max(random)), abs=1e-5)
    assert measured.kl["steered"] == pytest.approx(sum(divergences) / sum(counts), abs=1e-5)
    assert measured.low <= measured.steered - measured.plain <= measured.high
    assert measured.n_tokens == sum(counts)
    assert measured.to_frame()["condition"].tolist() == ["plain", "steered", "random"]


def test_texts_count_as_generated_for_edits_of_what_is_generated(tiny_model, sae, units, toy_text):
    texts = [text[:40] for text in toy_text[:3]]
    everywhere = cost(tiny_model, sae, Add(3, 0.8), texts, strength_units=units)
    generated = cost(tiny_model, sae, Add(3, 0.8, positions="generated"), texts, strength_units=units)
    assert generated.steered == pytest.approx(everywhere.steered, abs=1e-6)
    assert "generated after <bos>" in "\n".join(generated.lines())
    last = cost(tiny_model, sae, Add(3, 0.8, positions="last_prompt"), texts, strength_units=units)
    assert last.steered == pytest.approx(last.plain, abs=1e-6)
    assert any("last token of a text" in note for note in last.notes)
    nowhere = cost(tiny_model, sae, Clamp(3, 2.0, positions="from:60"), texts, strength_units=units)
    assert any("touched none" in note for note in nowhere.notes)


def test_ctrl_c_keeps_the_texts_that_were_read(tiny_model, sae, units, toy_text, monkeypatch):
    monkeypatch.setattr("scope.steering.compare.cost._NUMBERS", 1)

    def stop(done: int, total: int, numbers: dict) -> None:
        if done == 3:
            monkeypatch.setattr("scope.steering.compare.cost._losses", interrupted)

    def interrupted(*args):
        raise KeyboardInterrupt

    measured = cost(tiny_model, sae, Add(3, 0.5), [t[:30] for t in toy_text[:6]], strength_units=units, on_progress=stop)
    assert measured.n_texts == 3
    assert "Stopped after 3 of 6 texts" in "\n".join(measured.lines())
    with pytest.raises(EditError, match="at least one random"):
        cost(tiny_model, sae, Add(3, 0.5), ["the dog"], strength_units=units, draws=0)


def test_intervals_and_tests_of_shares_are_those_of_the_books():
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert paired_p(0, 0) == 1.0
    assert paired_p(5, 0) == pytest.approx(2 / 32)
    assert paired_p(3, 3) == 1.0
    sums, counts = np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0])
    assert ratio_interval(sums, counts) == (0.5, 0.5)
    assert np.isnan(ratio_interval(sums[:1], counts[:1])).all()
    assert torch.isfinite(torch.tensor(ratio_interval(np.arange(4.0), np.arange(1.0, 5.0)))).all()
