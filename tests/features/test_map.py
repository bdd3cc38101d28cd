"""A flat map of decoder directions, and what it says of its own worth."""

import json
import shutil

import numpy as np
import pytest
import torch

from scope.cli.main import run
from scope.errors import ConfigError, PackError
from scope.features.collect.map import add_map, map_directions, preserved
from scope.features.collect.token_effects import neighbours
from scope.features.face import Pack
from scope.features.pack.manifest import read_manifest
from scope.sae.files import read_sae
from tests.conftest import random_gemma
from tests.help.labs import make_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    return make_lab(tmp_path_factory.mktemp("map") / "lab", random_gemma(tiny_config, toy_tokenizer), toy_text)


def planted(n: int = 60, width: int = 16) -> torch.Tensor:
    """Directions in three clusters, of lengths that must not matter."""
    generator = torch.Generator().manual_seed(1)
    middles = torch.nn.functional.normalize(torch.randn(3, width, generator=generator), dim=1)
    rows = middles[torch.arange(n) % 3] + 0.05 * torch.randn(n, width, generator=generator)
    return rows * (1 + torch.arange(n)[:, None])


def test_places_are_the_principal_components_of_the_unit_directions():
    rows = planted()
    places, told = map_directions(rows, neighbours(rows)["neighbour_id"])
    unit = (rows / rows.norm(dim=1, keepdim=True)).double()
    centred = unit - unit.mean(0)
    values, axes = np.linalg.svd(centred.numpy())[1:]
    wanted = centred.numpy() @ axes[:2].T
    assert np.abs(np.abs(places) - np.abs(wanted)).max() < 1e-5
    assert told["explained"] == pytest.approx((values**2 / (values**2).sum())[:2].tolist(), abs=1e-5)
    assert sum(told["explained"]) > 3 * sum(told["explained_by_chance"])


def test_the_same_directions_give_the_same_map_whichever_way_an_axis_points():
    rows = planted()
    near = neighbours(rows)["neighbour_id"]
    first, again = (map_directions(d, near)[0] for d in (rows, rows.clone() * 3))
    assert np.allclose(first, again, atol=1e-6)


def test_what_a_map_keeps_is_one_where_neighbours_stay_together_and_chance_where_places_are_shuffled():
    flat = torch.nn.functional.normalize(torch.randn(400, 2, generator=torch.Generator().manual_seed(0)), dim=1)
    near = neighbours(flat)["neighbour_id"]
    assert preserved(flat.numpy(), near) > 0.99
    shuffled = flat.numpy()[np.random.default_rng(0).permutation(400)]
    assert preserved(shuffled, near) == pytest.approx(10 / 399, abs=0.02)


def test_no_map_is_made_when_none_is_asked_for_and_an_unknown_one_is_refused():
    assert map_directions(planted(), np.zeros((60, 1), int), "none") is None
    with pytest.raises(ConfigError, match=r"no map 'tsne'.*pca"):
        map_directions(planted(), np.zeros((60, 1), int), "tsne")


def test_a_map_by_umap_without_umap_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install"):
        map_directions(planted(), np.zeros((60, 1), int), "umap")


def test_a_pack_is_made_with_its_map_and_tells_what_it_is_worth(lab):
    store = Pack.open(lab / "pack")
    directions = read_sae(lab / "dictionary").W_dec.detach()
    places, told = map_directions(directions, store.relation("neighbour_id"))
    assert np.array_equal(store.map, places)
    assert store.manifest.as_written["map"] == told
    assert store.verify() == []


def test_an_older_pack_gets_its_map_later_and_nothing_else_of_it_changes(lab, tmp_path, capsys):
    pack = shutil.copytree(lab / "pack", tmp_path / "pack")
    wanted = Pack.open(pack).map
    manifest = json.loads((pack / "manifest.json").read_text())
    before = dict(manifest["files"])
    del manifest["files"]["map.npy"], manifest["map"], manifest["config"]["map"]
    (pack / "manifest.json").write_text(json.dumps(manifest))
    (pack / "map.npy").unlink()
    assert Pack.open(pack).map is None
    assert run(["map", str(pack), "--dictionary", str(lab / "dictionary")]) == 0
    assert "by chance" in capsys.readouterr().out
    store = Pack.open(pack)
    assert np.array_equal(store.map, wanted)
    assert store.manifest.as_written["files"] == before
    assert store.verify() == []
    assert add_map(pack, read_sae(lab / "dictionary")).verify() == []  # once more, over the one that lies there


def test_a_map_from_another_dictionary_is_refused(lab, tmp_path):
    pack = shutil.copytree(lab / "pack", tmp_path / "pack")
    other = read_sae(lab / "dictionary")
    with torch.no_grad():
        other.W_dec[0] += 1
    with pytest.raises(PackError, match="another dictionary"):
        add_map(pack, other)
    assert read_manifest(pack) == read_manifest(lab / "pack")


def test_a_map_of_another_size_is_told_with_the_way_out(lab, tmp_path):
    from scope.features.pack.write import add_file, npy

    pack = shutil.copytree(lab / "pack", tmp_path / "pack")
    add_file(pack, "map.npy", npy(np.zeros((3, 2), np.float32)), {})
    with pytest.raises(PackError, match="scope map"):
        Pack.open(pack).map  # noqa: B018
