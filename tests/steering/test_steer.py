import dataclasses
import json

import pytest
import torch

from scope.errors import DictionaryError, EditError, TokensError
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply.editing import Editing
from scope.steering.apply.latent_reader import LatentReader
from scope.steering.apply.resolve import resolve
from scope.steering.compare import show
from scope.steering.compare.scores import repetition
from scope.steering.compare.steer import SteeringRun, first_difference, steer
from scope.steering.compare.text_scorer import as_generation, promoted
from scope.steering.edits.directions import Direction
from scope.steering.edits.interventions import Ablate, Add, AtLeast, Clamp, Edits, ProjectOut, Scale, When
from tests.steering.conftest import SITE, random_sae

SHORT = SamplingConfig(max_new_tokens=8, temperature=1.0, top_p=None, repetition_penalty=1.0)
PROMPTS = ["the dog runs to the river", "my sister"]
EDITS = {
    "nothing": None,
    "add": Add(3, 0.5),
    "clamp": Clamp(5, 0.3, unit="norm"),
    "generated only": Add(3, 0.8, positions="generated"),
    "prompt only": Add(3, 0.8, positions="prompt"),
    "last token of the prompt": Clamp(3, 0.8, unit="norm", positions="last_prompt"),
    "from a position": Add(3, 0.5, positions="from:4"),
    "several": Add(3, 0.4) + Scale(5, -1.0) + ProjectOut(7) + AtLeast(9, 0.2, unit="norm", when=When(3, 0.1)),
}


def editing(model, sae, edits, units, **how):
    return Editing(model, {sae.site: sae}, [resolve(e, {sae.site: sae}, {sae.site: units}) for e in Edits.of(edits)], **how)


@pytest.mark.parametrize("name", EDITS)
def test_cached_generation_equals_uncached_token_by_token(tiny_model, sae, units, name):
    hooks = [] if EDITS[name] is None else editing(tiny_model, sae, EDITS[name], units).hooks()
    cached, uncached = (
        generate(tiny_model, PROMPTS, SHORT, fwd_hooks=hooks, use_cache=use_cache) for use_cache in (True, False)
    )
    assert [g.new_ids for g in cached] == [g.new_ids for g in uncached]


@pytest.mark.parametrize("name", [n for n in EDITS if n != "nothing"])
def test_a_whole_text_run_at_once_is_edited_as_while_it_was_generated(tiny_model, sae, units, name):
    seen = []
    hooks = editing(tiny_model, sae, EDITS[name], units).hooks()
    (made,) = generate(
        tiny_model, PROMPTS[0], SHORT, fwd_hooks=[*hooks, (SITE, lambda x, hook: seen.append(x.clone()))], use_cache=True
    )
    whole = []
    tokens = torch.tensor([[*made.prompt_ids, *made.new_ids[:-1]]])
    with as_generation(tiny_model, len(made.prompt_ids)):
        tiny_model.run_with_hooks(tokens, fwd_hooks=[*hooks, (SITE, lambda x, hook: whole.append(x.clone()))])
    torch.testing.assert_close(whole[0], torch.cat(seen, 1), atol=1e-4, rtol=1e-4)


def test_conditions_in_one_batch_write_what_each_writes_alone(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.6), PROMPTS, SHORT, strength_units=units)
    plain = generate(tiny_model, PROMPTS, SHORT)
    steered = generate(tiny_model, PROMPTS, SHORT, fwd_hooks=editing(tiny_model, sae, Add(3, 0.6), units).hooks())
    random = generate(tiny_model, PROMPTS, SHORT, fwd_hooks=editing(tiny_model, sae, Add(3, 0.6), units, control=0).hooks())
    for name, alone in (("plain", plain), ("steered", steered), ("random", random)):
        assert [s.new_ids for s in run[name].samples] == [list(g.new_ids) for g in alone]


def test_the_edited_positions_are_those_of_the_rule_at_every_step(tiny_model, sae, units):
    lengths = [len(tiny_model.tokenizer.encode(p)) for p in PROMPTS]
    greedy = SamplingConfig(max_new_tokens=5, temperature=0.0)
    for rule, first, later in [
        ("not_bos", sum(lengths) - 2, 2),
        ("all", sum(lengths), 2),
        ("prompt", sum(lengths) - 2, 0),
        ("generated", 0, 2),
        ("last_prompt", 2, 0),
    ]:
        report = steer(tiny_model, sae, Add(3, 0.5, positions=rule), PROMPTS, greedy, strength_units=units)["steered"].report
        assert report.edited_per_step == [first] + [later] * 4, rule
        assert report.seen_per_step == [sum(lengths)] + [2] * 4
        assert report.mean_norm == pytest.approx(0.5 if first or later else 0.0, rel=1e-3)


def test_a_batch_with_padding_writes_what_each_prompt_writes_alone(tiny_model, sae, units):
    greedy = SamplingConfig(max_new_tokens=6, temperature=0.0)
    together = steer(tiny_model, sae, Add(3, 0.6), PROMPTS, greedy, strength_units=units)
    for i, prompt in enumerate(PROMPTS):
        alone = steer(tiny_model, sae, Add(3, 0.6), prompt, greedy, strength_units=units)
        assert alone["steered"].samples[0].new_ids == together["steered"].samples[i].new_ids


def test_a_saved_run_is_read_back_whole_and_replays_to_the_same_texts(tiny_model, sae, units, tmp_path):
    edits = Add(3, 0.5, when=When(5, 0.0)) + Clamp(Direction(tuple(range(1, 33)), SITE, "ramp"), 0.1)
    run = steer(
        tiny_model, sae, edits, PROMPTS, SHORT, conditions=("plain", "steered", "random", "random:2"), n=2, strength_units=units
    )
    run.to_json(tmp_path / "run.json")
    read = SteeringRun.from_json(tmp_path / "run.json")
    assert read == run
    assert read.replay(tiny_model, sae).same_texts(run)


def test_a_replay_refuses_another_model(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.5), PROMPTS[0], SHORT, strength_units=units)
    other = random_sae(seed=2)
    with pytest.raises(EditError, match="made with another dictionary at"):
        run.replay(tiny_model, other)
    tiny_model.provenance = {**tiny_model.provenance, "weights_sha256": "others"}
    with pytest.raises(EditError, match="made with another model"):
        run.replay(tiny_model, sae)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 99}', '{"schema": 1}', "no such file"])
def test_what_is_no_saved_run_is_refused(text):
    with pytest.raises(EditError):
        SteeringRun.from_json(text)


def test_different_random_directions_write_different_texts(tiny_model, sae, units):
    conditions = ("plain", "steered", "random", "random:1", "random:2")
    run = steer(tiny_model, sae, Add(3, 0.9), PROMPTS, SHORT, conditions=conditions, n=4, strength_units=units)
    texts = [tuple(map(tuple, (s.new_ids for s in run[a].samples))) for a in conditions[2:]]
    assert len(set(texts)) == 3


NO_EFFECT = {
    "No position fell under its rule": Add(3, 0.5, positions="from:50"),
    "Its strength came to 0": Add(3, 0.0),
    "was active at 0 of": Ablate(3, positions="last_prompt", when=None),
    "Its condition held at none": Add(3, 0.5, when=When(5, 1e6)),
    "is only 0.00": Add(3, 1e-4),
    "at least that strong already": AtLeast(3, 0.0, unit="norm"),
}


@pytest.mark.parametrize("reason", NO_EFFECT)
def test_an_edit_without_effect_is_said_to_have_none_and_why(tiny_model, sae, units, reason):
    with torch.no_grad():
        if "active at 0" in reason:
            sae.threshold[3] = 1e6
    run = steer(
        tiny_model, sae, NO_EFFECT[reason], PROMPTS, SamplingConfig(max_new_tokens=4, temperature=0.0), strength_units=units
    )
    assert run.notes[0].startswith("No effect")
    assert reason in run.notes[0]
    assert all(s.diverges_at is None for s in run["steered"].samples)


def test_an_edit_that_nothing_reads_afterwards_is_named(tiny_model, units):
    last = f"blocks.{tiny_model.cfg.n_layers - 1}.hook_attn_out"
    with torch.no_grad():
        tiny_model.embed.weight[:, 7:] = tiny_model.embed.weight[:, 7:] * 0  # the vocabulary reads features 0 to 6 alone
        tiny_model.ln_final.weight.zero_()
        for block in tiny_model.blocks:
            block.mlp.down_proj.weight.zero_()
    tiny = Direction((0.0,) * 31 + (1.0,), last, "unread")
    run = steer(tiny_model, None, Add(tiny, 0.06), PROMPTS, SamplingConfig(max_new_tokens=3, temperature=0.0))
    assert "No effect" in run.notes[0]
    assert "mean KL" in run.notes[0] or "nothing after this site reads" in run.notes[0]


def test_a_strong_edit_is_warned_of_and_a_norm_measured_on_prompts_is_said(tiny_model, sae):
    run = steer(tiny_model, sae, Add(3, 1.5), PROMPTS, SHORT)
    assert any("1.50 times the typical residual norm" in note for note in run.notes)
    n = sum(len(tiny_model.tokenizer.encode(p)) - 1 for p in PROMPTS)
    assert any(f"measured on the {n} prompt tokens only" in note for note in run.notes)


def test_concept_is_the_share_of_the_99th_percentile_read_by_the_unsteered_model(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.5), PROMPTS[0], SHORT, strength_units=units)
    for condition in run.conditions:
        (sample,) = condition.samples
        tokens = torch.tensor([sample.prompt_ids + sample.new_ids])
        x = tiny_model.record(tokens, [SITE])[SITE][0, -len(sample.new_ids) :]
        f = sae.encode(x)[:, 3]
        assert sample.scores.concept["latent 3"] == pytest.approx(float((f / 3.0).clamp(max=1).mean()), abs=1e-5)
        assert sample.scores.active["latent 3"] == pytest.approx(float((f > 0).float().mean()))
        log_p = tiny_model(tokens)[0].detach().log_softmax(-1)[-len(sample.new_ids) - 1 : -1]
        said = torch.tensor(sample.new_ids)
        assert sample.scores.log_prob == pytest.approx(float(log_p.gather(1, said[:, None]).mean()), abs=1e-5)


def test_kl_is_that_between_edited_and_plain_distributions_and_zero_for_plain_text(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.5, positions="generated"), PROMPTS[0], SHORT, strength_units=units)
    (sample,), n = run["steered"].samples, SHORT.max_new_tokens
    tokens = torch.tensor([sample.prompt_ids + sample.new_ids])
    shift = torch.zeros(1, tokens.shape[1], 1)
    shift[:, len(sample.prompt_ids) :] = 0.5 * units.typical_norm
    unit = sae.W_dec[3] / sae.W_dec[3].norm()
    own = tiny_model.run_with_hooks(tokens, fwd_hooks=[(SITE, lambda x, hook: x + shift * unit)])[0].log_softmax(-1)
    plain = tiny_model(tokens)[0].log_softmax(-1)
    kl = (own.exp() * (own - plain)).sum(-1)[-n - 1 : -1].mean().detach()
    assert sample.scores.kl == pytest.approx(float(kl), abs=1e-5)
    assert run["plain"].samples[0].scores.kl == 0.0


def test_promoted_tokens_go_through_the_gain_of_the_final_norm(tiny_model, sae):
    row = sae.W_dec[3]
    scores = torch.einsum("d,dv->v", row * (1 + tiny_model.ln_final.weight), tiny_model.W_U)
    best = [i for i in scores.argsort(descending=True).tolist() if i not in tiny_model.tokenizer.special_ids][:10]
    assert promoted(tiny_model, row) == best


def test_repetition_counts_four_grams_said_before():
    assert repetition([1, 2, 3, 4, 5, 6]) == 0
    assert repetition([1, 2, 3, 4] * 3) == pytest.approx(5 / 9)
    assert repetition([1, 2]) == 0


@pytest.mark.parametrize(
    ("a", "b", "where"), [([1, 2, 3], [1, 2, 3], None), ([1, 2, 3], [1, 9, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [], None)]
)
def test_the_first_difference_is_where_texts_part(a, b, where):
    assert first_difference(a, b) == where


def test_reading_a_few_latents_equals_encoding_all(sae):
    x = torch.randn(2, 7, 32) * 3
    torch.testing.assert_close(LatentReader(sae, [9, 3, 9])(x), sae.encode(x)[..., [9, 3, 9]])


def test_two_dictionaries_at_two_sites_work_together(tiny_model, sae, units):
    later = random_sae(site="blocks.2.hook_resid_post", seed=5)
    edits = Add(3, 0.5, site=SITE) + Add(3, 0.4, site=later.site)
    run = steer(tiny_model, [later, sae], edits, PROMPTS, SHORT, strength_units={SITE: units, later.site: units})
    assert {e["site"] for e in run["steered"].report.edits} == {SITE, later.site}
    assert set(run.promoted) == {f"latent 3 at {SITE}", f"latent 3 at {later.site}"}  # the same number, not the same latent
    assert set(run.fvu) == {SITE, later.site}
    one = {SITE: sae, later.site: later}
    hooks = [
        (s, lambda x, hook, d=d, k=k: torch.cat([x[:, :1], x[:, 1:] + k * 8.0 * d.W_dec[3] / d.W_dec[3].norm()], 1))
        for (s, d), k in zip(one.items(), (0.5, 0.4), strict=True)
    ]
    whole = generate(tiny_model, PROMPTS[1], SHORT, fwd_hooks=hooks, use_cache=False)[0].new_ids
    alone = steer(tiny_model, [later, sae], edits, PROMPTS[1], SHORT, strength_units={SITE: units, later.site: units})
    assert alone["steered"].samples[0].new_ids == list(whole)


def test_a_difference_of_means_counts_each_prompt_once_and_leaves_bos_out(tiny_model):
    toward, away = ["the dog runs", "a cat"], ["the moon"]

    def mean(prompt):
        return tiny_model.record(tiny_model.to_tokens(prompt), [SITE])[SITE][0, 1:].mean(0)

    expected = (mean(toward[0]) + mean(toward[1])) / 2 - mean(away[0])
    found = torch.tensor(Direction.between(tiny_model, SITE, toward, away).vector)
    torch.testing.assert_close(found, expected)


def test_a_direction_is_read_from_files(tmp_path):
    import numpy as np
    from safetensors.torch import save_file

    np.save(tmp_path / "a.npy", np.array([1.0, 2.0]))
    (tmp_path / "b.json").write_text("[1.0, 2.0]")
    save_file({"probe": torch.tensor([1.0, 2.0])}, tmp_path / "c.safetensors")
    assert {Direction.from_file(tmp_path / n, SITE).vector for n in ("a.npy", "b.json", "c.safetensors")} == {(1.0, 2.0)}
    np.save(tmp_path / "d.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(EditError, match="cannot be read as a vector"):
        Direction.from_file(tmp_path / "d.npy", SITE)


def test_stopping_keeps_what_was_written(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.5), PROMPTS, SHORT, strength_units=units, on_token=lambda step, ids: step == 2)
    assert {len(s.new_ids) for condition in run.conditions for s in condition.samples} == {3}
    assert {s.stopped_by for condition in run.conditions for s in condition.samples} == {"cancelled"}


def test_a_run_shows_itself_as_text_and_as_inert_html(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.5), ["<script>alert(1)</script> dog"], SHORT, strength_units=units)
    text, html = str(run), run._repr_html_()
    assert "steered: edited" in text
    assert "<script" not in html
    assert "<style" not in html
    assert "&lt;script&gt;" in html
    assert len(html) < 20_000


def test_a_run_shades_what_the_target_reads_and_bars_where_an_condition_parts_from_plain(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 2.0), PROMPTS, SHORT, strength_units=units)
    sample = run["steered"].samples[0]
    scores = dataclasses.replace(sample.scores, readings={"latent 3": [0.0, 0.1, 4.0, 4.0, 0.0, 0.0, 0.0, 0.0]})
    one = dataclasses.replace(sample, pieces=list("ab<&efgh"), scores=scores, diverges_at=4)
    made = show._marked("steered", one, "latent 3", 4.0)
    weak, strong = (f'<span style="background:{colour};color:#111"' for colour in ("#FBCB8B", "#CF7A00"))
    bar = '<span style="border-left:3px solid #0072B2;padding-left:2px" title="first token that differs from plain"'
    assert made == f'a{weak} title="latent 3: weak">b</span>{strong} title="latent 3: strong">&lt;&amp;</span>{bar}>e</span>fgh'
    assert "border-left" not in show._marked("plain", one, "latent 3", 4.0)
    assert "read by the unsteered model" in run._repr_html_()


def test_the_json_of_a_run_is_strict_json(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.5), PROMPTS, SHORT, strength_units=units)
    json.loads(run.to_json(), parse_constant=lambda name: pytest.fail(name))


def refuse(model, sae, edits=Add(3, 0.5), prompts="the dog", **how):
    return steer(model, sae, edits, prompts, SHORT, **how)


def test_bad_input_is_refused_with_a_message(tiny_model, sae, units):
    with pytest.raises(EditError, match=r"A text is needed|A prompt is empty"):
        refuse(tiny_model, sae, prompts="  ")
    with pytest.raises(EditError, match=r"A text is needed|A prompt is empty"):
        refuse(tiny_model, sae, prompts=[])
    with pytest.raises(TokensError, match="this model"):
        refuse(tiny_model, sae, prompts="the dog runs to the river " * 40)
    with pytest.raises(EditError, match="no condition 'louder'"):
        refuse(tiny_model, sae, conditions=("plain", "steered", "louder"))
    with pytest.raises(EditError, match='name "steered" once'):
        refuse(tiny_model, sae, conditions=("plain",))
    with pytest.raises(EditError, match="no dictionary was given"):
        refuse(tiny_model, None)
    with pytest.raises(EditError, match=r"belongs to a dictionary at blocks\.2"):
        refuse(tiny_model, sae, edits=Add(3, 0.5, site="blocks.2.hook_resid_post"))
    with pytest.raises(EditError, match="n is 0"):
        refuse(tiny_model, sae, n=0)
    with pytest.raises(EditError, match="is 2 wide"):
        refuse(tiny_model, sae, edits=Add(Direction((1.0, 2.0), SITE), 0.5))


def test_a_dictionary_of_another_model_is_refused_unless_meant(tiny_model, sae, units):
    sae.provenance = {"model": {"model": "other", "weights_sha256": "abcdef"}}
    with pytest.raises(DictionaryError, match=r"trained on other \(weights abcdef\)"):
        refuse(tiny_model, sae, strength_units=units)
    assert refuse(tiny_model, sae, strength_units=units, any_model=True)["steered"].samples


@pytest.mark.parametrize(
    ("how", "message"),
    [({"site": "blocks.9.hook_resid_post"}, "which this model does not have"), ({"d_in": 16}, "reads width 16, and")],
)
def test_a_dictionary_of_another_site_or_width_is_refused(tiny_model, how, message):
    with pytest.raises(DictionaryError, match=message):
        refuse(tiny_model, random_sae(**how))


def test_an_edit_too_strong_for_the_numbers_is_refused_before_or_while_it_acts(tiny_model, sae, units):
    with pytest.raises(EditError, match="not finite for long"):
        refuse(tiny_model, sae, edits=Add(3, 1e39, unit="raw"), strength_units=units)
    with pytest.raises(EditError, match="makes numbers that are not finite in float32"):
        refuse(tiny_model, sae, edits=Scale(3, 1e39, positions="all"), prompts=PROMPTS, strength_units=units)
    with pytest.raises(EditError, match="not finite in float16"):
        refuse(tiny_model.half(), sae, edits=Add(3, 5e4), strength_units=units)


def test_nothing_stays_installed_after_a_run_or_a_refusal(tiny_model, sae, units):
    refuse(tiny_model, sae, strength_units=units)
    with pytest.raises(EditError):
        refuse(tiny_model, sae, edits=Scale(3, 1e39), strength_units=units)
    assert not any(point.has_hooks() for point in tiny_model.hook_points())
    assert tiny_model.run.prompt_lengths is None


def test_the_units_is_frozen_into_the_run(tiny_model, sae, units):
    run = refuse(tiny_model, sae, strength_units=units)
    assert run.strength_units == {SITE: units}
    assert dataclasses.replace(run).model["weights_sha256"] == "random-0"
