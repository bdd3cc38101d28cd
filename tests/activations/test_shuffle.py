import json
import os

import numpy as np
import pytest
import torch
from scope.activations.errors import RecordingError
from scope.activations.read.shuffle_order import permutation
from scope.activations.read.store import ActivationStore

from tests.activations.toy import record


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    return record(tmp_path_factory.mktemp("shuffle") / "r", sites=("a", "b.x", "b.y"))


SMALL = 100_000  # bytes: several pools of several segments


def rows_of(batches) -> torch.Tensor:
    return torch.cat([b[0] if isinstance(b, tuple) else b for b in batches])


@pytest.mark.parametrize("memory", [SMALL, 1 << 30])
def test_every_row_comes_exactly_once_an_epoch(store, memory):
    batches = store.shuffled("a", 100, seed=3, epochs=2, memory_bytes=memory)
    assert (batches.n_pools > 3) is (memory == SMALL)
    rows = rows_of(batches)
    everything = store["a"][:].sort(0).values
    assert torch.equal(rows[: store.n_rows].sort(0).values, everything)
    assert torch.equal(rows[store.n_rows :].sort(0).values, everything)
    assert not torch.equal(rows[: store.n_rows], rows[store.n_rows :])


def test_batches_are_float32_and_full_but_for_the_very_last(store):
    sizes = [len(b) for b in store.shuffled("a", 1000, epochs=1, memory_bytes=SMALL)]
    assert sizes == [1000] * (store.n_rows // 1000) + [store.n_rows % 1000]
    assert next(iter(store.shuffled("a", 7))).dtype == torch.float32


@pytest.mark.parametrize("memory", [SMALL, 1 << 30])
def test_the_same_seed_gives_the_same_rows_and_another_seed_others(store, memory):
    def first(seed):
        return next(iter(store.shuffled("a", 256, seed=seed, memory_bytes=memory)))

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize("memory", [SMALL, 1 << 30])
@pytest.mark.parametrize("read", [0, 1, 60, 130])
def test_reading_resumes_to_the_row_from_a_state_of_plain_json_p36(store, memory, read):
    whole = store.shuffled("a", 100, seed=5, memory_bytes=memory)
    stream = iter(whole)
    for _ in range(read):
        next(stream)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = store.shuffled("a", 100, seed=5, memory_bytes=memory)
    resumed.load_state_dict(state)
    for left, right, _ in zip(stream, resumed, range(5), strict=False):
        assert torch.equal(left, right)


def test_several_sites_come_aligned_row_by_row(store):
    for a, bx, by in store.shuffled(("a", "b.x", "b.y"), 500, epochs=1, memory_bytes=3 * SMALL):
        assert torch.equal((a[:, 0] - 32).bfloat16(), a[:, 0].bfloat16() - 32)
        assert (a[:, 0] - 32 - (bx[:, 0] - 16)).abs().max() <= 1.0  # bfloat16 of the same token at the same position
        assert (bx[:, 0] - 16 - (by[:, 0] - 7)).abs().max() <= 1.0


def test_a_loop_over_finite_epochs_can_be_repeated_and_goes_on_where_it_was_left(store):
    batches = store.shuffled("a", 1000, epochs=1)
    assert len(rows_of(batches)) == store.n_rows
    assert len(rows_of(batches)) == store.n_rows
    for _ in batches:
        break
    assert len(rows_of(batches)) == store.n_rows - 1000


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"site": ()}, "No site is given to read. The recording holds a, b.x, b.y"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"memory_bytes": 10_000}, "two pools of one segment each, 256 rows of these sites, take 32,768"),
    ],
)
def test_what_cannot_be_read_so_is_refused_before_the_first_batch(store, asked, said):
    with pytest.raises(RecordingError, match=said):
        store.shuffled(**{"site": "a", "batch_size": 100} | asked)


def test_memory_may_be_written_as_1e5(store):
    written = store.shuffled("a", 1000, epochs=1, memory_bytes=1e5)
    assert written.n_pools > 3
    assert torch.equal(rows_of(written), rows_of(store.shuffled("a", 1000, epochs=1, memory_bytes=SMALL)))


def test_a_shard_that_another_thread_puts_out_of_the_open_ones_is_still_announced(store, monkeypatch):
    anew, advise = ActivationStore.open(store.folder), os.posix_fadvise

    def meanwhile(fd, *rest):
        for shard in range(len(anew.entries)):
            anew.reader(shard)
        advise(fd, *rest)

    monkeypatch.setattr("scope.activations.read.store._OPEN_SHARDS", 1)
    monkeypatch.setattr(os, "posix_fadvise", meanwhile)
    assert len(rows_of(anew.shuffled("a", 1000, epochs=1, memory_bytes=SMALL))) == store.n_rows


def test_a_state_of_another_order_is_refused(store):
    state = store.shuffled("a", 100, seed=5).state_dict()
    with pytest.raises(RecordingError, match="seed: 5 then, 6 now"):
        store.shuffled("a", 100, seed=6).load_state_dict(state)


def test_the_order_that_is_told_is_the_order_that_comes(store):
    batches = store.shuffled("a", 1000, seed=4, epochs=1, memory_bytes=SMALL)
    told = np.concatenate(list(batches.order(0)))
    assert torch.equal(rows_of(batches), store["a"][told])


def test_neighbouring_tokens_are_hardly_neighbours_in_a_batch_p37(store):
    """Pairs of a batch from one context over what independent draws give: 1 is perfect, reading in order would be 70."""
    perfect = same_context_pairs(store, store.shuffled("b.y", 64, memory_bytes=1 << 30))
    pooled = same_context_pairs(store, store.shuffled("b.y", 64, memory_bytes=store.n_rows * 14 * 9 // 10))
    assert perfect == pytest.approx(1, abs=0.1)
    assert pooled < 10


def same_context_pairs(store: ActivationStore, batches) -> float:
    order = np.concatenate(list(batches.order(0)))
    contexts = store.contexts_of[order[: len(order) // 64 * 64]].reshape(-1, 64)
    pairs = sum(float((row[:, None] == row[None]).sum() - 64) for row in contexts) / (len(contexts) * 64 * 63)
    sizes = np.bincount(store.contexts_of).astype(float)
    return pairs / float((sizes * (sizes - 1)).sum() / (store.n_rows * (store.n_rows - 1)))


def test_a_permutation_is_the_same_on_every_machine():
    assert permutation(8, 1, 2).tolist() == permutation(8, 1, 2).tolist()
    assert sorted(permutation(1000, 7)) == list(range(1000))


@pytest.mark.parametrize("row", ["3", -1, 1.5, None, 10**30])
def test_a_saved_position_that_is_no_row_is_refused(tmp_path, row):
    batches = record(tmp_path / "r", tokens=640).shuffled("a", 10)
    with pytest.raises(RecordingError, match="saved row is damaged"):
        batches.load_state_dict(batches.state_dict() | {"row": row})
