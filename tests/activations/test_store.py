import os

import numpy as np
import pytest
import torch
from scope.activations.errors import HolesWarning, RecordingError
from scope.activations.read.store import ActivationStore

from scope.errors import UnknownSite
from tests.activations.toy import record


@pytest.fixture
def folder(tmp_path):
    record(tmp_path / "r")
    return tmp_path / "r"


def test_a_slice_an_array_a_mask_and_a_number_give_the_same_rows(folder):
    store = ActivationStore.open(folder)
    everything = store["a"][:]
    assert everything.shape == (store.n_rows, 32)
    assert torch.equal(store["a"][1900:2200], everything[1900:2200])  # across shards
    wanted = np.array([5000, 3, 4, 2100, -1, 3])
    assert torch.equal(store["a"][wanted], everything[wanted])
    assert torch.equal(store["a"][store.positions == 7], everything[torch.from_numpy(store.positions == 7)])
    assert torch.equal(store["a"][17], everything[17])
    assert torch.equal(store["a"][10:20:3], everything[10:20:3])


def test_rows_and_contexts_map_both_ways(folder):
    store = ActivationStore.open(folder)
    for context in (0, 31, 32, store.n_contexts - 1):
        rows = store.rows_of_context(context)
        assert set(store.contexts_of[rows]) == {context}
        assert np.array_equal(store.tokens[context, store.positions[rows]], store.token_ids[rows])
    assert store.row_starts[-1] == store.n_rows
    with pytest.raises(RecordingError, match="holds 0 to"):
        store.rows_of_context(store.n_contexts)


def test_every_token_knows_the_name_of_its_document(folder):
    store = ActivationStore.open(folder)
    first = store.document_names[store.documents[0, 1]]
    text = "".join(chr(i - 4) for i in store.tokens[0, 1:10])
    assert text == f"document {first[1:]} "[:9]


def test_norms_are_those_of_the_stored_rows(folder):
    store = ActivationStore.open(folder)
    norms = store["a"][:].norm(dim=1)
    assert store.norms("a").mean_square == pytest.approx(norms.double().square().mean().item(), rel=1e-6)
    assert store.norms("a").median == pytest.approx(norms.median().item(), rel=1e-6)
    assert store.norms("a").max == pytest.approx(norms.max().item(), rel=1e-6)
    assert np.allclose(store.row_norms("a"), norms.numpy(), rtol=1e-6, atol=0)
    assert store.norms("a").median == np.sort(store.row_norms("a"))[(store.n_rows - 1) // 2]


def test_sinks_are_found_by_a_stated_rule_p2(folder):
    store = ActivationStore.open(folder)
    norms = store.row_norms("a")
    assert np.array_equal(store.sinks("a", times=1.1), np.flatnonzero(norms > 1.1 * np.median(norms)))


def test_an_unknown_site_is_refused_with_those_that_are_there(folder):
    with pytest.raises(UnknownSite, match=r"no activations of b\.y"):
        ActivationStore.open(folder)["b.y"]


@pytest.mark.parametrize("name", ["shard-00000.h5", "shard-00003.h5"])
@pytest.mark.parametrize("where", [0.0, 0.001, 0.3, 0.6, 0.9, 0.999])
def test_a_flipped_bit_anywhere_in_a_shard_is_detected_and_named(folder, name, where):
    assert ActivationStore.open(folder).verify() == []
    flip(folder / name, where)
    faults = ActivationStore.open(folder).verify()
    assert len(faults) == 1
    assert name in faults[0]


def test_a_flipped_bit_in_activations_is_named_with_site_and_rows_by_every_reader(folder):
    place = ActivationStore.open(folder).reader(1).places["acts/b.x"]
    flip(folder / "shard-00001.h5", (place.offset + 300 * place.row_bytes) / os.path.getsize(folder / "shard-00001.h5"))
    store = ActivationStore.open(folder)
    assert store.verify()[0].endswith("b.x, rows 256 to 511 of this shard, fail their checksum.")
    with pytest.raises(RecordingError, match="rows 256 to 511"):
        store["b.x"][:]
    with pytest.raises(RecordingError, match="rows 256 to 511"):
        list(store.shuffled("b.x", 100, epochs=1))
    assert len(store["a"][:]) == store.n_rows  # the rest stays usable


@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_truncated_shard_is_refused_at_the_door(folder, left):
    path = folder / "shard-00002.h5"
    with open(path, "r+b") as file:
        file.truncate(left if left >= 0 else path.stat().st_size - 1)
    with pytest.raises(RecordingError, match=r"shard-00002\.h5 has \d+ bytes; \d+ were sealed"):
        ActivationStore.open(folder)


def test_a_missing_shard_is_refused_at_the_door(folder):
    (folder / "shard-00002.h5").unlink()
    with pytest.raises(RecordingError, match=r"shard-00002\.h5 is missing"):
        ActivationStore.open(folder)


def test_a_damaged_journal_or_manifest_is_refused_and_a_torn_last_line_is_not_counted(folder):
    journal = folder / "journal.jsonl"
    whole = journal.read_bytes()
    n_rows = ActivationStore.open(folder).n_rows
    journal.write_bytes(whole[:-40])
    with pytest.warns(HolesWarning, match="ends in a line that was cut short"):
        torn = ActivationStore.open(folder)
    assert torn.n_rows < n_rows
    flip(journal, 0.1)
    with pytest.raises(RecordingError, match="line 1 fails its checksum"):
        ActivationStore.open(folder)
    journal.write_bytes(whole)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(RecordingError, match=r"manifest\.json is damaged"):
        ActivationStore.open(folder)


def test_a_folder_without_a_recording_is_refused_with_the_way_to_make_one(tmp_path):
    with pytest.raises(RecordingError, match="scope harvest --out"):
        ActivationStore.open(tmp_path)
    with pytest.raises(RecordingError, match="does not exist"):
        ActivationStore.open(tmp_path / "nowhere")


def flip(path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[min(int(where * len(data)), len(data) - 1)] ^= 4
    path.write_bytes(data)
