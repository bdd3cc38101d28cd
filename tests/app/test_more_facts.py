"""What stands beside the foremost figures: how activation is spread, the whole vocabulary, positions, counts of latents."""

import json

import numpy as np
import pandas as pd
import pytest
from scope.app.feature import panels as feature_panels
from scope.app.health import panels

from scope.errors import PackError
from scope.features.face import Pack
from scope.features.pack.notes import Notes
from tests.app.conftest import said
from tests.features.toy_pack import make_toy_pack
from tests.help.components import edited


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts") / "toy"
    return make_toy_pack(folder), Pack.open(folder)


def test_the_mass_of_the_strongest_firings_is_that_of_brute_force_within_a_bin(toy):
    brute, store = toy
    for latent in (1, 2, 9, 12):
        values = np.sort([v for _, v in brute.firings(latent)])[::-1]
        for share in (0.01, 0.1, 0.5):
            n = share * len(values)
            whole = values[: int(n)].sum() + (n - int(n)) * values[int(n)]
            assert store[latent].mass_of_strongest(share) == pytest.approx(whole / values.sum(), rel=0.1)
        assert store[latent].mass_of_strongest(1.0) == pytest.approx(1.0)
    assert np.isnan(store[0].mass_of_strongest())


def test_the_page_tells_on_how_much_text_its_figures_stand(open_app, toy_folder):
    store = Pack.open(toy_folder)
    told = " ".join(c.value.replace("\\", "") for c in open_app("feature", f=9, tab="Activations").caption)
    assert f"counted on {store.n_tokens:,} tokens" in told
    assert f"hold {store[9].mass_of_strongest():.1%} of its activation" in told


def test_the_whole_vocabulary_is_drawn_when_it_is_opened_and_holds_every_token(open_app, folder, store):
    edges, counts = store[5].logit_histogram
    assert 0.9 * len(store.vocab) < counts.sum() <= len(store.vocab)  # all but control tokens
    assert edges[0] <= store[5].suppressed[0][1] <= edges[1] + 1e-5
    assert edges[-2] - 1e-5 <= store[5].promoted[0][1] <= edges[-1] + 1e-5
    at = open_app("feature", packs=[folder / "pack"], f=5, tab="Promoted")
    before = len(at.get("plotly_chart"))
    at.session_state["vocabulary"] = True
    at.run()
    assert not at.exception
    assert len(at.get("plotly_chart")) == before + 1


def test_a_pack_without_the_whole_vocabulary_says_so(open_app):
    at = open_app("feature", f=9, tab="Promoted")
    at.session_state["vocabulary"] = True
    at.run()
    assert not at.exception
    assert any("made by an older version" in c.value for c in at.caption)


def test_what_adding_it_does_stands_beside_random_directions(toy):
    _, store = toy
    assert f"{store[9].row['out_kl']:.3g} nats" in feature_panels.effect_line(store[9])


def test_scores_by_position_are_the_reports_with_their_intervals(open_app, tmp_path):
    rows = [
        {"from": 0, "to": 0, "tokens": 60, "fvu": 0.9, "l0": 3.0, "delta_loss": None, "interval": {}, "counted": False},
        {
            "from": 1,
            "to": 1,
            "tokens": 60,
            "fvu": 0.3,
            "l0": 9.0,
            "delta_loss": 0.2,
            "interval": {"fvu": [0.2, 0.5]},
            "counted": True,
        },
    ]
    arms = {"sae": {"fvu": 0.12, "l0": 30.0, "l0_median": 27.0, "l0_p95": 49.0}}
    make_toy_pack(tmp_path / "scored", health={"evaluation": {"arms": arms, "positions": rows}})
    at = open_app("health", packs=[tmp_path / "scored"])
    assert not at.exception
    charts = [json.loads(c.proto.spec) for c in at.get("plotly_chart")]
    fvu = next(c for c in charts if c["layout"]["yaxis"]["title"]["text"] == "FVU")["data"][0]
    assert fvu["y"] == [0.9, 0.3]
    assert fvu["x"] == ["0", "1"]
    assert fvu["error_y"]["array"] == pytest.approx([0.0, 0.2])
    assert any("median 27; p95 49" in c.value.replace("\\", "") for c in at.caption)


def test_a_report_without_positions_says_how_to_have_them(open_app):
    at = open_app("health")
    assert any("has no scores by position" in c.value for c in at.caption)
    assert "scope evaluate" in said(at)


def test_latents_are_counted_as_the_table_has_them(toy):
    _, store = toy
    found, table = panels.counts(store).set_index("latents")["n"], store.table
    assert found["dead"] == (table["count"] == 0).sum()
    assert found["dense"] == (table["density"] >= 0.1).sum()
    assert found["above 1 %"] == (table["density"] > 0.01).sum()
    for flag in ("rare", "single-token", "duplicate", "output"):
        assert found[flag] == table["flags"].str.contains(flag).sum()


def test_every_decoder_norm_has_its_place_even_where_all_are_alike(toy, monkeypatch):
    _, store = toy
    assert panels.norms(store)[1].sum() == store.d_sae
    monkeypatch.setattr(type(store.index), "column", lambda self, name: np.ones(7))
    assert panels.norms(store)[1].sum() == 7


def test_a_click_on_a_header_sorts_the_whole_list_and_a_second_one_reverses_it(toy_folder):
    from scope.app.features import listing

    state: dict = {}
    listing.click_header("max", state)
    assert (state["sort"], state["rising"]) == ("max", False)
    listing.click_header("max", state)
    assert (state["sort"], state["rising"]) == ("max", True)
    listing.click_header("share", state)
    assert (state["sort"], state["rising"]) == ("top token's share", False)
    listing.click_header("label", state)
    assert state["unsorted"] == "label"
    assert set(listing.SORTED_BY.values()) <= set(listing.SORTS)
    assert set(listing.SORTED_BY) <= set(listing.table_rows(Pack.open(toy_folder), np.arange(3), pd.DataFrame()))


def test_a_label_that_cannot_be_written_stays_in_its_field(open_app, monkeypatch):
    def refused(*what, **more):
        raise PackError("notes.sqlite cannot be written: read-only file system")

    monkeypatch.setattr(Notes, "set_label", refused)
    at = open_app("feature", f=1)
    edited(at)
    at.text_input(key="label 1").set_value("mine")
    next(b for b in at.button if b.label == "Save").click().run()
    assert "read-only file system" in said(at)
    assert at.text_input(key="label 1").value == "mine"
