"""What the other rooms ask of a model is what our models have, and what they do not have to be."""

import pytest
import torch
from beartype.door import is_bearable

from scope.models.face import LanguageModel, Model, VisionModel
from scope.models.transformer_lens import bridge as lens
from tests.models.test_lens import FAMILIES, hooked

pytestmark = pytest.mark.filterwarnings("ignore")


def test_ours_and_those_of_transformer_lens_are_language_models_and_no_vision_models(tiny_model):
    theirs = lens.recorder(hooked(**FAMILIES["Llama"]), bos=1, eos=1, pad=0)
    for model in (tiny_model, theirs):
        assert is_bearable(model, LanguageModel)
        assert is_bearable(model, Model)
        assert not is_bearable(model, VisionModel)
    assert not is_bearable(torch.nn.Linear(1, 1), Model)


def test_no_member_of_a_face_is_inherited_from_it(tiny_model):
    """A protocol's own method does nothing; a model that forgot one must fail rather than return None."""
    assert not {Model, LanguageModel} & set(type(tiny_model).__mro__)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_a_run_can_go_on_from_a_given_stream(tiny_model, layer):
    theirs = lens.recorder(lens.hooked_transformer(tiny_model))
    tokens = tiny_model.to_tokens(["the dog runs to the river", "an angry crowd counts"])
    mask = tiny_model.mask_of(["the dog runs to the river", "an angry crowd counts"])
    stream = tiny_model(tokens, stop_at_layer=layer, attention_mask=mask)
    for model in (tiny_model, theirs):
        plain = model(tokens, attention_mask=mask)
        torch.testing.assert_close(model.logits_from(layer, stream, tokens, mask)[mask], plain[mask], rtol=0, atol=1e-5)
        assert not torch.allclose(model.logits_from(layer, 2 * stream, tokens, mask)[mask], plain[mask])


@torch.no_grad()
def test_direct_logits_are_what_the_unembedding_makes_of_a_direction_times_the_gain(tiny_model):
    directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    logits = directions * (1 + tiny_model.ln_final.weight) @ tiny_model.W_U
    logits -= logits.mean(-1, keepdim=True)
    torch.testing.assert_close(tiny_model.direct_logits(directions), logits)
    some = torch.tensor([5, 3, 200])
    torch.testing.assert_close(tiny_model.direct_logits(directions, some), logits[:, some])


@torch.no_grad()
def test_a_cache_of_one_row_serves_many(tiny_model):
    tokens = tiny_model.to_tokens("the dog runs to the river")
    cache = tiny_model.new_cache()
    tiny_model(tokens[:, :-1], cache=cache)
    copies = cache.repeated(3)
    last = torch.tensor([[int(tokens[0, -1])], [9], [10]])
    full = tiny_model(torch.cat([tokens[:, :-1].expand(3, -1), last], 1))[:, -1]
    torch.testing.assert_close(tiny_model(last, cache=copies)[:, -1], full, rtol=0, atol=1e-5)
    assert cache.n_tokens == tokens.shape[1] - 1
