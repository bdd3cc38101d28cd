"""A new kind of dictionary is its settings, its arrays, its objective and a row of KINDS: nothing else knows its name."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scope.sae.base import SAE
from scope.sae.configs.base import SAEConfig
from scope.sae.files import read_sae
from scope.sae.kinds import KINDS, Kind, make_sae
from scope.sae.objectives.base import Objective, start_tied
from scope.shapes import Acts, Scalar
from scope.training.batches import TensorBatches
from scope.training.config import TrainConfig
from scope.training.plan import plan
from scope.training.progress import read_log
from scope.training.trainer import train
from tests.training.planted import ROOT, planted, same


@dataclass(frozen=True, kw_only=True)
class ReLUConfig(SAEConfig):
    l1: float = 0.05


class ReLUSAE(SAE):
    kind = "relu"

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.pre_activations(x))


class ReLUObjective(Objective):
    def __init__(self, sae):
        super().__init__(sae)
        self.steps, self.rates = 0, {"b_dec": 0.5}

    def start(self, sample: Acts, seed: int = 0) -> None:
        start_tied(self.sae, seed)

    def losses(self, x: Acts) -> dict[str, Scalar]:
        latents = self.sae.encode(x)
        return self.errors(latents, x) | {"l1": self.config.l1 * latents.sum(1).mean()}

    def after_step(self, l0: float, progress: float) -> None:
        self.steps += 1

    def state(self):
        return {"steps": self.steps}

    def load_state(self, state) -> None:
        self.steps = state["steps"]

    def watched(self) -> dict[str, float]:
        return {"steps": float(self.steps)}


class Stop(Exception):
    pass


def run(out: Path, stop_at: int = 99) -> SAE:
    def on_progress(done: int, total: int, numbers: dict) -> None:
        if done >= stop_at:
            raise Stop

    sae = make_sae(ReLUConfig(d_in=24, d_sae=64), "blocks.0.hook_resid_post")
    config = TrainConfig(steps=40, batch_size=64, save_every=10, log_every=5, calibration=512)
    return train(sae, TensorBatches(planted()[0], 64), config, out, on_progress)


def test_a_kind_that_is_a_row_and_its_own_classes_trains_resumes_logs_and_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "relu", Kind(ReLUConfig, f"{__name__}:ReLUSAE", f"{__name__}:ReLUObjective"))
    with pytest.raises(Stop):
        run(tmp_path / "stopped", stop_at=25)
    resumed, whole = run(tmp_path / "stopped"), run(tmp_path / "whole")
    assert same(resumed, whole)
    assert [row["steps"] for row in read_log(tmp_path / "stopped")] == list(range(5, 41, 5))
    loaded, x = read_sae(tmp_path / "whole"), planted()[0]
    assert loaded.kind == "relu"
    assert torch.equal(loaded.encode(x), whole.encode(x))
    assert loaded.reads == loaded.writes == {"blocks.0.hook_resid_post": 24}
    assert plan([ReLUConfig(d_in=24, d_sae=64)], 64, 0, torch.device("cpu")).parameters == 2 * 24 * 64 + 64 + 24


def test_the_trainer_names_no_kind():
    """Recipes are for kinds; nothing else of the room asks which one it trains."""
    files = [file for file in (ROOT / "scope" / "training").glob("*.py") if file.name != "presets.py"]
    naming = [file.name for file in files if re.search(r"JumpReLU|TopK|Gated|Transcoder|BatchTopK", file.read_text())]
    assert naming == []
