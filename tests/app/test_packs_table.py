"""The table of all packs on the overview."""

import json
import shutil

import pytest

from scope.features.face import Pack
from tests.features.toy_pack import make_toy_pack


@pytest.fixture
def folders(tmp_path, toy_folder):
    arms = {"sae": {"fvu": 0.12, "recovered_vs_mean": 0.9}}
    make_toy_pack(tmp_path / "scored", health={"evaluation": {"arms": arms}}, seed=1)
    damaged = shutil.copytree(toy_folder, tmp_path / "damaged")
    (damaged / "manifest.json").write_text("{")
    building = tmp_path / "new.building"
    building.mkdir()
    (building / "build.json").write_text('{"done": 40, "total": 100}')
    return [toy_folder, tmp_path / "scored", damaged, tmp_path / "new"]


def rows(at):
    return next(f.value for f in at.dataframe if "state" in f.value).set_index("pack")


def test_every_pack_has_its_row_with_its_own_figures(open_app, folders):
    at = open_app(packs=folders, pack="toy")
    assert not at.exception
    table = rows(at)
    store = Pack.open(folders[1])
    assert table.loc["scored", "FVU"] == 0.12
    assert table.loc["scored", "L0"] == pytest.approx(store.table["density"].sum())
    assert table.loc["scored", "dead"] == pytest.approx((store.table["count"] == 0).mean())
    assert table.loc["scored", "MB"] == pytest.approx(sum(f.size for f in store.manifest.files.values()) / 1e6)


def test_a_pack_that_cannot_be_opened_says_why_and_one_that_is_built_how_far(open_app, folders):
    table = rows(open_app(packs=folders, pack="toy"))
    assert "damaged" in table.loc["damaged", "state"]
    assert str(folders[2]) not in table.loc["damaged", "state"]
    assert table.loc["new", "state"] == "being built, 40%"
    assert table.loc["toy", "state"] == "ready"


def test_a_click_on_a_row_opens_that_pack(open_app, folders):
    at = open_app(packs=folders, pack="toy")
    at.session_state["packs toy"] = {"selection": {"cells": [(1, "pack")], "rows": [], "columns": []}}
    at.run()
    assert not at.exception
    assert at.selectbox[0].value == "scored"


def test_one_pack_alone_needs_no_table(open_app):
    assert not [f for f in open_app().dataframe if "state" in f.value]


def test_a_file_name_with_marks_is_text(open_app, tmp_path, toy_folder):
    manifest = json.loads((toy_folder / "manifest.json").read_text())
    place = shutil.copytree(toy_folder, tmp_path / "other")
    manifest["corpus"]["name"] = "<b>*x*\u202e"
    (place / "manifest.json").write_text(json.dumps(manifest))
    assert "RLO" in rows(open_app(packs=[toy_folder, place], pack="toy")).loc["other", "corpus"]
