import fcntl
import os

import pytest

from scope.errors import PackError
from scope.features.collect.build_folder import workshop


def test_one_process_builds_a_pack_and_leaves_nothing_behind(tmp_path):
    out = tmp_path / "deep" / "pack"
    with workshop(out, {"of": 1}, 8, 2), pytest.raises(PackError, match="being built by another process"):
        workshop(out, {"of": 1}, 8, 2).__enter__()
    assert not list(out.parent.iterdir())


def test_a_lock_that_its_holder_removed_meanwhile_keeps_others_out_all_the_same(tmp_path, monkeypatch):
    out, file, true, asked = tmp_path / "pack", tmp_path / "pack.building.lock", fcntl.flock, []

    def flock(handle, how):
        if not asked:  # the holder ends its work between this process's opening of the file and its locking it
            os.unlink(file)
        asked.append(how)
        return true(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with workshop(out, {"of": 1}, 8, 2):
        assert len(asked) == 2
        with file.open("w") as other, pytest.raises(BlockingIOError):
            true(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_a_stopped_run_left_is_kept_for_the_same_and_thrown_away_for_another(tmp_path):
    out, found = tmp_path / "pack", []

    def stopped(identity):
        with workshop(out, identity, 8, 2) as shop:
            found.append(shop.file(0).exists())
            shop.file(0).touch()
            raise KeyboardInterrupt

    for identity in ({"of": 1}, {"of": 1}, {"of": 2}):
        with pytest.raises(KeyboardInterrupt):
            stopped(identity)
    assert found == [False, True, False]
