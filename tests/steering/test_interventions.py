import itertools
import json

import pytest
import torch

from scope.errors import EditError
from scope.models.hooks import HookPoint, RunState
from scope.steering.apply.controls import random_frame
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import resolve
from scope.steering.edits.directions import Direction
from scope.steering.edits.interventions import (
    KINDS,
    Ablate,
    Add,
    AtLeast,
    Cap,
    Clamp,
    Edits,
    Floor,
    Positions,
    ProjectOut,
    Scale,
    When,
    edit_from,
)
from tests.steering.conftest import SITE


def apply(model, sae, edits, x, units, control=None):
    """The edits on x [batch pos d_model] as if it flowed past the site; position 0 is <bos>."""
    batch, pos = x.shape[:2]
    tokens = torch.full((batch, pos), 50)
    tokens[:, 0] = model.cfg.bos
    hook = HookPoint()
    hook.run = RunState(tokens, torch.arange(pos).expand(batch, pos), torch.ones(batch, pos, dtype=torch.bool))
    resolved = [resolve(e, {sae.site: sae}, {sae.site: units}) for e in Edits.of(edits)]
    editing = Editing(model, {sae.site: sae}, resolved, control=control)
    for _, fn in editing.hooks():
        x = fn(x, hook)
    return x, editing.report()


@pytest.fixture
def x():
    return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3)) * 3


FORMULAS = {
    "add, half the norm": (Add(3, 0.5), lambda x, f, d, unit: x + 0.5 * 8.0 * unit),
    "add, raw": (Add(3, 2.5, unit="raw"), lambda x, f, d, unit: x + 2.5 * d),
    "add, of the maximum": (Add(3, -1.5, unit="max"), lambda x, f, d, unit: x - 1.5 * 4.0 * d),
    "clamp": (Clamp(3, 1.5, unit="raw"), lambda x, f, d, unit: x + (1.5 - f) * d),
    "clamp, half the norm": (Clamp(3, 0.5, unit="norm"), lambda x, f, d, unit: x + (0.5 * 8.0 / d.norm() - f) * d),
    "at least": (AtLeast(3, 0.7, unit="raw"), lambda x, f, d, unit: x + (0.7 - f).clamp(min=0) * d),
    "ablate": (Ablate(3), lambda x, f, d, unit: x - f * d),
    "scale": (Scale(3, -1.0), lambda x, f, d, unit: x - 2 * f * d),
    "cap": (Cap(3, 0.1), lambda x, f, d, unit: x + ((x @ unit).clamp(max=0.8) - x @ unit)[..., None] * unit),
    "floor": (Floor(3, -0.1), lambda x, f, d, unit: x + ((x @ unit).clamp(min=-0.8) - x @ unit)[..., None] * unit),
    "floor, raw": (
        Floor(3, 0.5, unit="raw"),
        lambda x, f, d, unit: x + ((x @ unit).clamp(min=0.5 * d.norm()) - x @ unit)[..., None] * unit,
    ),
    "project out": (ProjectOut(3), lambda x, f, d, unit: x - (x @ unit)[..., None] * unit),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_every_edit_is_its_formula_everywhere_but_at_bos(tiny_model, sae, units, x, name):
    edit, formula = FORMULAS[name]
    f, d = sae.encode(x)[..., 3:4], sae.W_dec[3]
    assert (f > 0).any()
    assert (f == 0).any()
    edited, _ = apply(tiny_model, sae, edit, x, units)
    expected = formula(x, f, d, d / d.norm())
    torch.testing.assert_close(edited[:, 1:], expected[:, 1:])
    assert torch.equal(edited[:, 0], x[:, 0])


def test_a_clamp_is_decoding_the_changed_latents_and_adding_back_the_error(tiny_model, sae, units, x):
    latents = sae.encode(x)
    error, changed = x - sae.decode(latents), latents.clone()
    changed[..., 3], changed[..., 5] = 2.0, 0.0
    edited, _ = apply(tiny_model, sae, Clamp(3, 2.0, unit="raw", positions="all") + Ablate(5, positions="all"), x, units)
    torch.testing.assert_close(edited, sae.decode(changed) + error)


def test_the_order_of_edits_does_not_matter_and_each_reads_the_unedited_activation(tiny_model, sae, units, x):
    edits = [Add(3, 0.9), Clamp(5, 0.4, unit="norm"), Scale(9, 3.0), ProjectOut(11)]
    alone = [apply(tiny_model, sae, e, x, units)[0] - x for e in edits]
    for order in itertools.islice(itertools.permutations(edits), 0, 24, 5):
        torch.testing.assert_close(apply(tiny_model, sae, list(order), x, units)[0], x + sum(alone))


def test_a_direction_is_read_by_projection(tiny_model, sae, units, x):
    direction = Direction(tuple(range(1, 33)), SITE, "ramp")
    unit = direction.unit()
    p = (x @ unit)[..., None]
    for edit, expected in [
        (Add(direction, 0.5), x + 4.0 * unit),
        (Clamp(direction, 0.25), x + (2.0 - p) * unit),
        (AtLeast(direction, 0.25), x + (2.0 - p).clamp(min=0) * unit),
        (Ablate(direction), x - p * unit),
        (ProjectOut(direction), x - p * unit),
        (Scale(direction, 0.5), x - 0.5 * p * unit),
        (Cap(direction, 0.05), x + (p.clamp(max=0.4) - p) * unit),
        (Floor(direction, 0.05), x + (p.clamp(min=0.4) - p) * unit),
    ]:
        torch.testing.assert_close(apply(tiny_model, sae, edit, x, units)[0][:, 1:], expected[:, 1:])


def test_rescaling_the_component_along_a_latents_row_is_scaling_its_direction(tiny_model, sae, units, x):
    row = Direction.of_latent(sae, 3)
    unit = sae.W_dec[3] / sae.W_dec[3].norm()
    edited, _ = apply(tiny_model, sae, Scale(row, 0.25, positions="all"), x, units)
    along = (x @ unit)[..., None] * unit
    torch.testing.assert_close(edited, (x - along) + 0.25 * along)


def test_a_cap_and_a_floor_together_hold_the_projection_between_them(tiny_model, sae, units, x):
    direction = Direction(tuple(range(1, 33)), SITE, "ramp")
    edited, _ = apply(tiny_model, sae, Cap(direction, 0.2) + Floor(direction, -0.1), x, units)
    inside = (edited @ direction.unit())[:, 1:]
    assert float(inside.max()) == pytest.approx(0.2 * 8.0, rel=1e-4)
    assert float(inside.min()) == pytest.approx(-0.1 * 8.0, rel=1e-4)


def test_a_condition_confines_an_edit_to_positions_where_another_latent_fires(tiny_model, sae, units, x):
    above = float(sae.encode(x)[..., 7].median())
    holds = sae.encode(x)[..., 7] > above
    edited, report = apply(tiny_model, sae, Add(3, 0.5, when=When(7, above), positions="all"), x, units)
    assert torch.equal((edited != x).any(-1), holds)
    assert report.edits[0]["condition_held"] == int(holds.sum()) > 0


def test_the_report_counts_what_the_hook_did(tiny_model, sae, units, x):
    edited, report = apply(tiny_model, sae, Ablate(3) + Add(5, 0.5, positions="last_prompt"), x, units)
    changed = (edited != x).any(-1)
    assert report.seen_per_step == [10]
    assert report.edited_per_step == [int(changed.sum())]
    assert report.edited_per_row == changed.sum(1).tolist()
    norms = (edited - x).norm(dim=-1)[changed] / units.typical_norm
    assert report.mean_norm == pytest.approx(float(norms.mean()), rel=1e-4)
    assert report.max_norm == pytest.approx(float(norms.max()), rel=1e-4)
    active = int((sae.encode(x)[:, 1:, 3] > 0).sum())
    assert [(e["in_rule"], e["active"], e["acted"]) for e in report.edits] == [(8, active, active), (2, 0, 2)]


def test_the_control_adds_as_much_as_the_edit_in_another_direction(tiny_model, sae, units, x):
    edits = Add(3, 0.5) + Clamp(5, 0.3, unit="norm") + ProjectOut(9)
    true, random = (apply(tiny_model, sae, edits, x, units, control)[0] - x for control in (None, 7))
    torch.testing.assert_close(random.norm(dim=-1), true.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(true[:, 1:], random[:, 1:], dim=-1)
    assert cosine.abs().max() < 0.8


def test_a_random_frame_keeps_lengths_and_angles_and_follows_its_seed():
    rows = torch.randn(3, 32)
    turned = random_frame(rows, 4)
    torch.testing.assert_close(turned @ turned.T, rows @ rows.T, atol=1e-4, rtol=1e-4)
    assert torch.equal(turned, random_frame(rows, 4))
    assert not torch.allclose(turned, random_frame(rows, 5))
    assert not torch.allclose(
        random_frame(rows, 4, "blocks.1.hook_resid_post"), random_frame(rows, 4, "blocks.2.hook_resid_post")
    )


def test_an_edit_of_bfloat16_leaves_untouched_positions_bit_for_bit(tiny_model, sae, units, x):
    x = x.bfloat16()
    edited, _ = apply(tiny_model, sae, Add(3, 0.5, positions="last_prompt"), x, units)
    assert edited.dtype == torch.bfloat16
    assert torch.equal(edited[:, :-1], x[:, :-1])
    assert not torch.equal(edited[:, -1], x[:, -1])


RULES = {
    "not_bos": [0, 1, 1, 1, 1, 1],
    "all": [1, 1, 1, 1, 1, 1],
    "content": [0, 1, 0, 1, 1, 1],
    "prompt": [0, 1, 1, 1, 0, 0],
    "generated": [0, 0, 0, 0, 1, 1],
    "last_prompt": [0, 0, 0, 1, 0, 0],
    "from:2": [0, 0, 1, 1, 1, 1],
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_holds_at_absolute_positions_with_padding_left_out(rule):
    bos, eos, special = 2, 1, 6
    tokens = torch.tensor([[bos, 50, special, 51, 52, 53, 0, 0], [0, 0, bos, 50, special, 51, 52, 53]])
    real = torch.tensor([[1] * 6 + [0] * 2, [0] * 2 + [1] * 6]).bool()
    positions = torch.stack([torch.arange(8), (torch.arange(8) - 2).clamp(min=0)])
    run = RunState(tokens, positions, real, prompt_lengths=torch.tensor([4, 4]))
    mask = Positions.of(rule).mask(run, bos, eos, frozenset({bos, special}))
    assert mask[0].int().tolist() == RULES[rule] + [0, 0]
    assert mask[1].int().tolist() == [0, 0] + RULES[rule]


def test_a_row_that_has_ended_is_no_longer_edited():
    tokens, positions = torch.tensor([[1], [9]]), torch.tensor([[7], [7]])
    run = RunState(tokens, positions, torch.ones(2, 1, dtype=torch.bool), prompt_lengths=torch.tensor([4, 4]))
    assert Positions("generated").mask(run, 2, 1).tolist() == [[False], [True]]


@pytest.mark.parametrize(
    "edit", [make(3) for make in KINDS.values()] + [Clamp(3, 0.2, positions="from:4", when=When(2, 0.5), unit="raw")]
)
def test_an_edit_survives_json(edit):
    assert edit_from(json.loads(json.dumps(edit.to_dict()))) == edit


def test_a_direction_survives_json():
    edit = Add(Direction((1.0, 2.0, 0.5), SITE, "mine"), -0.3)
    assert edit_from(json.loads(json.dumps(edit.to_dict()))) == edit


def test_edits_join_with_plus_and_scale_together():
    joined = Add(1, 0.5) + Ablate(2) + (Clamp(3, 1.0, unit="norm") + AtLeast(4, 0.2, unit="norm"))
    assert [e.latent for e in joined] == [1, 2, 3, 4]
    assert [getattr(e, "strength", None) for e in joined.scaled(2)] == [1.0, None, 2.0, 0.4]


def test_an_edit_prints_as_a_sentence():
    assert str(Add(12, 0.5)) == "add latent 12 +0.5 of the residual norm, at every token but <bos>"
    assert str(Scale(12, 0.0, positions="from:3")) == "scale latent 12 x 0, from position 3 on"


REFUSED = {
    "strength is 'strong'; it must be a number": lambda: Add(3, "strong"),
    "strength is nan": lambda: Clamp(3, float("nan")),
    "factor is None": lambda: Scale(3, None),
    "'dogs' is no latent": lambda: Add("dogs", 0.5),
    "True is no latent": lambda: Ablate(True),
    "There are no positions 'everywhere'": lambda: Add(3, 0.5, positions="everywhere"),
    "say from which position on": lambda: Add(3, 0.5, positions="from:"),
    "unit is 'percent'": lambda: Add(3, 0.5, unit="percent"),
    "has norm 0": lambda: Direction((0.0, 0.0), SITE),
    "means nothing at": lambda: Add(Direction((1.0,), SITE), 0.5, site="blocks.2.hook_resid_post"),
    "There is no edit 'explode'": lambda: edit_from({"edit": "explode", "latent": 3}),
    "is no edit. Edits are made as": lambda: Edits.of([3]),
    "There is no edit to apply": lambda: Edits.of([]),
    "has no strength to scale": lambda: Ablate(3).scaled(2),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused(message):
    with pytest.raises(EditError, match=message.replace("(", r"\(")):
        REFUSED[message]()


def test_an_unknown_latent_is_refused_with_the_nearest(sae, units):
    with pytest.raises(EditError, match=r"no latent 64: this dictionary's run from 0 to 63\. Nearest: 63"):
        resolve(Add(64, 0.5), {SITE: sae}, {SITE: units})


def test_multiples_of_an_unknown_maximum_are_refused(sae, units):
    with pytest.raises(EditError, match="largest activation of latent 9 is not known"):
        resolve(Add(9, 1.0, unit="max"), {SITE: sae}, {SITE: units})


def test_the_sheet_tells_a_strength_in_three_units(sae, units):
    sheet = resolve(Add(3, 0.5), {SITE: sae}, {SITE: units}).sheet()
    norm = float(sae.W_dec[3].norm())
    assert sheet["strength"] == pytest.approx(0.5)
    assert sheet["raw"] == pytest.approx(0.5 * 8.0 / norm)
    assert sheet["multiple_of_maximum"] == pytest.approx(0.5 * 8.0 / norm / 4.0)
