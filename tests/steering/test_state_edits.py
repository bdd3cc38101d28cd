"""Forget and Hold: edits of what the state of a recurrence remembers."""

import json

import pytest
import torch

from scope.circuits.effects import effects
from scope.errors import EditError
from scope.models.griffin.shares import for_each_recurrence, remaining
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import at_each_layer, resolve
from scope.steering.apply.state_edits import alike
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.compare.cost import cost
from scope.steering.compare.steer import SteeringRun, steer
from scope.steering.compare.sweep import sweep
from scope.steering.edits.interventions import Add, Direction, Edits, Forget, Hold, Span, edit_from
from tests.models.griffin_twins import some_tokens, tiny_griffin
from tests.steering.conftest import random_sae

STATES = ["blocks.0.rec.hook_state", "blocks.1.rec.hook_state", "blocks.3.rec.hook_state"]
UNITS = {site: StrengthUnits(1.0, "given") for site in STATES}
TEXT = "the dog runs and the cat sleeps"
GREEDY = SamplingConfig(max_new_tokens=4, temperature=0.0)


@pytest.fixture(scope="module")
def model(toy_tokenizer):
    return tiny_griffin(toy_tokenizer).requires_grad_(False)


@pytest.fixture(scope="module")
def state_sae(model):
    sae = random_sae(model.cfg.lru_width, 48, STATES[1])
    sae.provenance = {"model": dict(model.provenance), "weights_sha256": "state"}
    return sae


def editing(model, edits, saes=None, **how) -> Editing:
    resolved = [resolve(edit, saes or {}, UNITS) for edit in at_each_layer(model, Edits.of(edits))]
    return Editing(model, saes or {}, resolved, **how)


def states(model, tokens, edits=(), saes=None, **how) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    hooks = editing(model, edits, saes).hooks() if edits else []
    model.run_with_hooks(tokens, fwd_hooks=[*hooks, (STATES, lambda x, hook: seen.update({hook.name: x.clone()}))], **how)
    return seen


def test_forgetting_all_tokens_leaves_a_state_of_zero(model):
    tokens = some_tokens(2, 12)
    plain, edited = states(model, tokens), states(model, tokens, [Forget((0, None))])
    for site in STATES:
        assert edited[site][:, -1].abs().max() < 1e-5 * plain[site][:, -1].abs().max()


def test_what_is_forgotten_at_a_token_changes_nothing_before_it(model):
    tokens = some_tokens(1, 12)
    plain, edited = states(model, tokens), states(model, tokens, [Forget((2, 5), positions="from:8")])
    for site in STATES:
        assert torch.equal(plain[site][:, :8], edited[site][:, :8])
        assert not torch.allclose(plain[site][:, 8], edited[site][:, 8], atol=1e-3)


def test_what_is_taken_out_is_the_share_of_the_tokens(model):
    tokens, site = some_tokens(1, 12), STATES[0]
    change = (states(model, tokens)[site] - states(model, tokens, [Forget((2, 5), positions="from:8")])[site])[0]
    for time in (8, 11):
        share = for_each_recurrence(
            model, tokens, [0], lambda _, r, t=time: next(left[2:5].sum(0) for _, _, left in remaining(r, [t]))
        )[0]
        assert torch.allclose(change[time].double(), share, atol=1e-5)


def test_forgetting_at_once_is_as_if_the_tokens_had_written_nothing(model):
    tokens, site = some_tokens(1, 12), STATES[0]

    def silence(write, hook):
        write = write.clone()
        write[:, 2:5] = 0
        return write

    seen = {}
    keep = (site, lambda x, hook: seen.update(x=x.clone()))
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.rec.hook_write", silence), keep])
    edited = states(model, tokens, [Forget((2, 5), positions="not_bos", site=site)])[site]
    assert torch.allclose(edited, seen["x"], atol=1e-5)


def test_half_of_a_share_is_forgotten_once_however_often_the_rule_holds(model):
    tokens, site = some_tokens(1, 12), STATES[0]
    plain = states(model, tokens)[site]
    all_of_it = plain - states(model, tokens, [Forget(3, positions="not_bos", site=site)])[site]
    half = plain - states(model, tokens, [Forget(3, 0.5, positions="not_bos", site=site)])[site]
    assert torch.allclose(half, all_of_it / 2, atol=1e-5)


def test_padding_does_not_change_what_is_forgotten(model):
    tokens, pad = some_tokens(1, 9), torch.zeros(1, 3, dtype=torch.long)
    mask = torch.tensor([[0] * 3 + [1] * 9])
    alone = states(model, tokens, [Forget((2, 4))])
    padded = states(model, torch.cat([pad, tokens], 1), [Forget((2, 4))], attention_mask=mask)
    assert all(torch.allclose(alone[site], padded[site][:, 3:], atol=1e-5) for site in STATES)


@pytest.mark.parametrize("rule", ["last_prompt", "generated", "not_bos"])
def test_cached_and_uncached_generation_forget_and_hold_alike(model, state_sae, rule):
    edits, saes = [Forget("dog", positions=rule), Hold(5, positions=rule)], {STATES[1]: state_sae}
    texts = []
    for use_cache in (True, False):
        hooks = editing(model, edits, saes).hooks()
        texts.append(generate(model, [TEXT, "a dog"], GREEDY, fwd_hooks=hooks, use_cache=use_cache))
    assert [t.new_ids for t in texts[0]] == [t.new_ids for t in texts[1]]


def test_words_are_found_by_their_characters_wherever_they_stand(model):
    ids = model.words.encode("the dog saw the dogs")
    pieces = model.words.pieces(ids)
    places = Span("dog").places(ids, model.words)
    assert places
    assert all("d" in pieces[i] or "o" in pieces[i] or "g" in pieces[i] for i in places)
    assert Span("zebra").places(ids, model.words) == []
    assert Span.parsed("3:5") == Span("", 3, 5)
    assert Span.parsed("4") == Span("", 4, 5)
    assert Span.parsed("a 4") == Span("a 4")


def test_a_held_latent_keeps_its_part_of_the_state(model, state_sae):
    tokens, site = some_tokens(1, 10), STATES[1]
    latent = int(state_sae.encode(states(model, tokens)[site][0, 1:-1]).sum(0).argmax())
    seen = {}
    points = ["blocks.1.rec.hook_a", "blocks.1.rec.hook_write"]
    model.run_with_hooks(tokens, fwd_hooks=[(points, lambda x, hook: seen.update({hook.name: x[0].clone()}))])
    a, write = seen[points[0]].clone(), seen[points[1]]
    a[0] = 0
    state, expected = torch.zeros(model.cfg.lru_width), []
    for t in range(10):
        part = state_sae.encode(state)[latent] * state_sae.W_dec[latent]
        held = (1 - a[t]) * part if t else 0
        state = a[t] * state + write[t] + held
        expected.append(state)
    edited = states(model, tokens, [Hold(latent)], {site: state_sae})[site][0]
    assert torch.allclose(edited, torch.stack(expected), atol=1e-4)
    assert not torch.allclose(edited, states(model, tokens)[site][0], atol=1e-2)


def test_holding_nothing_of_the_decay_changes_nothing(model, state_sae):
    tokens, site = some_tokens(1, 10), STATES[1]
    assert torch.equal(states(model, tokens)[site], states(model, tokens, [Hold(5, 0.0)], {site: state_sae})[site])


def test_the_control_of_a_forgotten_token_forgets_others_of_the_same_length(model):
    tokens, site = some_tokens(1, 12), STATES[0]
    edits = at_each_layer(model, Edits.of(Forget(4, site=site)))
    plain = states(model, tokens)[site][:, -1]
    changes = []
    for control in (None, [0], 0):
        seen = {}
        hooks = Editing(model, {}, [resolve(e, {}, UNITS) for e in edits], control=control).hooks()
        model.run_with_hooks(tokens, fwd_hooks=[*hooks, (site, lambda x, hook, s=seen: s.update(x=x.clone()))])
        changes.append((seen["x"][:, -1] - plain)[0])
    true, tokens_instead, direction = changes
    for control in (tokens_instead, direction):
        assert torch.isclose(control.norm(), true.norm(), rtol=1e-3)
        assert torch.cosine_similarity(control, true, dim=0) < 0.9


def test_tokens_of_equal_share_are_neighbours_that_are_not_forgotten():
    lengths = torch.tensor([9.0, 1.0, 5.0, 5.0, 1.1, 0.9, 4.9, 5.1])
    marks = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0]).bool()
    chosen = [alike(lengths, marks, torch.tensor([0, *[1] * 7]).bool(), seed).nonzero()[:, 0].tolist() for seed in range(4)]
    assert all(places in ([4, 5], [5, 6], [6, 7]) for places in chosen)
    assert not alike(lengths, torch.ones(8).bool(), torch.ones(8).bool(), 0).any()


def test_a_run_that_forgets_is_scored_saved_replayed_and_written_as_a_program(model, tmp_path):
    from scope.steering.export.script import edit_code

    run = steer(model, None, Forget("dog"), [TEXT], GREEDY, ("plain", "steered", "random", "other"))
    assert len(run.sheet) == 1
    assert "neighbouring tokens" in str(run)
    assert run["steered"].report.edits[0]["acted"] == 1
    again = SteeringRun.from_json(run.to_json(tmp_path / "run.json"))
    assert again.edits == run.edits
    assert run.same_texts(again.replay(model, None))
    assert edit_code(run.edits[0]) == "Forget('dog', 1.0, positions='last_prompt')"


def test_edits_of_a_state_are_swept_priced_and_measured_like_others(model, state_sae):
    texts = [TEXT, "a dog runs"]
    swept = sweep(model, state_sae, Hold(5), texts, [0.5, 1.0], GREEDY, conditions=("plain", "steered", "random", "other"))
    assert swept.strengths == (0.5, 1.0)
    assert cost(model, None, Forget("dog"), texts).n_tokens > 0
    result = effects(model, None, Forget("dog"), TEXT, nulls=2)
    assert len(result.null_kl) == 2
    assert "the same edit on 2 spans of other tokens of about equal share" in str(result)
    assert "latent" not in str(result)
    (note,) = effects(model, None, Forget("dog", positions="from:60"), TEXT, nulls=0).notes
    assert note == "Nothing was edited: the state holds nothing of these tokens, or the rule is empty."


def test_a_forget_without_effect_is_not_told_to_choose_a_latent(model):
    run = steer(model, None, Forget("dog", 1e-3), [TEXT], GREEDY, conditions=("plain", "steered"))
    (note,) = (note for note in run.notes if note.startswith("No effect"))
    assert "latent" not in note


def test_an_edit_at_a_state_is_counted_once_a_token(model, state_sae):
    applied = editing(model, [Add(5, 0.5, unit="raw")], {STATES[1]: state_sae})
    with model.hooks(applied.hooks()):
        model(some_tokens(1, 9))
    assert applied.report().seen_per_step == [9]


@pytest.mark.parametrize("edit", [Forget("dog"), Forget((2, 5), 0.5, positions="generated"), Hold(3, 0.25)], ids=str)
def test_an_edit_of_a_state_is_read_back_from_json(edit):
    assert edit_from(json.loads(json.dumps(edit.to_dict()))) == edit


def test_what_cannot_be_forgotten_or_held_is_refused(model, state_sae, tiny_model, sae):
    with pytest.raises(EditError, match="no recurrent layer"):
        steer(tiny_model, None, Forget("dog"), [TEXT])
    with pytest.raises(EditError, match="no prompt holds the tokens of 'zebra'"):
        steer(model, None, Forget("zebra"), [TEXT])
    with pytest.raises(EditError, match="is no state of this model"):
        steer(model, None, Forget("dog", site="blocks.2.hook_resid_post"), [TEXT])
    with pytest.raises(EditError, match="acts on the state of a recurrence"):
        steer(tiny_model, sae, Hold(3), [TEXT])
    with pytest.raises(EditError, match="from 0 to 1"):
        Hold(3, 1.5)
    with pytest.raises(EditError, match="no other edit of that state"):
        steer(model, state_sae, [Hold(3), Add(4)], [TEXT])
    with pytest.raises(EditError, match="names no tokens"):
        Forget(1.5)
    with pytest.raises(EditError, match="takes no condition"):
        Forget("dog", when=3)


def test_a_direction_in_a_state_can_be_held(model):
    direction = Direction(tuple(torch.ones(model.cfg.lru_width).tolist()), STATES[0])
    tokens = some_tokens(1, 6)
    assert not torch.equal(states(model, tokens)[STATES[0]], states(model, tokens, [Hold(direction)])[STATES[0]])
