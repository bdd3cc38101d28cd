"""The engines compute one and the same gradient, and the screen misses nothing."""

import math

import pytest
import torch

from scope.sae.engines import screen
from scope.sae.engines.autograd import Autograd
from scope.sae.engines.int8 import Int8, exact
from scope.sae.engines.jumprelu import JumpReLUEngine
from scope.sae.engines.screen import Screen
from scope.sae.engines.workspace import Workspace
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from scope.sae.objectives.jumprelu import JumpReLUObjective

PENALTIES = {
    "l0": {},
    "quadratic": {"penalty": "quadratic"},
    "frequency": {"frequency_scale": 0.1},
    "both": {"penalty": "quadratic", "frequency_scale": 0.05},
}


SCREENS = {"sparse": torch.bfloat16, "sparse, float32": torch.float32, "sparse, int8": torch.int8}
WAYS = ["dense", *(way for way in SCREENS if way != "sparse, int8" or exact(torch.device("cpu")))]


def prepared(d_in: int, d_sae: int, l0: float, bandwidth: float, **settings) -> tuple[JumpReLUObjective, torch.Tensor]:
    generator = torch.Generator().manual_seed(d_in)
    x = torch.randn(203, d_in, generator=generator, dtype=torch.float64) / d_in**0.5
    settings |= {"bandwidth": bandwidth, "revive_after": None}
    config = JumpReLUConfig(d_in=d_in, d_sae=d_sae, target_l0=l0, start_l0=1.0, **settings)
    sae = JumpReLUSAE(config).double()
    objective = JumpReLUObjective(sae)
    objective.start(x)
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.05, generator=generator)
        sae.b_dec.normal_(0, 0.05, generator=generator)
        sae.W_dec.mul_(1.3)
    objective.control.weight, objective.control.centre = 0.03, 0.8 * l0
    return objective, x


def gradients(objective: JumpReLUObjective) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in objective.sae.named_parameters()}


def engine_of(objective: JumpReLUObjective, way: str, **options) -> JumpReLUEngine:
    """Rows of 64: of 203, three whole slices and a rest."""
    engine = JumpReLUEngine(objective, rows=64, screen=SCREENS.get(way), **options)
    engine.share = 1.0 if way == "dense" else 0.0
    return engine


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("penalty", list(PENALTIES))
@pytest.mark.parametrize(("d_in", "d_sae", "l0", "bandwidth"), [(16, 64, 6.0, 0.2), (8, 9, 4.0, 0.5), (24, 96, 1.0, 1e-3)])
def test_gradients_by_hand_equal_autograd_in_float64(way, penalty, d_in, d_sae, l0, bandwidth):
    objective, x = prepared(d_in, d_sae, l0, bandwidth, **PENALTIES[penalty])
    reference = Autograd(objective).gradients(x)
    expected = gradients(objective)
    batch = engine_of(objective, way).gradients(x)
    for name, gradient in gradients(objective).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-13, msg=name)
    assert batch.l0 == pytest.approx(reference.l0, rel=1e-14)
    assert batch.error == pytest.approx(reference.error, rel=1e-12)
    assert batch.terms == pytest.approx(reference.terms)
    assert torch.equal(batch.fired, reference.fired)


def test_the_ways_agree_in_float32_but_for_rounding():
    objective, x = prepared(96, 1024, 8.0, 0.02)
    x = x.float()
    objective.sae.float()
    engine_of(objective, "dense").gradients(x)
    expected = gradients(objective)
    batch = engine_of(objective, "sparse").gradients(x)
    assert batch.candidates < 1024 / 8
    for name, gradient in gradients(objective).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("way", WAYS[2:])
def test_what_is_found_does_not_depend_on_the_screens_precision(way):
    objective, x = prepared(96, 1024, 8.0, 0.02)
    x = x.float()
    objective.sae.float()
    engine_of(objective, "sparse").gradients(x)
    expected = gradients(objective)
    engine_of(objective, way).gradients(x)
    for name, gradient in gradients(objective).items():
        assert torch.equal(gradient, expected[name]), name


def found(x: torch.Tensor, w: torch.Tensor, cut: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """[tokens d_sae]: what the screen lets through."""
    let_through = torch.zeros(len(w) * len(x), dtype=torch.bool)
    let_through[Screen(Workspace(), dtype).candidates(x, w, cut).long()] = True
    return let_through.view(len(w), len(x)).T


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_screen_finds_every_latent_above_its_cut_by_however_little(way, scale):
    dtype, generator = SCREENS[way], torch.Generator().manual_seed(1)
    x = scale * torch.randn(40, 128, generator=generator, dtype=torch.float64)
    x[0] *= 300.0  # a token of huge norm must not hide the others' candidates, nor they its own
    w = torch.randn(256, 128, generator=generator, dtype=torch.float64)
    if dtype == torch.bfloat16:  # every number just below the middle between two, so that all roundings go down together
        x, w = (t.abs().bfloat16().double() * (1 + 2.0**-9 * 0.99) for t in (x, w))
    products = x @ w.T
    for token in range(0, 40, 7):
        cut = products[token] * (1 - 1e-12)
        missed = (products > cut) & ~found(x, w, cut, dtype)
        assert not missed.any()
        assert found(x, w, cut, dtype)[token].all()


@pytest.mark.parametrize("way", WAYS[1:])
def test_the_screen_finds_all_of_a_batch_in_which_a_few_numbers_are_huge(way):
    generator = torch.Generator().manual_seed(3)
    x, w = (torch.randn(n, 200, generator=generator) for n in (300, 700))
    x[:, 5] *= 80.0
    w[:, 7] *= 30.0
    w[3], x[4], w[-1] = 0.0, 0.0, 1e-20
    products = x.double() @ w.double().T
    cut = products.topk(30, dim=0).values[-1].float() - 1e-3
    assert not ((products > cut) & ~found(x, w, cut, SCREENS[way])).any()


@pytest.mark.parametrize("way", WAYS[1:])
def test_the_screen_lets_through_little_beside_the_candidates(way):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(500, 768, generator=generator) / math.sqrt(768)
    w = torch.randn(2048, 768, generator=generator)
    w /= w.norm(dim=1, keepdim=True)
    above = (x @ w.T) > (cut := (x @ w.T).flatten().kthvalue(500 * (2048 - 16)).values.expand(2048))
    assert above.sum() <= found(x, w, cut, SCREENS[way]).sum() < 1.75 * above.sum()


def test_8_bits_serve_unless_a_few_numbers_rule_a_row():
    generator = torch.Generator().manual_seed(4)
    x, w = (torch.randn(n, 512, generator=generator) for n in (300, 300))
    usual = Int8(x, w, Workspace()).margins()
    column = x.clone()
    column[:, 5] *= 80.0  # as one huge dimension of a residual stream does
    x[torch.arange(100), torch.arange(100)] *= 80.0
    margins = Int8(x, w, Workspace()).margins()
    assert margins[:100].median() > 1.5 * margins[100:].max()
    assert Int8(column, w, Workspace()).margins().mean() < 1.1 * usual.mean()


@pytest.mark.skipif(WAYS[-1] != "sparse, int8", reason="this machine has no exact product of 8-bit numbers")
@pytest.mark.parametrize("spoilt", ["a token of huge norm", "tokens that are one number", "most tokens are one number"])
def test_tokens_that_8_bits_do_not_suit_cost_the_others_nothing(monkeypatch, spoilt):
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(600, 256, generator=generator)
    w = torch.randn(1024, 256, generator=generator)
    if spoilt == "a token of huge norm":
        x[7] *= 100.0
    else:
        some = torch.arange(20 if spoilt == "tokens that are one number" else 500)
        x[some, some % 256] *= 100.0
    products = x @ w.T
    cut = 2.5 * x.norm(dim=1).median() * torch.ones(1024)
    monkeypatch.setattr(screen, "quickest", lambda device: torch.int8)
    let_through, in_16_bits = found(x, w, cut, None), found(x, w, cut, torch.bfloat16)
    assert not ((products > cut) & ~let_through).any()
    assert let_through.sum() < 1.5 * in_16_bits.sum()


def test_a_batch_on_which_nothing_fires_still_teaches_the_decoder_bias():
    objective, x = prepared(16, 64, 6.0, 0.01)
    with torch.no_grad():
        objective.sae.threshold.fill_(100.0)
    Autograd(objective).gradients(x)
    expected = gradients(objective)
    assert engine_of(objective, "sparse").gradients(x).l0 == 0
    for name, gradient in gradients(objective).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_the_dense_way_is_left_once_few_latents_are_candidates():
    objective, x = prepared(24, 512, 2.0, 1e-3)
    engine = JumpReLUEngine(objective)
    assert engine.share is None
    assert engine.gradients(x).candidates < 512 / 8
    assert engine.share < 1 / 8


def test_gradients_lie_in_memory_as_their_parameters_do():
    """Fused Adam goes through memory and does not look at strides."""
    objective, x = prepared(16, 64, 6.0, 0.2)
    for way in ("dense", "sparse"):
        engine_of(objective, way).gradients(x)
        assert {name: p.grad.stride() for name, p in objective.sae.named_parameters()} == {
            name: p.stride() for name, p in objective.sae.named_parameters()
        }
    assert objective.sae.W_enc.T.is_contiguous()  # one latent's weights side by side


def halves(objective: JumpReLUObjective) -> list[JumpReLUObjective]:
    """Two dictionaries with half of the latents each, and all of b_dec."""
    sae = objective.sae
    made, middle = [], sae.d_sae // 2
    for some in (slice(0, middle), slice(middle, sae.d_sae)):
        config = JumpReLUConfig(
            d_in=sae.d_in,
            d_sae=middle,
            target_l0=sae.config.target_l0,
            bandwidth=objective.bandwidth,
            penalty=sae.config.penalty,
            frequency_scale=sae.config.frequency_scale,
            revive_after=None,
        )
        half = JumpReLUSAE(config).double()
        with torch.no_grad():
            half.W_enc.copy_(sae.W_enc[:, some])
            half.W_dec.copy_(sae.W_dec[some])
            half.b_enc.copy_(sae.b_enc[some])
            half.threshold.copy_(sae.threshold[some])
            half.b_dec.copy_(sae.b_dec)
        made.append(JumpReLUObjective(half))
        made[-1].load_state(objective.state())
    return made


@pytest.mark.parametrize("penalty", list(PENALTIES))
@pytest.mark.parametrize("ways", [("dense", "dense"), ("sparse", "sparse"), ("dense", "sparse")])
def test_two_halves_of_a_dictionary_that_add_up_what_they_reconstruct_have_the_gradients_of_the_whole(ways, penalty):
    objective, x = prepared(16, 64, 6.0, 0.2, **PENALTIES[penalty])
    Autograd(objective).gradients(x)
    expected, parts = gradients(objective), halves(objective)
    said: list[list[torch.Tensor]] = [[], []]

    def listen(rank):
        def reduce(partial):
            said[rank].append(partial.clone())
            return partial

        return reduce

    def answer(rank):
        others = iter(said[1 - rank])
        return lambda partial: partial + next(others)

    for rank in (0, 1):  # first what each would send, then, with what the other sent, the step
        engine_of(parts[rank], ways[rank], reduce=listen(rank)).gradients(x)
    batches = [engine_of(parts[rank], ways[rank], reduce=answer(rank)).gradients(x) for rank in (0, 1)]
    for name, whole in expected.items():
        found = [part.sae.get_parameter(name).grad for part in parts]
        joined = found[0] if name == "b_dec" else torch.cat(found, dim=1 if name == "W_enc" else 0)
        torch.testing.assert_close(joined, whole, rtol=1e-10, atol=1e-13, msg=name)
    assert batches[0].l0 == batches[1].l0 == pytest.approx((objective.sae.encode(x) > 0).sum(1).double().mean().item())
    assert batches[0].error == pytest.approx(batches[1].error)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("penalty", list(PENALTIES))
def test_gradients_on_a_gpu_equal_those_of_the_cpu_in_float64(penalty):
    objective, x = prepared(16, 64, 6.0, 0.2, **PENALTIES[penalty])
    Autograd(objective).gradients(x)
    expected = gradients(objective)
    objective.sae.cuda()
    JumpReLUEngine(objective, rows=64).gradients(x.cuda())
    for name, gradient in gradients(objective).items():
        torch.testing.assert_close(gradient.cpu(), expected[name], rtol=1e-10, atol=1e-12, msg=name)


def test_a_machine_without_an_exact_product_of_8_bit_numbers_takes_another(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.short() @ b.short()).int(), raising=False)  # sums that run over
    assert not exact(cpu)
    monkeypatch.delattr(torch, "_int_mm")
    assert not exact(cpu)
    screen.quickest.cache_clear()
    assert screen.quickest(cpu) in (torch.bfloat16, torch.float32)
    screen.quickest.cache_clear()


@pytest.mark.parametrize(("seconds", "taken"), [(0.9, torch.bfloat16), (0.5, torch.int8)])
def test_8_bits_are_taken_where_their_product_is_faster_by_more_than_rounding_costs(monkeypatch, seconds, taken):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(screen, "exact", lambda device: True)
    measured = {torch.float32: 4.0, torch.bfloat16: 1.0, torch.int8: seconds}
    monkeypatch.setattr(screen, "_seconds", lambda products: {dtype: measured[dtype] for dtype in products})
    screen.quickest.cache_clear()
    assert screen.quickest(torch.device("cpu")) == taken
    screen.quickest.cache_clear()
