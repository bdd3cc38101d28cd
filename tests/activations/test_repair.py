import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scope.activations.errors import HolesWarning, RecordingError
from scope.activations.harvest.plan import plan
from scope.activations.harvest.repair import examine, repair
from scope.activations.read.store import ActivationStore

from scope.typed_json import as_json
from scope.workflows.training_source import recorded_provenance as provenance
from tests.activations.test_store import flip
from tests.activations.toy import Arithmetic, ByteTokenizer, config, contents, numbers, record


@pytest.fixture
def folder(tmp_path):
    record(tmp_path / "r", sites=("a", "b.x"))
    return tmp_path / "r"


def damage(folder, shard: int, site: str = "a", row: int = 300) -> None:
    place = ActivationStore.open(folder).reader(shard).places[f"acts/{site}"]
    path = folder / f"shard-{shard:05d}.h5"
    flip(path, (place.offset + row * place.row_bytes) / path.stat().st_size)


def holey(folder) -> ActivationStore:
    with pytest.warns(HolesWarning, match="read without"):
        return ActivationStore.open(folder)


def test_what_is_damaged_is_named_with_shard_site_and_rows(folder):
    assert examine(folder).damaged == []
    damage(folder, 2)
    (found,) = examine(folder).damaged
    assert (found.shard, found.file) == (2, "shard-00002.h5")
    assert [(f.site, f.rows) for f in found.faults] == [("a", (256, 512))]


def test_a_sound_recording_is_left_as_it_is(folder):
    before = contents(folder)
    assert repair(folder) == []
    assert contents(folder) == before


def test_a_damaged_shard_is_moved_aside_and_nothing_is_deleted(folder):
    damage(folder, 2)
    as_found = (folder / "shard-00002.h5").read_bytes()
    (moved,) = repair(folder)
    assert moved.moved == "quarantine/shard-00002.h5"
    assert (folder / moved.moved).read_bytes() == as_found
    assert not (folder / "shard-00002.h5").exists()
    line = json.loads((folder / "quarantine" / "journal.jsonl").read_text().partition(" ")[2])
    assert (line["shard"], line["file"]) == (2, "shard-00002.h5")
    assert "a, rows 256 to 511" in line["why"][0]
    assert repair(folder) == []


def test_the_rest_reads_as_before_numbered_without_the_hole(folder):
    whole = ActivationStore.open(folder)
    start, stop = whole.entries[2].rows
    rest = np.r_[0:start, stop : whole.n_rows]
    acts, ids, positions = whole["b.x"][rest], whole.token_ids[rest], whole.positions[rest]
    texts = [whole.document_names[d] for d in whole.documents[whole.contexts_of[rest], whole.positions[rest]]]
    damage(folder, 2)
    repair(folder)
    store = holey(folder)
    assert torch.equal(store["b.x"][:], acts)
    assert np.array_equal(store.token_ids, ids)
    assert np.array_equal(store.positions, positions)
    assert np.array_equal(store.tokens[store.contexts_of, store.positions], store.token_ids)
    found = [store.document_names[d] for d in store.documents[store.contexts_of, store.positions]]
    begun_there = [(name, text) for name, text in zip(found, texts, strict=True) if name != text]
    assert {name for name, _ in begun_there} == {"(of a shard in quarantine)"}
    assert len({text for _, text in begun_there}) == 1  # the one that goes on after the hole
    assert store.rows_of_context(store.n_contexts - 1).stop == store.n_rows == len(rest)
    batches = store.shuffled(("a", "b.x"), 500, epochs=1, memory_bytes=200_000)
    assert sum(len(a) for a, _ in batches) == len(rest)


def test_what_is_left_out_is_said_when_it_is_opened_and_stands_in_whatever_is_made_from_it(folder):
    rows = ActivationStore.open(folder).entries[2].rows
    damage(folder, 2)
    repair(folder)
    store = holey(folder)
    assert [(hole.shard, hole.rows) for hole in store.left_out] == [(2, rows)]
    assert store.manifest.left_out == store.left_out
    assert "without shards [2]" in repr(store)
    assert provenance(store, "a")["recording"]["left_out"] == as_json(store.left_out)


def test_a_missing_and_a_cut_shard_are_repaired_too(folder):
    (folder / "shard-00001.h5").unlink()
    with open(folder / "shard-00003.h5", "r+b") as file:
        file.truncate(1000)
    assert [(d.shard, d.moved) for d in repair(folder)] == [(1, ""), (3, "quarantine/shard-00003.h5")]
    assert [hole.shard for hole in holey(folder).left_out] == [1, 3]


def test_a_journal_line_that_fails_costs_its_shard_and_no_more(folder):
    before = contents(folder)
    whole = ActivationStore.open(folder)
    lines = (folder / "journal.jsonl").read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b'"bytes"', b'"bytez"')
    (folder / "journal.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(RecordingError, match=r"line 2 fails its checksum.\n  `scope recording repair`"):
        ActivationStore.open(folder)
    (moved,) = repair(folder)
    assert (moved.shard, moved.rows) == (1, whole.entries[1].rows)
    assert holey(folder).n_rows == whole.n_rows - (moved.rows[1] - moved.rows[0])
    record(folder, sites=("a", "b.x"))
    assert without_quarantine(folder) == before


@pytest.mark.parametrize("shards", [(0,), (2, 3), (5,), (0, 1, 2, 3, 4, 5)])
def test_the_same_harvest_makes_quarantined_shards_again_byte_for_byte(folder, shards):
    before = contents(folder)
    for shard in shards:
        name = ActivationStore.open(folder).entries[shard].file
        flip(folder / name, 0.5)
    assert [d.shard for d in repair(folder)] == list(shards)
    store = record(folder, sites=("a", "b.x"))
    assert store.left_out == ()
    assert without_quarantine(folder) == before
    assert len(list((folder / "quarantine").glob("shard-*"))) == len(shards)


@pytest.mark.filterwarnings("ignore::scope.activations.errors.HolesWarning")
def test_a_plan_counts_what_is_in_quarantine_as_missing(folder):
    asked = Arithmetic(), ByteTokenizer(), numbers(), config(sites=("a", "b.x")), folder, {"model": "toy"}
    assert plan(*asked).recorded == plan(*asked).tokens == 188 * 64
    damage(folder, 2)
    repair(folder)
    again = plan(*asked)
    assert again.tokens - again.recorded == 32 * 64
    assert again.survey is not None


@pytest.mark.filterwarnings("ignore::scope.activations.errors.HolesWarning")
def test_a_shard_is_not_made_again_from_another_text(folder, monkeypatch):
    damage(folder, 2)
    repair(folder)
    given = numbers()
    documents = list(given.documents(0))

    def shouted():
        last = ActivationStore.open(folder, whole=False).journal[1].cursor.documents
        for i, document in enumerate(documents):
            yield document if i < last else replace(document, text=document.text.upper())

    changed = replace(given, source=shouted)
    monkeypatch.setattr("scope.activations.corpus.sources.mixed", lambda documents, seed: documents)
    with pytest.raises(RecordingError, match="no longer gives the text"):
        record(folder, corpus=changed, sites=("a", "b.x"))


def test_a_recording_is_not_repaired_while_it_is_written(folder):
    from scope.activations.format.manifest import LOCK

    from scope.whole_files import FolderInUse, only_writer

    with only_writer(folder, LOCK), pytest.raises(FolderInUse, match="is being written"):
        repair(folder)


def test_a_recording_of_which_nothing_is_left_says_so(tmp_path):
    record(tmp_path / "r", tokens=2000)
    flip(tmp_path / "r" / "shard-00000.h5", 0.5)
    repair(tmp_path / "r")
    with pytest.warns(HolesWarning), pytest.raises(RecordingError, match="Nothing of"):
        ActivationStore.open(tmp_path / "r")


def without_quarantine(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}
