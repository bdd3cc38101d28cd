import pytest
import torch

from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply import counts
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import resolve
from scope.steering.edits.interventions import Ablate, Add, Clamp, Edits
from tests.steering.conftest import SITE, random_sae

LATER = "blocks.2.hook_resid_post"
GREEDY = SamplingConfig(max_new_tokens=6, temperature=0.0, stop_at_eos=False)


def made(model, saes, edits, units):
    at, units_by_site = {sae.site: sae for sae in saes}, {sae.site: units for sae in saes}
    return Editing(model, at, [resolve(e, at, units_by_site) for e in Edits.of(edits)])


def test_the_counts_are_those_of_a_hook_that_compares_the_stream_before_and_after(tiny_model, sae, units):
    editing = made(tiny_model, [sae], Add(3, 0.4, positions="generated") + Ablate(5), units)
    before, after = [], []
    hooks = [(SITE, lambda x, hook: before.append(x.clone())), *editing.hooks()]
    hooks.append((SITE, lambda x, hook: after.append(x.clone())))
    generate(tiny_model, ["the dog runs to the river", "my sister"], GREEDY, fwd_hooks=hooks)
    report = editing.report()
    changed = [(x != y).any(-1) for x, y in zip(before, after, strict=True)]
    assert report.edited_per_step == [int(c.sum()) for c in changed]
    assert report.edited_at == torch.stack([c.sum(1) for c in changed], 1).tolist()
    lengths = torch.cat([(y - x).norm(dim=-1)[c] for x, y, c in zip(before, after, changed, strict=True)]) / units.typical_norm
    assert report.mean_norm == pytest.approx(float(lengths.mean()), rel=1e-4)
    assert report.max_norm == pytest.approx(float(lengths.max()), rel=1e-4)


@pytest.mark.parametrize("limit", ["_STEPS", "_POSITIONS"])
def test_counting_now_and_then_comes_to_the_same_and_keeps_few_steps(tiny_model, sae, units, monkeypatch, limit):
    both = Add(3, 0.4, site=SITE) + Clamp(5, 0.3, unit="norm", site=LATER)

    def run() -> tuple:
        editing, most = made(tiny_model, [sae, random_sae(site=LATER, seed=2)], both, units), []
        count = (SITE, lambda x, hook: most.append(len(editing._tally._steps)))
        for prompt in ("the dog", "my sister"):
            generate(tiny_model, prompt, GREEDY, fwd_hooks=[*editing.hooks(), count])
        return editing.report(), max(most)

    whole, all_kept = run()
    monkeypatch.setattr(counts, limit, 4)
    parts, few_kept = run()
    assert parts == whole
    assert (all_kept, few_kept) == (23, 3)


def test_runs_of_any_number_of_rows_are_counted_together(tiny_model, sae, units):
    editing = made(tiny_model, [sae], Add(3, 0.4), units)
    one, two = "the dog", ["my sister", "the river"]
    for prompts in (one, two, one):
        generate(tiny_model, prompts, GREEDY, fwd_hooks=editing.hooks())
    report = editing.report()
    first, *pair = [len(tiny_model.tokenizer.encode(p)) - 1 + 5 for p in (one, *two)]
    assert report.edited_per_row == [first + pair[0] + first, pair[1]]
    assert len(report.edited_at[0]) == len(report.edited_at[1]) == len(report.edited_per_step) == 18


def test_a_position_edited_at_two_sites_is_one_position(tiny_model, sae, units):
    both = Add(3, 0.4, site=SITE, positions="last_prompt") + Add(5, 0.2, site=LATER)
    editing = made(tiny_model, [sae, random_sae(site=LATER, seed=2)], both, units)
    n = len(tiny_model.tokenizer.encode("the dog runs"))
    tiny_model.run_with_hooks("the dog runs", fwd_hooks=editing.hooks())
    report = editing.report()
    assert report.edited_per_step == [n - 1]
    assert report.mean_norm == pytest.approx((0.4 + (n - 1) * 0.2) / n, rel=1e-4)


def test_a_run_that_stops_below_a_site_is_counted_at_the_other(tiny_model, sae, units):
    editing = made(tiny_model, [sae, random_sae(site=LATER, seed=2)], Add(3, 0.4, site=SITE) + Add(5, 0.2, site=LATER), units)
    with tiny_model.hooks(editing.hooks(), must_fire=False):
        tiny_model("the dog", stop_at_layer=2)
        tiny_model("the dog")
    report = editing.report()
    assert len(report.edited_per_step) == 2
    assert [told["acted"] for told in report.edits] == [2 * report.edited_per_step[0], report.edited_per_step[0]]


def test_nothing_that_ran_is_no_position(tiny_model, sae, units):
    report = made(tiny_model, [sae], Add(3, 0.4), units).report()
    assert (report.edited_per_step, report.edited_per_row, report.mean_norm) == ([], [], 0.0)
    assert "edited 0 of 0 positions" in report.line()
