from dataclasses import replace

import pytest
import torch

from scope.circuits.attribution import attribute
from scope.circuits.attribution_result import Attribution
from scope.errors import EditError, TokensError
from scope.models.hooks import HookPoint
from tests.steering.conftest import SITE

PROMPT = "the dog runs to the river. a cat"


def rows_of(found: Attribution) -> dict[str, float]:
    return {row.name: row.value for row in found.rows}


def parts(model, sae):
    """(tokens, stream, latents, error) of the prompt; position 0 is <bos>."""
    tokens = model.to_tokens(PROMPT)
    x = model.record(tokens, [SITE])[SITE][0]
    latents = sae.encode(x)
    latents[0] = 0
    error = x - latents @ sae.W_dec - sae.b_dec
    error[0] = 0
    return tokens, x, latents, error


def difference(model, tokens, stream, a, b):
    """logit(a) - logit(b) after the last token, if `stream` flowed past the site."""
    logits = model.run_with_hooks(tokens, fwd_hooks=[(SITE, lambda x, hook: stream[None])])[0, -1]
    return logits[a] - logits[b]


def value(model, tokens, stream, a, b):
    with torch.no_grad():
        return float(difference(model, tokens, stream, a, b))


def test_gradient_rows_are_gradient_times_part_and_add_up_to_gradient_times_stream(tiny_model, sae):
    found = attribute(tiny_model, sae, PROMPT, 60, 70, method="gradient")
    tokens, x, latents, error = parts(tiny_model, sae)
    leaf = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(difference(tiny_model, tokens, leaf, 60, 70), leaf)
    rows = rows_of(found)
    for latent in range(sae.d_sae):
        expected = float((latents[:, latent, None] * sae.W_dec[latent] * grad).sum())
        assert rows.get(f"latent {latent}", 0.0) == pytest.approx(expected, abs=1e-5)
    assert rows["error"] == pytest.approx(float((error * grad).sum()), abs=1e-5)
    assert rows["bias"] == pytest.approx(float((sae.b_dec * grad[1:]).sum()), abs=1e-5)
    assert rows["special tokens"] == pytest.approx(float((x[0] * grad[0]).sum()), abs=1e-5)
    assert sum(rows.values()) == pytest.approx(float((grad * x).sum()), abs=1e-4)
    assert found.whole == pytest.approx(float((grad * x).sum()), abs=1e-4)
    assert found.gap == pytest.approx(0, abs=1e-4)
    assert found.logit_difference == pytest.approx(value(tiny_model, tokens, x, 60, 70), abs=1e-4)


def test_integrated_rows_add_up_to_the_logit_difference_itself(tiny_model, sae):
    found = attribute(tiny_model, sae, PROMPT, 60, 70, method="integrated", steps=64)
    tokens, x, _, _ = parts(tiny_model, sae)
    base = sae.b_dec.expand_as(x).clone()
    base[0] = x[0]
    rows = rows_of(found)
    assert rows["at b_dec alone"] == pytest.approx(value(tiny_model, tokens, base, 60, 70), abs=1e-4)
    assert found.whole == found.logit_difference
    scale = sum(abs(v) for v in rows.values())
    assert abs(found.gap) < 2e-3 * scale
    assert found.gap == pytest.approx(found.whole - sum(rows.values()), abs=1e-6)
    rough = attribute(tiny_model, sae, PROMPT, 60, 70, method="integrated", steps=1)
    assert abs(rough.gap) > abs(found.gap)


def test_ablated_rows_are_exact_and_what_parts_do_only_together_is_a_row(tiny_model, sae):
    found = attribute(tiny_model, sae, PROMPT, 60, 70, method="ablation", exact=5, nulls=2)
    tokens, x, latents, error = parts(tiny_model, sae)
    whole = value(tiny_model, tokens, x, 60, 70)
    rows = rows_of(found)
    alone = [row.latent for row in found.rows if row.latent is not None]
    assert len(alone) == 5
    for latent in alone:
        removed = value(tiny_model, tokens, x - latents[:, latent, None] * sae.W_dec[latent], 60, 70)
        assert rows[f"latent {latent}"] == pytest.approx(whole - removed, abs=1e-4)
    assert rows["error"] == pytest.approx(whole - value(tiny_model, tokens, x - error, 60, 70), abs=1e-4)
    others = latents.clone()
    others[:, alone] = 0
    n = int((others.amax(0) > 0).sum())
    together = value(tiny_model, tokens, x - others @ sae.W_dec, 60, 70)
    assert rows[f"{n} other latents"] == pytest.approx(whole - together, abs=1e-4)
    assert found.gap == pytest.approx(0, abs=1e-5)
    assert sum(rows.values()) == pytest.approx(whole, abs=1e-4)


def test_on_a_model_that_is_linear_after_the_site_all_three_methods_agree(tiny_model, sae, monkeypatch):
    """With the norm's scale frozen and the blocks above silent, logits are linear in the stream."""
    with torch.no_grad():
        for block in tiny_model.blocks[2:]:
            block.ln1_post.weight.fill_(-1.0)  # gain 1 + weight
            block.ln2_post.weight.fill_(-1.0)
    tiny_model.cfg = replace(tiny_model.cfg, final_cap=None)
    monkeypatch.setattr(tiny_model.ln_final, "forward", lambda x: x * 0.5)
    found = {
        m: rows_of(attribute(tiny_model, sae, PROMPT, 60, 70, method=m, exact=99))
        for m in ("gradient", "integrated", "ablation")
    }
    for name, value in found["gradient"].items():
        if name.startswith(("latent", "error")):
            assert found["integrated"][name] == pytest.approx(value, abs=2e-4)
            assert found["ablation"][name] == pytest.approx(value, abs=2e-4)
    assert found["ablation"]["only together"] == pytest.approx(0, abs=2e-3)
    gradient = attribute(tiny_model, sae, PROMPT, 60, 70)
    assert gradient.whole == pytest.approx(gradient.logit_difference, abs=1e-3)


def test_the_null_is_the_spread_of_random_directions_in_the_latents_place(tiny_model, sae):
    found = attribute(tiny_model, sae, PROMPT, 60, 70, method="gradient")
    row = next(r for r in found.sorted() if r.latent is not None)
    tokens, x, latents, _ = parts(tiny_model, sae)
    leaf = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(difference(tiny_model, tokens, leaf, 60, 70), leaf)
    noise = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    random = noise / noise.norm(dim=1, keepdim=True) * sae.W_dec[row.latent].norm()
    effects = random @ (latents[:, row.latent] @ grad)
    assert row.null == pytest.approx(float(effects.std()), rel=0.1)


def test_without_tokens_the_two_likeliest_are_compared(tiny_model, sae):
    likely = tiny_model(tiny_model.to_tokens(PROMPT))[0, -1].topk(2).indices.tolist()
    pieces = tiny_model.words.pieces(likely)
    found = attribute(tiny_model, sae, PROMPT, method="gradient")
    assert [found.token, found.other] == pieces
    assert found.logit_difference > 0
    other = attribute(tiny_model, sae, PROMPT, token=likely[1], method="gradient")
    assert other.other == pieces[0]


def test_a_row_tells_where_its_latent_fires(tiny_model, sae):
    found = attribute(tiny_model, sae, PROMPT, 60, 70)
    tokens, _, latents, _ = parts(tiny_model, sae)
    for row in found.sorted()[:5]:
        assert row.activation == pytest.approx(float(latents[:, row.latent].max()), rel=1e-4)
        assert row.n_active == int((latents[:, row.latent] > 0).sum())
        assert row.strongest == tiny_model.words.pieces([int(tokens[0, latents[:, row.latent].argmax()])])[0]


@pytest.mark.parametrize("method", ["gradient", "integrated", "ablation"])
def test_a_table_prints_its_sum_and_shows_itself_as_inert_html(tiny_model, sae, method):
    found = attribute(tiny_model, sae, "<b>the dog</b>", 60, 70, method=method)
    text, html = str(found), found._repr_html_()
    assert f"{sum(r.value for r in found.rows):+.3f}" in text
    assert "error" in text
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert len(found.to_frame()) == len(found.rows)


def test_nothing_stays_installed_and_gradients_touch_no_parameter(tiny_model, sae):
    attribute(tiny_model, sae, PROMPT, method="ablation")
    assert not any(p.has_hooks() for p in tiny_model.modules() if isinstance(p, HookPoint))
    assert all(p.grad is None for p in tiny_model.parameters())


def test_what_cannot_be_attributed_is_refused(tiny_model, sae):
    with pytest.raises(EditError, match="prompt is empty"):
        attribute(tiny_model, sae, " ")
    with pytest.raises(EditError, match="no method 'magic'; there are gradient, integrated, ablation"):
        attribute(tiny_model, sae, PROMPT, method="magic")
    with pytest.raises(EditError, match="their difference is 0"):
        attribute(tiny_model, sae, PROMPT, 60, 60)
    with pytest.raises(EditError, match="no token 99999"):
        attribute(tiny_model, sae, PROMPT, 99999)
    with pytest.raises(TokensError, match="tokens, not one"):
        attribute(tiny_model, sae, PROMPT, "the river runs")
    with pytest.raises(EditError, match="at least one point"):
        attribute(tiny_model, sae, PROMPT, method="integrated", steps=0)
    with pytest.raises(TokensError):
        attribute(tiny_model, sae, "the dog runs to the river " * 40)


def test_by_default_rows_add_up_to_the_logit_difference_and_the_fast_method_says_first_that_its_do_not(tiny_model, sae):
    usual, fast = (attribute(tiny_model, sae, PROMPT, 60, 70, **how) for how in ({}, {"method": "gradient"}))
    assert usual.method == "integrated"
    assert sum(row.value for row in usual.rows) == pytest.approx(usual.logit_difference, abs=0.002)
    warning = f"not to the logit difference of {fast.logit_difference:+.3f}"
    assert warning in str(fast).splitlines()[1]
    assert warning in fast._repr_html_().partition("<table>")[0]
    assert warning not in str(usual)


def in_double(model, sae):
    return model.double(), sae.double()


@pytest.mark.parametrize("site", ["blocks.3.hook_resid_post", SITE, "blocks.1.hook_mlp_out"])
@torch.no_grad()
def test_direct_rows_add_up_to_the_logit_difference_after_the_soft_cap(tiny_model, sae, site):
    sae.site = site
    found = attribute(tiny_model, sae, PROMPT, 60, 70, method="direct")
    logits = tiny_model(tiny_model.to_tokens(PROMPT))[0, -1]
    assert sum(row.value for row in found.rows) == pytest.approx(float(logits[60] - logits[70]), abs=1e-5)
    model, sae = in_double(tiny_model, sae)
    exact = attribute(model, sae, PROMPT, 60, 70, method="direct")
    logits = model(model.to_tokens(PROMPT))[0, -1]
    assert sum(row.value for row in exact.rows) == pytest.approx(float(logits[60] - logits[70]), abs=1e-10)


@torch.no_grad()
def test_a_direct_row_is_the_parts_share_through_the_frozen_norm_times_what_the_cap_leaves(tiny_model, sae):
    model, sae = in_double(tiny_model, sae)
    sae.site = "blocks.3.hook_resid_post"
    found = attribute(model, sae, PROMPT, 60, 70, method="direct")
    tokens = model.to_tokens(PROMPT)
    stream = model.record(tokens, [sae.site])[sae.site][0, -1]
    latents, cap = sae.encode(stream), model.cfg.final_cap
    gain, scale = 1 + model.ln_final.weight, (stream.square().mean() + model.cfg.eps).sqrt()

    def score(part):
        raw = (part * gain / scale) @ model.embed.weight[[60, 70]].T
        return float(raw[0] - raw[1])

    whole = ((stream * gain / scale) @ model.embed.weight[[60, 70]].T / cap).tanh() * cap
    left = float(whole[0] - whole[1]) / score(stream)
    rows = rows_of(found)
    assert found.before_cap == pytest.approx(score(stream))
    active = latents.nonzero().flatten().tolist()
    assert {f"latent {i}" for i in active} == {name for name in rows if name.startswith("latent")}
    for i in active:
        assert rows[f"latent {i}"] == pytest.approx(left * score(latents[i] * sae.W_dec[i]), abs=1e-10)
    assert rows["bias"] == pytest.approx(left * score(sae.b_dec), abs=1e-10)
    assert rows["error"] == pytest.approx(left * score(stream - sae(stream)), abs=1e-10)
    assert rows["later blocks"] == pytest.approx(0, abs=1e-10)
    assert f"every row is multiplied by {left:.3f}" in str(found)


def test_direct_refuses_a_site_beside_the_stream(tiny_model, sae):
    sae.site = "blocks.1.ln2.hook_normalized"
    with pytest.raises(EditError, match="no part of it"):
        attribute(tiny_model, sae, PROMPT, 60, 70, method="direct")
