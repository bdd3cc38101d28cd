"""The null of moved latents: how often it is exceeded by chance, and by what has truly moved."""

import torch

from scope.diffing.latents import moved_latents


def sums(seed: int, units: int = 60, latents: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations by document of latents that fire in some of them, and the documents' tokens."""
    numbers = torch.Generator().manual_seed(seed)
    fires = torch.rand(units, latents, generator=numbers) < torch.rand(latents, generator=numbers)
    return fires * torch.rand(units, latents, generator=numbers) * 10, torch.full((units,), 50.0)


def test_a_model_against_itself_moves_no_latent():
    base, tokens = sums(0)
    found = moved_latents(base, base, (base > 0).sum(0).double(), tokens, 200, 0.05)
    assert (found.z == 0).all()
    assert (found.p == 1).all()


def test_a_latent_moves_once_it_is_changed_by_more_than_other_text_would():
    base, tokens = sums(0)
    tuned = base.clone()
    tuned[:, 7] += 8
    tuned[:, 9] *= 1.01
    found = moved_latents(base, tuned, ((base > 0) | (tuned > 0)).sum(0).double(), tokens, 400, 0.05)
    assert [i for i, z in enumerate(found.z) if abs(z) > found.threshold] == [7]
    assert found.p[7] < 0.01


def test_text_drawn_anew_moves_any_latent_about_as_often_as_the_level_says():
    shares = []
    for seed in range(4):
        base, tokens = sums(seed)
        shares.append(moved_latents(base, base, (base > 0).sum(0).double(), tokens, 400, 0.05).any_by_chance)
    assert 0.01 < sum(shares) / len(shares) < 0.12


def test_a_latent_that_never_fired_moves_not_by_a_single_token_but_by_many():
    base, tokens = sums(0)
    base[:, 3] = base[:, 4] = 0
    tuned, firing = base.clone(), (base > 0).sum(0).double()
    tuned[0, 3], tuned[:, 4] = 5, 5
    firing[3], firing[4] = 1, len(base)
    found = moved_latents(base, tuned, firing, tokens, 400, 0.05)
    assert abs(found.z[3]) < found.threshold < abs(found.z[4])
