"""Each metric on a case whose answer is known."""

import pytest
import torch

from scope.errors import ConfigError
from scope.evaluation import metrics
from scope.evaluation.metrics import (
    fvu,
    fvu_at_tokens,
    fvu_per_dimension,
    fvu_per_token,
    kl,
    length_bias,
    loss_recovered,
    norm_ratio,
)

X = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])  # mean (1, 2); variance 4 + 16


def test_p38_the_three_definitions_of_fvu_are_three_numbers():
    x_hat = X + torch.tensor([1.0, 0.0])
    assert fvu(X, x_hat).item() == pytest.approx(4 / 20)
    assert fvu_per_dimension(X, x_hat).item() == pytest.approx((4 / 4 + 0 / 16) / 2)
    assert fvu_per_token(X, x_hat).item() == pytest.approx(1 / 5)
    uneven = torch.cat([X, torch.tensor([[1.0, 20.0]])])
    assert fvu(uneven, uneven + torch.tensor([1.0, 0.0])) < fvu_per_token(uneven, uneven + torch.tensor([1.0, 0.0]))


def test_the_fvu_at_tokens_has_the_pooled_fvu_as_its_mean():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 6.0]])  # mean (2, 2), squared distances 8, 4 and 20: 32 / 3 a token
    x_hat = x + torch.tensor([[0.0, 4.0], [0.0, 0.0], [0.0, 4.0]])
    assert fvu_at_tokens(x, x_hat).tolist() == pytest.approx([1.5, 0.0, 1.5])
    assert fvu(x, x_hat).item() == pytest.approx(1.0)


def test_predicting_the_mean_scores_one_and_the_truth_zero_by_every_definition():
    for measure in (fvu, fvu_per_token, fvu_per_dimension):
        assert measure(X, X.mean(0).expand_as(X)).item() == pytest.approx(1.0)
        assert measure(X, X).item() == 0.0


def test_without_variance_there_is_no_fraction_of_it():
    for measure in (fvu, fvu_per_token, fvu_per_dimension):
        with pytest.raises(ConfigError, match="equal"):
            measure(torch.ones(3, 2), torch.ones(3, 2))


def test_sums_over_tokens_run_in_float64():
    x = torch.full((4000, 1), 4096.0)
    x[0] = 4097.0
    assert fvu(x, x - 1e-3).item() == pytest.approx(4000 * (x.double() - (x - 1e-3).double()).square().mean().item(), rel=1e-3)


def test_length_bias_tells_a_missing_scale_from_shrinkage():
    assert length_bias(X, X).item() == 1.0
    assert length_bias(X, 3 * X).item() == pytest.approx(3.0)
    assert length_bias(X, 0.5 * X).item() == pytest.approx(0.5)
    assert norm_ratio(X[1:], 0.5 * X[1:]).item() == pytest.approx(0.5)


def test_kl_of_known_distributions():
    p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    assert kl(p, q).item() == pytest.approx(0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log())
    assert kl(p + 7, p).item() == pytest.approx(0.0, abs=1e-6)


def test_p39_loss_recovered_is_a_share_of_the_harm_and_nothing_where_ablation_does_none():
    assert loss_recovered(2.0, 2.5, 4.0) == pytest.approx(0.75)
    assert loss_recovered(2.0, 2.0, 2.0) is None


def test_losses_and_kl_in_blocks_equal_those_of_all_logits_at_once(monkeypatch):
    monkeypatch.setattr(metrics, "_rows", lambda logits: 3)
    logits, other = torch.randn(2, 2, 5, 11)
    tokens = torch.randint(11, (2, 5))
    p, q = logits.log_softmax(-1), other.log_softmax(-1)
    torch.testing.assert_close(metrics.kl(logits, other), (p.exp() * (p - q)).sum(-1))
    torch.testing.assert_close(metrics.token_losses(logits, tokens), -p.gather(-1, tokens[..., None])[..., 0])
    assert metrics.token_losses(logits[:, :0], tokens[:, :0]).shape == (2, 0)
