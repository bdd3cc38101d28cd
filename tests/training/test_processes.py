"""Several processes, really started by torchrun: what they train together equals what one trains, and survives any end.

Those that are killed are forked from a server that has imported torch, and find each other as torchrun's processes do.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch

from scope.errors import ConfigError
from scope.sae.files import read_sae
from scope.sae.topk import TopKConfig, TopKSAE
from scope.training.checkpoint import load_state
from scope.training.config import TrainConfig
from scope.training.processes import ProcessGroup
from scope.training.trainer import CHECKPOINT, Job, train_all
from tests.help.forked import code, forked
from tests.training.planted import ROOT, SMALL, TwoSites, grid, job, same
from tests.training.processes_child import rank

GPUS = torch.cuda.device_count()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(GPUS < 2, reason="needs two GPUs"))]


def torchrun(out, modes: str, device: str = "cpu") -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.training.processes_child", str(out), modes, device]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, timeout=280).returncode


def start_two(out, mode: str, die_at: int = 0) -> list[int]:
    """How two processes end that train in one way; the second is killed at a step, if one is named."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [code(process) for process in [forked(rank, r, 2, port, out, [mode], die_at) for r in range(2)]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("alone")
    return train_all(grid(out, revive_after=64), TwoSites(), out)


@pytest.fixture(scope="module", params=DEVICES)
def together(tmp_path_factory, request):
    """(what two processes of torchrun make in each of the three ways, on which device)."""
    out = tmp_path_factory.mktemp("together")
    assert torchrun(out, "data,width,site", request.param) == 0
    return out, request.param


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What two processes leave of which one was killed at step 24."""
    out = tmp_path_factory.mktemp("killed")
    first, second = start_two(out, "width", die_at=24)
    assert first != 0
    assert second == -signal.SIGKILL
    return out


def gap(a, b) -> float:
    """The largest difference of two dictionaries' parameters, as a share of the parameter's largest number."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max() / p.detach().abs().max()) for p, q in pairs)


def test_two_processes_equal_one_up_to_the_order_of_sums_and_dealt_dictionaries_to_the_bit(together, alone):
    out, device = together
    for name, one in zip("abc", alone, strict=True):
        assert gap(read_sae(out / "data" / name), one) < 1e-5
        assert gap(read_sae(out / "width" / name), one) < 1e-5
        if device == "cpu":
            assert same(read_sae(out / "site" / name), one)
    assert not list(out.rglob("checkpoint*"))
    assert read_sae(out / "width" / "a").provenance["training"]["processes"] == 2


def test_p36_after_one_process_was_killed_the_others_end_and_the_same_command_ends_in_the_same_bits(killed, tmp_path):
    state = load_state(killed / "width" / CHECKPOINT)
    assert state["step"] == 21
    for kept in state["learners"]["0"]["adam"].values():  # of all latents, each process's own: not one share twice
        assert kept["exp_avg"].shape in [(24, 64), (64, 24), (64,), (24,)]
    W = state["learners"]["0"]["adam"]["W_dec"]["exp_avg"]
    assert not torch.equal(W[:32], W[32:])
    assert start_two(tmp_path / "whole", "width") == [0, 0]
    again = shutil.copytree(killed, tmp_path / "again")
    assert start_two(again, "width") == [0, 0]
    for name in "abc":
        assert same(read_sae(again / "width" / name), read_sae(tmp_path / "whole" / "width" / name))


def test_p36_what_two_processes_began_one_can_finish(killed, tmp_path, alone):
    out = shutil.copytree(killed, tmp_path / "finished") / "width"
    finished = train_all(grid(out, revive_after=64), TwoSites(), out)
    assert max(gap(a, b) for a, b in zip(finished, alone, strict=True)) < 1e-5


def test_p36_dealt_dictionaries_go_on_only_as_they_were_dealt(tmp_path):
    (tmp_path / "checkpoint-0-of-2.safetensors").touch()
    with pytest.raises(ConfigError, match="dealt to 2 processes; now there are 1"):
        train_all(grid(tmp_path, revive_after=64), TwoSites(), tmp_path)
    with pytest.raises(ConfigError, match="Start 2"):
        train_all(grid(tmp_path, revive_after=64), TwoSites(), tmp_path, None, ProcessGroup("site", 0, 3))
    (tmp_path / "checkpoint-0-of-2.safetensors").rename(tmp_path / CHECKPOINT)
    with pytest.raises(ConfigError, match="without dealing"):
        train_all(grid(tmp_path, revive_after=64), TwoSites(), tmp_path, None, ProcessGroup("site", 0, 2))


def test_dictionaries_are_dealt_in_order_each_to_one_and_some_to_each():
    for costs in ([1, 1, 1, 1, 1], [100, 1, 1, 1, 1], [1, 1, 1, 1, 100]):
        dealt = [ProcessGroup("site", r, 3).deal("abcde", costs) for r in range(3)]
        assert [x for part in dealt for x in part] == list("abcde")
        assert all(dealt)
    assert [len(ProcessGroup("site", r, 2).deal("abcd", [1, 1, 1, 1])) for r in range(2)] == [2, 2]
    with pytest.raises(ConfigError, match="cannot be dealt to 3"):
        ProcessGroup("site", 0, 3).deal("ab", [1, 1])


@pytest.mark.parametrize(
    ("mode", "made", "said"),
    [
        ("data", lambda out: job(out, config=TrainConfig(**{**vars(SMALL), "batch_size": 63})), "shared evenly"),
        ("data", lambda out: Job(TopKSAE(TopKConfig(d_in=24, d_sae=64, k=4)), SMALL, out), "depends on the whole batch"),
        ("width", lambda out: Job(TopKSAE(TopKConfig(d_in=24, d_sae=64, k=4)), SMALL, out), "plain jumprelu"),
        ("width", lambda out: job(out, d_sae=128, nested=(16,)), "nested widths"),
        ("width", lambda out: job(out, d_sae=1, target_l0=1.0), "cannot be split"),
    ],
)
def test_a_division_that_would_change_the_result_is_refused(tmp_path, mode, made, said):
    with pytest.raises(ConfigError, match=said):
        train_all([made(tmp_path)], TwoSites(), tmp_path, None, ProcessGroup(mode, 0, 2))


@pytest.mark.skipif(not GPUS, reason="needs a GPU")
def test_on_a_gpu_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total, numbers):
        if done >= 25:
            raise Stop

    def jobs(out):
        made = grid(out, revive_after=64)
        for one in made:
            one.sae.to("cuda")
        return made

    whole = train_all(jobs(tmp_path / "whole"), TwoSites(), tmp_path / "whole")
    with pytest.raises(Stop):
        train_all(jobs(tmp_path / "stopped"), TwoSites(), tmp_path / "stopped", stop)
    resumed = train_all(jobs(tmp_path / "stopped"), TwoSites(), tmp_path / "stopped")
    assert all(same(a, b) for a, b in zip(whole, resumed, strict=True))
