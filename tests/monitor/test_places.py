"""Sites by transformers' modules: what a module there takes or gives is what this project records."""

import pytest
import torch

from scope.models.load import load_model
from scope.monitor.places import hook_of
from tests.models.griffin_twins import pair_of
from tests.models.twins import SHAPES, some_tokens, twins

FAMILIES = {
    "Gemma 1": "Gemma 1, one kv head",
    "Gemma 2": "several kv heads, low caps",
    "Gemma 3": "Gemma 3, scaled positions, one kv head",
    "RecurrentGemma": None,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_module_of_transformers_has_the_activations_of_the_site(tmp_path, toy_tokenizer, family):
    shape = FAMILIES[family]
    ours, theirs = pair_of(tmp_path, toy_tokenizer) if shape is None else twins(SHAPES[shape], tmp_path, toy_tokenizer)
    sites = [site for site in ours.sites() if hook_of(ours, site) is not None]
    names = {site.split(".", 2)[2] for site in sites}
    assert names >= {"hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "mlp.hook_post"}
    assert ("hook_attn_out" in names) == (family != "RecurrentGemma")
    taken = {}

    def keep(site):
        def hook(module, args, output=None):
            value = args[0] if output is None else output
            taken[site] = value[0] if isinstance(value, tuple) else value

        return hook

    decoder = theirs.get_decoder()
    for site in sites:
        place = hook_of(ours, site)
        module = decoder.get_submodule(place.module)
        if place.side == "input":
            module.register_forward_pre_hook(lambda module, args, kwargs, fn=keep(site): fn(module, args), with_kwargs=True)
        else:
            module.register_forward_hook(keep(site))
    tokens = some_tokens(ours.cfg)
    with torch.no_grad():
        decoder(input_ids=tokens, use_cache=False)
    for site, expected in ours.record(tokens, sites).items():
        torch.testing.assert_close(taken[site], expected, atol=3e-5, rtol=1e-5)


def test_a_site_that_no_module_has_has_no_place(checkpoint):
    model = load_model(str(checkpoint))
    assert hook_of(model, "hook_embed") is None
    assert hook_of(model, "blocks.0.ln1.hook_normalized") is None
