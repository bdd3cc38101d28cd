"""Training: it learns what is there, goes on to the same bits after any end, and refuses what would spoil it."""

import errno
import json
import os
import resource
import signal
import time

import pytest
import torch

from scope.errors import ConfigError, DictionaryError
from scope.evaluation.metrics import fvu
from scope.sae.engines.autograd import Autograd
from scope.sae.files import read_sae
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from scope.sae.kinds import make_sae
from scope.sae.objectives.jumprelu import JumpReLUObjective
from scope.sae.topk import BatchTopKConfig
from scope.training.progress import read_log
from scope.training.trainer import CHECKPOINT, TensorBatches, TrainConfig, train
from scope.whole_files import FolderInUse
from tests.help.forked import code, forked

SITE = "blocks.1.hook_resid_post"
SMALL = TrainConfig(steps=40, batch_size=64, save_every=7, log_every=5, calibration=512)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are tiny: threads would wait for one another longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted(rows: int = 6000, d_in: int = 24, features: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(activations, true directions): three features on the mean, over an offset, at a scale far from 1."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    active = torch.rand(rows, features, generator=generator) < 3 / features
    sizes = active * (1 + 0.25 * torch.randn(rows, features, generator=generator))
    return 30 * (sizes @ directions) + 50 * torch.ones(d_in), directions


def fresh(**changes) -> JumpReLUSAE:
    sae = JumpReLUSAE(JumpReLUConfig(**{"d_in": 24, "d_sae": 64, "target_l0": 4.0, **changes}), SITE)
    sae.provenance = {"model": {"model": "tiny"}, "site": SITE}
    return sae


def batches(seed: int = 0, size: int = 64) -> TensorBatches:
    return TensorBatches(planted()[0], size, seed)


class Stop(Exception):
    pass


def stop_at(step: int):
    def on_progress(done: int, total: int, numbers: dict) -> None:
        if done >= step:
            raise Stop

    return on_progress


def test_planted_features_are_found_at_the_target_l0(tmp_path):
    x, directions = planted(rows=20000)
    config = TrainConfig(steps=600, batch_size=128, lr=4e-3, dead_after=20000)
    seen, held_out = x[:16000], x[16000:]
    sae = train(fresh(d_sae=96), TensorBatches(seen, 128), config, tmp_path)
    latents = sae.encode(held_out)
    fvu = (sae.decode(latents) - held_out).square().sum() / (held_out - held_out.mean(0)).square().sum()
    best = (directions @ sae.W_dec.T).amax(1)
    assert (latents > 0).sum(1).float().mean().item() == pytest.approx(4.0, rel=0.1)
    assert fvu < 0.12
    assert (best > 0.9).float().mean() > 0.85
    said = sae.provenance["training"]
    assert not any("target" in note for note in said["notes"])
    assert said["dead"] <= 0.5  # 96 latents for 48 features: half of them have nothing to say


def test_the_dictionary_reads_raw_activations_and_says_what_made_it(tmp_path):
    train(fresh(), batches(), SMALL, tmp_path)
    sae = read_sae(tmp_path)
    said = sae.provenance
    x = planted()[0]
    assert (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum() < 0.9
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    assert (said["model"], said["site"], sae.site) == ({"model": "tiny"}, SITE, SITE)
    assert said["training"]["config"]["steps"] == 40
    assert said["training"]["tokens"] == 40 * 64
    assert said["training"]["scale"] == pytest.approx((x - x.mean(0)).square().sum(1).mean().sqrt().item(), rel=0.1)
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == list(range(5, 41, 5))
    assert {"error", "fvu", "sparsity", "l0", "dead", "lr", "tokens_per_second", "l0_weight"} <= set(rows[0])


class Reference(JumpReLUObjective):
    """Trained by the reference engine; keeps what is read and what is made of it."""

    def __init__(self, sae):
        super().__init__(sae)
        self.pairs = []

    def engine(self):
        return Autograd(self)

    def losses(self, x):
        with torch.no_grad():
            self.pairs.append((x.clone(), self.sae(x)))
        return super().losses(x)


@pytest.mark.parametrize("mean", [0.0, 3000.0])
@pytest.mark.parametrize("center", [True, False])
def test_fvu_in_the_log_and_as_declared_is_that_of_the_metrics_whatever_the_mean(tmp_path, mean, center):
    """Squared error over the mean square would say almost 0 here for what leaves most of the variance unexplained."""
    x = planted()[0] - 50 + mean
    config = TrainConfig(steps=40, batch_size=64, log_every=4, calibration=512, center=center)
    sae = fresh()
    reference = Reference(sae)
    train(sae, TensorBatches(x, 64), config, tmp_path, objective=reference)
    lines = [fvu(*map(torch.cat, zip(*reference.pairs[i : i + 4], strict=True))).item() for i in range(0, 40, 4)]
    assert [row["fvu"] for row in read_log(tmp_path)] == pytest.approx(lines, rel=1e-4)
    declared = read_sae(tmp_path).provenance["training"]["fvu"]
    assert declared == pytest.approx(lines[-1], rel=1e-4)
    if mean and not center:
        assert read_log(tmp_path)[-1]["error"] < declared / 10


def test_a_run_stopped_before_its_last_tenth_declares_the_fvu_of_one_that_was_not(tmp_path):
    whole = train(fresh(), batches(), SMALL, tmp_path / "whole")
    with pytest.raises(Stop):
        train(fresh(), batches(), SMALL, tmp_path / "stopped", on_progress=stop_at(15))
    resumed = train(fresh(), batches(), SMALL, tmp_path / "stopped")
    assert resumed.provenance["training"]["fvu"] == whole.provenance["training"]["fvu"]


@pytest.mark.parametrize("at", [5, 15, 30])
def test_p36_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path, at):
    whole = train(fresh(), batches(), SMALL, tmp_path / "whole")
    with pytest.raises(Stop):
        train(fresh(), batches(), SMALL, tmp_path / "stopped", on_progress=stop_at(at))
    resumed = train(fresh(), batches(), SMALL, tmp_path / "stopped")
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    without_rate = [
        [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_log(tmp_path / d)]
        for d in ("whole", "stopped")
    ]
    assert without_rate[0] == without_rate[1]


def test_p36_a_run_in_which_latents_start_anew_ends_in_the_same_bits_when_it_was_stopped(tmp_path):
    eager = {"revive_after": 64, "d_sae": 128}
    whole = train(fresh(**eager), batches(), SMALL, tmp_path / "whole")
    with pytest.raises(Stop):
        train(fresh(**eager), batches(), SMALL, tmp_path / "stopped", on_progress=stop_at(20))
    before, after = read_log(tmp_path / "stopped")[-1], read_log(tmp_path / "whole")[-1]
    assert 0 < before["revived"] < after["revived"]  # some on either side of the stop
    assert any("anew" in note for note in whole.provenance["training"]["notes"])
    resumed = train(fresh(**eager), batches(), SMALL, tmp_path / "stopped")
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_p36_killed_interrupted_or_terminated_the_same_command_ends_in_the_same_bits(tmp_path, number):
    from tests.training import children

    process = forked(children.one, tmp_path / "killed", 0.5)
    limit = time.monotonic() + 300
    while not (tmp_path / "killed" / CHECKPOINT).exists() and process.is_alive() and time.monotonic() < limit:
        time.sleep(0.02)
    os.kill(process.pid, number)
    ended = code(process)
    assert ended == {signal.SIGKILL: -9, signal.SIGTERM: 143}.get(number, ended)
    assert ended != 0
    assert (tmp_path / "killed" / CHECKPOINT).exists()
    with pytest.raises(DictionaryError, match="has not finished"):
        read_sae(tmp_path / "killed")
    resumed = train(fresh(), batches(), SMALL, tmp_path / "killed")
    whole = train(fresh(), batches(), SMALL, tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_finished_run_is_given_back_and_not_done_again(tmp_path):
    first = train(fresh(), batches(), SMALL, tmp_path)
    again = train(fresh(), batches(), SMALL, tmp_path, on_progress=stop_at(0))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_run_begun_with_other_settings_is_refused_and_they_are_named(tmp_path):
    with pytest.raises(Stop):
        train(fresh(), batches(), SMALL, tmp_path, on_progress=stop_at(5))
    with pytest.raises(ConfigError, match=r"dictionary\.target_l0: 4\.0 then, 5\.0 now"):
        train(fresh(target_l0=5.0), batches(), SMALL, tmp_path)
    other = fresh()
    other.provenance["model"] = {"model": "another"}
    with pytest.raises(ConfigError, match=r"from\.model\.model: tiny then, another now"):
        train(other, batches(), SMALL, tmp_path)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(ConfigError, match="not trained there"):
        train(fresh(), batches(), SMALL, tmp_path)


def test_a_trained_dictionary_is_not_begun_anew_and_a_fresh_one_of_its_settings_is(tmp_path):
    first = train(fresh(), batches(), SMALL, tmp_path / "first")
    loaded = read_sae(tmp_path / "first")
    for given in (loaded, first):
        with pytest.raises(ConfigError, match=r"(?s)would be lost.*make_sae"):
            train(given, batches(), SMALL, tmp_path / "second")
        assert all(
            torch.equal(a, b) for a, b in zip(given.parameters(), read_sae(tmp_path / "first").parameters(), strict=True)
        )
    assert train(first, batches(), SMALL, tmp_path / "first").provenance["training"]  # finished: nothing is begun
    again = train(make_sae(loaded.config, loaded.site), batches(), SMALL, tmp_path / "second")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_two_runs_cannot_share_a_folder(tmp_path):
    def another_begins(*_):
        train(fresh(), batches(), SMALL, tmp_path)

    with pytest.raises(FolderInUse, match=r"used for a training by process \d+"):
        train(fresh(), batches(), SMALL, tmp_path, on_progress=another_begins)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_p35_a_value_that_is_no_number_is_refused_with_its_place_and_the_checkpoint_stays_sound(tmp_path, value):
    x = planted()[0][: 64 * 20]
    source = TensorBatches(x.clone(), 64)
    bad = next(iter(TensorBatches(torch.arange(len(x))[:, None], 64)))  # rows of the first batch
    later = [b for _, b in zip(range(12), TensorBatches(torch.arange(len(x))[:, None], 64), strict=False)][10]
    assert not set(bad.flatten().tolist()) & set(later.flatten().tolist())
    source.rows[later[3, 0], 7] = value
    config = TrainConfig(steps=20, batch_size=64, save_every=5, calibration=128)
    with pytest.raises(ConfigError, match="row 3 of the batch of step 10"):
        train(fresh(), source, config, tmp_path)
    assert (tmp_path / CHECKPOINT).exists()


def test_activations_of_another_width_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="reads"):
        train(fresh(d_in=23), batches(), SMALL, tmp_path)


def test_activations_that_end_too_early_are_refused(tmp_path):
    class Few(TensorBatches):
        def __iter__(self):
            for _, x in zip(range(3), super().__iter__(), strict=False):
                yield x

    with pytest.raises(ConfigError, match="ended after 3 of 40"):
        train(fresh(), Few(planted()[0], 64), TrainConfig(steps=40, batch_size=64, calibration=64), tmp_path)


def test_equal_activations_teach_nothing_and_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="equal"):
        train(fresh(), TensorBatches(torch.ones(200, 24), 64), SMALL, tmp_path)


def test_p34_a_target_that_was_not_reached_is_said(tmp_path):
    sae = train(fresh(target_l0=1.0), batches(), TrainConfig(steps=3, batch_size=64, log_every=1), tmp_path)
    assert any("was not reached" in note for note in sae.provenance["training"]["notes"])


def test_a_dictionary_that_is_worse_than_none_says_so_first(tmp_path):
    config = TrainConfig(steps=20, batch_size=64, log_every=1, lr=100.0)
    said = train(fresh(), batches(), config, tmp_path).provenance["training"]
    assert said["fvu"] > 1
    assert said["notes"][0].startswith("It is worse than predicting the mean activation")
    assert "Lower lr (100)" in said["notes"][0]


def test_in_a_short_run_too_the_threshold_of_a_batch_topk_lets_k_latents_fire(tmp_path):
    x = planted()[0]
    for steps, k in ((30, 4), (60, 12)):
        sae = make_sae(BatchTopKConfig(d_in=24, d_sae=256, k=float(k)), SITE)
        config = TrainConfig(steps=steps, batch_size=64, log_every=5)
        trained = train(sae, TensorBatches(x, 64), config, tmp_path / str(steps))
        assert (trained.encode(x) > 0).sum(1).float().mean().item() == pytest.approx(k, rel=0.15)


def test_p31_dead_latents_are_counted(tmp_path):
    class HalfDead(JumpReLUObjective):
        def start(self, sample, seed=0):
            super().start(sample, seed)
            self.sae.threshold.data[:32].fill_(1e3)

    sae = fresh(threshold_rate=0.0)
    config = TrainConfig(steps=40, batch_size=64, dead_after=1000, log_every=10)
    trained = train(sae, batches(), config, tmp_path, objective=HalfDead(sae))
    assert trained.provenance["training"]["dead"] == pytest.approx(0.5, abs=0.05)
    assert any("dead" in note for note in trained.provenance["training"]["notes"])
    assert read_log(tmp_path)[-1]["dead"] == trained.provenance["training"]["dead"]


def test_the_reference_engine_trains_to_the_same_dictionary_within_rounding(tmp_path):
    fast = train(fresh(), batches(), SMALL, tmp_path / "fast")
    sae = fresh()
    slow = train(sae, batches(), SMALL, tmp_path / "slow", objective=Reference(sae))
    x = planted()[0]
    assert (fast(x) - slow(x)).norm() / (x - x.mean(0)).norm() < 1e-2


def test_a_full_disk_leaves_the_last_checkpoint_and_with_room_again_the_run_ends_in_the_same_bits(tmp_path):
    out = tmp_path / "full"
    with pytest.raises(Stop):
        train(fresh(), batches(), SMALL, out, on_progress=stop_at(10))
    before = (out / CHECKPOINT).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # room for the log, not for a checkpoint
    try:
        with pytest.raises(OSError, match=r".") as caught:
            train(fresh(), batches(), SMALL, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert (out / CHECKPOINT).read_bytes() == before
    assert not list(out.glob("*.tmp"))
    assert json.loads((out / "training.json").read_text())["kind"] == "jumprelu"
    resumed, whole = train(fresh(), batches(), SMALL, out), train(fresh(), batches(), SMALL, tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
