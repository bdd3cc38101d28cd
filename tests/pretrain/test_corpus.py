"""The pretraining corpus: what is held out stays out, and the data of a step depends on its number alone."""

import json

import numpy as np
import pytest
from scope.activations.errors import CorpusError

from scope.pretrain.build import build_corpus, tokenizer_sample
from scope.pretrain.corpus import TokenStreams, fingerprint, split_documents, write_tokens
from scope.pretrain.tokenizer import save_tokenizer, train_tokenizer

HARD = [
    "def f(x):\n    return {'a': [1, 23],\n\n\n            'b': x ** 2}  # \ttab\n",
    "naïve café, Привет, 你好, 🙂👩‍🔬, ﬁ ligature, a\u00a0b",
    "   leading and trailing   ",
    "\n\n  \n",
    "1234567.89e-10 != 0x1F",
    "a▁b",
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory, toy_text):
    folder = tmp_path_factory.mktemp("texts")
    for name, part in (("one", toy_text[:200]), ("two", toy_text[150:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in part))
    return folder


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus")
    build_corpus([str(texts)], out, d_vocab=340, n_ctx=32)
    return out


@pytest.mark.parametrize("text", HARD[:-1])
def test_the_tokenizer_loses_nothing(toy_tokenizer, text):
    ids = toy_tokenizer.encode(text)
    assert toy_tokenizer.decode(ids) == text
    assert toy_tokenizer.backend.token_to_id("<unk>") not in ids


def test_autotokenizer_gives_the_ids_that_training_used(tmp_path, toy_text, toy_tokenizer):
    from transformers import AutoTokenizer

    save_tokenizer(toy_tokenizer.backend, tmp_path, 64)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*HARD, *toy_text[:5]]:
        assert theirs(text).input_ids == toy_tokenizer.encode(text)
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id) == (0, 1, 2)


def test_the_same_text_teaches_the_same_tokenizer(toy_text):
    assert train_tokenizer(toy_text, 340).to_str() == train_tokenizer(toy_text, 340).to_str()


def test_no_held_out_document_is_trained_on(corpus, toy_tokenizer):
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(corpus / "tokenizer" / "tokenizer.json"))
    held = {fingerprint(json.loads(line)["text"]) for line in (corpus / "heldout.jsonl").read_text().splitlines()}
    trained = set()
    for file in (corpus / "train").glob("*.u16"):
        stream = np.fromfile(file, dtype=np.uint16)
        for document in np.split(stream, np.flatnonzero(stream == 1) + 1):
            trained.add(fingerprint(tokenizer.decode(document[:-1].tolist())))
    assert held
    assert not held & trained


def test_a_text_is_kept_once_whatever_its_spaces_and_case():
    train, held = split_documents([("a", "One  text"), ("b", "one text\n"), ("b", " "), ("b", "another")])
    assert sum(map(len, train.values())) + len(held) == 2


def test_every_rebuild_holds_out_the_same_documents(texts, corpus, tmp_path):
    build_corpus([str(texts)], tmp_path, d_vocab=340, n_ctx=32)
    for name in ("heldout.jsonl", "train/one.u16", "tokenizer/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (corpus / name).read_bytes()


def test_a_corpus_of_other_places_or_another_vocabulary_is_refused(texts, corpus):
    with pytest.raises(CorpusError, match="was built from"):
        build_corpus(["docs"], corpus, d_vocab=340, n_ctx=32)
    with pytest.raises(CorpusError, match="has 340 pieces, not 512"):
        build_corpus([str(texts)], corpus, d_vocab=512, n_ctx=32)


def test_a_text_too_small_for_its_vocabulary_is_refused_with_one_that_fits(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(f"number {i}") + "\n" for i in range(40)))
    with pytest.raises(CorpusError, match=r"--d-vocab \d+"):
        build_corpus([str(tmp_path / "a.jsonl")], tmp_path / "out", d_vocab=4000, n_ctx=32)


def test_each_domain_teaches_the_tokenizer_up_to_its_share():
    train = {"small": ["x" * 10] * 3, "large": ["y" * 10] * 1000}
    sample = tokenizer_sample(train, characters=100)
    assert sum(t[0] == "x" for t in sample) == 3
    assert sum(t[0] == "y" for t in sample) == 11


def test_the_data_of_a_step_depends_on_its_number_alone(corpus):
    forward, backward = (TokenStreams(corpus, context=16, batch=4, bos=2, seed=5) for _ in range(2))
    steps = [0, 3, 700, 1300, 2500]
    seen = {step: forward.step(step) for step in steps}
    for step in reversed(steps):
        assert np.array_equal(backward.step(step), seen[step])
    assert not np.array_equal(TokenStreams(corpus, context=16, batch=4, bos=2, seed=6).step(0), seen[0])


@pytest.mark.parametrize(
    "lengths", [(40_000, 40_000, 40_000), (90_000, 33_000, 30_000, 47_000), (200_000, 3), (100_000, 99_000)]
)
def test_every_round_is_full_and_draws_no_piece_twice_within_a_pass(tmp_path, lengths):
    """Three equal shares of 4096 are 1365.33 each: rounded down alone, rounds one and two fall short and the third is over."""
    (tmp_path / "train").mkdir()
    for i, n in enumerate(lengths):
        np.zeros(n, dtype=np.uint16).tofile(tmp_path / "train" / f"{i}.u16")
    streams = TokenStreams(tmp_path, context=4, batch=4, bos=2, seed=0)
    plans = [streams._plan(number) for number in range(4)]
    assert [len(plan) for plan in plans] == [TokenStreams.ROUND] * 4
    drawn = streams._drawn(4)
    assert sum(drawn) == 4 * TokenStreams.ROUND
    for index, domain in enumerate(streams.streams):
        per_pass = max(1, (lengths[index] - 4) // 4)
        starts = [start for plan in plans for name, start in plan if name == domain]
        assert len(starts) == drawn[index]
        if drawn[index] <= per_pass:
            assert len(set(starts)) == len(starts)


def test_a_build_that_is_stopped_while_tokens_are_written_leaves_no_corpus(texts, tmp_path, monkeypatch):
    import scope.pretrain.build as build

    def stopped(*args):
        write_tokens(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "write_tokens", stopped)
    with pytest.raises(KeyboardInterrupt):
        build_corpus([str(texts)], tmp_path, d_vocab=340, n_ctx=32)
    assert not (tmp_path / "corpus.json").exists()
    monkeypatch.undo()
    built = build_corpus([str(texts)], tmp_path, d_vocab=340, n_ctx=32)
    assert built["places"] == [str(texts)]
    assert json.loads((tmp_path / "corpus.json").read_text()) == built


def test_a_sequence_is_bos_then_text_that_stands_in_a_stream(corpus):
    streams = TokenStreams(corpus, context=16, batch=4, bos=2, seed=0)
    row = streams.step(9)[1]
    assert row[0] == 2
    assert len(row) == 17
    wanted = row[1:].astype(np.uint16).tobytes()
    assert any(wanted in bytes(stream.tobytes()) for stream in streams.streams.values())


def test_an_empty_or_missing_place_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="neither"):
        build_corpus([str(tmp_path / "nowhere")], tmp_path / "out", d_vocab=340, n_ctx=32)
    with pytest.raises(CorpusError, match="no training tokens"):
        TokenStreams(tmp_path, context=16, batch=4, bos=2, seed=0)


@pytest.mark.parametrize("line", ["{", "3", '{"body": "a"}'])
def test_a_line_without_text_is_refused_by_its_file(tmp_path, line):
    (tmp_path / "bad.jsonl").write_text(f'"good"\n{line}\n')
    with pytest.raises(CorpusError, match=r"bad\.jsonl"):
        build_corpus([str(tmp_path)], tmp_path / "out", d_vocab=340, n_ctx=32)


def test_a_docstring_that_is_inherited_is_one_text_whatever_stands_above_it():
    train, held = split_documents(
        [("docs", "a.One.sum\n\nThe sum."), ("docs", "b.Two.sum\n\nThe sum."), ("docs", "b.Two.x\n\nNo sum.")]
    )
    assert len(train.get("docs", [])) + len(held) == 2
