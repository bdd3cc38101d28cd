"""What a tokenizer of transformers returns is taken as ids and mask, never as words; masks of every form mean what they say."""

import pytest
import torch

from scope.errors import TokensError
from scope.models.parts.mask import as_mask
from scope.models.transformer_lens import bridge as lens
from scope.models.transformer_lens.hooked_root import hf_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")

TEXTS = ["the dog runs to the river", "a cat"]


@pytest.fixture
def words(tiny_model):
    """transformers' tokenizer of the same vocabulary."""
    return hf_tokenizer(tiny_model.tokenizer, tiny_model.cfg.n_ctx)


@torch.no_grad()
@pytest.mark.parametrize("form", ["pt", "np", None, "ragged", "dict", "no mask"])
def test_an_encoding_runs_as_its_ids_under_its_mask(tiny_model, words, form):
    encoding = words(TEXTS, padding=form != "ragged", return_tensors=form if form in ("pt", "np") else None)
    if form == "dict":
        encoding = dict(encoding)
    if form in ("no mask", "ragged"):
        encoding = {"input_ids": [tiny_model.words.encode(text, bos=False) for text in TEXTS]}
    expected = tiny_model(TEXTS, prepend_bos=False)
    real = tiny_model.mask_of(TEXTS, prepend_bos=False)
    for model in (tiny_model, lens.recorder(lens.hooked_transformer(tiny_model))):
        torch.testing.assert_close(model(encoding)[real], expected[real], rtol=0, atol=1e-5)
        assert torch.equal(model.to_tokens(encoding), tiny_model.to_tokens(TEXTS, prepend_bos=False))
        assert torch.equal(model.mask_of(encoding), real)
    assert tiny_model.to_str_tokens(encoding)[0] == tiny_model.to_str_tokens(TEXTS[0], prepend_bos=False)
    loss = tiny_model(TEXTS, return_type="loss", prepend_bos=False)
    torch.testing.assert_close(tiny_model(encoding, return_type="loss"), loss)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_encoding_is_continued_without_its_padding(tiny_model, words, side):
    encoding = words(TEXTS, padding=True, padding_side=side, return_tensors="pt")
    plain = [tiny_model.words.encode(text, bos=False) for text in TEXTS]
    options = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False}
    generations = tiny_model.generate(encoding, return_type="generations", **options)
    assert [list(g.prompt_ids) for g in generations] == plain
    assert [g.new_ids for g in generations] == [
        g.new_ids for g in tiny_model.generate(plain, return_type="generations", **options)
    ]
    assert isinstance(tiny_model.generate(words(TEXTS[:1], return_tensors="pt"), **options), torch.Tensor)


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ({"attention_mask": [[1]]}, "a mapping with attention_mask(.|\n)*input_ids"),
        ({}, "a mapping with nothing"),
        ({"input_ids": [["a"]]}, "input_ids are no rows of numbers"),
        ({"input_ids": [[2, 9]], "attention_mask": [[1]]}, "attention_mask is"),
        ({"input_ids": [[2.5, 9.0]]}, "whole numbers"),
    ],
)
def test_a_mapping_that_is_no_encoding_is_refused(tiny_model, encoding, says):
    for use in (tiny_model, tiny_model.generate):
        with pytest.raises(TokensError, match=says):
            use(encoding)


SEEN = torch.tensor([[False, True, True], [True, True, True]])
LOWEST = torch.finfo(torch.float32).min
FORMS = {
    "bool": SEEN,
    "int": SEEN.long(),
    "0 and 1 as floats": SEEN.float(),
    "additive, -inf": torch.zeros(2, 3).masked_fill(~SEEN, -torch.inf),
    "additive, -1e9": torch.zeros(2, 3).masked_fill(~SEEN, -1e9),
    "additive, lowest": torch.zeros(2, 3).masked_fill(~SEEN, LOWEST),
    "additive, -1e4, half": torch.zeros(2, 3).masked_fill(~SEEN, -1e4).half(),
}


@torch.no_grad()
@pytest.mark.parametrize("form", list(FORMS))
def test_a_mask_means_the_same_in_every_form(tiny_model, form):
    tokens = torch.tensor([[0, 2, 9], [2, 10, 11]])
    assert torch.equal(as_mask(FORMS[form]), SEEN)
    expected = tiny_model(tokens, attention_mask=SEEN)
    assert torch.equal(tiny_model(tokens, attention_mask=FORMS[form]), expected)
    loss = tiny_model(tokens, "loss", attention_mask=SEEN)
    assert torch.equal(tiny_model(tokens, "loss", attention_mask=FORMS[form]), loss)


def test_a_mask_of_zeros_alone_hides_nothing_where_it_is_added_and_all_where_it_is_counted():
    assert as_mask(torch.zeros(1, 3)).all()
    assert not as_mask(torch.zeros(1, 3).long()).any()


@pytest.mark.parametrize("values", [[0.0, 0.5], [0.0, -1.0], [1.0, -1e9], [0.0, float("nan")], [0, 2], [-1, 1]])
def test_a_mask_that_could_mean_either_is_refused(tiny_model, values):
    with pytest.raises(TokensError, match=r"attention_mask holds .*bool, 1"):
        tiny_model(torch.tensor([[2, 9]]), attention_mask=torch.tensor([values]))


@pytest.mark.parametrize("no_ids", ["The dog", [1.5, 2.0], [[1, 2], [3]], [True], None])
def test_what_is_no_row_of_ids_is_refused_where_text_is_made_of_them(tiny_model, no_ids):
    with pytest.raises(TokensError, match="whole numbers"):
        tiny_model.to_string(no_ids)


def test_the_text_of_an_encoding_is_that_of_its_ids(tiny_model):
    assert tiny_model.to_string({"input_ids": [[9, 10]]}) == tiny_model.to_string(torch.tensor([[9, 10]]))
