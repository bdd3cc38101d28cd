"""The identity of weights covers every byte; what earlier versions recorded after samples is recognised, and not silently."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from scope.activations.errors import RecordingError
from scope.activations.format.continuing import must_continue
from scope.activations.format.manifest import read_recording

from scope.models import weights_hash
from scope.models.weights_hash import hash_files, sampled_hash
from scope.provenance import ModelId, SampledHashWarning

LARGE = 2**26


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """The file in which hashes are remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weights_hash, "_REMEMBERED_FROM", 1)
    return tmp_path / "cache/scope/file_sha256.json"


def weights(folder, *contents):
    folder.mkdir(exist_ok=True)
    for n, content in enumerate(contents):
        (folder / f"model-{n}.safetensors").write_bytes(content)
    return sorted(folder.glob("*.safetensors"))


@pytest.fixture
def settled(monkeypatch):
    monkeypatch.setattr(weights_hash, "_SETTLED", -1)


def counted(monkeypatch):
    """The names of files that are read to be hashed, as they are."""
    read, plain = [], weights_hash.file_sha256
    monkeypatch.setattr(weights_hash, "file_sha256", lambda file: (read.append(file.name), plain(file))[1])
    return read


def test_one_changed_byte_anywhere_in_a_large_file_is_another_identity(tmp_path, monkeypatch):
    """Version 0.1 looked at the first 4 MiB and 256 blocks; the byte lies between two of these."""
    monkeypatch.setattr(weights_hash, "_SAMPLED_FROM", LARGE)
    files = []
    for name in ("base", "edited"):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "model.safetensors")
        with open(files[-1], "wb") as file:
            file.truncate(LARGE)  # a hole: it takes no room
    with open(files[1], "r+b") as file:
        file.seek(LARGE // 2 + 5000)
        file.write(b"x")
    assert sampled_hash(files[:1]) == sampled_hash(files[1:])
    assert hash_files(files[:1]) != hash_files(files[1:])


def test_weights_below_a_gigabyte_have_the_identity_that_version_0_1_gave_them(tmp_path):
    files = weights(tmp_path, b"abc", b"")
    assert hash_files(files) == hashlib.sha256(b"".join(hashlib.sha256(c).digest() for c in (b"abc", b""))).hexdigest()
    assert sampled_hash(files) is None


def test_a_file_is_read_once_and_again_only_after_it_changed(tmp_path, memory, settled, monkeypatch):
    files = weights(tmp_path / "w", b"one", b"two")
    read = counted(monkeypatch)
    before = hash_files(files)
    assert hash_files(files) == before
    assert sorted(read) == ["model-0.safetensors", "model-1.safetensors"]
    times = os.stat(files[1])
    files[1].write_bytes(b"Two")
    os.utime(files[1], ns=(times.st_atime_ns, times.st_mtime_ns))  # of one size and time, as `cp -p` leaves it
    assert hash_files(files) != before
    assert read[2:] == ["model-1.safetensors"]


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, memory):
    """It could change once more within one tick of the clock of the file system."""
    hash_files(weights(tmp_path / "w", b"one"))
    assert not memory.exists()


@pytest.mark.parametrize("damage", ["{", "[]", '{"files": {"a": [[1], 2]}}', "[" * 100_000])
def test_a_damaged_memory_costs_only_time(tmp_path, memory, settled, damage):
    files = weights(tmp_path / "w", b"one")
    expected = hash_files(files)
    memory.write_text(damage)
    assert hash_files(files) == expected
    entries = json.loads(memory.read_text())["files"]
    memory.write_text(json.dumps({"files": {path: [state, "no hash"] for path, (state, _) in entries.items()}}))
    assert hash_files(files) == expected


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path, memory, settled):
    files = weights(tmp_path / "w", b"one")
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert hash_files(files) == hash_files(files)


RECORDED = {"model": "m", "weights_sha256": "sampled-a", "dtype": "float32"}
TODAY = {"model": "m", "weights_sha256": "b" * 64, "dtype": "float32", "weights_sampled": "sampled-a"}


def test_what_version_0_1_recorded_of_large_weights_is_recognised_with_a_warning():
    with pytest.warns(SampledHashWarning, match="samples"):
        assert ModelId.of(RECORDED).same_weights(ModelId.of(TODAY))
    with pytest.warns(SampledHashWarning):
        assert ModelId.of(TODAY).same_weights(ModelId.of(RECORDED))
    assert ModelId.of(TODAY | {"weights_sampled": "sampled-c"}).same_weights(ModelId.of(RECORDED)) is False
    assert ModelId.of(TODAY | {"weights_sha256": "c" * 64}).same_weights(ModelId.of(TODAY)) is False
    assert ModelId.of(TODAY).same_weights(ModelId.of(TODAY)) is True
    assert ModelId.of(ModelId.of(TODAY).to_json()) == ModelId.of(TODAY)


def manifest(model):
    """That of a recording, with another model."""
    recorded = read_recording(Path(__file__).parents[1] / "data" / "version_0_1_0" / "recording")
    return replace(recorded.manifest, model=model)


def test_a_recording_is_continued_by_its_model_and_refused_to_an_edited_one(tmp_path):
    must_continue(tmp_path, manifest(TODAY), manifest(TODAY))
    with pytest.warns(SampledHashWarning):
        must_continue(tmp_path, manifest(RECORDED), manifest(TODAY))
    for model in (TODAY | {"weights_sha256": "c" * 64}, TODAY | {"weights_sampled": "sampled-c"}):
        recorded = RECORDED if model["weights_sampled"] == "sampled-c" else TODAY
        with pytest.raises(RecordingError, match=r"model\.weights_sha256: recorded"):
            must_continue(tmp_path, manifest(recorded), manifest(model))


def test_files_of_one_name_are_hashed_in_the_same_order_wherever_they_lie(tmp_path):
    hashes = set()
    for i in range(12):
        files = [tmp_path / f"{side}{i}" / "model.safetensors" for side in ("tower", "trunk")]
        for file, content in zip(files, (b"one", b"other"), strict=True):
            file.parent.mkdir()
            file.write_bytes(content)
        hashes.add(hash_files(files))
    assert len(hashes) == 1
