"""How other libraries look at a module: torch hooks by path (pyvene, baukit), and a forward in place (nnsight)."""

import pytest
import torch

from tests.models.twins import some_tokens

_MODULES = ("embed", "blocks.0.ln1", "blocks.0.attn", "blocks.0.attn.q_proj", "blocks.0.mlp", "blocks.0.mlp.gate_proj")
_MODULES += ("blocks.0.mlp.up_proj", "blocks.0.ln2_post", "blocks.1", "ln_final", "unembed")
_POINTS = ("hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_pattern", "blocks.0.attn.hook_attn_scores")
_POINTS += ("blocks.0.attn.hook_z", "blocks.0.attn.hook_result", "blocks.0.hook_q_input", "blocks.0.hook_mlp_in")
_POINTS += ("blocks.0.ln1.hook_scale", "blocks.0.ln1.hook_normalized", "blocks.0.mlp.hook_pre", "unembed.hook_out")


@pytest.mark.parametrize("path", [*_MODULES, *_POINTS])
@torch.no_grad()
def test_a_forward_hook_of_torch_sees_and_changes_what_a_module_gives(tiny_model, path):
    tokens = some_tokens(tiny_model.cfg)
    plain, seen = tiny_model(tokens), []
    module = tiny_model.get_submodule(path)
    handle = module.register_forward_hook(lambda module, inputs, out: seen.append(out))
    assert torch.equal(tiny_model(tokens), plain)
    handle.remove()
    assert len(seen) == 1
    if path in _POINTS:  # what was taken is still what the point gave: nothing is written over it
        torch.testing.assert_close(seen[0], tiny_model.run_with_cache(tokens, names_filter=[path])[1][path])
    with module.register_forward_hook(lambda module, inputs, out: out.roll(1, 1)):
        assert not torch.allclose(tiny_model(tokens), plain, atol=1e-3)
    assert torch.equal(tiny_model(tokens), plain)


@torch.no_grad()
def test_what_a_forward_hook_took_from_a_linear_map_is_not_written_over(tiny_model):
    tokens, mlp, taken = some_tokens(tiny_model.cfg), tiny_model.blocks[0].mlp, {}
    reads = [tiny_model.blocks[0].ln2, mlp.gate_proj, tiny_model.ln_final, tiny_model.unembed]
    handles = [m.register_forward_hook(lambda m, inputs, out: taken.__setitem__(m, out)) for m in reads]
    tiny_model(tokens)
    [handle.remove() for handle in handles]
    assert torch.equal(taken[mlp.gate_proj], mlp.gate_proj(taken[reads[0]]))
    assert torch.equal(taken[tiny_model.unembed], tiny_model.unembed(taken[tiny_model.ln_final]))


def nnsight_forward(module, handle):
    """A forward in place of the module's own, as nnsight's controllers are: no hook, no change of class."""
    inner = module.forward
    module.forward = lambda *args, **kwargs: handle(inner(*args, **kwargs))


@torch.no_grad()
def test_a_forward_put_in_the_place_of_a_hook_points_own_gets_what_run_with_cache_keeps_and_may_change_it(tiny_model):
    tokens, seen = some_tokens(tiny_model.cfg), {}
    plain, cache = tiny_model.run_with_cache(tokens)
    edit = {}
    for name, point in tiny_model.hook_dict.items():
        nnsight_forward(point, lambda x, name=name: seen.setdefault(name, x) if name not in edit else edit[name](x))
    assert torch.equal(tiny_model(tokens), plain)
    assert seen.keys() == set(tiny_model.match(None))  # what is computed on request waits for its switch
    for name, x in seen.items():
        torch.testing.assert_close(x, cache[name], msg=lambda text, name=name: f"{name}: {text}")
    edit["blocks.1.hook_resid_post"] = lambda x: 0.0 * x
    halved = [("blocks.1.hook_resid_post", lambda x, hook: 0.0 * x)]
    changed = tiny_model(tokens)
    edit.clear()
    assert torch.equal(changed, tiny_model.run_with_hooks(tokens, fwd_hooks=halved))
    tiny_model.set_use_attn_result(True)
    tiny_model(tokens)
    assert "blocks.0.attn.hook_result" in seen


@torch.no_grad()
def test_nnsight_reads_and_edits_hook_points_by_output(tiny_model):
    nnsight = pytest.importorskip("nnsight")
    tokens = some_tokens(tiny_model.cfg)
    cache, wrapped = tiny_model.run_with_cache(tokens)[1], nnsight.NNsight(tiny_model)
    with wrapped.trace(tokens):
        resid = wrapped.blocks[1].hook_resid_post.output.save()
    assert torch.equal(resid, cache["blocks.1.hook_resid_post"])
