import fcntl
import os

import pytest

from scope.features.collect.build_folder import begin
from scope.whole_files import FolderInUse


def test_one_process_builds_a_pack_and_leaves_nothing_behind(tmp_path):
    out = tmp_path / "deep" / "pack"
    with begin(out, {"of": 1}, 8, 2), pytest.raises(FolderInUse, match=f"being built by process {os.getpid()} on "):
        begin(out, {"of": 1}, 8, 2).__enter__()
    assert not list(out.parent.iterdir())


def test_a_lock_whose_folder_its_holder_removed_meanwhile_keeps_others_out_all_the_same(tmp_path, monkeypatch):
    out, true, tried = tmp_path / "pack", fcntl.flock, []
    file = tmp_path / "pack.building" / ".lock"

    def flock(handle, how):
        if not tried:  # the holder ends its work between this process's opening of the file and its locking it
            os.unlink(file)
        tried.append(how)
        return true(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with begin(out, {"of": 1}, 8, 2):
        assert len(tried) == 2
        with file.open("w") as other, pytest.raises(BlockingIOError):
            true(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_a_stopped_run_left_is_kept_for_the_same_and_thrown_away_for_another(tmp_path):
    out, found = tmp_path / "pack", []

    def stopped(identity):
        with begin(out, identity, 8, 2) as building:
            found.append((building.folder / "codes-00000.npz").exists())
            (building.folder / "codes-00000.npz").touch()
            raise KeyboardInterrupt

    for identity in ({"of": 1}, {"of": 1}, {"of": 2}):
        with pytest.raises(KeyboardInterrupt):
            stopped(identity)
    assert found == [False, True, False]
