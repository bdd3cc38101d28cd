"""Locks hold with and without locks of the file system, and nothing is written through a link that somebody left."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from scope.whole_files import FolderInUse, file_aside, has_locks, is_held, only_writer, remove_asides, whole_file, whole_folder

HOLD = """
import errno, sys
from pathlib import Path
import filelock
from scope.whole_files import only_writer

def without_locks(*args, **kwargs):
    raise OSError(errno.ENOLCK, "No locks available")

if sys.argv[2] == "none":
    filelock.lock_descriptor = without_locks
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["locks", "none"])
def locks(request, monkeypatch) -> str:
    """A file system with locks, and one that answers as NFS and Lustre without a lock service do."""

    def without_locks(*args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    if request.param == "none":
        monkeypatch.setattr(filelock, "lock_descriptor", without_locks)
    return request.param


def test_a_second_writer_is_refused_by_the_name_of_the_first_and_let_in_after_it(tmp_path, locks):
    assert has_locks(tmp_path) == (locks == "locks")
    assert not is_held(tmp_path)
    with only_writer(tmp_path):
        assert is_held(tmp_path)
        with pytest.raises(FolderInUse, match=f"is being written by process {os.getpid()} on "), only_writer(tmp_path):
            pass
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with only_writer(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_killed_process_lets_go_of_its_lock(tmp_path, locks):
    child = [sys.executable, "-c", HOLD, str(tmp_path), locks]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert is_held(tmp_path)
        with pytest.raises(FolderInUse, match=f"by process {process.pid} on "), only_writer(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not is_held(tmp_path)
    with only_writer(tmp_path):
        assert is_held(tmp_path)


def test_a_lock_of_another_host_is_kept_where_there_are_none_and_the_message_names_its_file(tmp_path, monkeypatch):
    def without_locks(*args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock, "lock_descriptor", without_locks)
    (tmp_path / ".lock").write_text("process 7 on elsewhere\n")
    (tmp_path / ".lock.soft").write_text("7\nelsewhere\n")
    assert is_held(tmp_path)
    with pytest.raises(FolderInUse, match=r"by process 7 on elsewhere(.|\n)*remove .*\.lock\.soft"), only_writer(tmp_path):
        pass


def test_a_link_in_the_place_of_a_lock_or_of_a_file_to_be_written_is_not_followed(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (".lock", "data", ".data.tmp", "data.tmp"):
        (folder / name).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"), only_writer(folder):
        pass
    with whole_file(folder / "data") as file:
        file.write(b"new")
    with file_aside(folder / "data") as aside:
        assert aside.stat().st_size == 0
        aside.write_text("newer")
    assert (victim.read_text(), (folder / "data").read_text()) == ("mine", "newer")
    assert not (folder / "data").is_symlink()


def test_two_files_aside_never_share_a_name_and_leftovers_of_one_target_alone_are_removed(tmp_path):
    with file_aside(tmp_path / "a[1]") as one, file_aside(tmp_path / "a[1]") as two:
        assert one != two
    left = [tmp_path / ".a[1].0123456789ab.tmp", tmp_path / ".a1.0123456789ab.tmp"]
    for path in left:
        path.touch()
    remove_asides(tmp_path / "a[1]")
    assert [path.exists() for path in left] == [False, True]


def test_a_failed_writer_leaves_what_was_there_and_nothing_else(tmp_path):
    (tmp_path / "a").write_text("old")
    for writer in (whole_file, file_aside):
        with pytest.raises(RuntimeError), writer(tmp_path / "a"):
            raise RuntimeError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_replacing_a_folder_takes_no_folder_of_the_user_away(tmp_path):
    for name in ("pack", "pack.old", "pack.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text(name)
    with whole_folder(tmp_path / "pack") as aside:
        Path(aside, "new").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pack", "pack.old", "pack.tmp"]
    assert [path.name for path in (tmp_path / "pack").iterdir()] == ["new"]
    assert (tmp_path / "pack.old" / "mine").read_text() == "pack.old"
