"""Which latents a change of weights reads and writes."""

import pytest
import torch

from scope.diffing.updates import update_latents
from scope.diffing.weights import dense
from tests.steering.conftest import random_sae

SITE = "blocks.2.hook_resid_pre"


@pytest.fixture
def sae():
    return random_sae(32, 128, SITE)


def rank_one(writes: torch.Tensor, reads: torch.Tensor):
    return dense(torch.outer(writes, reads).double())[1]


def rows_of(model, sae, parameter, writes, reads):
    return {(u.role, u.by): u for u in update_latents(model, sae, {parameter: rank_one(writes, reads)})}


def test_an_update_that_writes_along_a_latent_behind_its_norm_names_that_latent(tiny_model, sae):
    gain = tiny_model.blocks[1].ln2_post.w.detach()
    row = rows_of(tiny_model, sae, "blocks.1.mlp.down_proj.weight", sae.W_dec[5] / gain, torch.ones(48))[("writes", "decoder")]
    assert row.latents[0] == 5
    assert row.strengths[0] > row.threshold
    assert row.meets


def test_an_update_reads_the_latent_that_its_input_direction_is_behind_the_norm_before_it(tiny_model, sae):
    gain = tiny_model.blocks[2].ln1.w.detach()
    rows = rows_of(tiny_model, sae, "blocks.2.attn.q_proj.weight", torch.ones(48), sae.W_dec[9] / gain)
    assert rows["reads", "decoder"].latents[0] == 9
    rows = rows_of(tiny_model, sae, "blocks.2.attn.q_proj.weight", torch.ones(48), sae.W_enc[:, 9] / gain)
    assert rows["reads", "encoder"].latents[0] == 9


def test_only_writers_before_the_site_and_readers_behind_it_meet_its_stream(tiny_model, sae):
    found = {
        name: update_latents(tiny_model, sae, {name: rank_one(torch.ones(rows), torch.ones(columns))})[0].meets
        for name, rows, columns in (
            ("blocks.1.mlp.down_proj.weight", 32, 48),
            ("blocks.2.attn.o_proj.weight", 32, 48),
            ("blocks.1.mlp.up_proj.weight", 48, 32),
            ("blocks.2.attn.k_proj.weight", 24, 32),
        )
    }
    assert list(found.values()) == [True, False, False, True]


def test_random_directions_exceed_the_threshold_about_as_often_as_further_ones(tiny_model, sae):
    numbers = torch.Generator().manual_seed(0)
    drawn = [rank_one(torch.randn(32, generator=numbers), torch.ones(48)) for _ in range(20)]
    rows = [update_latents(tiny_model, sae, {"blocks.1.mlp.down_proj.weight": some})[0] for some in drawn]
    assert sum(u.beyond for u in rows) / len(rows) < 4  # 1 is expected of latents that lie at random
    assert sum(u.by_chance for u in rows) / len(rows) < 4


def test_an_sae_outside_of_the_residual_stream_has_no_such_rows(tiny_model):
    sae = random_sae(32, 64, "blocks.1.hook_mlp_out")
    assert update_latents(tiny_model, sae, {"embed.weight": rank_one(torch.ones(384), torch.ones(32))}) == []
