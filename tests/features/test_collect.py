"""One streaming pass is held against brute force on dense latents."""

import numpy as np
import pytest
import torch

from scope.features.collect.codes import lowest_bin
from scope.features.collect.config import CollectConfig, Sizes
from scope.features.collect.token_effects import neighbours
from scope.features.face import Pack
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from tests.conftest import random_gemma
from tests.features.brute import Brute
from tests.features.toy_pack import collect

SITE = "blocks.1.hook_resid_post"
SIZES = Sizes(top=5, per_band=3, random=4, near=3, window=6, twin_radius=2, tokens=8, cofiring=4, cofiring_sample=16)


def toy_sae(model, d_sae: int = 48, seed: int = 0) -> JumpReLUSAE:
    """Random directions with thresholds that let about a tenth of the latents fire; latent 0 never does."""
    sae = JumpReLUSAE(JumpReLUConfig(d_in=model.cfg.d_model, d_sae=d_sae), SITE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(d_sae, model.cfg.d_model, generator=generator))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.zero_()
        sae.threshold.copy_(torch.linspace(2, 60, d_sae))
        sae.threshold[0] = 1e9
    return sae


@pytest.fixture(scope="module")
def toy_contexts(toy_text, toy_tokenizer) -> torch.Tensor:
    """60 contexts of 32 tokens; some repeat, the last is padded."""
    ids = [i for text in toy_text for i in [*toy_tokenizer.encode(text, bos=False), toy_tokenizer.eos]]
    rows = [[toy_tokenizer.bos, *ids[k * 31 : k * 31 + 31]] for k in range(56)]
    rows += rows[:3]
    rows.append(rows[10][:20] + [toy_tokenizer.pad] * 12)
    return torch.tensor(rows)


@pytest.fixture(scope="module")
def tiny_model(tiny_config, toy_tokenizer):
    return random_gemma(tiny_config, toy_tokenizer)


@pytest.fixture(scope="module")
def collected(tiny_model, toy_contexts, tmp_path_factory):
    config = CollectConfig(chunk_tokens=200, sizes=SIZES, score_prompts=2, score_null=8, seed=3)
    sae = toy_sae(tiny_model)
    pack = collect(tiny_model, sae, toy_contexts, config, tmp_path_factory.mktemp("collected") / "pack")
    acts = tiny_model.record(toy_contexts, [SITE])[SITE]
    latents = sae.encode(acts).detach().numpy()
    keep = ~np.isin(toy_contexts.numpy(), sorted(tiny_model.tokenizer.special_ids))
    low = pack.manifest.histogram.low
    brute = Brute(latents, toy_contexts.numpy(), keep, low, seed=3, top=5, per_band=3, random=4, near=3, window=6, radius=2)
    return pack, brute, sae


def placed(pack: Pack, f: int, group: str) -> list[tuple[int, float]]:
    return [(e.context * pack.n_ctx + e.offset, e.value) for e in pack[f].examples(group, 99)]


def close(found, expected):
    assert [p for p, _ in found] == [p for p, _ in expected]
    np.testing.assert_allclose([v for _, v in found], [v for _, v in expected], rtol=1e-5)


def test_counts_and_moments_are_those_of_all_firings(collected):
    pack, brute, _ = collected
    for f in range(pack.d_sae):
        values = np.array([v for _, v in brute.firings(f)])
        row = pack[f].row
        assert row["count"] == len(values)
        assert row["density"] == len(values) / brute.keep.sum()
        if len(values):
            np.testing.assert_allclose([row["mean"], row["max"]], [values.mean(), values.max()], rtol=1e-5)
            np.testing.assert_allclose(row["cv"], values.std() / values.mean(), rtol=1e-3, atol=1e-3)
    assert pack.n_tokens == brute.keep.sum()


def test_the_shape_of_the_activations_is_that_of_all_firings(collected):
    pack, brute, _ = collected
    checked = 0
    for f in range(pack.d_sae):
        values = np.array([v for _, v in brute.firings(f)])
        if len(values) > 3 and values.std() > 0.01 * values.mean():
            standard = (values - values.mean()) / values.std()
            np.testing.assert_allclose(pack[f].row["skew"], (standard**3).mean(), rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(pack[f].row["kurtosis"], (standard**4).mean() - 3, rtol=1e-3, atol=1e-3)
            checked += 1
    assert checked > 20
    assert np.isnan(pack[0].row["skew"])


def test_p44_the_shape_of_the_logits_is_that_over_the_whole_vocabulary(collected, tiny_model):
    pack, _, sae = collected
    unit = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).detach()
    logits = ((unit * (1 + tiny_model.ln_final.weight)) @ tiny_model.W_U).detach().double().numpy()
    logits -= logits.mean(1, keepdims=True)
    for f in (0, 5, 17):
        standard = logits[f] / logits[f].std()
        row = pack[f].row
        found = [row["logit_std"], row["logit_skew"], row["logit_kurtosis"]]
        np.testing.assert_allclose(found, [logits[f].std(), (standard**3).mean(), (standard**4).mean() - 3], rtol=1e-3)
        counts, ends = pack.relation("logit_histogram")[f], pack.relation("logit_ends")[f]
        np.testing.assert_allclose(ends, [logits[f].min(), logits[f].max()], rtol=1e-4)
        assert counts.sum() == logits.shape[1]
        assert np.abs(counts - np.histogram(logits[f], len(counts))[0]).sum() <= 4  # a logit on an edge may round either way


def test_the_histogram_counts_every_firing_in_its_bin(collected):
    pack, brute, _ = collected
    for f in range(pack.d_sae):
        assert (pack[f].histogram[1] == brute.histogram(f)).all()


def test_percentiles_from_the_histogram_are_within_one_bin(collected):
    pack, brute, _ = collected
    for f in range(pack.d_sae):
        values = np.array([v for _, v in brute.firings(f)])
        for q in (50, 90, 99):
            if len(values):
                exact = np.quantile(values, q / 100, method="inverted_cdf")
                assert pack[f].row[f"p{q}"] / exact == pytest.approx(1, abs=0.13)


def test_p42_top_examples_are_the_strongest_contexts_without_near_duplicates(collected):
    pack, brute, _ = collected
    for f in range(pack.d_sae):
        close(placed(pack, f, "top"), brute.top(f))


def test_p42_random_examples_are_the_firings_of_smallest_priority(collected):
    pack, brute, _ = collected
    for f in range(pack.d_sae):
        close(placed(pack, f, "random"), brute.random(f))


def test_p42_band_examples_are_a_uniform_sample_of_each_band(collected):
    pack, brute, _ = collected
    for f in range(pack.d_sae):
        chosen, shares = brute.bands(f)
        found = {(e.context * pack.n_ctx + e.offset, e.band) for e in pack[f].examples("bands", 99)}
        assert found == {(p, b) for p, _, b in chosen}
        if shares:
            assert [b["count"] for b in pack[f].bands] == shares[0]
            np.testing.assert_allclose(
                [b["mass_share"] for b in pack[f].bands], np.array(shares[1]) / sum(shares[1]), rtol=1e-5
            )


def test_every_firing_lies_between_the_edges_of_its_band(collected):
    pack, _, _ = collected
    for f in range(pack.d_sae):
        for e in pack[f].examples("bands", 99):
            band = pack[f].bands[e.band]
            assert band["low"] <= e.value <= band["high"]


def test_p42_near_misses_are_silent_on_a_token_on_which_the_latent_often_fires(collected):
    pack, brute, _ = collected
    seen = 0
    for f in range(pack.d_sae):
        often = {t for t, n, _ in brute.token_counts(f)[:4]}
        for e in pack[f].examples("near", 99):
            assert brute.latents[e.context, e.offset, f] == 0 == e.value
            assert e.ids[e.peak] in often
            seen += 1
    assert seen > 20


def test_activations_around_an_example_are_the_latents(collected):
    pack, brute, _ = collected
    for f in range(pack.d_sae):
        for group in pack[f].groups:
            for e in pack[f].examples(group, 99):
                at = e.offset - e.peak
                np.testing.assert_allclose(e.acts, brute.latents[e.context, at : at + len(e.ids), f], rtol=1e-5)
                assert e.ids == brute.tokens[e.context, at : at + len(e.ids)].tolist()


def test_it_is_known_of_every_control_window_who_fires_in_it(collected):
    pack, brute, _ = collected
    controls, half = pack.controls, pack.manifest.control_half
    assert len(controls["position"]) == 256
    assert brute.keep.reshape(-1)[controls["position"]].all()
    for i, p in enumerate(controls["position"]):
        c, o = divmod(int(p), brute.n_ctx)
        expected = np.flatnonzero((brute.latents[c, max(0, o - half) : o + half + 1] > 0).any(0))
        assert controls["latent"][controls["start"][i] : controls["start"][i + 1]].tolist() == expected.tolist()


def test_token_statistics_are_exact(collected):
    pack, brute, _ = collected
    totals = brute.totals(len(pack.vocab))
    for f in range(pack.d_sae):
        expected = brute.token_counts(f)
        assert [(t["id"], t["count"]) for t in pack[f].tokens] == [(t, n) for t, n, _ in expected[:8]]
        for t, (i, n, s) in zip(pack[f].tokens, expected, strict=False):
            assert t["p_fires_given_token"] == n / totals[i]
            np.testing.assert_allclose(t["mean"], s / n, rtol=1e-5)
        assert pack[f].row["n_tokens"] == len(expected)
        if expected:
            shares = np.cumsum([n for _, n, _ in expected]) * 2 >= sum(n for _, n, _ in expected)
            assert pack[f].row["n_tokens_half"] == shares.argmax() + 1


def test_co_firing_is_counted_on_the_uniform_sample(collected):
    pack, brute, _ = collected
    flat = brute.latents.reshape(-1, brute.d_sae)
    checked = 0
    for f in range(pack.d_sae):
        sample = [p for p, _ in brute.random(f, 16)]
        for j, p, lift in pack[f].co_firing:
            exact = (flat[sample, j] > 0).mean()
            assert p == pytest.approx(exact)
            assert lift == pytest.approx(exact / pack[j].row["density"], rel=1e-5)
            assert j != f
            checked += 1
    assert checked > 20


def test_chunks_of_any_size_give_the_same_pack(tiny_model, toy_contexts, tmp_path):
    sae, packs = toy_sae(tiny_model), []
    for size in (100, 5000):
        config = CollectConfig(chunk_tokens=size, sizes=SIZES, score_prompts=0)
        packs.append(collect(tiny_model, sae, toy_contexts, config, tmp_path / str(size)))
    one, other = packs
    if one.manifest.histogram == other.manifest.histogram:
        assert (one.table["count"] == other.table["count"]).all()
    for f in range(one.d_sae):
        for group in ("top", "random"):
            assert [p for p, _ in placed(one, f, group)] == [p for p, _ in placed(other, f, group)]


def test_p44_promoted_tokens_pass_through_the_gain_of_the_final_norm(collected, tiny_model):
    pack, _, sae = collected
    unit = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    logits = (unit * (1 + tiny_model.ln_final.weight)) @ tiny_model.W_U
    logits = (logits - logits.mean(1, keepdim=True)).detach()
    logits[:, sorted(tiny_model.tokenizer.special_ids)] = -torch.inf
    for f in (0, 5, 17):
        best = logits[f].argmax()
        assert pack[f].promoted[0][0] == pack.vocab[best]
        assert pack[f].promoted[0][1] == pytest.approx(float(logits[f, best]), rel=1e-4)


def test_p44_the_measured_effect_is_that_of_a_whole_steered_run(collected, tiny_model):
    from scope.features.collect.config import NEUTRAL

    pack, _, sae = collected
    length, f = pack.manifest.output_score.length, 7
    edit = sae.W_dec[f] / sae.W_dec[f].norm() * length
    rise, kl = 0.0, 0.0
    for text in NEUTRAL[:2]:
        tokens = tiny_model.to_tokens(text)

        def add(x, hook):
            x = x.clone()
            x[:, -1] += edit
            return x

        with torch.no_grad():
            plain = tiny_model(tokens)[0, -1].log_softmax(-1)
            steered = tiny_model.run_with_hooks(tokens, fwd_hooks=[(SITE, add)])[0, -1].log_softmax(-1)
        rise = rise + (steered.exp() - plain.exp()) / 2
        kl += float((steered.exp() * (steered - plain)).sum()) / 2
    promoted = pack.relation("promoted_id")[f]
    assert pack[f].row["out_score"] == pytest.approx(float(rise[promoted.tolist()].sum()), abs=1e-5)
    assert pack[f].row["out_kl"] == pytest.approx(kl, rel=1e-3)
    assert pack[f].measured[0][0] == pack.vocab[int(rise.argmax())]


def test_output_scores_stand_beside_those_of_random_directions(collected):
    pack, _, _ = collected
    null = pack.manifest.output_score
    assert null.random == 8
    assert null.null_p95 >= null.null_mean
    flagged = pack.table["flags"].str.contains("output")
    assert (flagged == (pack.table["out_score"] > null.null_p95)).all()


def test_neighbours_are_the_nearest_decoder_directions(collected):
    pack, _, sae = collected
    unit = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).detach()
    cosine = unit @ unit.T - 2 * torch.eye(len(unit))
    for f in range(pack.d_sae):
        assert pack[f].neighbours[0][0] == int(cosine[f].argmax())
        assert pack[f].neighbours[0][1] == pytest.approx(float(cosine[f].max()), abs=1e-5)


def test_opposites_are_the_most_negative_cosines_and_no_others(collected):
    pack, _, sae = collected
    unit = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).detach()
    cosine = unit @ unit.T
    for f in range(pack.d_sae):
        wanted = [c for c in sorted(cosine[f].tolist()) if c < 0][:10]
        assert [c for _, c in pack[f].opposites] == pytest.approx(wanted, abs=1e-5)
        assert all(float(cosine[f, j]) == pytest.approx(c, abs=1e-5) for j, c in pack[f].opposites)


def test_directions_that_all_point_one_way_have_no_opposites():
    found = neighbours(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), k=4, k_opposite=3)
    assert found["neighbour_id"][0].tolist() == [1, 2, -1, -1]
    assert (found["opposite_id"] == -1).all()
    assert (found["opposite_cos"] == 0).all()


def test_a_silent_latent_is_dead_and_says_how_rare_it_may_be(collected):
    pack, _, _ = collected
    assert pack[0].flags[0] == "dead"
    assert pack[0].density_bound == 3 / pack.n_tokens
    assert "did not fire" in repr(pack[0])
    assert "did not fire" in pack[0]._repr_html_()


def test_the_median_norm_is_that_of_the_counted_tokens(collected, tiny_model, toy_contexts):
    pack, brute, _ = collected
    norms = tiny_model.record(toy_contexts, [SITE])[SITE].norm(dim=2)[torch.from_numpy(brute.keep)]
    assert pack.norm_median == pytest.approx(float(np.median(norms)), rel=1e-5)


def test_the_lowest_bin_leaves_room_above_and_below():
    low = lowest_bin(3.0)
    from scope.features.collect.codes import edges

    assert edges(low)[0] == 2.0**-14
    assert edges(low)[-1] == 2.0**6
