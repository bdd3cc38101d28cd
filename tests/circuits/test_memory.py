"""The state of a recurrence as a sum over tokens."""

import math

import numpy as np
import pytest
import torch

from scope.circuits.memory import memory
from scope.circuits.memory_result import Memory, half_life
from scope.errors import ConfigError, DictionaryError, TokensError
from scope.models.griffin.shares import Recurrence, for_each_recurrence, recurrent_layers, remaining
from tests.models.griffin_twins import some_tokens, tiny_griffin
from tests.steering.conftest import random_sae

TEXT = "the dog runs and the cat sleeps"
STATE = "blocks.1.rec.hook_state"


@pytest.fixture(scope="module")
def model(toy_tokenizer):
    return tiny_griffin(toy_tokenizer)


@pytest.fixture
def state_sae(model):
    sae = random_sae(model.cfg.lru_width, 48, STATE)
    sae.provenance = {"model": dict(model.provenance)}
    return sae


def sums(recurrence: Recurrence, at_once: int = 2**20) -> torch.Tensor:
    total = torch.zeros_like(recurrence.state)
    for channels, index, left in remaining(recurrence, range(len(total)), at_once):
        total[index, channels] = left.sum(0)
    return total


def test_what_is_left_of_all_tokens_adds_up_to_the_state_in_float64(toy_tokenizer):
    model = tiny_griffin(toy_tokenizer).double()
    gaps = for_each_recurrence(
        model, some_tokens(1, 60), recurrent_layers(model), lambda _, r: float((sums(r, 120) - r.state).abs().max())
    )
    assert set(gaps) == {0, 1, 3}
    assert max(gaps.values()) < 1e-12


def test_what_is_left_is_the_write_times_what_each_later_token_keeps(model):
    def by_hand(_: int, r: Recurrence) -> bool:
        left = [left.clone() for _, _, left in remaining(r, [2, 7])]
        expected = r.write[1] * r.retained[2:8].prod(0)
        return torch.allclose(left[1][1], expected, rtol=1e-12) and torch.equal(left[0][2], r.write[2])

    assert all(for_each_recurrence(model, some_tokens(1, 9), [0, 3], by_hand).values())


def test_a_new_document_leaves_nothing_of_the_one_before_it(model):
    positions = torch.tensor([[*range(6), *range(5)]])

    def check(_: int, r: Recurrence) -> tuple[float, list[bool], bool]:
        (_, _, left), *_ = remaining(r, [10])
        return float(left[:6].abs().max()), r.starts.tolist(), bool((r.lengthening > 1).equal(r.starts))

    results = for_each_recurrence(model, some_tokens(1, 11), [0, 3], check, position_ids=positions)
    for gone, starts, lengthened in results.values():
        assert gone == 0.0
        assert [i for i, s in enumerate(starts) if s] == [0, 6]
        assert lengthened


def test_padding_writes_nothing_and_takes_nothing_away(model):
    tokens, pad = some_tokens(1, 9), torch.zeros(1, 4, dtype=torch.long)
    mask = torch.tensor([[0] * 4 + [1] * 9])
    alone = for_each_recurrence(model, tokens, [3], lambda _, r: next(left.clone() for _, _, left in remaining(r, [8])))[3]
    padded = for_each_recurrence(
        model,
        torch.cat([pad, tokens], 1),
        [3],
        lambda _, r: next(left.clone() for _, _, left in remaining(r, [12])),
        attention_mask=mask,
    )[3]
    assert not padded[:4].any()
    assert torch.allclose(padded[4:], alone, atol=1e-6)


def test_the_write_at_the_start_is_longer_by_one_over_the_root(model):
    def check(_: int, r: Recurrence) -> tuple[float, float]:
        return float(r.lengthening[0]), float(r.lengthening[1])

    seen = {}
    model.run_with_hooks(
        some_tokens(1, 3),
        fwd_hooks=[
            (["blocks.0.rec.hook_log_a", "blocks.0.rec.hook_write"], lambda x, hook: seen.update({hook.name: x.detach()}))
        ],
    )
    write, log_a = seen["blocks.0.rec.hook_write"][0, 0], seen["blocks.0.rec.hook_log_a"][0, 0]
    short = write * (1 - (2 * log_a).exp()).sqrt()
    first, second = for_each_recurrence(model, some_tokens(1, 3), [0], check)[0]
    assert math.isclose(first, float(write.norm() / short.norm()), rel_tol=1e-4)
    assert second == 1.0


def test_shares_add_up_to_one_and_contributions_to_the_pre_activation(model, state_sae):
    result = memory(model, TEXT, state_sae, [3, 5])
    n = len(result.ids)
    assert [one.layer for one in result.layers] == [0, 1, 3]
    assert result.times == tuple(range(n))
    for one in result.layers:
        assert np.allclose(one.share.sum(0), 1, atol=1e-5)
        assert one.gap < 1e-6
    x = model.record(model.to_tokens(TEXT), [STATE])[STATE][0]
    one = result.layer()
    assert one.layer == 1
    expected = state_sae.pre_activations(x)[:, [3, 5]].T.numpy()
    assert np.allclose(one.contribution.sum(1) + one.bias[:, None], expected, atol=1e-5)
    assert np.allclose(one.activation, state_sae.encode(x)[:, [3, 5]].T.numpy(), atol=1e-5)


def test_named_times_give_the_same_figures_as_all_times(model, state_sae):
    every, some = memory(model, TEXT, state_sae, [3]), memory(model, TEXT, state_sae, [3], times=[2, 5])
    places = list(some.times)
    assert places == [2, 5, len(every.ids) - 1]
    for a, b in zip(every.layers, some.layers, strict=True):
        assert np.allclose(a.length[:, places], b.length, rtol=1e-5)
        assert np.allclose(a.contribution[:, :, places], b.contribution, atol=1e-5)


def test_a_part_that_halves_each_step_has_a_half_life_of_one():
    ages = np.arange(-1, 4)
    assert half_life(ages, np.array([0.0, 1.0, 0.5, 0.25, 0.125])) == 1.0
    assert math.isclose(half_life(np.array([0, 2, 4]), np.array([1, 0.25, 0.1])), 1.0)
    assert half_life(ages, np.ones(5)) == math.inf
    assert math.isnan(half_life(np.array([-1, 0]), np.array([0.0, 1.0])))


def test_the_half_life_of_a_token_is_read_off_what_is_left_of_it(model):
    result = memory(model, TEXT)
    one, lives = result.layer(0), result.half_lives(0)
    token = next(i for i in range(1, len(lives)) if 1 < lives[i] < math.inf)
    before, after = math.floor(lives[token]), math.ceil(lives[token])
    assert one.retained[token, token + before] >= 0.5 >= one.retained[token, token + after]


def test_a_result_is_read_back_as_it_was_saved_and_a_damaged_one_is_refused(model, state_sae, tmp_path):
    result = memory(model, TEXT, state_sae)
    file = result.save(tmp_path / "memory.safetensors")
    again = Memory.load(file)
    assert str(again) == str(result)
    assert again.to_frame().equals(result.to_frame())
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="damaged"):
        Memory.load(file)


def test_a_result_has_a_row_for_each_layer_and_token_and_shows_itself(model, state_sae):
    result = memory(model, "<bos>the <b>dog</b>", state_sae)
    frame = result.to_frame()
    assert len(frame) == 3 * len(result.ids)
    assert f"latent {result.layer().latents[0]}" in frame
    assert np.isnan(result.heat(1)[-1, 0])
    assert result.plot(3, "share").data[0].z.shape == (len(result.ids),) * 2
    assert "<b>dog" not in result.to_html()
    assert "gap of the sum" in str(result)


def test_several_texts_give_a_list_and_the_turns_of_a_chat_one_text(model):
    assert [r.text for r in memory(model, [TEXT, "a dog"])] == [TEXT, "a dog"]
    model.words.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    try:
        chat = memory(model, [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "runs"}])
    finally:
        model.words.chat_template = None
    assert chat.text == "the dog runs "


def test_what_cannot_be_is_refused_with_the_way_out(model, state_sae, tiny_model):
    with pytest.raises(ConfigError, match="no recurrent layer"):
        memory(tiny_model, TEXT)
    with pytest.raises(ConfigError, match="Layer 2 has no recurrence"):
        memory(model, TEXT, layers=[2])
    for time in (99, -1):
        with pytest.raises(ConfigError, match=f"positions of tokens.*{time} is none"):
            memory(model, TEXT, times=[time])
    with pytest.raises(TokensError, match="The text is empty"):
        memory(model, "")
    with pytest.raises(DictionaryError, match="no latent 99"):
        memory(model, TEXT, state_sae, [99])
    elsewhere = random_sae(32, 48, "blocks.1.hook_resid_post")
    elsewhere.provenance = {"model": dict(model.provenance)}
    with pytest.raises(DictionaryError, match="states and writes"):
        memory(model, TEXT, elsewhere)
    with pytest.raises(TokensError, match="context"):
        memory(model, "dog " * 400)


def test_a_hook_that_edits_the_state_is_refused(model):
    with model.hooks([(STATE, lambda x, hook: x + 1)]), pytest.raises(ConfigError, match="a hook changes the state"):
        memory(model, TEXT)
