"""Filling in the middle: the order of the parts, the ids, where it ends, and what is refused."""

import pytest
import torch
from scope.activations.corpus.infill import FORMS, MARKS
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from scope.errors import TokensError
from scope.models.text.infill import infill_ids, infill_text
from scope.models.text.tokenizer import Tokenizer

PREFIX, SUFFIX = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"


@pytest.fixture
def model(coding_gemma):
    return coding_gemma


ORDERS = {
    "psm": "<bos><|fim_prefix|>{p}<|fim_suffix|>{s}<|fim_middle|>",
    "spm": "<bos><|fim_suffix|>{s}<|fim_prefix|>{p}<|fim_middle|>",
    "spm_joint": "<bos><|fim_prefix|><|fim_suffix|>{s}<|fim_middle|>{p}",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_parts_stand_in_their_order_with_nothing_between_them(coder, form):
    ids = infill_ids(coder, PREFIX, SUFFIX, form)
    assert coder.decode(ids, skip_special=False) == ORDERS[form].format(p=PREFIX, s=SUFFIX)
    assert ids[0] == coder.bos
    assert sum(i in coder.special_ids for i in ids) == 4


@pytest.mark.parametrize("prefix", ["", " ", "\n", "    ", "naïve 漢字 🙂", "a  b\t"])
def test_spaces_and_characters_at_the_edges_come_back_byte_for_byte(coder, prefix):
    ids = infill_ids(coder, prefix, prefix)
    assert coder.decode(ids) == prefix + prefix
    assert infill_text(coder, prefix, prefix) == f"<|fim_prefix|>{prefix}<|fim_suffix|>{prefix}<|fim_middle|>"


def test_other_files_come_first_each_ended_by_the_separator(coder):
    assert infill_ids(coder, "p", "s", files="one") == infill_ids(coder, "p", "s", files=["one"])
    text = coder.decode(infill_ids(coder, "p", "s", files=["one", "two"]), skip_special=False)
    assert text.startswith("<bos>one<|file_separator|>two<|file_separator|><|fim_prefix|>p")


def text_alone(model) -> list:
    """A hook under which a random model writes no special token."""
    special = torch.zeros(model.cfg.d_vocab)
    special[sorted(model.special_ids)] = -1e4
    return [("unembed.hook_out", lambda x, hook: x + special)]


@pytest.mark.parametrize("mark", list(MARKS.values()))
def test_a_middle_ends_at_any_of_the_marks(model, mark):
    likeliest = torch.zeros(model.cfg.d_vocab)
    likeliest[model.tokenizer.backend.token_to_id(mark)] = 1e4
    hooks = [("unembed.hook_out", lambda x, hook: x + likeliest)]
    assert model.infill(PREFIX, SUFFIX, 5, fwd_hooks=text_alone(model)) != ""
    assert model.infill(PREFIX, SUFFIX, 5, fwd_hooks=hooks) == ""
    prompt = infill_text(model.words, PREFIX, SUFFIX)
    [written] = model.generate([prompt], 5, temperature=0, fwd_hooks=hooks, return_type="generations")
    assert (written.stopped_by, written.new_ids) == ("eos", ())


def test_a_seed_gives_its_middle_again(model):
    how = {"temperature": 1.0, "fwd_hooks": text_alone(model)}
    first = model.infill(PREFIX, SUFFIX, 12, seed=3, **how)
    assert first == model.infill(PREFIX, SUFFIX, 12, seed=3, **how)
    assert first != model.infill(PREFIX, SUFFIX, 12, seed=4, **how)


def test_a_model_without_the_marks_and_texts_with_them_are_refused(tiny_model, coder):
    with pytest.raises(TokensError, match=r"<\|fim_prefix\|>.* no single token(.|\n)*CodeGemma 2B and 7B"):
        tiny_model.infill("a", "b")
    with pytest.raises(TokensError, match=r"contains <\|fim_middle\|>"):
        infill_ids(coder, "a<|fim_middle|>", "b")
    with pytest.raises(TokensError, match="it can be psm, spm, spm_joint"):
        infill_ids(coder, "a", "b", "msp")


@pytest.mark.parametrize(
    "flags", [{"special": True}, {"special": False}, {"special": False, "normalized": True}, {"rstrip": True}]
)
def test_marks_are_control_tokens_and_texts_stay_whole_however_a_checkpoint_declares_them(toy_tokenizer, flags):
    backend = Backend.from_str(toy_tokenizer.backend.to_str())
    backend.add_tokens([AddedToken(mark, **({"normalized": False} | flags)) for mark in MARKS.values()])
    tokenizer = Tokenizer(backend)
    prefix, suffix = " def f(x):\n    ", "\n  return x "
    ids = infill_ids(tokenizer, prefix, suffix, files=["a = 1\n"])
    marks = [i for i in ids if tokenizer.backend.id_to_token(i) in MARKS.values()]
    assert len(marks) == 4
    assert tokenizer.special_ids.issuperset(marks)
    assert tokenizer.decode([i for i in ids if i not in tokenizer.special_ids]) == "a = 1\n" + prefix + suffix


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_a_prompt_in_one_text_is_refused_where_a_mark_takes_spaces_away_and_goes_in_where_there_are_none(toy_tokenizer, side):
    backend = Backend.from_str(toy_tokenizer.backend.to_str())
    backend.add_tokens([AddedToken(mark, normalized=False, special=True, **{side: True}) for mark in MARKS.values()])
    tokenizer = Tokenizer(backend)
    with pytest.raises(TokensError, match=r'set "lstrip" and "rstrip" of the four marks to false'):
        infill_text(tokenizer, " the dog ", " runs ")
    assert infill_text(tokenizer, "the dog", "runs") == "<|fim_prefix|>the dog<|fim_suffix|>runs<|fim_middle|>"


def test_the_middle_between_files_ends_at_the_separator_and_reads_what_stands_in_them(model):
    hooks = text_alone(model)
    alone, beside = (model.infill(PREFIX, SUFFIX, 8, files=files, fwd_hooks=hooks) for files in ((), ("x = 12\n",)))
    assert alone != beside
