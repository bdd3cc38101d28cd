"""Python takes the settings that the command line takes as flags: by the same names, refused with the same care."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import scope
from scope.cli.flags import config_of, flags_of
from scope.errors import ConfigError
from scope.workflows.evaluate import Evaluate
from scope.workflows.features import CollectFeatures
from scope.workflows.harvest import Harvest
from scope.workflows.settings import from_settings
from scope.workflows.steer import Steer
from scope.workflows.train import config_for


def test_settings_reach_the_config_within_by_their_own_names():
    job = from_settings(Harvest, {"tokens": 5000, "sites": "all", "seed": 3, "out": Path("here")})
    assert (job.config.tokens, job.config.sites, job.config.seed, job.out) == (5000, ("all",), 3, "here")
    assert from_settings(Evaluate, {"dictionary": Path("d"), "contexts": 8}).config.contexts == 8


def test_a_single_value_stands_for_several_and_a_text_for_a_path():
    job = from_settings(Steer, {"latent": 12, "strength": 0.3, "prompt": "In the morning", "sae": "runs/d"})
    assert (job.latent, job.strength, job.prompt, job.sae) == ((12,), (0.3,), ("In the morning",), Path("runs/d"))


def test_a_setting_that_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no setting 'token'.*Nearest: tokens"):
        scope.harvest(token=5)
    with pytest.raises(ConfigError, match="dictionary is missing"):
        from_settings(CollectFeatures, {})


def test_a_config_and_keywords_together_are_refused():
    with pytest.raises(ConfigError, match="not both: tokens"):
        scope.harvest(Harvest(), tokens=5)


def test_the_settings_of_a_training_are_those_of_its_kind_and_preset():
    config = from_settings(
        config_for({"kind": "topk", "d_sae": 64}), {"recording": "r", "kind": "topk", "k": [4, 8], "d_sae": 64}
    )
    assert config.sae.k == (4, 8)
    assert config.sae.d_sae == (64,)
    with pytest.raises(ConfigError, match="--k is a flag of topk"):
        config_for({"k": 4})
    with pytest.raises(ConfigError, match="both say how long"):
        config_for({"steps": 4, "tokens": 4})


@pytest.mark.parametrize("config", [Harvest, Evaluate, CollectFeatures, Steer])
def test_each_setting_is_a_flag_with_a_help_and_its_default(config):
    import tyro

    required = [f.name for f in fields(config) if f.name == "dictionary"]
    flags = flags_of(config, positional=("dictionary",))
    parsed = config_of(config, tyro.cli(flags, args=["x"] * len(required)))
    assert parsed == config(**dict.fromkeys(required, "x"))


@pytest.mark.parametrize(
    "command", ["harvest", "train", "evaluate", "features", "steer", "demo", "pretrain", "attribute", "label"]
)
def test_the_help_of_a_command_loads_no_torch(command):
    code = (
        f"import sys; from scope.cli.main import run\ntry: run([{command!r}, '--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.rstrip().endswith("False")


def test_a_users_own_app_and_activations_are_theirs_and_scope_works_beside_them(tmp_path):
    for name in ("app", "activations"):
        (tmp_path / f"{name}.py").write_text(f"mine = {name!r}\n")
    code = (
        "import app, activations, scope, scope.app, scope.activations.errors\n"
        "from scope.activations.read.store import ActivationStore\n"
        "print(app.mine, activations.mine, scope.app.__doc__ is not None)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["app", "activations", "True"]


def test_no_import_name_but_scope_is_installed(tmp_path):
    code = "import importlib.util as u; print(u.find_spec('app'), u.find_spec('activations'))"
    out = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["None", "None"]
