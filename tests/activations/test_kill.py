"""kill -9 at random moments; tests/benchmarks/kills.py does a hundred."""

import random
import shutil

import pytest

from tests.activations.toy import contents, record
from tests.benchmarks.kills import kill_and_resume


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "r"
    record(folder)
    return contents(folder)


def test_after_kill_9_at_random_moments_the_resumed_recording_is_byte_for_byte_the_uninterrupted_one(tmp_path, whole):
    rng = random.Random(0)
    kills = 0
    while kills < 6:
        kills += kill_and_resume(tmp_path / "r", rng, most=4).total()
        assert contents(tmp_path / "r") == whole
        shutil.rmtree(tmp_path / "r")
