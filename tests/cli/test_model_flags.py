"""Every command that loads a model takes the same flags for it, and says first what runs where."""

import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

import scope
from scope.cli.main import COMMANDS, run
from scope.errors import ScopeError
from scope.lab import Lab
from tests.monitor.conftest import rows, write

GROUP = {"model", "adapter", "device", "dtype", "revision", "window_convention"}
WITHOUT_MODEL = {"recording", "runs", "convert", "map", "export", "pretrain", "info", "list"}
"""Commands that load no model; pretrain makes one."""

ON_A_LAB = {
    "demo": ["--tokens", "500"],
    "harvest": ["--tokens", "500"],
    "train": ["--site", "blocks.0.hook_resid_post", "--d-sae", "64"],
    "evaluate": ["LAB/dictionary"],
    "features": ["LAB/dictionary"],
    "match": ["LAB", "LAB"],
    "diff": ["bundled", "bundled"],
    "lookahead": ["LAB/dictionary"],
    "memory": ["the dog runs"],
    "modalities": ["LAB/dictionary"],
    "steer": ["--sae", "LAB/dictionary", "--latent", "3"],
    "attribute": ["--sae", "LAB/dictionary", "--prompt", "the dog"],
    "pages index": ["pages:3", "--out", "index"],
    "moderate": ["the dog", "--policy", "hate"],
    "monitor fit": ["labelled.jsonl", "--probe", "--fpr", "0.1", "--out", "monitor"],
    "datacommons ask": ["How many?"],
    "datacommons triggers": ["LAB/dictionary"],
    "label": ["LAB/pack", "--with", "here"],
}
TEXT = {"demo", "harvest", "train", "evaluate", "features", "match", "diff", "lookahead"}
"""Commands that read a --corpus."""

LAB = Path(__file__).parents[1] / "data" / "version_0_1_0"


class Loaded(ScopeError):
    """Raised in place of loading a model."""


def flag_sets(name: str) -> dict[str, set[str]]:
    """Command, with its subcommand if it has some, -> names of its flags."""
    module = importlib.import_module(f"scope.cli.{name}")
    kinds = [getattr(module, "Command", None)] if hasattr(module, "Command") else _kinds(module.flags([]))
    several = len(kinds) > 1
    return {f"{name} {kind.__name__}" if several else name: _names(kind) for kind in kinds}


def _kinds(flags) -> list[type]:
    from typing import get_args

    return [get_args(k)[0] if get_args(k) else k for k in (get_args(flags) or (flags,))]


def _names(kind: type) -> set[str]:
    return {f.name for f in fields(kind)}


def test_each_command_either_loads_no_model_or_has_the_whole_group():
    for name in COMMANDS:
        sets = flag_sets(name)
        if name in WITHOUT_MODEL:
            source = inspect.getsource(importlib.import_module(f"scope.cli.{name}"))
            assert name == "pretrain" or "load_model" not in source, name
            continue
        with_model = [key for key, flags in sets.items() if flags & {"model", "device"}]
        assert with_model, name
        for key in with_model:
            lacking = GROUP - sets[key]
            stored = {"dtype"} if "compute_dtype" in sets[key] else set()  # --dtype is that of activations, in a config within
            assert lacking == stored, (key, lacking)
    assert {command.split()[0] for command in ON_A_LAB} | {"app"} | WITHOUT_MODEL == set(COMMANDS)


@pytest.mark.parametrize("command", ON_A_LAB)
def test_the_flags_reach_the_model(command, monkeypatch, capsys, tmp_path):
    seen = []

    def load(model, **how):
        seen.append({"model": model, **{k: str(v) for k, v in how.items()}})
        raise Loaded("stop here")

    monkeypatch.setattr("scope.models.load.load_model", load)
    monkeypatch.chdir(tmp_path)
    flags = [flag.replace("LAB", str(LAB)) for flag in ON_A_LAB[command]]
    if command == "monitor fit":
        write(tmp_path / "labelled.jsonl", rows(100))
    if command in TEXT:
        (tmp_path / "text.txt").write_text("the dog runs. " * 50)
        flags += ["--corpus", "text.txt"]
    flags += ["--device", "cpu", "--adapter", "fim", "--revision", "main", "--window-convention", "hf"]
    flags += ["--compute-dtype" if command in ("harvest", "train") else "--dtype", "bfloat16"]
    assert run([*command.split(), *flags, *([] if command in ("label", "diff") else ["--model", "bundled"])]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"(bundled|the dictionary's model)\+fim on cpu in bfloat16, window_convention hf", first)
    assert "stop here" in rest[-1]
    assert seen[0] | {"streamed": ""} == {
        "model": "bundled" if command != "label" else "here",
        "adapter": "fim",
        "dtype": "bfloat16",
        "device": "cpu",
        "revision": "main",
        "window_convention": "hf",
        "streamed": "",
    }


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(capsys):
    assert run(["steer", "--sae", "nowhere", "--device", "tpu"]) == 2
    assert "Device 'tpu' cannot be used here" in capsys.readouterr().err


def test_python_takes_the_same_names():
    for function in (scope.open, Lab):
        assert inspect.signature(function).parameters.keys() >= GROUP
    opened = scope.open(LAB, model=LAB / "model", dtype="bfloat16", certify=False)
    assert str(opened.model.W_E.dtype) == "torch.bfloat16"
    assert opened.model.W_E.device.type == "cpu"


def test_the_app_hands_its_flags_to_the_server(monkeypatch, capsys):
    from scope.app.serve.models import settings

    environments = []
    monkeypatch.setattr("scope.cli.app.become", lambda command, environment: environments.append(environment))
    monkeypatch.setattr("scope.cli.app.refuse_taken", lambda port: None)
    assert run(["app", str(LAB), "--adapter", "A", "--device", "cpu", "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().err == "the dictionary's model+A on cpu in bfloat16\n"
    monkeypatch.setenv("SCOPE_MODEL", environments[0]["SCOPE_MODEL"])
    assert (settings().model, settings().adapter, settings().dtype) == (None, "A", "bfloat16")
