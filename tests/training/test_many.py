"""Many dictionaries in one pass: each as if it were alone, and all kept, stopped and continued together."""

import errno
import random
import resource
import signal
import time
from dataclasses import replace

import pytest
import torch

from scope.errors import ConfigError
from scope.sae.files import read_sae
from scope.sae.objectives.jumprelu import JumpReLUObjective
from scope.training.config import TrainConfig
from scope.training.grid import cells
from scope.training.plan import plan, refuse_what_does_not_fit
from scope.training.progress import read_log
from scope.training.trainer import CHECKPOINT, Job, TensorBatches, train, train_all
from tests.help.forked import code, forked
from tests.training import children
from tests.training.planted import SITES, SMALL, TwoSites, grid, job, planted, same


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The three dictionaries of the grid, trained without interruption."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    return train_all(grid(out, revive_after=64), TwoSites(), out), out


def test_each_of_many_ends_in_the_bits_in_which_it_ends_alone(whole, tmp_path):
    together, out = whole
    assert read_log(out / "b")[-1]["revived"] > 0  # so this is true of revival too
    assert "revived" not in read_log(out / "a")[-1]
    for one, sae in zip(grid(tmp_path, revive_after=64), together, strict=True):
        alone = train_all([one], TwoSites((one.sae.site,)), one.out)[0]
        assert same(alone, sae)
        assert same(read_sae(out / one.out.name), sae)
        rows = [
            [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_log(o)]
            for o in (one.out, out / one.out.name)
        ]
        assert rows[0] == rows[1]


class Stop(Exception):
    pass


def test_p36_many_that_were_stopped_end_in_the_same_bits(whole, tmp_path):
    def stop(done, total, numbers):
        if done >= 25:
            raise Stop

    with pytest.raises(Stop):
        train_all(grid(tmp_path, revive_after=64), TwoSites(), tmp_path, stop)
    resumed = train_all(grid(tmp_path, revive_after=64), TwoSites(), tmp_path)
    assert all(same(a, b) for a, b in zip(whole[0], resumed, strict=True))
    assert not list(tmp_path.glob("checkpoint*"))


def test_p36_killed_again_and_again_at_any_moment_they_end_in_the_same_bits(whole, tmp_path):
    chance, kills = random.Random(time.time()), 0
    for _ in range(12):
        process, before = forked(children.many, tmp_path, 0.15), (tmp_path / CHECKPOINT).exists()
        limit = time.monotonic() + 100
        while not (tmp_path / CHECKPOINT).exists() and process.is_alive() and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(chance.uniform(2.0, 3.5) if before else chance.uniform(0.0, 0.3))
        process.kill()
        kills += code(process) == -signal.SIGKILL
        if kills == 3 or process.exitcode == 0:
            break
    assert kills >= 1
    resumed = train_all(grid(tmp_path, revive_after=64), TwoSites(), tmp_path)
    assert all(same(a, b) for a, b in zip(whole[0], resumed, strict=True))


@pytest.mark.parametrize("place", [1, 90, 165])
def test_p36_killed_in_the_middle_of_a_checkpoint_the_one_before_counts(whole, tmp_path, place):
    assert code(forked(children.many_until, tmp_path, place)) == -signal.SIGKILL
    assert list(tmp_path.glob("*.tmp"))
    assert (tmp_path / CHECKPOINT).exists() == (place > 1)
    resumed = train_all(grid(tmp_path, revive_after=64), TwoSites(), tmp_path)
    assert all(same(a, b) for a, b in zip(whole[0], resumed, strict=True))
    assert not list(tmp_path.glob("checkpoint*"))


def test_a_full_disk_in_the_middle_of_a_checkpoint_leaves_the_one_before_and_says_so(whole, tmp_path):
    def stop(done, total, numbers):
        if done >= 10:
            raise Stop

    with pytest.raises(Stop):
        train_all(grid(tmp_path, revive_after=64), TwoSites(), tmp_path, stop)
    before = (tmp_path / CHECKPOINT).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"was not saved; the last one, .* is untouched") as caught:
            train_all(grid(tmp_path, revive_after=64), TwoSites(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))
    resumed = train_all(grid(tmp_path, revive_after=64), TwoSites(), tmp_path)
    assert all(same(a, b) for a, b in zip(whole[0], resumed, strict=True))


def test_random_numbers_that_one_draws_move_no_other(whole, tmp_path):
    jobs = grid(tmp_path, revive_after=64)
    greedy = JumpReLUObjective(jobs[0].sae)
    after_step = greedy.after_step
    greedy.after_step = lambda l0, progress: (torch.rand(7), after_step(l0, progress))[1]
    jobs[0] = replace(jobs[0], objective=greedy)
    before = torch.get_rng_state()
    assert all(same(a, b) for a, b in zip(whole[0], train_all(jobs, TwoSites(), tmp_path), strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_what_does_not_share_one_pass_is_refused(tmp_path):
    longer = TrainConfig(**{**vars(SMALL), "steps": 60})
    with pytest.raises(ConfigError, match="share one steps; these have 50, 60"):
        train_all([job(tmp_path / "a"), job(tmp_path / "b", config=longer)], TwoSites(), tmp_path)


def test_a_grid_is_every_combination_and_its_names_say_which():
    found = cells(["s1", "s2"], {"d_sae": (64, 128), "target_l0": (8.0,), "seed": (0, 1), "l0_weight": (None,)})
    assert [c.name for c in found[:4]] == ["s1-d64-l0_8-seed0", "s1-d64-l0_8-seed1", "s1-d128-l0_8-seed0", "s1-d128-l0_8-seed1"]
    assert (len(found), found[4].site, len({c.name for c in found})) == (8, "s2", 8)
    swept = cells(["s"], {"d_sae": (64,), "target_l0": (8.0,), "l0_weight": (1e-3, 2e-3)})
    assert [c.name for c in swept] == ["s-d64-lambda0.001", "s-d64-lambda0.002"]


def test_the_memory_that_is_needed_is_known_before_and_more_than_there_is_is_refused(tmp_path):
    configs = [job(tmp_path, d_sae=64).sae.config] * 3
    cpu = torch.device("cpu")
    planned = plan(configs, 64, 1000, cpu)
    each = 2 * 24 * 64 + 2 * 64 + 24
    assert (planned.dictionaries, planned.parameters, planned.weights) == (3, 3 * each, 12 * each)
    assert planned.optimiser == 3 * planned.weights
    refuse_what_does_not_fit(planned, cpu)
    huge = plan([job(tmp_path, d_sae=64).sae.config.__class__(d_in=4096, d_sae=2**26)], 64, 0, cpu)
    with pytest.raises(ConfigError, match="GB are free"):
        refuse_what_does_not_fit(huge, cpu)


def test_a_pre_encoder_bias_has_the_gradient_of_its_formula_and_is_folded_away(tmp_path):
    from scope.training.learner import Learner
    from scope.training.processes import ProcessGroup

    config = TrainConfig(**{**vars(SMALL), "pre_bias": True})
    made = job(tmp_path, config=config, bandwidth=0.05)
    made.sae.double()
    learner = Learner(made, ProcessGroup())
    x = planted(200)[0].double() / 100
    learner.begin(torch.zeros(24).double(), 1.0, x)
    sae = learner.sae
    with torch.no_grad():
        sae.b_dec.normal_(0, 0.1)
    learner.objective.control.weight = 0.01
    learner._gradients(x)
    got = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    from scope.sae.objectives.jumprelu import Jump

    shifted = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    x_hat = Jump.apply(shifted, sae.threshold, sae.config.bandwidth) @ sae.W_dec + sae.b_dec
    (x_hat - x).square().sum(1).mean().backward()
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(got[name], sae.get_parameter(name).grad, rtol=1e-9, atol=1e-11)
    trained = train(job(tmp_path / "t", config=config).sae, TensorBatches(planted()[0], 64), config, tmp_path / "t")
    x = planted()[0]
    assert (trained(x) - x).square().sum() / (x - x.mean(0)).square().sum() < 0.9


def test_a_row_that_is_no_number_is_named_with_its_site(tmp_path):
    batches = TwoSites()
    batches.each[1].rows[:, 3] = float("nan")
    with pytest.raises(ConfigError, match=rf"activations of {SITES[1]} hold NaN or Inf: row 0"):
        train_all([Job(j.sae, j.config, j.out) for j in grid(tmp_path, revive_after=64)], batches, tmp_path)
