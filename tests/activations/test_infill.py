"""Corpora of fill-in-the-middle examples: whole, seeded, with the role of every row, the same after an interruption."""

import numpy as np
import pytest
from scope.activations.corpus.infill import MARKS, FimMaker, FimShares
from scope.activations.corpus.inputs import Cursor
from scope.activations.corpus.readers import Document
from scope.activations.corpus.roles import Role
from scope.activations.errors import CorpusError

CONTEXT = 40
TEXTS = ["def add(a, b):\n    return a + b\n" * n for n in (1, 4, 2)] + ["x = 1", "naïve 漢字 " * 9]


def documents(texts=TEXTS):
    return (Document(f"d{i}", text) for i, text in enumerate(texts))


def whole_text(coder, packed, row: int) -> str:
    """Prefix, middle and suffix of a context, joined."""
    return _parts(coder, packed.tokens[row], packed.roles[row])


@pytest.mark.parametrize("shares", ["psm:1", "spm", "spm_joint:1.0", "psm:0.45,spm:0.45"])
def test_every_document_is_there_whole_whatever_the_order_of_its_parts(coder, shares):
    packed = FimMaker(coder, FimShares.parse(shares), seed=3).stream(documents(), CONTEXT).take(100)
    assert packed.exhausted
    assert packed.names == [f"d{i}" for i in range(len(TEXTS))]
    for number, text in enumerate(TEXTS):
        rows = [row for row in range(len(packed)) if packed.documents[row, 0] == number]
        assert "".join(whole_text(coder, packed, row) for row in rows) == text


def test_rows_bear_the_role_of_their_part_and_marks_and_padding_do_not_count(coder):
    packed = FimMaker(coder, FimShares(psm=1)).stream(documents(), CONTEXT).take(100)
    marks = [coder.backend.token_to_id(MARKS[name]) for name in ("prefix", "suffix", "middle")]
    for tokens, roles, counted in zip(packed.tokens, packed.roles, packed.counted(), strict=True):
        assert tokens[roles == Role.CONTROL].tolist() == marks
        assert (roles[0], tokens[0]) == (Role.BOS, coder.bos)
        order = [Role(r) for r in dict.fromkeys(roles.tolist()) if r in (Role.PREFIX, Role.SUFFIX, Role.MIDDLE)]
        assert order == [r for r in (Role.PREFIX, Role.SUFFIX, Role.MIDDLE) if r in order]
        assert not counted[np.isin(roles, [Role.CONTROL, Role.PADDING, Role.BOS, Role.SPECIAL])].any()
        assert counted[np.isin(roles, [Role.PREFIX, Role.SUFFIX, Role.MIDDLE])].all()


def test_shares_are_kept_and_a_seed_cuts_alike(coder):
    texts = ["def f(x):\n    return x * 2\n"] * 400
    maker = FimMaker(coder, FimShares(psm=0.3, spm=0.2), seed=5)
    packed = maker.stream(documents(texts), CONTEXT).take(400)
    forms = [(Role.CONTROL in row, row[1] == Role.CONTROL and row[2] == Role.PREFIX) for row in packed.roles]
    assert np.mean([has for has, _ in forms]) == pytest.approx(0.5, abs=0.08)
    again = FimMaker(coder, FimShares(psm=0.3, spm=0.2), seed=5).stream(documents(texts), CONTEXT).take(400)
    assert np.array_equal(packed.tokens, again.tokens)
    other = FimMaker(coder, FimShares(psm=0.3, spm=0.2), seed=6).stream(documents(texts), CONTEXT).take(400)
    assert not np.array_equal(packed.tokens, other.tokens)


def test_contexts_after_a_cursor_are_those_of_the_whole_run(coder):
    maker = FimMaker(coder, FimShares(psm=0.5, spm=0.5), seed=1)
    whole = maker.stream(documents(), CONTEXT).take(100)
    stream, parts = maker.stream(documents(), CONTEXT), []
    while True:
        part = stream.take(2)
        parts.append(part)
        if part.exhausted:
            break
        stream = maker.stream(documents(), CONTEXT, part.cursor)
    assert np.array_equal(np.concatenate([p.tokens for p in parts]), whole.tokens)
    assert np.array_equal(np.concatenate([p.roles for p in parts]), whole.roles)


def test_marks_within_a_document_are_taken_out_and_counted(coder):
    packed = FimMaker(coder, FimShares(psm=1)).stream(documents(["a<|fim_middle|>b<eos>c"]), CONTEXT).take(4)
    assert whole_text(coder, packed, 0) == "abc"
    assert packed.cursor.dropped == 2


def test_a_changed_corpus_is_refused_when_going_on(coder):
    maker = FimMaker(coder, FimShares(psm=1))
    with pytest.raises(Exception, match="document 1 is another or missing"):
        maker.stream(documents(["other"]), CONTEXT, Cursor(documents=1, offset=2, crc32=7))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("msp:1", "no form msp"),
        ("psm:x", "'x' is no number"),
        ("psm:0.7,spm:0.7", "at most at 1"),
        ("psm:0", "above 0"),
        ("psm:1,files:0", "one file at least"),
        ("psm:1,files:x", "'x' is no number"),
    ],
)
def test_shares_that_cannot_be_are_refused(text, says):
    with pytest.raises(CorpusError, match=says):
        FimShares.parse(text)


def test_a_recording_of_examples_says_their_shares_and_seed_and_packs_can_read_them(coder):
    maker = FimMaker(coder, FimShares.parse("spm:0.45,psm:0.45"), seed=4)
    assert (maker.identity["fim"], maker.identity["fim_seed"]) == ("psm:0.45,spm:0.45", 4)
    assert FimShares.parse(str(maker.shares)) == maker.shares
    assert all(isinstance(value, int | str) for value in maker.identity.values())


def test_a_tokenizer_without_the_marks_is_refused(toy_tokenizer):
    with pytest.raises(CorpusError, match=r"no single token(.|\n)*bundled\+fim"):
        FimMaker(toy_tokenizer, FimShares(psm=1))


def test_whole_documents_share_a_context_with_the_file_separator_between_them(coder):
    texts = ["x = 1", "y = 2\n", "def add(a, b):\n    return a + b\n" * 4, "z = 3", "w", "v"]
    maker = FimMaker(coder, FimShares.parse("psm:0.5,spm:0.3,files:3"), seed=1)
    packed = maker.stream(documents(texts), CONTEXT).take(100)
    separator = coder.backend.token_to_id(MARKS["file"])
    for number, text in enumerate(texts):  # each document once, whole
        of_it = packed.documents == number
        assert (
            "".join(_parts(coder, packed.tokens[row][of_it[row]], packed.roles[row][of_it[row]]) for row in range(len(packed)))
            == text
        )
    files = [1 + int((row == separator).sum()) for row in packed.tokens]
    assert max(files) > 1
    assert max(files) <= 3
    assert sum(files) >= len(texts)
    marks = packed.tokens == separator
    assert (packed.roles[marks] == Role.CONTROL).all()
    assert not packed.counted()[marks].any()
    shared = packed.documents[next(row for row, n in enumerate(files) if n > 1)]
    assert len(set(shared[shared >= 0].tolist())) > 1
    assert "files:3" in maker.identity["fim"]
    stream, parts = maker.stream(documents(texts), CONTEXT), []
    while not parts or not parts[-1].exhausted:  # the same after every interruption
        parts.append(stream.take(1))
        stream = maker.stream(documents(texts), CONTEXT, parts[-1].cursor)
    for name in ("tokens", "roles", "documents"):
        assert np.array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(packed, name))
    assert [name for p in parts for name in p.names] == packed.names


def _parts(coder, tokens, roles) -> str:
    return "".join(coder.decode(tokens[roles == role]) for role in (Role.TEXT, Role.PREFIX, Role.MIDDLE, Role.SUFFIX))
