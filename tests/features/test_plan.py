"""What a pack takes is said before it is made, and grows with the latents, not with their square."""

from scope.features.collect.config import CollectConfig
from scope.features.collect.plan import plan


def peak(d_sae: int, **more) -> int:
    sizes = {"d_in": 2304, "d_vocab": 256_000, "n_tokens": 1_000_000, "n_ctx": 256} | more
    return plan(d_sae, config=CollectConfig(), **sizes).peak


def test_nothing_grows_with_the_square_of_the_latents():
    assert peak(262_144) - peak(131_072) < 2.1 * (peak(131_072) - peak(65_536))


def test_a_million_tokens_or_a_hundred_million_take_the_same_memory_but_for_the_text():
    assert peak(16_384, n_tokens=100_000_000) - peak(16_384) < 100_000_000 * 14


def test_latents_of_a_stretch_are_bounded_whatever_the_chunk(monkeypatch):
    parts = plan(1 << 20, 2304, 256_000, 10**6, 256, CollectConfig(chunk_tokens=100_000)).memory
    assert parts["latents of a stretch"] <= 1 << 30


def test_more_firings_take_more_disk_while_a_pack_is_built():
    few, many = (plan(2048, 256, 4096, 10**6, 128, CollectConfig(), l0) for l0 in (10.0, 100.0))
    assert many.building == 10 * few.building
    assert few.pack == many.pack
