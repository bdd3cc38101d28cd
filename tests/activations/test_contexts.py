import numpy as np
import pytest
from scope.activations.corpus.contexts import Packer
from scope.activations.corpus.inputs import NO_DOCUMENT, Cursor
from scope.activations.corpus.sources import Document
from scope.activations.errors import RecordingError

from tests.activations.toy import ByteTokenizer

TOKENIZER = ByteTokenizer()
TEXTS = [Document("one", "abcde"), Document("empty", ""), Document("two", "fg"), Document("three", "hijklmnop")]


def a(letters: str) -> list[int]:
    return TOKENIZER.encode(letters, bos=False)


def test_every_context_begins_with_bos_and_documents_are_packed_end_to_end_with_eos_between():
    packed = Packer(TEXTS, TOKENIZER, 5).take(10)
    assert packed.tokens.tolist() == [
        [2, *a("abcd")],
        [2, *a("e"), 1, *a("fg")],
        [2, 1, *a("hij")],
        [2, *a("klmn")],
        [2, *a("op"), 1, 0],
    ]
    assert packed.exhausted
    assert packed.names == ["one", "empty", "two", "three"]


def test_the_document_of_every_token_is_known_p6():
    packed = Packer(TEXTS, TOKENIZER, 5).take(10)
    assert packed.documents.tolist() == [[0] * 5, [0, 0, 0, 2, 2], [2, 2, 3, 3, 3], [3] * 5, [3, 3, 3, 3, NO_DOCUMENT]]


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_packing_goes_on_from_a_cursor_at_the_exact_token(cut):
    whole = Packer(TEXTS, TOKENIZER, 5).take(10)
    first = Packer(TEXTS, TOKENIZER, 5).take(cut)
    rest = Packer(TEXTS, TOKENIZER, 5, first.cursor).take(10)
    assert np.array_equal(np.concatenate([first.tokens, rest.tokens]), whole.tokens)
    assert np.array_equal(np.concatenate([first.documents, rest.documents]), whole.documents)
    assert first.names + rest.names == whole.names
    assert rest.cursor == whole.cursor


def test_a_corpus_that_changed_under_the_cursor_is_refused():
    cursor = Packer(TEXTS, TOKENIZER, 5).take(2).cursor
    with pytest.raises(RecordingError, match="at document 2, it gives other there"):
        Packer([*TEXTS[:2], Document("other", "xy")], TOKENIZER, 5, cursor)
    with pytest.raises(RecordingError, match="no such document"):
        Packer(TEXTS[:1], TOKENIZER, 5, cursor)


def test_bos_and_pad_within_a_text_are_left_out_and_counted_p5():
    packed = Packer([Document("odd", "\x02ab\x00c\x02")], TOKENIZER, 6).take(1)
    assert packed.tokens.tolist() == [[2, *a("abc"), 1, 0]]
    assert packed.cursor.dropped == 3


def test_each_rule_leaves_out_its_tokens_p1_p4():
    packed = Packer([Document("one", "abc")], TOKENIZER, 6).take(1)  # <bos> a b c <eos> <pad>

    def kept(*rules):
        return packed.counted(rules)[0].astype(int).tolist()

    assert kept() == [1, 1, 1, 1, 1, 1]
    assert kept("bos") == [0, 1, 1, 1, 1, 1]
    assert kept("pad") == [1, 1, 1, 1, 1, 0]
    assert kept("special") == [0, 1, 1, 1, 0, 0]


def test_an_empty_corpus_gives_no_context():
    packed = Packer([Document("empty", "")], TOKENIZER, 6).take(3)
    assert packed.tokens.shape == (0, 6)
    assert packed.exhausted
    assert packed.cursor == Cursor(documents=1)
