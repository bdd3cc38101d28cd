"""The stream taken apart: the parts add up, and where TransformerLens computes the same, the numbers are its own."""

import pytest
import torch

from scope.errors import ConfigError
from tests.models.twins import SHAPES, hooked_transformer, some_tokens, twins

pytestmark = pytest.mark.filterwarnings("ignore")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(
    scope="module",
    params=[
        "several kv heads, low caps",
        "Gemma 1, several kv heads",
        "Gemma 3, a kv head each, another query scale and epsilon",
    ],
)
def caches(request, tmp_path_factory, toy_tokenizer):
    """(ours, ours without gradients' graph, TransformerLens' unfolded, TransformerLens' folded): one cache of one run each."""
    config = SHAPES[request.param]
    ours, theirs = twins(config, tmp_path_factory.mktemp("twin"), toy_tokenizer)
    tokens = some_tokens(config)
    with torch.no_grad():
        mine = ours.run_with_cache(tokens)[1]
        lens = hooked_transformer(config, theirs).run_with_cache(tokens)[1]
        folded = hooked_transformer(config, theirs)
        folded.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=False)
        return mine, lens, folded.run_with_cache(tokens)[1]


def both(caches, method, *args, **kwargs):
    mine, lens, _ = caches
    with torch.no_grad():
        ours, theirs = getattr(mine, method)(*args, **kwargs), getattr(lens, method)(*args, **kwargs)
    if isinstance(ours, tuple):
        assert [str(label) for label in ours[1]] == [str(label) for label in theirs[1]]
        return ours[0], theirs[0]
    return ours, theirs


@pytest.mark.parametrize("pos_slice", [None, -1, (2, 9, 3), [1, 5]], ids=str)
@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        ("accumulated_resid", {}),
        ("accumulated_resid", {"incl_mid": True, "apply_ln": True}),
        ("accumulated_resid", {"layer": 2, "mlp_input": True}),
        ("decompose_resid", {}),
        ("decompose_resid", {"layer": 2, "mlp_input": True}),
        ("decompose_resid", {"mode": "mlp", "incl_embeds": False}),
        ("decompose_resid", {"mode": "attn", "layer": 3}),
    ],
)
def test_sublayers_are_taken_apart_as_transformer_lens_does(caches, method, kwargs, pos_slice):
    torch.testing.assert_close(*both(caches, method, return_labels=True, pos_slice=pos_slice, **kwargs), **CLOSE)


@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        ("stack_head_results", {}),
        ("stack_head_results", {"layer": 2, "incl_remainder": True, "pos_slice": -1}),
        ("stack_neuron_results", {"layer": -1}),
        ("stack_neuron_results", {"layer": 3, "neuron_slice": (4, 7), "incl_remainder": True, "pos_slice": (1, 4)}),
        ("get_full_resid_decomposition", {}),
        ("get_full_resid_decomposition", {"layer": 2, "mlp_input": True, "expand_neurons": False}),
    ],
)
def test_heads_and_neurons_before_the_post_norm_are_transformer_lens_own(caches, method, kwargs):
    mine, lens, _ = caches
    with torch.no_grad():
        ours, labels = getattr(mine, method)(return_labels=True, post_norm=False, **kwargs)
        theirs, named = getattr(lens, method)(return_labels=True, **kwargs)
    assert [str(label) for label in labels] == [str(label) for label in named]
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("expand_neurons", [True, False])
@pytest.mark.parametrize(("layer", "mlp_input", "whole"), [(-1, False, ("resid_post", -1)), (2, True, ("resid_mid", 2))])
@torch.no_grad()
def test_every_part_of_the_stream_adds_up_to_it_as_transformer_lens_parts_do_without_post_norms_only(
    caches, expand_neurons, layer, mlp_input, whole
):
    mine, lens, _ = caches
    kwargs = {"layer": layer, "mlp_input": mlp_input, "expand_neurons": expand_neurons}
    torch.testing.assert_close(mine.get_full_resid_decomposition(**kwargs).sum(0), mine[whole], **CLOSE)
    theirs = lens.get_full_resid_decomposition(**kwargs).sum(0)
    assert ((theirs - mine[whole]).abs().max() > 0.1) == mine.model.cfg.post_norms


@torch.no_grad()
def test_the_logit_attributions_of_all_parts_add_up_to_the_score_before_the_cap(caches):
    mine, _, _ = caches
    tokens = some_tokens(mine.model.cfg)
    scores = mine["unembed.hook_out"].gather(2, tokens[..., None])[..., 0]
    for parts in (mine.decompose_resid(), mine.get_full_resid_decomposition()):
        torch.testing.assert_close(mine.logit_attrs(parts, tokens).sum(0), scores, rtol=1e-3, atol=1e-3)
    normed = mine.decompose_resid(apply_ln=True)
    torch.testing.assert_close((normed @ mine.model.W_U).sum(0), mine["unembed.hook_out"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrong", [None, 9])
@torch.no_grad()
def test_logit_attributions_equal_those_of_transformer_lens_with_its_norms_folded(caches, wrong):
    mine, _, folded = caches
    ours, theirs = (c.logit_attrs(c.decompose_resid(), 7, wrong) for c in (mine, folded))
    torch.testing.assert_close(ours, theirs, **CLOSE)
    last = [c.logit_attrs(c.decompose_resid(pos_slice=-1), 7, wrong, pos_slice=-1, batch_slice=1) for c in (mine, folded)]
    torch.testing.assert_close(*last, **CLOSE)
    torch.testing.assert_close(last[0], ours[:, 1, -1], **CLOSE)


@pytest.mark.parametrize(("layer", "mlp_input"), [(-1, False), (2, False), (2, True)])
@torch.no_grad()
def test_a_norm_applied_to_parts_is_the_norm_of_their_sum(caches, layer, mlp_input):
    mine, lens, _ = caches
    stack = mine.decompose_resid(layer, mlp_input)
    norm = mine.model.ln_final if layer == -1 else mine.model.blocks[2].ln2 if mlp_input else mine.model.blocks[2].ln1
    done = mine.apply_ln_to_stack(stack, layer, mlp_input)
    torch.testing.assert_close(done.sum(0), norm(stack.sum(0)), **CLOSE)
    torch.testing.assert_close(done, lens.apply_ln_to_stack(stack, layer, mlp_input) * norm.w, **CLOSE)
    torch.testing.assert_close(mine.decompose_resid(layer, mlp_input, apply_ln=True), done)


@pytest.mark.parametrize("apply_ln", [True, False])
@pytest.mark.parametrize("mlp_input", [True, False])
@pytest.mark.parametrize("columns", [None, 2])
@torch.no_grad()
def test_projected_parts_are_the_parts_projected(caches, apply_ln, mlp_input, columns):
    mine, _, _ = caches
    shape = (mine.model.cfg.d_model,) if columns is None else (mine.model.cfg.d_model, columns)
    onto = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kwargs = {"layer": 2, "mlp_input": mlp_input, "apply_ln": apply_ln, "pos_slice": (3, 9)}
    whole = mine.get_full_resid_decomposition(**kwargs)
    torch.testing.assert_close(mine.get_full_resid_decomposition(project_output_onto=onto, **kwargs), whole @ onto, **CLOSE)
    if not mlp_input:
        kwargs = {"layer": 3, "apply_ln": apply_ln, "incl_remainder": True, "neuron_slice": (3, 8)}
        projected = mine.stack_neuron_results(project_output_onto=onto, **kwargs)
        torch.testing.assert_close(projected, mine.stack_neuron_results(**kwargs) @ onto, rtol=1e-3, atol=1e-3)


def test_a_stack_of_one_activation_runs_over_the_layers(caches):
    torch.testing.assert_close(*both(caches, "stack_activation", "z"), **CLOSE)
    torch.testing.assert_close(*both(caches, "stack_activation", "scale", 2, "ln2"), **CLOSE)


@torch.no_grad()
def test_without_its_batch_dimension_a_batch_of_one_is_taken_apart_alike(caches):
    model = caches[0].model
    tokens = some_tokens(model.cfg, batch=1)
    kept = model.run_with_cache(tokens)[1]
    bare = model.run_with_cache(tokens, remove_batch_dim=True)[1]
    assert not bare.has_batch_dim
    assert bare["resid_post", 0].dim() == 2
    for method in ("decompose_resid", "stack_head_results", "get_full_resid_decomposition"):
        torch.testing.assert_close(getattr(bare, method)(apply_ln=True), getattr(kept, method)(apply_ln=True)[:, 0])
    with pytest.raises(ConfigError, match="holds 3 sequences"):
        model.run_with_cache(some_tokens(model.cfg), remove_batch_dim=True)
    one = model.run_with_cache(some_tokens(model.cfg))[1].apply_slice_to_batch_dim(1)
    assert one["pattern", 1].shape == (4, 23, 23)
    assert not one.has_batch_dim


@torch.no_grad()
def test_a_cache_of_chosen_positions_holds_those_alone(caches):
    model, tokens = caches[0].model, some_tokens(caches[0].model.cfg)
    full, last = model.run_with_cache(tokens)[1], model.run_with_cache(tokens, pos_slice=(-2, None))[1]
    assert torch.equal(last["resid_mid", 1], full["resid_mid", 1][:, -2:])
    assert torch.equal(last["pattern", 1], full["pattern", 1][:, :, -2:])
    assert torch.equal(last["z", 1], full["z", 1][:, -2:])
    plain = model.run_with_cache(tokens, return_cache_object=False)[1]
    assert type(plain) is dict
    assert set(plain) == set(full)
    assert last.to("cpu")["embed"].device.type == "cpu"


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("k6", "blocks.6.attn.hook_k"),
        ("scale4ln1", "blocks.4.ln1.hook_scale"),
        ("embed", "hook_embed"),
        ("pre5", "blocks.5.mlp.hook_pre"),
        (("attn", 2), "blocks.2.attn.hook_pattern"),
        (("normalized", 27, "ln2"), "blocks.27.ln2.hook_normalized"),
        ("scale", "ln_final.hook_scale"),
        (("attn_out", 3), "blocks.3.hook_attn_out"),
        (("post", 1), "blocks.1.mlp.hook_post"),
    ],
    ids=str,
)
def test_short_names_are_spelled_as_transformer_lens_spells_them(short, full):
    from transformer_lens.utilities import get_act_name

    from scope.models.transformer_lens.activation_cache import full_name

    short = (short,) if isinstance(short, str) else short
    assert full_name(*short) == full == get_act_name(*short)


def test_a_layer_that_does_not_exist_is_refused(caches):
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        caches[0].decompose_resid(5)
    with pytest.raises(ConfigError, match="must be the same"):
        caches[0].logit_attrs(caches[0].decompose_resid(), 7, torch.tensor([1, 2, 3]))
