"""The map on the Features page."""

import base64
import json
import shutil

import numpy as np
import plotly.graph_objects as go
from scope.app.features import views

from scope.features.face import Pack
from tests.app.conftest import said


def traces(at) -> list[dict]:
    charts = at.get("plotly_chart")
    return json.loads(charts[-1].proto.spec)["data"]


def numbers(given: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(given["bdata"]), given["dtype"])


def test_the_map_shows_what_was_found_among_all_living_latents(open_app, toy_folder):
    at = open_app("features", view="Map", q="1-3", **{"in": "numbers", "dense": "true"})
    assert not at.exception
    store = Pack.open(toy_folder)
    _, figure = views.map_figure(store, store.map, views.map_background(store, store.map), np.array([3, 1, 2]))
    grey, found = go.Figure(figure.to_dict()).data
    assert numbers(found.customdata).tolist() == [1, 2, 3]
    assert np.allclose(np.c_[numbers(found.x), numbers(found.y)], store.map[[1, 2, 3]])
    assert len(numbers(grey.x)) == int((store.table["count"] > 0).sum())
    assert len(traces(at)) == 2


def test_the_map_says_how_faithful_it_is_beside_chance(open_app):
    told = " ".join(c.value for c in open_app("features", view="Map").caption)
    assert "30.0% of their variance; of random directions they would hold 20.0%" in told
    assert "60.0% are among its ten nearest here, 40.0% by chance" in told


def test_a_pack_without_a_map_says_how_to_make_it(open_app, toy_folder, tmp_path):
    pack = shutil.copytree(toy_folder, tmp_path / "my packs" / "old")
    manifest = json.loads((pack / "manifest.json").read_text())
    del manifest["files"]["map.npy"], manifest["map"]
    (pack / "manifest.json").write_text(json.dumps(manifest))
    at = open_app("features", packs=[pack], view="Map")
    assert not at.exception
    assert "This pack holds no map" in said(at)
    assert f"scope map '{pack}'" in said(at)


def test_a_damaged_map_is_reported_and_the_table_still_works(open_app, toy_folder, tmp_path):
    pack = shutil.copytree(toy_folder, tmp_path / "pack")
    file = pack / "map.npy"
    file.write_bytes(bytes(file.stat().st_size))
    at = open_app("features", packs=[pack], view="Map")
    assert not at.exception
    assert "map.npy" in said(at)
    assert "scope map" in said(at)
    assert open_app("features", packs=[pack]).dataframe
