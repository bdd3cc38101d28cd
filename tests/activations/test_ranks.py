"""Several processes on one recording, under torchrun and without it."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from scope.activations.errors import HolesWarning, RecordingError
from scope.activations.harvest.ranks import ProcessRank
from scope.activations.read.store import ActivationStore

from scope.whole_files import FolderInUse, only_writer
from tests.activations.processes import codes, start_ranks
from tests.activations.toy import Arithmetic, contents, record

ROOT = Path(__file__).parents[2]

SCRIPT = "import sys; from tests.activations.processes import harvest; harvest(*sys.argv[1:])"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "r"
    record(folder)
    return contents(folder)


def torchrun(n: int, folder: Path, deed: str, restarts: int = 0) -> subprocess.Popen:
    (folder.parent / "harvest.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    command += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", str(folder.parent / "harvest.py")]
    return subprocess.Popen(
        [*command, str(folder), "12000", deed],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def ranked(monkeypatch, rank: int, world: int) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))


def test_two_ranks_make_byte_for_byte_the_recording_of_one_process(tmp_path, whole):
    assert codes(start_ranks(2, tmp_path / "r")) == [0, 0]
    assert contents(tmp_path / "r") == whole


def test_under_torchrun_a_rank_that_is_killed_is_started_again_and_no_byte_differs(tmp_path, whole):
    said = finish(torchrun(2, tmp_path / "r", "die", restarts=2))
    assert (tmp_path / "died").exists(), said
    assert contents(tmp_path / "r") == whole


def test_a_rank_that_dies_without_a_restart_ends_the_run_and_one_process_goes_on(tmp_path, whole):
    assert codes(start_ranks(2, tmp_path / "r", deed="die")) == [1, -9]
    model = Arithmetic()
    record(tmp_path / "r", model=model)
    assert contents(tmp_path / "r") == whole
    assert model.ran < 12_000 - 3000  # what the ranks had finished is not run again


def test_a_recording_of_three_ranks_is_extended_by_one_and_again_by_two(tmp_path, whole):
    assert codes(start_ranks(3, tmp_path / "r", tokens=3000)) == [0, 0, 0]
    record(tmp_path / "r", tokens=7000)
    assert codes(start_ranks(2, tmp_path / "r")) == [0, 0]
    assert contents(tmp_path / "r") == whole


def test_sigterm_to_torchrun_leaves_what_another_number_of_ranks_continues(tmp_path, whole):
    process = torchrun(2, tmp_path / "r", "dawdle")
    patience = time.monotonic() + 60
    while not list((tmp_path / "r").glob("shard-*.h5")) and time.monotonic() < patience:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert contents(tmp_path / "r") != whole
    assert codes(start_ranks(3, tmp_path / "r")) == [0, 0, 0]
    assert contents(tmp_path / "r") == whole


def test_shards_finished_out_of_turn_are_not_shown_to_a_reader_and_not_made_twice(tmp_path, whole, monkeypatch):
    record(tmp_path / "r", tokens=2048)  # shard 0: rank 0 has begun
    ranked(monkeypatch, 2, 3)
    assert record(tmp_path / "r") is None
    with pytest.warns(HolesWarning, match=r"shard-00002\.h5 is here, but journal\.jsonl does not list it"):
        assert ActivationStore.open(tmp_path / "r").n_contexts == 32
    assert (tmp_path / "r" / "journal.rank0002.jsonl").exists()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    model = Arithmetic()
    record(tmp_path / "r", model=model)
    assert contents(tmp_path / "r") == whole
    assert model.ran == (188 - 32 - 32 - 28) * 64  # shards 0, 2 and 5 were there


def test_rank_0_does_not_wait_for_ever_for_a_rank_that_has_left(tmp_path, monkeypatch):
    from scope.activations.harvest import ranks

    monkeypatch.setattr(ranks, "_START", 1.0)
    ranked(monkeypatch, 0, 2)
    with pytest.raises(RecordingError, match="Rank 1 of 2 ended before its shards were finished"):
        record(tmp_path / "r")


def test_a_rank_refuses_a_recording_that_rank_0_began_from_something_else(tmp_path, monkeypatch):
    from scope.activations.harvest import ranks

    record(tmp_path / "r", tokens=2000)
    monkeypatch.setattr(ranks, "_PATIENCE", 0.2)
    ranked(monkeypatch, 1, 2)
    with pytest.raises(RecordingError, match="seed: recorded 0, asked 1"):
        record(tmp_path / "r", seed=1)


def test_a_rank_that_another_run_left_behind_keeps_others_out(tmp_path):
    record(tmp_path / "r", tokens=2000)
    with only_writer(tmp_path / "r", "rank0003.lock"), pytest.raises(FolderInUse, match="is being written by process"):
        record(tmp_path / "r")


def test_ranks_are_those_of_torchrun_and_nonsense_is_refused(monkeypatch):
    assert ProcessRank.of_environment() == ProcessRank(0, 1, 0)
    ranked(monkeypatch, 1, 4)
    assert ProcessRank.of_environment() == ProcessRank(1, 4, 1)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(RecordingError, match="RANK is 4 and WORLD_SIZE 4"):
        ProcessRank.of_environment()


def test_the_bar_of_rank_0_counts_what_the_others_have_done(tmp_path, monkeypatch):
    record(tmp_path / "r", tokens=2048)

    other = start_ranks(2, tmp_path / "r", only=[1])
    ranked(monkeypatch, 0, 2)
    told = []
    record(tmp_path / "r", on_progress=lambda done, total, numbers: told.append((done, total, numbers["ranks"])))
    assert codes(other) == [0]
    assert told[-1] == (188 * 64, 188 * 64, 2)
    assert all(a[0] <= b[0] for a, b in pairwise(told))
