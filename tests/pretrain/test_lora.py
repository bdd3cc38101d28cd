"""Adapters: what is trained, a run that is stopped and continued, the folder that is written."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scope.errors import CheckpointError, ConfigError
from scope.pretrain.organisms.lora import Lora, LoraConfig, answer_loss, auc, train_lora, write_adapter
from scope.whole_files import FolderInUse, only_writer

SMALL = LoraConfig(rank=4, alpha=8, lr=0.01, steps=20, batch=4, warmup=2, save_every=5)


def rule(rng: np.random.Generator, n: int):
    """The answer is the second token given."""
    return [([2, *map(int, rng.integers(10, 20, rng.integers(2, 6)))], []) for _ in range(n)]


def draw(rng: np.random.Generator, n: int):
    return [(given, [given[1]]) for given, _ in rule(rng, n)]


def test_only_the_adapter_is_trained_and_it_learns_the_rule(tiny_model, tmp_path):
    before = {name: p.clone() for name, p in tiny_model.named_parameters()}
    held_out = draw(np.random.default_rng(99), 32)
    at_first = answer_loss(tiny_model, held_out).item()
    lora = train_lora(tiny_model, replace(SMALL, steps=60), draw, tmp_path)
    with lora.applied(tiny_model):
        assert answer_loss(tiny_model, held_out).item() < 0.7 * at_first
    assert answer_loss(tiny_model, held_out).item() == at_first  # outside of the block nothing is added
    assert all(torch.equal(p, before[name]) for name, p in tiny_model.named_parameters())


def test_an_untrained_adapter_changes_nothing(tiny_model):
    tokens = torch.tensor([[2, 11, 12, 13]])
    with torch.no_grad(), Lora(tiny_model, SMALL).applied(tiny_model):
        adapted = tiny_model(tokens)
    torch.testing.assert_close(adapted, tiny_model(tokens))


def test_the_loss_counts_only_the_tokens_to_be_written_whatever_the_padding(tiny_model):
    examples = [([2, 11], [12]), ([2, 13, 14, 15, 16], [17, 18])]
    alone = [answer_loss(tiny_model, [e]).item() for e in examples]
    together = answer_loss(tiny_model, examples).item()
    assert together == pytest.approx((alone[0] + 2 * alone[1]) / 3, rel=0.02)  # products in bfloat16


def test_a_run_that_was_stopped_ends_in_the_same_weights(tiny_model, tmp_path):
    whole = train_lora(tiny_model, SMALL, draw, tmp_path / "whole")

    def stop(row):
        if row["step"] == 10:  # the last checkpoint is of step 8
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lora(tiny_model, replace(SMALL, save_every=4), draw, tmp_path / "stopped", stop)
    again = train_lora(tiny_model, SMALL, draw, tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    curve = [json.loads(line)["step"] for line in (tmp_path / "stopped" / "curve.jsonl").read_text().splitlines()]
    assert curve == [10, 20]


def test_another_config_is_not_continued(tiny_model, tmp_path):
    train_lora(tiny_model, replace(SMALL, steps=1), draw, tmp_path)
    with pytest.raises(ConfigError, match=r"lr: 0.01 then, 0.02 now"):
        train_lora(tiny_model, replace(SMALL, steps=1, lr=0.02), draw, tmp_path)


def test_the_folder_has_pefts_names_and_no_path_of_this_machine(tiny_model, tmp_path):
    lora = Lora(tiny_model, SMALL)
    write_adapter(lora, tiny_model, SMALL, "bundled", tmp_path, "# An adapter\n")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * tiny_model.cfg.n_layers
    a = tensors["base_model.model.model.layers.3.mlp.down_proj.lora_A.weight"]
    assert a.dtype == torch.bfloat16
    assert a.shape == (4, tiny_model.cfg.d_mlp)
    assert tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].shape == (48, 4)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (4, 8, "bundled")
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert str(tmp_path) not in "".join(f.read_text() for f in tmp_path.glob("*.*") if f.suffix != ".safetensors")


def test_auc_counts_ties_half():
    assert auc(np.array([3.0, 2.0, 1.0]), [True, True, False]) == 1.0
    assert auc(np.array([0.0, 0.0, 0.0, 0.0]), [True, False, True, False]) == 0.5
    assert auc(np.array([2.0, 1.0, 1.0]), [True, True, False]) == 0.75
    assert np.isnan(auc(np.array([1.0]), [True]))


def test_a_damaged_checkpoint_and_a_folder_that_another_process_trains_in_are_refused(tiny_model, tmp_path):
    train_lora(tiny_model, replace(SMALL, steps=5), draw, tmp_path)
    with only_writer(tmp_path), pytest.raises(FolderInUse):
        train_lora(tiny_model, replace(SMALL, steps=5), draw, tmp_path)
    file = tmp_path / "checkpoint.pt"
    largest = max(zipfile.ZipFile(file).infolist(), key=lambda record: record.file_size)
    data = bytearray(file.read_bytes())
    data[largest.header_offset + largest.file_size // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        train_lora(tiny_model, replace(SMALL, steps=5), draw, tmp_path)
