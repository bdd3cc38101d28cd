"""The numbers in weights.safetensors give the very latents of every kind of SAE."""

import pytest
import torch

from scope.monitor.readout import direction_of, latent_weights, top_k_of, vector_weights
from scope.monitor.scorer import aggregate, token_scores
from scope.sae.configs.transcoder import TranscoderConfig
from scope.sae.gated import GatedSAE
from scope.sae.jumprelu import JumpReLUSAE
from scope.sae.kinds import KINDS
from scope.sae.topk import BatchTopKSAE, TopKSAE
from scope.sae.transcoder import Transcoder

CLASSES = {"jumprelu": JumpReLUSAE, "gated": GatedSAE, "topk": TopKSAE, "batch_topk": BatchTopKSAE}


def made(kind: str, **settings):
    if kind == "transcoder":
        sae = Transcoder(TranscoderConfig(d_in=6, d_sae=40, **settings), "blocks.0.hook_resid_post")
    else:
        sae = CLASSES[kind](KINDS[kind].config(d_in=6, d_sae=40, **settings), "blocks.0.hook_resid_post")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        if hasattr(sae, "threshold"):
            sae.threshold.abs_()
    return sae.requires_grad_(False)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("jumprelu", {}),
        ("gated", {}),
        ("topk", {"k": 4}),
        ("batch_topk", {"k": 4}),
        ("transcoder", {}),
        ("transcoder", {"k": 3}),
    ],
)
def test_scores_are_the_weighted_latents_of_each_kind(kind, settings):
    sae, x = made(kind, **settings), torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    weights = latent_weights(sae, [3, 11, 17], torch.tensor([2.0, -1.0, 0.5]).numpy(), 0.25)
    expected = sae.encode(x)[:, [3, 11, 17]] @ torch.tensor([2.0, -1.0, 0.5]) + 0.25
    assert (sae.encode(x)[:, [3, 11, 17]] > 0).any()
    torch.testing.assert_close(token_scores(x, weights, top_k_of(sae))[:, 0], expected)
    whole = kind == "topk" or settings == {"k": 3}
    assert weights["W_enc"].shape == (6, 40 if whole else 3)
    assert direction_of(weights).shape == (6,)


def test_a_vector_scores_by_its_product_and_tokens_are_aggregated_by_name():
    weights = vector_weights(torch.tensor([1.0, -2.0]).numpy(), 0.5)
    scores = token_scores(torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]], dtype=torch.bfloat16), weights)
    assert scores[:, 0].tolist() == [1.5, -1.5, 3.5]
    assert [float(aggregate(scores, how)[0]) for how in ("max", "mean", "last")] == pytest.approx([3.5, 3.5 / 3, 3.5])
