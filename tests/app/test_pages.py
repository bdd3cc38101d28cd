"""What each page shows of a healthy pack."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest
from scope.app.feature import examples
from scope.app.kit import figures
from scope.app.kit.palette import LOWERED, RAISED
from scope.app.serve import pack_facts
from streamlit.testing.v1 import AppTest

from scope.escape import visible_token
from scope.features.face import Pack
from scope.features.pack.lookahead import Beyond, LatentLookahead, Lookahead, Place
from scope.features.pack.write import add_file
from tests.app.conftest import bars
from tests.benchmarks.pages import large_pack
from tests.features.toy_pack import HOSTILE, make_toy_pack
from tests.help.components import heading, links, small_tables, tiles, values


def strips(at: AppTest) -> list[dict]:
    """Every strip of tokens on the page; other components hold no rows."""
    found = [json.loads(c.proto.json) for c in at.get("bidi_component")]
    return [data for data in found if "rows" in data]


def listed(at: AppTest) -> list[int]:
    return at.dataframe[0].value["id"].tolist()


def pressed(at: AppTest, label: str) -> AppTest:
    return next(button for button in at.button if button.label == label).click().run()


@pytest.mark.parametrize("page", ["overview", "features", "feature"])
def test_every_page_opens_on_a_pack_without_a_model(open_app, page):
    at = open_app(page)
    assert not at.exception
    assert not at.error


def test_the_overview_tells_the_packs_own_numbers(open_app, toy_folder):
    store, shown = Pack.open(toy_folder), values(open_app())
    assert shown["Latents"] == "24"
    assert float(shown["L0"]) == pytest.approx(store.table["density"].sum(), rel=0.01)
    assert shown["Tokens read"] == f"{store.n_tokens:,}"


def test_an_evaluation_is_shown_beside_its_nulls(open_app, tmp_path):
    arm = {"fvu": 0.12, "delta_loss": 0.05, "l0": 30.0, "interval": {"fvu": [0.11, 0.13]}}
    arms = {"sae": arm, "random": {"fvu": 0.81, "delta_loss": 2.5}, "pca": {"fvu": 0.31}, "mean": {"delta_loss": 3.1}}
    make_toy_pack(tmp_path / "scored", health={"evaluation": {"arms": arms, "notes": ["few *contexts*"]}})
    at = open_app(packs=[tmp_path / "scored"])
    tile = tiles(at)["FVU"]
    assert tile.value == "0.120"
    assert "random 0.810" in tile.note
    assert "PCA 0.310" in tile.note
    (table,) = small_tables(at)
    assert table["95 % interval"][table["score"].index("FVU, pooled")] == "0.110 to 0.130"
    assert any("few \\*contexts\\*" in caption.value for caption in at.caption)


def test_start_here_leads_to_living_latents_each_once(toy_folder):
    store = Pack.open(toy_folder)
    table, guides = store.table, list(pack_facts.start_here(store).values())
    assert len(set(guides)) == len(guides) >= 3
    assert not table["flags"].iloc[guides].str.contains("dead|dense|rare|duplicate").any()


def test_a_search_for_a_word_finds_its_latents(open_app):
    assert 1 in listed(open_app("features", q="dog", dense="true"))
    at = open_app("features", q="dog", dense="false")
    assert 1 not in listed(at)
    assert any("“Include dense latents” shows them" in caption.value for caption in at.caption)
    assert (
        open_app("features", q="dogs", dense="true", **{"in": "fires on"}).dataframe[0].value["p_fires_given_token"].iloc[0]
        > 0.5
    )


def test_a_list_of_numbers_is_shown_in_its_order(open_app):
    assert open_app("features", q="9, 3 12-13", **{"in": "numbers"}).dataframe[0].value["id"].tolist() == [9, 3, 12, 13]


@pytest.mark.parametrize(
    ("q", "told"), [("dog", "is not the number of a latent"), ("3-99", "run from 0 to 23"), ("5-2", "run from 0 to 23")]
)
def test_a_list_that_is_none_says_so(open_app, q, told):
    at = open_app("features", q=q, **{"in": "numbers"})
    assert any(told in info.value.replace("\\", "") for info in at.info)


def test_sorting_orders_the_whole_table(open_app, toy_folder):
    table = Pack.open(toy_folder).table
    shown = open_app("features", sort="max", dense="true").dataframe[0].value["id"].tolist()
    assert shown == table[table["count"] > 0]["max"].sort_values(ascending=False, kind="stable").index.tolist()
    assert open_app("features", sort="max", rising="true", dense="true").dataframe[0].value["id"].tolist() == shown[::-1]


def test_dead_latents_are_hidden_until_asked_for(open_app):
    at = open_app("features")
    assert 0 not in at.dataframe[0].value["id"].tolist()
    assert 0 in at.multiselect[0].set_value([]).run().dataframe[0].value["id"].tolist()


def test_filters_that_leave_nothing_say_which_one_to_drop(open_app):
    at = open_app("features", q="0", **{"in": "numbers"})
    assert any("Without “Hide”, 1 would be shown" in info.value for info in at.info)
    assert pressed(at, "Drop “Hide”").dataframe[0].value["id"].tolist() == [0]


def test_choosing_a_cell_opens_the_latent_and_keeps_the_list(open_app):
    at = open_app("features", sort="max", dense="true")
    listed = at.dataframe[0].value["id"].tolist()
    at.session_state["table toy 1 23 0"] = {"selection": {"rows": [], "columns": [], "cells": [[3, "label"]]}}
    at.run()
    assert at.query_params["f"] == str(listed[3])
    assert at.session_state["results"]["toy"] == listed
    at.switch_page("feature/page.py")
    at.query_params["f"] = str(listed[3])
    assert pressed(at.run(), "Next").query_params["f"] == str(listed[4])
    at.switch_page("features/page.py").run()
    assert at.dataframe[0].value["id"].tolist() == listed


def test_another_list_begins_at_its_first_page(open_app, tmp_path):
    large_pack(tmp_path / "large.pack", 320)
    at = open_app("features", packs=[tmp_path / "large.pack"])
    at.session_state["page"] = 3
    at.run()
    rows = at.dataframe[0].value["id"].tolist()
    assert len(rows) < 100
    at.selectbox(key="sort").set_value("max").run()
    assert at.session_state["page"] == 1
    assert len(at.dataframe[0].value) == 100


def test_next_and_previous_walk_the_numbers_without_a_list(open_app):
    at = pressed(open_app("feature", f=9), "Next")
    assert at.query_params["f"] == "10"
    assert pressed(pressed(at, "Previous"), "Previous").query_params["f"] == "8"


def test_one_run_shows_the_next_latent(open_app, monkeypatch):
    """To go to a page ends a run and begins another; a walk that did so would take twice as long."""
    at = open_app("feature", f=9)
    monkeypatch.setattr("scope.app.serve.session.go", lambda *page, **more: pytest.fail("a second run"))
    assert heading(pressed(at, "Next"))["number"] == "#10"
    assert pressed(at, "Random").query_params["pack"] == "toy"


def test_the_first_latent_has_none_before_it(open_app):
    assert next(b for b in open_app("feature", f=0).button if b.label == "Previous").disabled


def test_a_latents_figures_are_those_of_the_library(open_app, toy_folder):
    row, shown = Pack.open(toy_folder)[9].row, values(open_app("feature", f=9))
    assert shown["Firing frequency"] == f"{row['density']:.3%}"
    assert shown["Largest"] == f"{row['max']:.3g}"
    assert shown["Output score"] == f"{row['out_score']:+.3f}"


@pytest.mark.parametrize("group", ["top", "bands", "random"])
def test_examples_are_those_of_the_library(open_app, toy_folder, group):
    expected = Pack.open(toy_folder)[9].examples(group, 12)
    at = open_app("feature", f=9)
    at.button_group(key="group").set_value(group).run()
    rows = strips(at)[0]["rows"]
    assert [row["value"] for row in rows] == [f"{example.value:.3g}" for example in expected]


def test_the_deep_link_names_the_pack_and_no_path(open_app, toy_folder):
    (link,) = links(open_app("feature", f=9))
    assert link.endswith("/feature?pack=toy&f=9")
    assert str(toy_folder) not in link


def test_hostile_tokens_reach_the_strips_as_glyphs_and_nothing_else(open_app):
    at = open_app("feature", f=7)
    shown = "".join(cell[0] for strip in strips(at) for row in strip["rows"] for cell in row["cells"])
    assert "<script>alert(1)</script>" in shown  # as text: the component sets textContent
    assert not any(char in shown for char in "\u202e\u2066\u200b\x00\x1b")


def test_no_markdown_on_a_page_reads_a_token(open_app):
    read, at = [], open_app("feature", f=7)
    for f in (9, 14, 20, 0):
        read += [element.value for element in (*at.markdown, *at.caption, *at.title, *at.header, *at.subheader, *at.warning)]
        at.query_params["f"] = str(f)
        at.run()
    live = [text for text in HOSTILE if any(mark in text for mark in ("<", "](", "**", "$", ":material"))]
    assert not [text for text in live if any(text in shown for shown in read)]


def test_packs_of_one_name_get_addresses_of_their_own(open_app, toy_folder):
    at = open_app(packs=[toy_folder, toy_folder])
    assert at.selectbox[0].options == ["toy", "toy-2"]
    assert open_app("feature", packs=[toy_folder, toy_folder], pack="toy-2", f=3).session_state["pack"] == "toy-2"


def drawn(figure: figures.Drawn) -> go.Figure:
    """The same figure, every field of it checked by Plotly."""
    return go.Figure(figure.to_dict())


def test_figures_show_tokens_as_they_stand():
    """Plotly reads a little HTML in its texts, and of the entities only some."""
    figure = figures.remembered(np.zeros((1, 3)), ["#1"], ["<b>", '."', "&lt;"], ".2f", signed=False)
    names = drawn(figure).layout.xaxis.ticktext
    assert names == ("&lt;b&gt;", '."', "&amp;lt;")


def test_bars_are_the_librarys_tokens_in_their_order_with_sign_and_length(open_app, toy_folder):
    feature = Pack.open(toy_folder)[9]
    shown = {list_["alt"].split(":")[0]: list_["bars"] for list_ in bars(open_app("feature", f=9, tab="Promoted"))}
    lists = {"Promoted, by weights": feature.promoted, "Suppressed, by weights": feature.suppressed}
    for name, pairs in lists.items():
        assert [bar["whole"] for bar in shown[name]] == [visible_token(token, mark_space=True) for token, _ in pairs[:10]]
        assert [bar["value"] for bar in shown[name]] == [f"{value:+.2f}" for _, value in pairs[:10]]
        largest = max(abs(value) for _, value in pairs[:10])
        assert [bar["length"] for bar in shown[name]] == pytest.approx([abs(value) / largest for _, value in pairs[:10]])
    assert {bar["colour"] for bar in shown["Promoted, by weights"] if bar["value"][0] == "+"} == {RAISED}
    assert {bar["colour"] for bar in shown["Suppressed, by weights"] if bar["value"][0] == "-"} == {LOWERED}


def test_labels_under_the_pointer_are_one_line_each_and_unread():
    labels = ["<b>&amp;", "two\nlines", "x" * 80, "", "\u202eabc"]
    told = figures.hover_texts(np.arange(5), labels)
    assert told == ["#0 &lt;b&gt;&amp;amp;", "#1 two↵lines", "#2 " + "x" * 59 + "…", "#3 ", "#4 ⟪RLO⟫abc"]
    assert figures.hover_texts(np.arange(0), []) == []


def test_crowded_regions_are_thinned_and_lonely_points_kept():
    rng = np.random.default_rng(0)
    x, y = np.r_[rng.normal(size=50_000), 40.0], np.r_[rng.normal(size=50_000), 40.0]
    kept = figures.sample(x, y, 5_000)
    assert len(kept) == 5_000
    assert 50_000 in kept


def test_a_histogram_keeps_every_firing(toy_folder):
    edges, counts = Pack.open(toy_folder)[9].histogram
    assert sum(drawn(figures.histogram(edges, counts)).data[0].y) == counts.sum()


def test_no_strength_is_said_to_exceed_all_firings(toy_folder):
    feature = Pack.open(toy_folder)[9]
    assert "100.0" not in examples.rank_line(feature, None, float(feature.row["max"]))


def test_latents_that_point_the_other_way_are_a_relation(open_app, toy_folder):
    expected = Pack.open(toy_folder)[9].opposites
    at = open_app("feature", f=9, tab="Related")
    at.button_group(key="relation").set_value("opposite").run()
    frame = next(frame.value for frame in at.dataframe if "cosine" in frame.value)
    assert list(zip(frame["latent"], frame["cosine"], strict=True)) == expected
    assert all(cosine < 0 for _, cosine in expected)


def test_dense_latents_are_one_choice_of_all_pages(open_app, toy_folder):
    dense = np.flatnonzero(Pack.open(toy_folder).table["flags"].str.contains("dense"))
    at = open_app("features")
    assert np.isin(dense, listed(at)).all()
    at.toggle(key="dense").set_value(False).run()
    assert not np.isin(dense, listed(at)).any()
    at.switch_page("prompt/page.py").run()
    at.switch_page("features/page.py").run()
    assert not np.isin(dense, listed(at)).any()
    assert not at.warning
    assert not np.isin(dense, listed(open_app("features", dense="false"))).any()


def test_a_latent_of_infilling_examples_is_shown_by_role(open_app, tmp_path, toy_folder):
    make_toy_pack(tmp_path / "pack", n_contexts=12, roles=True)
    at = open_app("feature", packs=[tmp_path / "pack"], f=1, tab="Roles")
    assert not at.exception
    shown = next(table.value for table in at.dataframe if "role" in table.value)
    assert shown["role"].tolist() == ["prefix", "middle"]
    assert shown["density"].tolist() == [row["density"] for row in Pack.open(tmp_path / "pack")[1].by_role]
    plain = open_app("feature", f=1)
    assert not any("role" in table.value for table in plain.dataframe)


def test_under_a_field_stands_its_text_with_the_marks_that_turn_the_reading_direction(open_app):
    at = open_app("feature", f=1, tab="Try a text")
    at.text_area(key="text").set_value("the dog").run()
    assert not any("turn the reading" in caption.value for caption in at.caption)
    at.text_area(key="text").set_value("the \u202edog").run()
    assert any("turn the reading" in caption.value and "the ⟪RLO⟫dog" in caption.value for caption in at.caption)


def test_a_latent_that_looks_ahead_shows_what_exchanging_the_suffix_does_to_it(open_app, tmp_path):
    counts = Beyond(threshold=3.5, found=1, confirmed=1, nominal=0.1)
    place = Place(before="def f(", tokens=("a", "<b>"), after="):", own=(1.0, 2.0), others=(0.0, 0.5))
    figures = {"z": 5.0, "z_held_out": 4.5, "p_held_out": 0.001, "own_density": 0.3, "others_density": 0.1}
    row = LatentLookahead(latent=1, examples=40, own=0.8, others=0.2, place=place, **figures)
    facts = {
        "model": "toy",
        "site": "s",
        "dictionary": "toy-dictionary",
        "form": "psm",
        "examples": 60,
        "documents": 60,
        "suffixes": 3,
    }
    result = Lookahead(**facts, permutations=99, seed=0, tested=24, own=counts, null=counts, latents=(row,))
    make_toy_pack(tmp_path / "pack", n_contexts=12)
    add_file(tmp_path / "pack", "lookahead.json", result.to_json().encode(), {})
    at = open_app("feature", packs=[tmp_path / "pack"], f=1, tab="Look-ahead")
    assert not at.exception
    assert any(r"75\% lost" in caption.value and "it looks ahead" in caption.value for caption in at.caption)
    assert [r["notes"] for data in strips(at) for r in data["rows"]][-2:] == [
        ["with its own suffix"],
        ["with suffixes of other documents, mean"],
    ]
    other = open_app("feature", packs=[tmp_path / "pack"], f=3, tab="Look-ahead")
    assert any("too few middles" in caption.value for caption in other.caption)


def test_the_filters_that_act_stand_beside_the_number_of_latents(open_app):
    at = open_app("features", share="0.5", hide="rare", **{"least max": "2"})
    at.slider(key="d").set_value((-2.0, -1.0)).run()
    assert not at.exception
    line = next(m.value.replace("\\", "") for m in at.markdown if "latents:" in m.value)
    assert line.endswith(
        "latents: without rare; firing on 1 % to 10 %; top token's share at most 50%; largest activation at least 2"
    )
    assert any("1 % to 10 % of tokens" in caption.value for caption in at.caption)
