"""Models larger than memory on the command line: refused with the way out, and recorded with --streamed."""

import pytest
import torch
from scope.activations.read.store import ActivationStore

from scope.cli.main import run
from scope.errors import ConfigError
from scope.models.checkpoints import BUNDLED
from scope.workflows.harvest import refuse_without_room


def test_weights_that_memory_does_not_hold_are_refused_with_the_way_out():
    weights = 5_831_424 * 4
    refuse_without_room("bundled", "float32", free=weights + 2**20)
    with pytest.raises(ConfigError, match=r"take 0\.0 GB as float32(.|\n)*--streamed"):
        refuse_without_room("bundled", "float32", free=weights // 2)
    refuse_without_room(str(BUNDLED), "bfloat16", free=weights // 2 + 2**20)


def test_a_streamed_recording_holds_what_the_resident_one_does(tmp_path):
    given = "--site blocks.0.hook_resid_post --tokens 1024 --context 64 --dtype float32 --batch-contexts 8".split()
    for name, more in {"resident": [], "streamed": ["--streamed"]}.items():
        assert run(["harvest", *given, "--out", str(tmp_path / name), *more]) == 0
    a, b = (ActivationStore.open(tmp_path / name) for name in ("resident", "streamed"))
    assert a.manifest.model == b.manifest.model
    x, y = (store["blocks.0.hook_resid_post"][:] for store in (a, b))
    assert len(x) > 1000
    assert torch.equal(x, y)
