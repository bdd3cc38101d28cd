"""Going on after a stop, where rounding could tell: widths at which nothing lies where it lay, and another machine's screen."""

from pathlib import Path

import pytest
import torch

import scope.sae.engines.screen as screen
from scope.sae.base import SAE
from scope.sae.kinds import KINDS, make_sae
from scope.training.batches import TensorBatches
from scope.training.config import TrainConfig
from scope.training.trainer import train
from tests.training.planted import planted, same

KIND = {
    "jumprelu": {"target_l0": 3.0, "revive_after": 300},
    "topk": {"k": 3},
    "batch_topk": {"k": 3.0},
    "gated": {"target_l0": 3.0},
}


class Stop(Exception):
    pass


def run(out: Path, kind: str, stop: int | None = None, pre_bias: bool = False, **changes) -> SAE:
    """40 steps of a dictionary of 61 latents over width 23, of which the last 5 before `stop` are not in a checkpoint."""

    def on_progress(done: int, total: int, numbers: dict) -> None:
        if stop is not None and done >= stop:
            raise Stop

    config = TrainConfig(
        steps=40, batch_size=33, save_every=7, log_every=1, calibration=1000, dead_after=200, pre_bias=pre_bias
    )
    sae = make_sae(KINDS[kind].config(d_in=23, d_sae=61, **(KIND[kind] | changes)), "blocks.0.hook_resid_post")
    return train(sae, TensorBatches(planted(4000, 23)[0], 33), config, out, on_progress)


def stopped(out: Path, kind: str, **changes) -> None:
    with pytest.raises(Stop):
        run(out, kind, stop=19, **changes)


FORMS = [
    ("jumprelu", {}),
    ("jumprelu", {"decoder": "free", "start_norm": 0.1}),
    ("jumprelu", {"nested": (7, 20)}),
    ("topk", {}),
    ("topk", {"decoder": "unit"}),
    ("batch_topk", {}),
    ("gated", {}),
]
BOTH = [(*form, pre_bias) for pre_bias in (False, True) for form in FORMS if not (pre_bias and form[0] == "gated")]


@pytest.mark.parametrize(("kind", "changes", "pre_bias"), BOTH)
def test_p36_at_widths_that_no_memory_is_aligned_to_a_stopped_run_ends_in_the_same_bits(tmp_path, kind, changes, pre_bias):
    stopped(tmp_path / "stopped", kind, pre_bias=pre_bias, **changes)
    whole, resumed = (run(tmp_path / name, kind, pre_bias=pre_bias, **changes) for name in ("whole", "stopped"))
    assert same(whole, resumed)


def test_p36_a_run_begun_with_one_screen_and_ended_with_another_ends_in_the_same_bits(tmp_path, monkeypatch):
    """A machine that multiplies 8-bit numbers fastest hands its run to one that does not."""
    few = {"start_l0": 1.0}
    monkeypatch.setattr(screen, "_WORTH", 99.0)  # take 8 bits, however wide their margin
    used = set()
    places = screen.Screen._places

    def noted(self, x, w, cut):
        used.add(screen.quickest(x.device))
        return places(self, x, w, cut)

    monkeypatch.setattr(screen.Screen, "_places", noted)
    monkeypatch.setattr(screen, "quickest", lambda device: torch.int8)
    stopped(tmp_path / "moved", "jumprelu", **few)
    whole = run(tmp_path / "whole", "jumprelu", **few)
    monkeypatch.setattr(screen, "quickest", lambda device: torch.bfloat16)
    moved = run(tmp_path / "moved", "jumprelu", **few)
    assert used == {torch.int8, torch.bfloat16}
    assert same(whole, moved)
