import os
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scope.errors import EditError
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.edits.directions import LARGEST, Direction
from tests.steering.conftest import SITE

TOWARD = ["the dog runs to the river", "the dog looks at nothing", "a dog sings"]
AWAY = ["my sister counts 12 apples", "an angry crowd asks for a value", "the old king breaks the red house", "a list"]


def means(model, prompts):
    return torch.stack([model.record(model.to_tokens(p), [SITE])[SITE][0, 1:].mean(0) for p in prompts]).double()


def test_a_probe_is_ridge_regression_on_each_prompts_mean(tiny_model):
    probe = Direction.probe(tiny_model, SITE, TOWARD, AWAY, ridge=0.5)
    x = torch.cat([means(tiny_model, TOWARD), means(tiny_model, AWAY)])
    y = torch.tensor([1.0] * 3 + [-1.0] * 4, dtype=torch.float64)
    x = x - x.mean(0)
    scale = (x @ x.T).diagonal().mean()
    features = torch.cat([x, torch.full((7, 1), float(scale.sqrt()))], 1)  # the constant is one more feature
    weights = torch.linalg.solve(features.T @ features + 0.5 * scale * torch.eye(33, dtype=torch.float64), features.T @ y)
    torch.testing.assert_close(torch.tensor(probe.vector, dtype=torch.float64), weights[:32], rtol=1e-3, atol=1e-6)


def test_the_accuracy_of_a_probe_is_of_prompts_left_out_and_stands_beside_guessing(tiny_model):
    probe = Direction.probe(tiny_model, SITE, TOWARD, AWAY)
    x = torch.cat([means(tiny_model, TOWARD), means(tiny_model, AWAY)])
    y = torch.tensor([1.0] * 3 + [-1.0] * 4, dtype=torch.float64)
    x = x - x.mean(0)
    scale = (x @ x.T).diagonal().mean()
    features, right = torch.cat([x, torch.full((7, 1), float(scale.sqrt()))], 1), 0
    for i in range(7):
        keep = torch.arange(7) != i
        seen = features[keep]
        weights = torch.linalg.solve(seen.T @ seen + scale * torch.eye(33, dtype=torch.float64), seen.T @ y[keep])
        right += int((features[i] @ weights).sign() == y[i])
    assert f"leave-one-out accuracy {right / 7:.2f}, guessing {4 / 7:.2f}" in probe.name


def test_prompts_that_are_alike_make_no_probe(tiny_model):
    with pytest.raises(EditError, match="no probe separates them"):
        Direction.probe(tiny_model, SITE, ["the dog"], ["the dog"])


@pytest.mark.parametrize("make", [Direction.between, Direction.probe])
def test_a_side_without_prompts_is_refused(tiny_model, make):
    with pytest.raises(EditError, match="a list of prompts on both sides"):
        make(tiny_model, SITE, [], ["the dog"])
    with pytest.raises(EditError, match="a list of prompts on both sides"):
        make(tiny_model, SITE, "the dog", ["a cat"])
    with pytest.raises(EditError, match="is empty"):
        make(tiny_model, SITE, [""], ["a cat"])


def test_of_several_vectors_in_a_file_one_must_be_named(tmp_path):
    np.savez(tmp_path / "a.npz", first=np.array([1.0, 2.0]), second=np.array([3.0, 4.0]))
    save_file({"first": torch.tensor([1.0, 2.0]), "second": torch.tensor([3.0, 4.0])}, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        assert Direction.from_file(tmp_path / name, SITE, key="second").vector == (3.0, 4.0)
        with pytest.raises(EditError, match="'first', 'second'; say which with key="):
            Direction.from_file(tmp_path / name, SITE)
        with pytest.raises(EditError, match="none is 'third'"):
            Direction.from_file(tmp_path / name, SITE, key="third")


def test_a_pickle_is_refused_unopened(tmp_path):
    for name in ("direction.pt", "direction.pkl", "direction.bin"):
        torch.save({"direction": torch.ones(2)}, tmp_path / name)
        with pytest.raises(EditError, match=r"is a pickle, which can run code[\s\S]*safetensors"):
            Direction.from_file(tmp_path / name, SITE)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.json", "a.safetensors", "missing.npy"])
def test_a_damaged_file_is_refused(tmp_path, name):
    if name != "missing.npy":
        (tmp_path / name).write_bytes(b"\x00\x01 not this")
    with pytest.raises(EditError, match=r"cannot be read|is damaged"):
        Direction.from_file(tmp_path / name, SITE)


def test_a_matrix_is_no_direction(tmp_path):
    np.save(tmp_path / "m.npy", np.ones((2, 3)))
    with pytest.raises(EditError, match=r"shape \(2, 3\)"):
        Direction.from_file(tmp_path / "m.npy", SITE)


def test_the_typical_norm_on_contexts_leaves_special_tokens_out(tiny_model):
    tokens = torch.tensor([[2, 50, 51, 52, 0], [2, 60, 61, 1, 0]])
    norms = tiny_model.record(tokens, [SITE])[SITE].norm(dim=-1)
    expected = torch.cat([norms[0, 1:4], norms[1, 1:3]]).median()
    assert StrengthUnits.on_contexts(tiny_model, SITE, tokens.numpy()).typical_norm == pytest.approx(float(expected))


def test_vectors_of_strangers_are_bounded_and_damage_is_never_a_traceback(tmp_path):
    rng = random.Random(5)
    np.save(tmp_path / "a.npy", np.arange(1.0, 9.0))
    np.savez_compressed(tmp_path / "a.npz", first=np.arange(1.0, 9.0))
    save_file({"first": torch.arange(1.0, 9.0)}, tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text("[1.0, 2.0, 3.0]")
    for name in ("a.npy", "a.npz", "a.safetensors", "a.json") * 12:
        data = bytearray((tmp_path / name).read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file = tmp_path / f"damaged{Path(name).suffix}"
        file.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        with suppress(EditError):
            Direction.from_file(file, SITE)


@pytest.mark.parametrize(
    "value",
    ["[" * 100_000, '["1.0"]', "[true, false]", "[NaN, 1.0]", "[1e999]", "[" + "9" * 400 + "]", "[[1.0, 2.0]]", "{}", "3"],
)
def test_json_that_is_no_vector_is_refused(tmp_path, value):
    (tmp_path / "a.json").write_text(value)
    with pytest.raises(EditError):
        Direction.from_file(tmp_path / "a.json", SITE)


@pytest.mark.parametrize("array", [np.array([1j, 2]), np.array(["1", "2"]), np.array([True, False])])
def test_an_array_of_other_than_real_numbers_is_no_direction(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(EditError, match="real numbers"):
        Direction.from_file(tmp_path / "a.npy", SITE)


def test_an_archive_that_unpacks_to_more_than_a_vector_is_refused_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", first=np.zeros(LARGEST // 8 + 1))
    assert (tmp_path / "a.npz").stat().st_size < 2**20
    with pytest.raises(EditError, match="its arrays take"):
        Direction.from_file(tmp_path / "a.npz", SITE)


def test_a_header_that_claims_petabytes_is_refused(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999999,), }".ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    with pytest.raises(EditError, match="cannot be read as a vector"):
        Direction.from_file(tmp_path / "a.npy", SITE)


def test_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(EditError, match="not a regular file"):
        Direction.from_file(tmp_path / "a.json", SITE)
