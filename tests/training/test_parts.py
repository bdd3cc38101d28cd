"""The parts of a training run, each by itself."""

import json
import os
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scope.errors import ConfigError, DictionaryError
from scope.renamed import RenamedWarning
from scope.sae.kinds import KINDS, make_objective, make_sae
from scope.training.batches import OutliersWarning, TensorBatches
from scope.training.checkpoint import load_state, save_state
from scope.training.config import TrainConfig, rate
from scope.training.progress import Log, read_log
from scope.training.trainer import train


def test_the_rate_rises_stays_and_falls():
    rates = [rate(step, 10, warmup=0.2, decay=0.5) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert [rate(step, 3, 0.0, 0.0) for step in range(3)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"steps": 0}, {"lr": 0.0}, {"warmup": 0.6, "decay": 0.6}, {"beta1": 1.0}, {"batch_size": 0}),
        *({"lr": float("inf")}, {"warmup": float("nan")}),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        TrainConfig(**wrong)


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    state = {
        "step": 3,
        "adam": {"W": {"exp_avg": torch.randn(3, 4).T, "step": torch.tensor(5.0)}},
        "batches": {"order": np.arange(5), "seed": np.int64(7), "name": "é", "none": None, "parts": [1, {"x": torch.ones(2)}]},
    }
    save_state(tmp_path / "state.safetensors", state)
    back = load_state(tmp_path / "state.safetensors")
    assert torch.equal(back["adam"]["W"]["exp_avg"], state["adam"]["W"]["exp_avg"])
    assert back["adam"]["W"]["step"].shape == ()
    assert back["batches"]["order"].tolist() == [0, 1, 2, 3, 4]
    assert {k: back["batches"][k] for k in ("seed", "name", "none")} == {"seed": 7, "name": "é", "none": None}
    assert back["batches"]["parts"][1]["x"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("keep", [0, 5, 60])
def test_a_state_that_was_cut_short_is_refused_by_name(tmp_path, keep):
    file = tmp_path / "state.safetensors"
    save_state(file, {"x": torch.ones(100)})
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DictionaryError, match="damaged"):
        load_state(file)


def test_of_sixty_flipped_bits_of_a_checkpoint_none_is_read_in_header_state_weights_or_checksum(tmp_path):
    file, rng = tmp_path / "state.safetensors", random.Random(16)
    weights = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    save_state(file, {"step": 7, "parameters": {"W_enc": weights}, "random": torch.get_rng_state()[:64]})
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [rng.randrange(header) for _ in range(25)] + [rng.randrange(header, len(whole)) for _ in range(25)]
    places += [rng.randrange(len(whole) - 32, len(whole)) for _ in range(10)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(DictionaryError, match=r"damaged(.|\n)*Delete it to start the training anew"):
            load_state(file)
    file.write_bytes(whole)
    assert torch.equal(load_state(file)["parameters"]["W_enc"], weights)


def test_a_checkpoint_of_a_version_without_checksums_is_read_and_one_that_lost_its_checksum_is_not(tmp_path):
    file = tmp_path / "state.safetensors"
    save_file({"/x": torch.ones(3)}, file, {"state": json.dumps({"version": 2, "x": {"__tensor__": "/x"}})})
    assert load_state(file)["x"].tolist() == [1.0, 1.0, 1.0]
    save_file({"/x": torch.ones(3)}, file, {"state": json.dumps({"version": 3, "x": {"__tensor__": "/x"}})})
    with pytest.raises(DictionaryError, match="damaged"):
        load_state(file)


@pytest.mark.parametrize("way", ["folder", "pipe"])
def test_a_folder_or_a_pipe_in_the_place_of_a_checkpoint_is_refused_at_once(tmp_path, way):
    file = tmp_path / "state.safetensors"
    file.mkdir() if way == "folder" else os.mkfifo(file)
    with pytest.raises(DictionaryError, match="not a regular file"):
        load_state(file)


def test_lines_of_a_log_that_hold_anything_but_numbers_end_it(tmp_path):
    good = json.dumps({"step": 5, "l0": 3.5, "fvu": float("nan")})
    for bad in ('{"step": true}', '{"step": 10, "l0": "3"}', '{"l0": 3}', "[1]", "[" * 100_000, '{"step": 10, "l0": {}}'):
        (tmp_path / "log.jsonl").write_text(f"{good}\n{bad}\n{good}\n")
        assert [row["step"] for row in read_log(tmp_path)] == [5]
    (tmp_path / "log.jsonl").unlink()
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_log(tmp_path)


def test_batches_from_memory_go_on_where_their_place_was_kept():
    rows = torch.arange(50.0)[:, None]
    one = TensorBatches(rows, 8, seed=1)
    stream = iter(one)
    for _ in range(4):
        next(stream)
    place = one.state_dict()
    expected = [next(stream) for _ in range(5)]  # beyond the end of the first time through
    other = TensorBatches(rows, 8, seed=1)
    other.load_state_dict(place)
    assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=False))
    with pytest.raises(ConfigError, match="saved with seed 1 and batch_size 8"):
        TensorBatches(rows, 8, seed=2).load_state_dict(place)


def test_each_row_comes_once_each_time_through_in_another_order():
    stream = iter(TensorBatches(torch.arange(32.0)[:, None], 8))
    first, second = (torch.cat([next(stream) for _ in range(4)]).flatten() for _ in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(32))
    assert not torch.equal(first, second)


def test_lines_that_a_resumed_run_writes_again_are_dropped_and_a_torn_last_line_is_left_out(tmp_path):
    log = Log(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, 4, {"l0": 1.0})
    with open(tmp_path / "log.jsonl", "a") as handle:
        handle.write('{"step": 40, "l')
    assert [row["step"] for row in read_log(tmp_path)] == [10, 20, 30]
    Log(tmp_path, 20)
    assert [row["step"] for row in read_log(tmp_path)] == [10, 20]


def test_rows_of_huge_norm_in_a_tensor_are_left_out_with_a_word_and_kept_on_request():
    rows = torch.ones(100, 4) + torch.arange(100)[:, None] / 100
    rows[[3, 50]] *= 1e4
    with pytest.warns(OutliersWarning, match="2 of 100 rows have norms above 10 x the median"):
        batches = TensorBatches(rows, 98)
    assert (batches.left_out, batches.n_rows) == (2, 98)
    assert next(iter(batches)).max() < 3
    assert TensorBatches(rows, 100, outlier_times=0.0).n_rows == 100


def test_the_former_keyword_of_train_works_and_names_the_new_one(tmp_path):
    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    sae = make_sae(KINDS["topk"].config(d_in=4, d_sae=8, k=2), "blocks.0.hook_resid_post")
    with pytest.warns(RenamedWarning, match="objective="):
        train(sae, TensorBatches(rows, 16), TrainConfig(steps=1, batch_size=16), tmp_path, engine=make_objective(sae))
    assert (tmp_path / "scope.json").exists()
