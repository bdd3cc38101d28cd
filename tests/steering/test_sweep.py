from dataclasses import replace

import numpy as np
import pytest

from scope.errors import EditError
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.compare.statistics import choose, interval
from scope.steering.compare.sweep import Sweep, estimate, sweep
from scope.steering.edits.directions import Direction
from scope.steering.edits.interventions import Ablate, Add
from tests.steering.conftest import SITE

SHORT = SamplingConfig(max_new_tokens=5, temperature=1.0, top_p=None, repetition_penalty=1.0)
PROMPTS = ["the dog", "a cat", "my sister"]


def row(strength, condition, prompt, score):
    return {"strength": strength, "condition": condition, "prompt_index": prompt, "text_index": prompt, "score": score}


def test_the_strength_is_chosen_on_even_prompts_and_told_on_odd_ones():
    scores = {
        (0.5, 0): 0.1,
        (0.5, 1): 0.9,
        (0.5, 2): 0.3,
        (0.5, 3): 0.7,
        (1.0, 0): 0.4,
        (1.0, 1): 0.2,
        (1.0, 2): 0.2,
        (1.0, 3): 0.4,
    }
    rows = [row(s, "steered", p, score) for (s, p), score in scores.items()]
    rows += [row(s, "random", p, 0.1) for s, p in scores] + [row(s, "random", p, 0.3) for s, p in scores]
    best = choose(rows)
    assert best["strength"] == 1.0
    assert best["score_there"] == pytest.approx(0.3)
    assert best["score"] == pytest.approx(0.3)
    assert best["random"] == pytest.approx(0.2)
    assert best["difference"] == pytest.approx(0.1)
    assert (best["chosen_on"], best["told_on"]) == (2, 2)


def test_texts_of_one_prompt_count_as_one_in_the_interval():
    rows = [row(1.0, "steered", p, 0.4 + 0.1 * p) for p in (0, 1, 3) for _ in range(10)]
    rows += [row(1.0, "random", p, 0.0) for p in (0, 1, 3)]
    best = choose(rows)
    assert (best["low"], best["high"]) == pytest.approx(interval(np.array([0.5, 0.7])))
    assert best["told_on"] == 2


def test_a_saved_sweep_is_read_back_whole_and_replays_to_the_same_texts(tiny_model, sae, units, tmp_path):
    swept = sweep(tiny_model, sae, Add(3, 0.5), PROMPTS, [0.3, 0.9], SHORT, strength_units=units)
    swept.to_json(tmp_path / "sweep.json")
    read = Sweep.from_json(tmp_path / "sweep.json")
    assert read == swept
    assert read.rows == swept.rows
    assert read.replay(tiny_model, sae).same_texts(swept)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 9, "sweep": [0.5]}', "no such file"])
def test_what_is_no_saved_sweep_is_refused(text):
    with pytest.raises(EditError, match="No sweep can be read"):
        Sweep.from_json(text)


def test_the_summary_pairs_each_control_by_text_and_averages_random_directions(tiny_model, sae, units):
    swept = sweep(tiny_model, sae, Add(3, 0.5), PROMPTS, [0.9], SHORT, n=2, strength_units=units)
    table, summary = swept.to_frame(), swept.summary().set_index("measure")
    random = table[table["condition"] == "random"]
    assert len(random) == 3 * 3 * 2
    assert summary.loc["kl", "random"] == pytest.approx(random["kl"].mean())
    steered = table[table["condition"] == "steered"].set_index("text_index")["share"]
    other = table[table["condition"] == "other"].set_index("text_index")["share"]
    assert summary.loc["share", "steered - other"] == pytest.approx((steered - other).mean())
    assert "<table" in swept._repr_html_()


def test_ctrl_c_keeps_the_strengths_that_were_finished(tiny_model, sae, units):
    calls = []

    def press(step, ids):
        calls.append(step)
        if len(calls) == 8:  # in the second strength
            raise KeyboardInterrupt

    conditions = ("plain", "steered", "random")
    swept = sweep(
        tiny_model,
        sae,
        Add(3, 0.5),
        PROMPTS,
        [0.3, 0.6, 0.9],
        SHORT,
        conditions=conditions,
        strength_units=units,
        on_token=press,
    )
    assert swept.stopped
    assert swept.strengths == (0.3,)
    assert "that were finished before it was stopped" in str(swept)


def test_progress_tells_strength_and_seconds_left(tiny_model, sae, units):
    told = []
    conditions = ("plain", "steered", "random")
    sweep(
        tiny_model,
        sae,
        Add(3, 0.5),
        PROMPTS,
        [0.3, 0.6],
        SHORT,
        conditions=conditions,
        strength_units=units,
        on_progress=lambda *t: told.append(t),
    )
    assert [(done, total, numbers["strength"]) for done, total, numbers in told] == [(1, 2, 0.3), (2, 2, 0.6)]
    assert told[0][2]["seconds_left"] > 0 == told[1][2]["seconds_left"]


def test_a_direction_without_a_dictionary_is_swept_without_the_other_condition(tiny_model):
    edit = Add(Direction(tuple(range(1, 33)), SITE), 0.5)
    assert "other" not in sweep(tiny_model, None, edit, PROMPTS, [0.5], SHORT).conditions


def test_the_estimate_grows_with_the_number_of_strengths(tiny_model, sae, units):
    long = SamplingConfig(max_new_tokens=24)
    one = estimate(tiny_model, sae, Add(3, 0.5), PROMPTS, [0.5], long, strength_units=units)
    many = estimate(tiny_model, sae, Add(3, 0.5), PROMPTS, [0.5] * 20, long, strength_units=units)
    assert 0 < one < many


REFUSED = {
    "needs at least two prompts": lambda m, s: sweep(m, s, Add(3, 0.5), ["the dog"], [0.5], SHORT),
    "and a strength": lambda m, s: sweep(m, s, Add(3, 0.5), PROMPTS, [], SHORT),
    "None of these edits has a strength": lambda m, s: sweep(m, s, Ablate(3), PROMPTS, [0.5], SHORT),
    "to which the others have no proportion": lambda m, s: sweep(m, s, Add(3, 0.0), PROMPTS, [0.5], SHORT),
    'must hold "plain" and "random"': lambda m, s: sweep(
        m, s, Add(3, 0.5), PROMPTS, [0.5], SHORT, conditions=("plain", "steered")
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_sweep_that_can_tell_nothing_is_refused(tiny_model, sae, message):
    with pytest.raises(EditError, match=message):
        REFUSED[message](tiny_model, sae)


@pytest.mark.parametrize("strengths", [["strong"], [0.5, float("nan")], [None], "0.5x"])
def test_a_strength_of_a_sweep_that_is_no_number_is_refused(tiny_model, sae, units, strengths):
    with pytest.raises(EditError, match="A strength of the sweep is"):
        sweep(tiny_model, sae, Add(3, 0.5), ["the dog", "a cat"], strengths, strength_units=units)


def test_the_summary_names_the_interval_after_the_difference_that_it_is_of(tiny_model, sae, units):
    summary = sweep(tiny_model, sae, Add(3, 0.5), PROMPTS, [0.9], SHORT, strength_units=units).summary()
    (low,), (high,) = (summary.loc[summary["measure"] == "kl", f"steered - random, {end}"] for end in ("low", "high"))
    assert low < summary.set_index("measure").loc["kl", "steered - random"] < high
    assert not [column for column in summary if column.startswith("random ")]


def test_a_sweep_that_still_runs_says_nothing_of_the_best_strength(tiny_model, sae, units):
    swept = sweep(
        tiny_model, sae, Add(3, 0.5), PROMPTS, [0.3], SHORT, conditions=("plain", "steered", "random"), strength_units=units
    )
    assert "scores best" in swept.verdict()
    running = replace(swept, waiting=3)
    assert running.verdict() == "1 of 4 strengths are done; the best one is chosen when all are."
    for shown in (str(running), running._repr_html_(), running.plot().layout.title.text or ""):
        assert "scores best" not in shown
        assert "chosen:" not in shown
    assert Sweep.from_json(running.to_json()).waiting == 0
