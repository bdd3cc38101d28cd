import pytest
import torch
from scope.activations.read.buffer_pool import BufferPool

from tests.activations.toy import record


def test_memory_of_a_batch_that_nobody_holds_is_used_again():
    spare = BufferPool(100, 3)
    batch = spare.take(100)
    batch.fill_(7.0)
    where = batch.data_ptr()
    del batch
    again = spare.take(60)
    assert again.shape == (60, 3)
    assert again.data_ptr() == where
    assert bool((again == 7.0).all())


@pytest.mark.parametrize(
    "hold",
    [
        lambda batch: batch,
        lambda batch: batch[3:5],
        lambda batch: batch.numpy()[:, 1],
        lambda batch: (batch * torch.ones(3, requires_grad=True)).sum(),
        lambda batch: batch.untyped_storage(),
    ],
    ids=["itself", "a view", "as numpy sees it", "for a gradient", "its storage"],
)
def test_memory_that_is_still_used_is_left_alone(hold):
    spare = BufferPool(100, 3)
    batch = spare.take(100)
    held, where = hold(batch), batch.data_ptr()
    del batch
    assert all(spare.take(100).data_ptr() != where for _ in range(9))
    assert held is not None


def test_batches_that_are_kept_stay_as_they_came(tmp_path):
    store = record(tmp_path / "r", sites=("a",))
    kept, copies = [], []
    for batch in store.shuffled("a", 300, seed=2, epochs=1):
        kept.append(batch)
        copies.append(batch.clone())
    assert len(kept) > 8
    assert all(torch.equal(x, y) for x, y in zip(kept, copies, strict=True))


def test_a_batch_larger_than_the_recording_takes_no_more_memory_than_the_recording(tmp_path):
    store = record(tmp_path / "r", sites=("a",))
    (batch,) = store.shuffled("a", 10**15, epochs=1)
    assert len(batch) == store.n_rows
