import pytest
import torch

from scope.models.transformer_lens import bridge as lens
from tests.models.test_lens import FAMILIES, hooked

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_push_goes_through_one_plus_the_weight_of_gemmas_norm(tiny_model):
    row = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tiny_model.through_final_norm(row), row * (1 + tiny_model.ln_final.weight))


@pytest.mark.parametrize("family", FAMILIES)
def test_another_librarys_norm_is_asked_how_it_holds_its_gain_and_whether_it_centres(family):
    theirs = hooked(**FAMILIES[family])
    row, w = torch.randn(32, generator=torch.Generator().manual_seed(0)), getattr(theirs.ln_final, "w", torch.ones(32))
    expected = (row if "RMS" in family or family == "Llama" else row - row.mean()) * w
    found = lens.recorder(theirs, bos=1, eos=1, pad=0).through_final_norm(row)
    torch.testing.assert_close(found, expected.detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_small_push_promotes_by_the_weights_it_promotes_in_the_model(family):
    """Where the stream itself is small noise and the push is all there is, the order of the scores is the push's."""
    theirs = hooked(**FAMILIES[family])
    model, row = lens.recorder(theirs, bos=1, eos=1, pad=0), torch.randn(32, generator=torch.Generator().manual_seed(1))
    scores = theirs.unembed(theirs.ln_final(1e3 * row[None, None]))[0, 0] - theirs.unembed.b_U
    shift = theirs.unembed(theirs.ln_final(0 * row[None, None]))[0, 0] - theirs.unembed.b_U  # the norm's own bias
    by_weights = model.through_final_norm(row) @ theirs.W_U
    assert by_weights.topk(5).indices.tolist() == (scores - shift).topk(5).indices.tolist()
