import pytest
import torch

from scope.circuits.effects import effects
from scope.errors import DictionaryError, EditError
from scope.steering.compare.cost import cost
from scope.steering.edits.directions import Direction
from scope.steering.edits.interventions import Ablate, Add, Clamp, ProjectOut
from tests.steering.conftest import SITE, random_sae

PROMPT = "the dog runs to the river. a cat"


@torch.no_grad()
def logits_with(model, change):
    return model.run_with_hooks(model.to_tokens(PROMPT), fwd_hooks=[(SITE, change)])[0, -1]


def without_bos(shift):
    return lambda x, hook: torch.cat([x[:, :1], x[:, 1:] + shift(x[:, 1:])], 1)


EDITS = {
    "ablate": (Ablate(3), lambda sae: lambda x: -sae.encode(x)[..., 3:4] * sae.W_dec[3]),
    "clamp": (Clamp(3, 2.0, unit="raw"), lambda sae: lambda x: (2.0 - sae.encode(x)[..., 3:4]) * sae.W_dec[3]),
    "add": (Add(3, 0.5), lambda sae: lambda x: 4.0 * sae.W_dec[3] / sae.W_dec[3].norm()),
}


@pytest.mark.parametrize("name", EDITS)
def test_the_change_of_the_next_token_is_that_of_the_edited_stream(tiny_model, sae, units, name):
    edit, shift = EDITS[name]
    found = effects(tiny_model, sae, edit, PROMPT, token=60, other=70, strength_units=units)
    plain, edited = (logits_with(tiny_model, f) for f in (lambda x, hook: x, without_bos(shift(sae))))
    p, q = plain.softmax(-1), edited.softmax(-1)
    assert found.kl == pytest.approx(float((q * (q / p).log()).sum()), abs=1e-5)
    assert found.kl > 0
    assert found.logit_difference[0] == pytest.approx(float(plain[60] - plain[70]), abs=1e-4)
    assert found.logit_difference[1] == pytest.approx(float(edited[60] - edited[70]), abs=1e-4)
    assert found.change == pytest.approx(float((edited - plain)[60] - (edited - plain)[70]), abs=1e-4)
    for row in found.tokens:
        assert row["change"] == pytest.approx(row["edited"] - row["plain"])
    assert max(found.tokens, key=lambda r: r["edited"])["edited"] == pytest.approx(float(q.max()), abs=1e-5)


def test_the_null_is_the_same_edit_on_latents_whose_part_is_about_as_large(tiny_model, sae, units):
    found = effects(tiny_model, sae, Ablate(3), PROMPT, token=60, other=70, strength_units=units, nulls=5)
    x = tiny_model.record(tiny_model.to_tokens(PROMPT), [SITE])[SITE][0, 1:]
    part = sae.encode(x).sum(0) * sae.W_dec.norm(dim=1)
    nearest = (part - part[3]).abs().argsort()[:25].tolist()
    assert len(found.null_kl) == len(found.null_change) == 5
    for (latent,), kl in zip(found.null_latents, found.null_kl, strict=True):
        assert latent != 3
        assert latent in nearest
        alone = effects(tiny_model, sae, Ablate(latent), PROMPT, token=60, other=70, strength_units=units, nulls=0)
        assert kl == pytest.approx(alone.kl, abs=1e-6)


def test_a_null_of_an_added_latent_is_as_long(tiny_model, sae, units):
    found = effects(tiny_model, sae, Add(3, 2.0, unit="raw"), PROMPT, strength_units=units, nulls=2, token=60, other=70)
    ((latent,), _) = found.null_latents
    strength = 2.0 * float(sae.W_dec[3].norm()) / 8.0
    alone = effects(tiny_model, sae, Add(latent, strength), PROMPT, strength_units=units, nulls=0, token=60, other=70)
    assert found.null_kl[0] == pytest.approx(alone.kl, rel=1e-4)


def test_later_latents_are_read_by_a_dictionary_of_a_later_site(tiny_model, sae, units):
    later = random_sae(site="blocks.2.hook_resid_post", seed=5)
    found = effects(tiny_model, sae, Ablate(3), PROMPT, downstream=later, strength_units=units)
    tokens, kept = tiny_model.to_tokens(PROMPT), {}
    shift = without_bos(EDITS["ablate"][1](sae))
    for name, change in (("plain", lambda x, hook: x), ("edited", shift)):
        hooks = [(SITE, change), (later.site, lambda x, hook, name=name: kept.__setitem__(name, later.encode(x[0, -1])))]
        with torch.no_grad():
            tiny_model.run_with_hooks(tokens, fwd_hooks=hooks)
    change = kept["edited"] - kept["plain"]
    assert [row["latent"] for row in found.downstream] == change.abs().topk(8).indices.tolist()
    for row in found.downstream:
        assert row["change"] == pytest.approx(float(change[row["latent"]]), abs=1e-4)
        assert row["null"] > 0
    assert list(found.downstream_frame().columns) == ["site", "latent", "plain", "edited", "change", "null"]


def test_an_edit_that_touches_nothing_is_said_to(tiny_model, sae, units):
    with torch.no_grad():
        sae.threshold[3] = 1e6
    found = effects(tiny_model, sae, Ablate(3), PROMPT, strength_units=units)
    assert found.kl == pytest.approx(0, abs=1e-9)
    assert any("Nothing was edited" in note for note in found.notes)


def test_a_directions_null_is_a_random_direction(tiny_model, units):
    direction = Direction(tuple(range(1, 33)), SITE, "ramp")
    found = effects(tiny_model, None, ProjectOut(direction), PROMPT, strength_units=units, nulls=3)
    assert found.null_latents == ((None,), (None,), (None,))
    assert all(kl > 0 for kl in found.null_kl)


def test_effects_print_and_show_themselves_as_inert_html(tiny_model, sae, units):
    found = effects(
        tiny_model,
        sae,
        Add(3, 0.5),
        "<b>the dog</b>",
        strength_units=units,
        downstream=random_sae(site="blocks.2.hook_resid_post"),
    )
    assert "median" in str(found)
    assert "<b>" not in found._repr_html_()
    assert list(found.to_frame().columns) == ["token", "plain", "edited", "change"]


def test_bad_input_is_refused(tiny_model, sae, units):
    with pytest.raises(EditError, match="prompt is empty"):
        effects(tiny_model, sae, Ablate(3), " ")
    with pytest.raises(EditError, match="no latent 64"):
        effects(tiny_model, sae, Ablate(64), PROMPT)
    with pytest.raises(DictionaryError, match="which this model does not have"):
        effects(tiny_model, sae, Ablate(3), PROMPT, downstream=random_sae(site="blocks.9.hook_resid_post"))
    with pytest.raises(EditError, match="A text is empty"):
        cost(tiny_model, sae, Add(3, 0.5), [" "])


def test_the_cost_is_the_mean_loss_with_and_without_the_edit(tiny_model, sae, units):
    told = cost(tiny_model, sae, Add(3, 0.5), [PROMPT], strength_units=units)
    tokens = tiny_model.to_tokens(PROMPT)
    shift = without_bos(EDITS["add"][1](sae))
    with torch.no_grad():
        plain = float(tiny_model(tokens, return_type="loss"))
        steered = float(tiny_model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(SITE, shift)]))
    assert (told.plain, told.steered) == (pytest.approx(plain, abs=1e-5), pytest.approx(steered, abs=1e-5))
    assert told.n_tokens == tokens.shape[1] - 1
