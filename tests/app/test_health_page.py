"""The Health page: scores beside baselines, training curves, spreads, and several packs beside one another."""

import numpy as np
from scope.app.health import panels

from scope.features.compare.counterparts import counterparts
from scope.features.face import Pack
from tests.app.conftest import said
from tests.features.toy_pack import make_toy_pack
from tests.help.components import small_tables

ARMS = {"sae": {"fvu": 0.12, "delta_loss": 0.05, "l0": 30.0}, "random": {"fvu": 0.81}, "pca": {"fvu": 0.31}}
LOG = [{"step": s, "tokens": 1000 * s, "error": 1 / s, "l0": 100 / s, "dead": 0.0} for s in range(1, 9)]


def test_a_pack_without_scores_says_which_command_makes_them(open_app):
    at = open_app("health")
    assert not at.exception
    assert "scope evaluate" in said(at)
    assert any("holds no training curve" in caption.value for caption in at.caption)


def test_two_packs_stand_beside_one_another(open_app, tmp_path):
    packs = [tmp_path / "one.pack", tmp_path / "two <b>.pack"]
    for n, pack in enumerate(packs):
        arms = ARMS | {"sae": ARMS["sae"] | {"fvu": 0.12 + 0.1 * n}}
        make_toy_pack(pack, seed=n, health={"evaluation": {"arms": arms}, "training": LOG})
    at = open_app("health", packs=packs, pack="one")
    at.multiselect[0].set_value(["two-b"]).run()
    assert not at.exception
    assert [dict(zip(t["score"], t["SAE"], strict=True))["FVU, pooled"] for t in small_tables(at)] == ["0.120", "0.220"]
    assert len(at.get("plotly_chart")) == 1 + 3 + 4  # the two against each other, curves, spreads


def test_both_counts_of_l0_say_on_which_tokens_they_were_made(open_app, tmp_path):
    make_toy_pack(tmp_path / "scored", health={"evaluation": {"arms": ARMS}})
    store = Pack.open(tmp_path / "scored")
    own = (
        f"L0 {store.table['density'].sum():.3g} on the pack's own {store.n_tokens:,} tokens; on the evaluated ones: mean 30.0."
    )
    at = open_app("health", packs=[tmp_path / "scored"])
    assert own in [caption.value.replace("\\", "") for caption in at.caption]


def test_the_spreads_count_every_latent_that_fired(toy_folder):
    store = Pack.open(toy_folder)
    alive = int((store.table["count"] > 0).sum())
    for _, column, _ in panels.SPREADS:
        edges, counts = panels.spread(store, column)
        assert len(edges) == len(counts) + 1
        assert counts.sum() == alive


def test_every_panel_of_two_packs_gives_lines_of_python_that_run(open_app, toy_folder, tmp_path):
    make_toy_pack(tmp_path / "other", seed=1, health={"evaluation": {"arms": ARMS}})
    at = open_app("health", packs=[toy_folder, tmp_path / "other"], pack="toy")
    at.multiselect[0].set_value(["other"]).run()
    lines = [code.value for code in at.code if code.language == "python"]
    lines = [line for line in lines if "load_sae" not in line]  # needs dictionaries, which the toys lack
    assert len(lines) == 1 + 1 + 2 + 4 + 1 + 1  # scores, against each other, positions, counts, spreads, made, latents of both
    for each in lines:
        exec(each, {})
    assert any("counterparts" in each for each in lines)
    assert any("of 23 living latents" in caption.value for caption in at.caption)


def test_what_latents_share_stands_beside_what_chance_gives(toy_folder):
    store = Pack.open(toy_folder)
    pairs = counterparts(store, store)
    assert (pairs["shared"] == 10).all()
    assert pairs["by_chance"].mean() < 10
    assert panels.matched(pairs).startswith(f"100% of {len(pairs)} living latents")


def test_a_curve_leaves_out_lines_without_the_figure():
    x, y = panels.curve([{"tokens": 1, "l0": 2.0}, {"tokens": 2}, {"tokens": 3, "l0": np.nan}], "l0")
    assert x == [1, 3]
    assert y[0] == 2.0
