"""Sampling settings against the processors of transformers, and against what a distribution must give."""

from dataclasses import replace

import pytest
import torch

from scope.errors import ConfigError
from scope.models.text import sampling
from scope.models.text.sampling import Sampler
from scope.models.text.sampling_config import SamplingConfig

NEUTRAL = {"temperature": 1.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
PROMPTS = [[2, 7, 9], [2, 11, 11]]


def scores(batch: int = 2, n: int = 50, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(batch, n, generator=torch.Generator().manual_seed(0)) * spread


def processor(name: str, value: float):
    """The logits processor of transformers of that name."""
    import transformers

    return getattr(transformers, name)(value)


def possible(logits, config, n_draws: int = 300) -> list[set[int]]:
    """What is drawn for each row, over many steps."""
    sampler = Sampler(PROMPTS, logits.shape[1], config, noise_rows=2)
    drawn = [set(), set()]
    for _ in range(n_draws):
        sampler.seen.zero_()
        for row, token in enumerate(sampler.draw(logits)):
            drawn[row].add(token)
    return drawn


@pytest.mark.parametrize("setting", [{"top_k": 4}, {"top_k": 1}, {"top_p": 0.8}, {"top_p": 0.05}])
def test_only_tokens_that_transformers_would_keep_are_drawn_and_all_likely_ones_are(setting):
    logits = scores()
    ((name, value),) = setting.items()
    theirs = processor({"top_k": "TopKLogitsWarper", "top_p": "TopPLogitsWarper"}[name], value)
    allowed = [set(row.isfinite().nonzero().flatten().tolist()) for row in theirs(None, logits.clone())]
    drawn = possible(logits, SamplingConfig(**NEUTRAL | setting))
    assert all(some <= kept for some, kept in zip(drawn, allowed, strict=True))
    likely = [{i for i in kept if logits[row].softmax(0)[i] > 0.05} for row, kept in enumerate(allowed)]
    assert all(must <= some for must, some in zip(likely, drawn, strict=True))


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps_however_flat_the_distribution_is(top_p, monkeypatch):
    monkeypatch.setattr(sampling, "_OFTEN_ENOUGH", 5)
    for spread in (0.1, 1.0, 8.0):
        logits = scores(spread=spread)
        mine, theirs = sampling._keep_likely(logits, None, top_p), processor("TopPLogitsWarper", top_p)(None, logits.clone())
        assert torch.equal(mine.isfinite(), theirs.isfinite())


@pytest.mark.parametrize("penalty", [0.7, 1.3, 4.0])
def test_the_repetition_penalty_is_transformers_on_prompt_and_new_tokens(penalty):
    config = SamplingConfig(**NEUTRAL | {"temperature": 0, "repetition_penalty": penalty})
    sampler, theirs, rows = (
        Sampler(PROMPTS, 50, config, 2),
        processor("RepetitionPenaltyLogitsProcessor", penalty),
        torch.tensor(PROMPTS),
    )
    generator = torch.Generator().manual_seed(3)
    for _ in range(40):
        logits = torch.randn(2, 50, generator=generator)
        drawn = sampler.draw(logits)
        assert drawn == theirs(rows, logits.clone()).argmax(1).tolist()
        rows = torch.cat([rows, torch.tensor(drawn)[:, None]], 1)


def test_draws_follow_the_tempered_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 0.0]])
    config = SamplingConfig(**NEUTRAL | {"temperature": 2.0})
    sampler, n = Sampler([[0], [0]], 3, config, 2), 4000
    counts = torch.zeros(2, 3)
    for _ in range(n):
        for row, token in enumerate(sampler.draw(logits)):
            counts[row, token] += 1
    expected = processor("TemperatureLogitsWarper", 2.0)(None, logits).softmax(1)
    assert ((counts / n - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1},
        {"temperature": 1e-320},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.5},
        {"repetition_penalty": 0},
        {"max_new_tokens": 0},
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        SamplingConfig(**setting)


@pytest.mark.parametrize("penalty", [-0.5, 0.7, 3.0])
def test_the_frequency_penalty_is_transformer_lens_own_and_works_on_the_likeliest_token_too(penalty):
    from transformer_lens.utilities.logits_utils import sample_logits

    logits, prompts = torch.zeros(2, 50), [[3, 3, 3, 4], [5, 6]]
    greedy = SamplingConfig(**NEUTRAL | {"temperature": 0, "freq_penalty": penalty})
    sampler = Sampler(prompts, 50, greedy, 2)
    first = sampler.draw(logits)
    assert first == ([3, 5] if penalty < 0 else [0, 0])
    assert sampler.draw(logits) == ([3, 5] if penalty < 0 else [1, 1])  # what was said just now counts
    if penalty > 0:
        logits[0, [3, 4]], logits[1, [5, 7]] = 40.0, 40.0  # two tokens each, all else is far away
        rows = torch.tensor([[3, 3, 3, 4], [5, 6, 6, 6]])
        theirs = torch.stack([sample_logits(logits, temperature=2.0, freq_penalty=penalty, tokens=rows) for _ in range(600)])
        config = SamplingConfig(**NEUTRAL | {"temperature": 2.0, "freq_penalty": penalty})
        ours = torch.tensor([Sampler(rows.tolist(), 50, replace(config, seed=i), 2).draw(logits) for i in range(600)])
        for row, token in ((0, 3), (1, 5)):
            assert abs(float((ours[:, row] == token).float().mean() - (theirs[:, row] == token).float().mean())) < 0.1
