"""Recordings in an object store: memory://, file://, and a store that fails midway."""

from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from scope.activations.config import STAGING
from scope.activations.errors import RecordingError
from scope.activations.format import remote
from scope.activations.format.remote import address, folder_for
from scope.activations.harvest.plan import plan
from scope.activations.harvest.repair import examine, repair
from scope.activations.read.store import ActivationStore

from tests.activations.processes import codes, start_ranks
from tests.activations.toy import Arithmetic, ByteTokenizer, config, contents, numbers, record


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Staging and fetched shards go below the test's folder, and memory:// is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "_PAUSE", 0.0)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "r"
    record(folder)
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name != "recording.lock"}


def stored(url: str) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(url)
    return {name.rsplit("/", 1)[-1]: fs.cat_file(name) for name in sorted(fs.ls(root, detail=False))}


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_what_arrives_in_a_store_is_byte_for_byte_what_a_folder_would_hold(tmp_path, whole, kind):
    url = "memory://bucket/r" if kind == "memory" else f"file://{tmp_path}/there/r"
    record(url)
    assert stored(url) == whole


def test_a_sealed_shard_does_not_stay_in_the_staging_folder(whole):
    record("memory://bucket/r")
    left = list(folder_for("memory://bucket/r", STAGING).iterdir())
    assert not [p for p in left if p.suffix in (".h5", ".tmp") or p.name.startswith("staged")]


def test_a_recording_in_a_store_is_extended_in_steps_and_from_another_machine(whole):
    record("memory://bucket/r", tokens=3000, staging=Path("one"))
    model = Arithmetic()
    record("memory://bucket/r", tokens=3000, staging=Path("two"), model=model)
    assert model.ran == 0
    record("memory://bucket/r", tokens=7000, staging=Path("two"))
    record("memory://bucket/r", staging=Path("three"), model=model)
    assert stored("memory://bucket/r") == whole
    assert model.ran < 12_100 - 6 * 1024


def test_it_is_read_in_place_and_only_the_shards_that_are_asked_for_come(tmp_path):
    record("memory://bucket/r", dtype="float32")
    store = ActivationStore.open("memory://bucket/r")
    assert not list(store.folder.glob("*.h5"))
    local = record(tmp_path / "local", dtype="float32")
    assert torch.equal(store["a"][2100:2200], local["a"][2100:2200])
    assert len(list(store.folder.glob("*.h5"))) == 1
    assert store.verify() == []
    ours, theirs = (list(s.shuffled("a", 128, seed=2, epochs=1)) for s in (store, local))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_path_that_has_eaten_a_slash_of_an_address_still_means_it(tmp_path):
    record("memory://bucket/r", tokens=2000)
    assert ActivationStore.open(Path("memory://bucket/r")).n_contexts == 32
    assert address(Path("s3://bucket/a/b")) == "s3://bucket/a/b"
    assert address(Path("file:///data/r")) == "file:///data/r"
    assert address("runs/demo") is None
    assert address(Path("/data/run:1/r")) is None


def test_a_changed_corpus_and_other_things_in_the_place_are_refused(tmp_path):
    record("memory://bucket/r", tokens=2000)
    with pytest.raises(RecordingError, match=r"corpus\.n: recorded 300, asked 299"):
        record("memory://bucket/r", corpus=numbers(299))
    fsspec.filesystem("memory").pipe("/other/thesis.tex", b"years of work")
    with pytest.raises(RecordingError, match=r"is no recording and not empty; it holds thesis\.tex"):
        record("memory://other")


def test_a_store_that_does_not_exist_is_refused_with_what_there_is():
    with pytest.raises(RecordingError, match="nosuch://bucket/r cannot be opened"):
        record("nosuch://bucket/r")
    with pytest.raises(RecordingError, match="There is no recording in memory://empty"):
        ActivationStore.open("memory://empty")


class Flaky(MemoryFileSystem):
    """memory:// whose sending fails: half of the file arrives, then the line is cut."""

    protocol = "flaky"
    cachable = False
    fails: ClassVar[list[str]] = []  # beginnings of names whose next sending fails

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def put_file(self, lpath, rpath, **kwargs):
        data = Path(lpath).read_bytes()
        for name in list(self.fails):
            if rpath.rsplit("/", 1)[-1].startswith(name):
                self.fails.remove(name)
                self.pipe_file(rpath, data[: len(data) // 2])
                raise OSError("connection reset by peer")
        self.pipe_file(rpath, data)


@pytest.fixture
def flaky():
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.fails = []
    return Flaky


def test_a_store_that_fails_once_is_asked_again(flaky, whole):
    flaky.fails = ["shard-00002", "journal", "manifest"]
    record("flaky://bucket/r")
    assert flaky.fails == []
    assert stored("memory://bucket/r") == whole


@pytest.mark.parametrize("name", ["shard-00002", "journal", "manifest"])
def test_what_is_half_sent_does_not_count_and_the_same_call_goes_on(flaky, whole, name):
    flaky.fails = [name] * 3
    with pytest.raises(RecordingError, match=f"does not let us send {name}.*: connection reset by peer"):
        record("flaky://bucket/r")
    half = stored("memory://bucket/r")
    if name == "shard-00002":
        assert len(half["shard-00002.h5"]) < len(whole["shard-00002.h5"])
        store = ActivationStore.open("flaky://bucket/r")
        assert store.n_contexts == 64
        assert store.verify() == []
    model = Arithmetic()
    record("flaky://bucket/r", model=model)
    assert stored("memory://bucket/r") == whole
    if name == "shard-00002":
        assert model.ran == (188 - 96) * 64  # the shard that was sealed here is sent, not made again


def test_no_bucket_is_made_of_a_name_that_may_be_misspelt(flaky, whole, monkeypatch):
    monkeypatch.setattr(remote, "_BUCKETS", {"flaky"})
    monkeypatch.setattr(Flaky, "makedirs", lambda *args, **kwargs: pytest.fail("a bucket was made"))
    record("flaky://bucket/r")
    assert stored("memory://bucket/r") == whole


def test_a_half_sent_shard_is_made_again_where_the_staging_folder_is_lost(flaky, whole):
    flaky.fails = ["shard-00002"] * 3
    with pytest.raises(RecordingError, match="does not let us send"):
        record("flaky://bucket/r", staging=Path("lost"))
    record("flaky://bucket/r", staging=Path("new"))
    assert stored("memory://bucket/r") == whole


def test_a_shard_that_the_store_lost_is_named_when_it_is_opened():
    record("memory://bucket/r")
    fsspec.filesystem("memory").rm_file("/bucket/r/shard-00001.h5")
    with pytest.raises(RecordingError, match=r"shard-00001\.h5 is missing in memory://bucket/r"):
        ActivationStore.open("memory://bucket/r")


def test_verify_reads_the_store_and_not_the_copy_here_and_keeps_no_copy(tmp_path):
    record("memory://bucket/r")
    store = ActivationStore.open("memory://bucket/r")
    assert len(store["a"][:]) == store.n_rows
    copies = sorted(p.name for p in store.folder.glob("*.h5"))
    assert examine("memory://bucket/r").damaged == []
    fs = fsspec.filesystem("memory")
    data = bytearray(fs.cat_file("/bucket/r/shard-00002.h5"))
    data[len(data) // 2] ^= 1
    fs.pipe_file("/bucket/r/shard-00002.h5", bytes(data))
    fs.rm_file("/bucket/r/shard-00004.h5")
    assert [d.file for d in examine("memory://bucket/r").damaged] == ["shard-00002.h5", "shard-00004.h5"]
    assert sorted(p.name for p in (tmp_path / remote.FETCHED).rglob("*.h5")) == copies
    with pytest.raises(RecordingError, match="is in a store, and repair moves files within a folder"):
        repair("memory://bucket/r")


def test_a_plan_for_a_store_asks_for_room_to_stage_and_not_for_all(tmp_path):
    arguments = Arithmetic(), ByteTokenizer(), numbers(), config(tokens=10**13), "memory://bucket/r", {"model": "toy"}
    planned = plan(*arguments)
    assert planned.nbytes > 10**14
    assert planned.free is None


def test_two_ranks_send_to_one_store_what_one_process_would(tmp_path, whole):
    ranks = start_ranks(2, f"file://{tmp_path}/there", staging=tmp_path / "staging")
    assert codes(ranks) == [0, 0]
    assert stored(f"file://{tmp_path}/there") == whole
