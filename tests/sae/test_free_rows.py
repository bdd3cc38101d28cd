"""TopK and BatchTopK in training, whose decoder rows have any norm: what files say of them, and what gradients pass through."""

import pytest
import torch

from scope.sae.files import read_sae, save_sae
from scope.sae.kinds import KINDS, make_objective, make_sae
from scope.sae.objectives.topk import TopKObjective
from scope.sae.topk import TopKSAE

X = torch.randn(40, 16, generator=torch.Generator().manual_seed(2))


def free(kind: str, **changes) -> TopKObjective:
    """Rows of norms from 0.1 to 2, and pre-activations that are not ranked as what they add is."""
    sae = make_sae(KINDS[kind].config(d_in=16, d_sae=24, k=3, **changes), "blocks.0.hook_resid_post")
    assert isinstance(sae, TopKSAE)
    objective = make_objective(sae)
    objective.start(X, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sae.W_dec.mul_((0.1 + 1.9 * torch.rand(24, generator=generator))[:, None] / 0.1)
        sae.b_enc.copy_(0.1 * torch.randn(24, generator=generator))
    return objective


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_saved_while_rows_are_free_it_decides_and_reconstructs_as_before_once_it_is_loaded(tmp_path, kind):
    sae = free(kind).sae
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    save_sae(sae, tmp_path)
    loaded = read_sae(tmp_path)
    assert torch.equal(loaded.encode(X) > 0, sae.encode(X) > 0)
    torch.testing.assert_close(loaded(X), sae(X))
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(24))
    assert sae.free  # and it can be trained further
    assert all(torch.equal(p, before[name]) for name, p in sae.named_parameters())


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_norms_cancel_in_latents_so_no_gradient_passes_through_them(kind):
    objective = free(kind)
    sae, x = objective.sae.double(), X.double()

    def compete(pre: torch.Tensor) -> torch.Tensor:
        return sae.compete(pre, objective.choose)

    def whole(pre: torch.Tensor) -> torch.Tensor:
        norms = sae.W_dec.norm(dim=1)
        return objective.choose(pre * norms) / norms

    found = []
    for chosen in (compete, whole):
        sae.zero_grad()
        latents = chosen(sae.pre_activations(x))
        torch.stack(list(objective.errors(latents, x).values())).sum().backward()
        found.append((latents.detach(), {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-14, atol=1e-14)
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], gradient, rtol=1e-12, atol=1e-13)
    assert not [p for p in _leaves(compete(sae.pre_activations(x))) if p is sae.W_dec]


def _leaves(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Parameters that its graph reaches."""
    found, todo = [], [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            found += [node.variable] if hasattr(node, "variable") else []
            todo += [after for after, _ in node.next_functions]
    return found
