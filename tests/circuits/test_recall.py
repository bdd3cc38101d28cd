"""What models can say after n tokens, tried on one that knows and one that cannot."""

import pytest
import torch

from scope.circuits.recall import Recall, recall, wilson
from scope.errors import ConfigError, TokensError
from tests.models.griffin_twins import tiny_griffin

TEXTS = ["the dog runs and the cat sleeps in the house by the sea " * 8]


@pytest.fixture
def model(toy_tokenizer):
    return tiny_griffin(toy_tokenizer, n_ctx=96).requires_grad_(False)


def words_of(model) -> list[str]:
    return [w for w in ("the", "dog", "cat", "a", "and", "is") if len(model.words.encode(f" {w}", bos=False)) == 1]


class Copies:
    """Stands in for the head: the likeliest token is the one that stood `back` tokens before the place."""

    def __init__(self, model, back):
        self.model, self.back = model, back

    def __call__(self, stream):
        tokens = self.model.run.tokens
        n, places = tokens.shape[1], stream.shape[1]
        first = n - 1 if places == 1 else n - places - 1
        logits = torch.zeros(*stream.shape[:2], self.model.cfg.d_vocab)
        for k in range(places):
            logits[torch.arange(len(tokens)), k, tokens[:, first + k - self.back]] = 9.0
        return logits


def test_a_model_that_copies_recalls_all_and_a_random_one_nothing(model, monkeypatch):
    rows = recall(model, TEXTS, tasks=["repetition"], distances=[0, 4], trials=12).rows
    assert all(row.low < row.chance + 0.2 and row.gain_low < 0.2 for row in rows)
    for distance in (0, 4):
        monkeypatch.setattr(model, "logits_of", Copies(model, 7 + distance), raising=False)
        (row,) = recall(model, TEXTS, tasks=["repetition"], distances=[distance], trials=12).rows
        assert row.accuracy == 1.0
        assert row.gain > 5
        assert row.chance == pytest.approx(1 / 7)


def test_distances_that_no_context_holds_are_left_out(model):
    result = recall(model, TEXTS, tasks=["repetition"], distances=[2, 400], trials=4)
    assert [row.distance for row in result.rows] == [2]
    with pytest.raises(ConfigError, match="No distance fits"):
        recall(model, TEXTS, tasks=["repetition"], distances=[400], trials=4)


def test_needles_are_words_of_one_token_in_every_model(model):
    words = words_of(model)
    if len(words) < 2:
        with pytest.raises(TokensError, match="one token of each model"):
            recall(model, TEXTS, tasks=["needle"], words=["zebra crossing"], distances=[0])
        return
    (row,) = recall(model, TEXTS, tasks=["needle"], words=[*words, "zebra crossing"], distances=[0], trials=6).rows
    assert row.chance == pytest.approx(1 / len(words))


def test_the_same_seed_gives_the_same_figures_and_they_are_read_back(model, tmp_path):
    first, again = (recall(model, TEXTS, tasks=["repetition"], distances=[3], trials=4) for _ in range(2))
    assert first.rows == again.rows
    assert Recall.load(first.save(tmp_path / "recall.json")) == first
    assert "tokens between" in str(first)
    assert "<table>" in first.to_html()


def test_an_unknown_task_and_a_text_too_short_are_refused(model):
    with pytest.raises(ConfigError, match="no task 'sums'"):
        recall(model, TEXTS, tasks=["sums"])
    with pytest.raises(TokensError, match="to stand between"):
        recall(model, ["a"], tasks=["repetition"], distances=[20], trials=4)


def test_wilsons_interval_of_half_of_ten_trials():
    low, high = wilson(0.5, 10)
    assert (low, high) == (pytest.approx(0.237, abs=1e-3), pytest.approx(0.763, abs=1e-3))
