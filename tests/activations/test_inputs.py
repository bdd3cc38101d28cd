"""Inputs other than text: rows that are patches of images and parts of a prompt, recorded with what each of them is."""

import re
import zlib

import numpy as np
import pytest
import torch
from scope.activations.config import HarvestConfig, LiveConfig
from scope.activations.corpus.inputs import (
    NO_DOCUMENT,
    NO_TOKEN,
    Cursor,
    InputMaker,
    Inputs,
    Packed,
    Recorder,
    counted,
    counted_tokens,
    record,
    text_roles,
)
from scope.activations.corpus.roles import LEAVES_OUT, RULES, Role
from scope.activations.corpus.sources import Corpus, Document
from scope.activations.errors import RecordingError
from scope.activations.harvest.harvest import harvest
from scope.activations.harvest.repair import repair
from scope.activations.read.from_other_libraries import import_activations
from scope.activations.read.heldout import following
from scope.activations.read.live import LiveBatches
from scope.activations.read.store import ActivationStore
from scope.activations.read.to_other_libraries import to_safetensors

from tests.activations.toy import contents

PATCHES, BOS, SEP, CONTEXT = 4, 2, 5, 12
LAYOUT = [*[Role.IMAGE] * PATCHES, Role.BOS, Role.PROMPT, Role.PROMPT, Role.CONTROL]  # then the answer, then padding


class PicturesWithQuestions:
    """One picture a context: patches, <bos>, two tokens of a question, a separator, the answer, padding."""

    packing, stores_roles = "one picture and its question a context", True

    def __init__(self, shift: float = 0.0):
        self.identity, self.shift = {"kind": "pictures"}, shift

    def stream(self, documents, context, cursor=Cursor()):
        return _Stream(iter(documents), context, cursor, self.shift)


class _Stream:
    def __init__(self, documents, context, cursor, shift):
        self.documents, self.context, self.opened, self.shift = documents, context, cursor.documents, shift
        for _ in range(cursor.documents):
            next(self.documents)

    def take(self, n_contexts):
        some = [d for _, d in zip(range(n_contexts), self.documents, strict=False)]
        shape = len(some), self.context
        tokens, roles = np.full(shape, NO_TOKEN, np.int32), np.full(shape, Role.PADDING, np.uint8)
        documents = np.full(shape, NO_DOCUMENT, np.int32)
        pixels = np.zeros((len(some), PATCHES), np.float32)
        for i, document in enumerate(some):
            answer = [100 + ord(c) for c in document.text]
            n = len(LAYOUT) + len(answer)
            roles[i, :n] = [*LAYOUT, *[Role.ANSWER] * len(answer)]
            tokens[i, PATCHES:n] = [BOS, 150, 151, SEP, *answer]
            documents[i, :n] = self.opened + i
            pixels[i] = self.shift + np.arange(PATCHES) + self.opened + i
        self.opened += len(some)
        return Packed(
            tokens=tokens,
            documents=documents,
            roles=roles,
            arguments={"pixel_values": pixels},
            names=[d.name for d in some],
            facts=[{"width": 640 + int(d.name[1:])} for d in some],
            cursor=Cursor(documents=self.opened, crc32=zlib.crc32(some[-1].text.encode()) if some else 0),
            exhausted=len(some) < n_contexts,
        )


class Toy:
    """At a patch every value is its pixel and 1000, or 100,000 at one; elsewhere it is the token."""

    ran = 0

    def sites(self):
        return {"trunk": 8, "vision": 3}

    def record(self, batch, sites):
        assert isinstance(batch, Inputs)
        self.ran += len(batch)
        pixels = 1000 + batch.arguments["pixel_values"]
        pixels = torch.where(pixels == 1007, 100_000.0, pixels)
        values = batch.tokens.float()
        values[:, :PATCHES] = pixels
        widths = {"trunk": 8, "vision": 3}
        out = {site: values[..., None].expand(*values.shape, widths[site]).contiguous() for site in sites}
        return {site: x[:, :PATCHES] if site == "vision" else x for site, x in out.items()}


def pictures(n=40):
    def source():
        for i in range(n):
            yield Document(f"p{i}", chr(60 + i) * (1 + i % 3))

    return Corpus("pictures", {"kind": "pictures", "n": n}, source)


class InOrder(Corpus):
    def documents(self, seed=None):
        return self.source()


def in_order(n=40):
    corpus = pictures(n)
    return InOrder(corpus.spec, corpus.identity, corpus.source)


def make(out, tokens=40 * CONTEXT, model=None, maker=None, on_progress=None, **changes):
    settings = {"sites": ("trunk",), "context": CONTEXT, "batch_contexts": 4, "shard_rows": 16 * CONTEXT, "dtype": "float32"}
    config = HarvestConfig(**settings | {"tokens": tokens} | changes)
    return harvest(
        model or Toy(), maker or PicturesWithQuestions(), in_order(), config, out, {"model": "toy"}, on_progress=on_progress
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make(tmp_path_factory.mktemp("pictures") / "r")


def test_toys_are_what_harvesting_asks_for():
    assert isinstance(Toy(), Recorder)
    assert isinstance(PicturesWithQuestions(), InputMaker)


# The rule.


def test_of_text_neither_the_first_token_nor_special_ones_nor_padding_count_p1_p4():
    tokens = torch.tensor([[7, 8, 3, 9, 9], [2, 8, 8, 2, 0]])
    real = torch.tensor([[True] * 4 + [False], [True] * 5])
    assert text_roles(tokens, {0, 2, 3}, real=real).tolist() == [
        [Role.BOS, Role.TEXT, Role.SPECIAL, Role.TEXT, Role.PADDING],
        [Role.BOS, Role.TEXT, Role.TEXT, Role.SPECIAL, Role.SPECIAL],
    ]
    assert counted_tokens(tokens, {0, 2, 3}, real=real).tolist() == [
        [False, True, False, True, False],
        [False, True, True, False, False],
    ]


def test_with_padding_on_the_left_the_first_token_is_known_by_its_position():
    tokens, positions = torch.tensor([[0, 0, 7, 8, 9]]), torch.tensor([[0, 0, 0, 1, 2]])
    assert counted_tokens(tokens, {0}, positions=positions).tolist() == [[False, False, False, True, True]]


def test_every_role_can_be_left_out_and_only_bos_special_tokens_and_padding_are_unasked():
    roles = torch.tensor([[int(role) for role in Role]], dtype=torch.uint8)
    left_out = [role for role, counts in zip(Role, counted(roles)[0].tolist(), strict=True) if not counts]
    assert left_out == [Role.BOS, Role.SPECIAL, Role.PADDING, Role.CONTROL]
    assert frozenset().union(*LEAVES_OUT.values()) == set(Role)
    assert counted(roles, ()).all()
    assert set(RULES) <= set(LEAVES_OUT)


def test_the_numbers_of_the_roles_are_those_of_the_format():
    assert [(role.name, int(role)) for role in Role] == [
        ("TEXT", 0), ("BOS", 1), ("SPECIAL", 2), ("PADDING", 3), ("IMAGE", 4), ("PROMPT", 5), ("ANSWER", 6), ("PREFIX", 7),
        ("SUFFIX", 8), ("MIDDLE", 9), ("CONTROL", 10), ("STATE", 11),
    ]  # fmt: skip


# A recording of rows that are not text.


def test_what_each_row_is_comes_back_with_its_document_position_and_values(store):
    assert store.manifest.version == 3
    counts = ~np.isin(store.roles, [Role.BOS, Role.CONTROL, Role.PADDING])
    assert store.roles[0].tolist() == [*LAYOUT, Role.ANSWER, *[Role.PADDING] * 3]
    assert np.array_equal(np.argwhere(counts), np.stack([store.contexts_of, store.positions], 1))
    assert np.array_equal(store.row_roles, store.roles[counts])
    assert np.array_equal(store.documents[:, 0], np.arange(40))
    patches = store.row_roles == Role.IMAGE
    assert (store.token_ids[patches] == NO_TOKEN).all()
    expected = 1000 + store.positions[patches] + store.contexts_of[patches]
    expected[expected == 1007] = 100_000
    assert np.array_equal(store["trunk"][patches][:, 0].numpy(), expected)
    assert np.array_equal(store["trunk"][~patches][:, 0].numpy(), store.token_ids[~patches])
    assert store.document_names[:2] == ["p0", "p1"]
    assert store.document_facts[:2] == [{"width": 640}, {"width": 641}]


def test_every_byte_is_verified_and_a_changed_role_is_noticed(tmp_path):
    store = make(tmp_path / "r")
    assert store.verify() == []
    path, place = tmp_path / "r" / "shard-00001.h5", store.entries[1].datasets["roles"]
    data = bytearray(path.read_bytes())
    data[place.offset + 5] ^= 1
    path.write_bytes(data)
    assert [text for text in store.verify() if "roles fails its checksum" in text]


def test_shuffled_batches_hold_every_row_but_the_outliers_of_its_kind(store):
    """A patch of norm 100,000 among patches of 1000 is one; a token of 199 beside those of 150 is none."""
    rule = store.outlier_rule
    assert rule.image.median["trunk"] > 5 * rule.median["trunk"]
    flagged = store.outliers("trunk")
    assert flagged.sum() == store.n_outliers("trunk") == 4
    assert (store["trunk"][flagged] == 100_000).all()
    batches = store.shuffled("trunk", 16, epochs=1)
    rows = torch.cat(list(batches))
    assert batches.left_out == 4
    assert torch.equal(rows[:, 0].sort().values, store["trunk"][~flagged][:, 0].sort().values)


def test_norms_are_told_apart_by_what_rows_are(store):
    patches = store.norms("trunk", roles=[Role.IMAGE])
    assert patches.max == pytest.approx(100_000 * 8**0.5)
    assert store.norms("trunk", roles=[Role.PROMPT]).median == pytest.approx(150 * 8**0.5)
    with pytest.raises(RecordingError, match="holds no row that is suffix"):
        store.norms("trunk", roles=[Role.SUFFIX])


def test_rows_of_a_kind_can_be_left_out_of_the_recording(tmp_path):
    store = make(tmp_path / "r", exclude=("bos", "special", "pad", "image", "prompt"))
    assert set(store.row_roles.tolist()) == {Role.ANSWER}
    assert store.outlier_rule.image is None


@pytest.mark.parametrize("stop_at", [1, 3, 6, 9])
def test_after_ctrl_c_the_same_call_makes_the_same_bytes_and_runs_nothing_twice(tmp_path, store, stop_at):
    calls = 0

    def stop(done, total, numbers):
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "r", on_progress=stop)
    model = Toy()
    make(tmp_path / "r", model=model)
    assert contents(tmp_path / "r") == contents(store.folder)
    assert model.ran == 40 - 4 * stop_at


def test_extended_in_steps_it_is_the_recording_made_at_once(tmp_path, store):
    for n in (5, 17, 40):
        make(tmp_path / "r", tokens=n * CONTEXT)
    assert contents(tmp_path / "r") == contents(store.folder)


def test_a_damaged_shard_is_made_again_from_the_same_pictures_only(tmp_path, store):
    make(tmp_path / "r")
    path = tmp_path / "r" / "shard-00001.h5"
    path.write_bytes(path.read_bytes()[:-8] + b"\xff" * 8)
    repair(tmp_path / "r")
    with pytest.raises(RecordingError, match=re.escape("no longer gives the text of shard-00001.h5")):
        make(tmp_path / "r", maker=PicturesWithQuestions(shift=1.0))
    make(tmp_path / "r")
    assert path.read_bytes() == (store.folder / path.name).read_bytes()


def test_a_recording_of_text_says_that_its_tokens_tell_what_rows_are(tmp_path):
    from tests.activations.toy import record as record_text

    text = record_text(tmp_path / "r", tokens=1000)
    assert text.manifest.version == 2
    assert set(text.document_facts[0]) == set()
    with pytest.raises(RecordingError, match="it is of text, whose roles follow from the tokens"):
        _ = text.roles


def test_sites_with_other_rows_than_the_inputs_are_refused(tmp_path):
    with pytest.raises(RecordingError, match="vision gives 64 rows for 192 positions"):
        make(tmp_path / "r", sites=("trunk", "vision"), batch_contexts=16)


def test_a_model_of_token_ids_alone_is_given_a_tensor(tmp_path):
    class Tensors:
        def sites(self):
            return {"a": 1}

        def record(self, tokens, sites):
            assert isinstance(tokens, torch.Tensor)
            assert tokens.dtype == torch.int64
            return {"a": tokens[..., None].float()}

    inputs = Inputs(tokens=np.array([[1, 2]], np.int32), documents=np.zeros((1, 2)), roles=np.zeros((1, 2), np.uint8))
    assert record(Tensors(), inputs, ["a"])["a"].tolist() == [[1.0], [2.0]]


def test_live_batches_leave_out_what_a_recording_does(store):
    settings = LiveConfig(context=CONTEXT, batch_contexts=4, dtype="float32")
    live = LiveBatches(Toy(), PicturesWithQuestions(), in_order(), ["trunk"], 16, settings, memory_bytes=1 << 20)
    rows = live._pool()[0][0]
    assert len(rows) == store.n_rows - store.n_outliers("trunk")
    assert torch.equal(rows[:, 0].sort().values, store["trunk"][~store.outliers("trunk")][:, 0].sort().values)


def test_pictures_after_the_recorded_ones_are_held_out(tmp_path):
    store = make(tmp_path / "r", tokens=20 * CONTEXT)
    rest = following(store, in_order(), PicturesWithQuestions(), 8)
    assert len(rest) == 8
    assert rest.documents[:, 0].min() >= 20
    assert torch.equal(torch.from_numpy(rest.arguments["pixel_values"][:, 0]), torch.arange(20.0, 28.0))


def test_safetensors_carry_what_rows_are_there_and_back(tmp_path, store):
    to_safetensors(store, tmp_path / "out")
    back = import_activations(tmp_path / "out", tmp_path / "in")
    assert np.array_equal(back.roles, store.roles)
    assert np.array_equal(back.row_roles, store.row_roles)
    facts = dict(zip(back.document_names, back.document_facts, strict=True))  # and "" for padding
    assert facts == dict(zip(store.document_names, store.document_facts, strict=True)) | {"": {}}
    assert back.n_outliers("trunk") == store.n_outliers("trunk")
    assert torch.equal(back["trunk"][:], store["trunk"][:])
    assert ActivationStore.open(tmp_path / "in").verify() == []
