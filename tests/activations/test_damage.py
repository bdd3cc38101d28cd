"""Every file of a recording, flipped and cut: what is wrong is named, no reader crashes, and no row comes out wrong."""

import errno
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scope.activations.errors import HolesWarning, RecordingError
from scope.activations.format.manifest import LOCK
from scope.activations.harvest.repair import examine
from scope.activations.read import store as store_module
from scope.activations.read.store import ActivationStore

from scope.whole_files import only_writer
from tests.activations.toy import contents, record

FILES = ("manifest.json", "journal.jsonl", "shard-00000.h5", "shard-00005-28.h5", "recording.lock")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "r"
    store = record(folder)
    return folder, {site: store[site][:] for site in store.sites}, store.token_ids


@pytest.fixture
def folder(sound, tmp_path):
    shutil.copytree(sound[0], tmp_path / "r")
    return tmp_path / "r"


def read_all(folder) -> tuple[dict[str, torch.Tensor], np.ndarray] | RecordingError:
    """Every row of every site and every token, or the refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HolesWarning)
            store = ActivationStore.open(folder)
        return {site: store[site][:] for site in store.sites}, store.token_ids
    except RecordingError as error:
        return error


def complaints(folder) -> list[str]:
    """What `verify` says of a folder."""
    try:
        found = examine(folder)
    except RecordingError as error:
        return [str(error)]
    return [fault.text for damage in found.damaged for fault in damage.faults] + found.notes


def test_the_list_of_files_is_that_of_a_recording(folder):
    assert {p.name for p in folder.iterdir()} - {f"shard-{i:05d}.h5" for i in range(1, 5)} == set(FILES)


@pytest.mark.parametrize("name", FILES[:-1])
@pytest.mark.parametrize("bits", [0x01, 0x20, 0xFF])
@pytest.mark.parametrize("where", [0.0, 0.02, 0.37, 0.5, 0.81, 0.9999])
def test_a_flipped_byte_is_named_by_verify_and_gives_no_reader_a_wrong_row(folder, sound, name, bits, where):
    data = bytearray((folder / name).read_bytes())
    data[min(int(where * len(data)), len(data) - 1)] ^= bits
    (folder / name).write_bytes(data)
    said = complaints(folder)
    assert said
    assert all(name in text for text in said if "does not list it" not in text)
    found = read_all(folder)
    if isinstance(found, RecordingError):
        assert name in str(found)
        return
    _, rows, ids = sound
    for site, x in found[0].items():
        assert torch.equal(x, rows[site][: len(x)])
    assert np.array_equal(found[1], ids[: len(found[1])])


def test_every_single_byte_of_manifest_and_journal_is_under_a_checksum(folder):
    for name in ("manifest.json", "journal.jsonl"):
        whole = (folder / name).read_bytes()
        for at in range(0, len(whole), 1 if name == "manifest.json" else 17):
            (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            assert complaints_of_reading(folder), f"byte {at} of {name}"
        (folder / name).write_bytes(whole)


def complaints_of_reading(folder) -> list[str]:
    from scope.activations.format.manifest import read_recording
    from scope.activations.harvest.repair import _notes

    try:
        return _notes(folder, read_recording(folder))
    except RecordingError as error:
        return [str(error)]


@pytest.mark.parametrize("name", FILES[:-1])
@pytest.mark.parametrize("cut", [1, 100, 0.5, 1.0])
def test_a_cut_tail_is_named_by_verify_and_gives_no_reader_a_wrong_row(folder, sound, name, cut):
    length = (folder / name).stat().st_size
    os.truncate(folder / name, length - (int(cut * length) if isinstance(cut, float) else cut))
    said = complaints(folder)
    assert said
    assert any(name in text for text in said)
    found = read_all(folder)
    if isinstance(found, RecordingError):
        assert name in str(found) or "holds nothing yet" in str(found)
        return
    assert name == "journal.jsonl"
    assert all(torch.equal(x, sound[1][site][: len(x)]) for site, x in found[0].items())


def test_what_the_lock_file_says_is_for_people_only(folder, sound):
    (folder / "recording.lock").write_bytes(b"\xff\x00 nonsense")
    assert complaints(folder) == []
    assert torch.equal(read_all(folder)[0]["a"], sound[1]["a"])
    record(folder, tokens=13_000)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_watermark_costs_the_open_shard_and_no_more(tmp_path, monkeypatch, damage):
    record(tmp_path / "whole")

    def stop(done, total, numbers):
        if done >= 2048 + 1024:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "r", on_progress=stop)
    (mark,) = (tmp_path / "r").glob("open*.json")
    data = bytearray(mark.read_bytes())
    data[20] ^= 1
    mark.write_bytes({"flip": bytes(data), "cut": bytes(data[:-9]), "empty": b""}[damage])
    assert mark.name in complaints(tmp_path / "r")[0]
    record(tmp_path / "r")
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_a_journal_that_lost_its_end_is_noticed_and_the_same_harvest_completes_it(folder):
    before = contents(folder)
    lines = (folder / "journal.jsonl").read_bytes().split(b"\n")
    (folder / "journal.jsonl").write_bytes(b"\n".join(lines[:3]) + b"\n")
    assert any("shard-00003.h5 is here, but journal.jsonl does not list it" in text for text in complaints(folder))
    record(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("cut", [1, 30, None])
def test_a_reader_says_that_a_journal_lost_its_end_unless_somebody_is_writing_it(folder, cut):
    journal = folder / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-cut] if cut else whole[: whole.rindex(b"\n", 0, -1) + 1])
    with pytest.warns(HolesWarning, match=r"shard-00005-28\.h5 is here, but journal\.jsonl does not list it"):
        store = ActivationStore.open(folder)
    assert store.n_contexts == 160
    assert any("cut short" in text for text in store.loose_ends) == bool(cut)
    with only_writer(folder, LOCK):
        assert ActivationStore.open(folder).loose_ends == []
    record(folder)
    assert journal.read_bytes() == whole


@pytest.mark.parametrize("fails_at", [1, 3, 30])
def test_a_disk_that_fills_while_rows_are_written_behind_is_a_refusal(tmp_path, monkeypatch, fails_at):
    """The thread that writes finds the disk full; the harvest ends with what it said, and keeps what was sealed."""
    write, calls = os.pwrite, 0

    def full(fd, data, offset):
        nonlocal calls
        calls += len(data) > 8000  # rows, not headers
        if len(data) > 8000 and calls > fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RecordingError, match="the disk is full"):
        record(tmp_path / "r")
    monkeypatch.undo()
    assert not list((tmp_path / "r").glob("*.tmp"))
    record(tmp_path / "r")
    record(tmp_path / "whole")
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["journal.jsonl", "open-00001.json", "manifest.json"])
def test_a_disk_that_fills_under_a_small_file_is_a_refusal_too(tmp_path, monkeypatch, name):
    monkeypatch.setattr("scope.activations.harvest.run._WATERMARK_SECONDS", 0.0)
    sync, calls = os.fsync, 0

    def full(fd):
        nonlocal calls
        if name in Path(os.readlink(f"/proc/self/fd/{fd}")).name:  # itself, or the file aside that becomes it
            calls += 1
            if calls > 1 or name.startswith("manifest"):
                os.ftruncate(fd, os.fstat(fd).st_size - 30)  # what was there no room for
                raise OSError(errno.ENOSPC, "No space left on device")
        sync(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordingError, match=f"{name} cannot be written: the disk is full"):
        record(tmp_path / "r")
    monkeypatch.undo()
    record(tmp_path / "r")
    record(tmp_path / "whole")
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_a_store_that_is_open_reads_on_while_a_writer_replaces_the_last_shard(tmp_path):
    record(tmp_path / "r", tokens=3000)
    store = ActivationStore.open(tmp_path / "r")
    before = (tmp_path / "r" / store.entries[-1].file).name
    record(tmp_path / "r", tokens=9000)
    assert not (tmp_path / "r" / before).exists()
    longer = ActivationStore.open(tmp_path / "r")
    assert torch.equal(store["a"][:], longer["a"][: store.n_rows])
    assert np.array_equal(store.token_ids, longer.token_ids[: store.n_rows])


def test_a_reader_that_opens_while_the_last_shard_is_replaced_gets_the_longer_one(tmp_path, monkeypatch):
    record(tmp_path / "r", tokens=3000)
    look, looks = store_module.read_recording, 0

    def overtaken(folder):
        nonlocal looks
        looks += 1
        found = look(folder)
        if looks == 1:
            monkeypatch.setattr(store_module, "read_recording", look)
            record(tmp_path / "r", tokens=9000)
        return found

    monkeypatch.setattr(store_module, "read_recording", overtaken)
    store = ActivationStore.open(tmp_path / "r")
    assert looks == 1
    assert store.n_contexts == -(-9000 // 64)
    assert store.verify() == []


def test_a_recording_that_grows_while_it_is_verified_is_not_called_damaged(tmp_path):
    record(tmp_path / "r", tokens=3000)
    said = []

    def grow(done, total, numbers):
        if not said:
            said.append(record(tmp_path / "r", tokens=9000))

    assert examine(tmp_path / "r", on_progress=grow).damaged == []
    assert said
