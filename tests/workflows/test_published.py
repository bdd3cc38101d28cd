"""A published SAE by name, from a hub on this machine: its pack, its lab and its app, with no other word than the name."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import scope
from scope.cli.main import run
from scope.errors import DictionaryError, PackError
from scope.features.face import Pack
from scope.lab import CollectingWarning
from scope.sae.files import read_sae
from scope.workflows.match import place_beside
from tests.conftest import random_gemma
from tests.help.mirror import mirrored
from tests.models.twins import save_checkpoint
from tests.steering.conftest import random_sae

REPO, INSIDE = "google/gemma-scope-2b-pt-res", "layer_1/width_16k/average_l0_102"
NAME, SITE = "gemma-scope-2b-pt-res-canonical/layer_1/width_16k/canonical", "blocks.1.hook_resid_post"
LAB = "runs/gemma-scope-2b-pt-res-layer_1-width_16k-average_l0_102"


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_config, toy_tokenizer):
    """google/gemma-2-2b, tiny and random, and an SAE of it in the layout of Gemma Scope."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "model").mkdir()
    save_checkpoint(random_gemma(replace(tiny_config, n_ctx=256)), folder / "model", toy_tokenizer)
    sae = random_sae(tiny_config.d_model, 48, SITE)
    (folder / "saes" / INSIDE).mkdir(parents=True)
    np.savez(folder / "saes" / INSIDE / "params.npz", **{name: p.detach().numpy() for name, p in sae.named_parameters()})
    return folder


@pytest.fixture(scope="module")
def collected(served, tmp_path_factory):
    """A folder in which `scope features NAME` was given once."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch, mirrored(REPO, served / "saes", folder / "cache", patch, **model_of(served)):
        patch.chdir(folder)
        few_tokens(patch, folder)
        assert run(["features", NAME, "--no-certificate", "--score-prompts", "1", "--score-null", "4"]) == 0
    return folder


@pytest.fixture
def hub(served, collected, monkeypatch):
    with mirrored(REPO, served / "saes", collected / "cache", monkeypatch, **model_of(served)):
        monkeypatch.chdir(collected)
        yield


def model_of(served):
    return {"google/gemma-2-2b": served / "model"}


def few_tokens(patch, folder):
    (folder / "text.txt").write_text("the dog runs to the river. a cat looks at the moon.\n" * 40)
    patch.setattr("scope.workflows.features.TOKENS", 600)
    patch.setattr("scope.workflows.features.TEXT", str(folder / "text.txt"))


def test_one_command_collects_the_pack_with_model_site_and_neuronpedias_numbers(hub):
    pack = Pack.open(f"{LAB}/pack")
    assert (pack.site, pack.model.name, pack.neuronpedia) == (SITE, "google/gemma-2-2b", "gemma-2-2b/1-gemmascope-res-16k")
    assert pack[7].neuronpedia_url == "https://www.neuronpedia.org/gemma-2-2b/1-gemmascope-res-16k/7"
    assert pack.dictionary.path == f"{REPO}/{INSIDE}"


@pytest.mark.parametrize(
    "name", [NAME, f"{REPO}/{INSIDE}", "https://www.neuronpedia.org/gemma-2-2b/1-gemmascope-res-16k/7", LAB]
)
def test_every_name_of_the_sae_opens_the_same_lab(hub, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollectingWarning)
        lab = scope.open(name, certify=False)
    assert lab.pack.folder.as_posix() == f"{LAB}/pack"
    assert lab.model.provenance["model"] == "google/gemma-2-2b"
    assert len(lab.activations("the dog runs")) > 0


def test_a_lab_without_a_pack_has_it_collected_and_says_so(hub, tmp_path, monkeypatch):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scope.workflows.features.collect_features", lambda name, **settings: asked.append((name, settings)))
    with pytest.warns(CollectingWarning, match="has no pack of"), pytest.raises(PackError):
        scope.open(NAME, device="cpu", certify=False)
    assert asked[0][0] == NAME
    assert (asked[0][1]["device"], asked[0][1]["certificate"]) == ("cpu", False)


def test_the_app_opens_at_the_latent_of_an_address(hub, monkeypatch, capsys):
    started = []
    monkeypatch.setattr("scope.cli.app.become", lambda command, environment: started.append(environment))
    monkeypatch.setattr("scope.cli.app.refuse_taken", lambda port: None)
    assert run(["app", "https://www.neuronpedia.org/gemma-2-2b/1-gemmascope-res-16k/7", "--no-browser"]) == 0
    assert "http://127.0.0.1:8501/feature?f=7" in capsys.readouterr().out
    assert [folder.endswith(f"{LAB}/pack") for folder in json.loads(started[0]["SCOPE_PACKS"])] == [True]
    assert started[0]["SCOPE_PAGE"] == "feature?f=7"


def test_steering_and_attribution_find_the_pack_of_a_name(hub, capsys):
    assert run(["attribute", "--sae", NAME, "--prompt", "the dog", "--no-certificate", "--method", "direct"]) == 0
    assert (
        run(["steer", "--sae", NAME, "--latent", "3", "--prompt", "the dog", "--no-certificate", "--max-new-tokens", "2"]) == 0
    )
    assert "steered" in capsys.readouterr().out


def test_scores_and_matches_of_a_name_are_kept_beside_its_pack(hub, capsys):
    few = ["--contexts", "2", "--context", "32", "--no-nulls", "--no-certificate"]
    assert run(["evaluate", NAME, "--corpus", "text.txt", *few]) == 0
    assert Path(LAB, "evaluation.json").exists()
    assert place_beside(Path(NAME), Path("runs/other/pack")) == Path.cwd() / LAB / "pack.matches" / "other.json"


def test_the_beginning_of_a_name_is_refused_with_what_can_follow(hub, capsys):
    assert run(["app", "gemma-scope-2b-pt-res-canonical/layer_1"]) == 2
    assert "width_16k/canonical" in capsys.readouterr().err
    with pytest.raises(DictionaryError, match="Did you mean gemma-scope-2b-pt-res-canonical/layer_1/width_16k/canonical"):
        scope.open(NAME.replace("canonical", "cannonical", 1))
    with pytest.raises(PackError, match="runs/nothing has no dictionary"):
        scope.open("runs/nothing")


def test_a_file_that_names_no_site_is_told_it_by_a_flag(hub, served, tmp_path, capsys):
    file = tmp_path / "params.npz"
    file.write_bytes((served / "saes" / INSIDE / "params.npz").read_bytes())
    text = ["--corpus", str(tmp_path / "text.txt"), "--model", "google/gemma-2-2b"]
    few_tokens(pytest.MonkeyPatch(), tmp_path)
    assert run(["evaluate", str(file), *text]) == 2
    assert "--site blocks.2.hook_resid_post" in capsys.readouterr().err
    for command in (
        [
            "evaluate",
            str(file),
            *text,
            "--contexts",
            "2",
            "--context",
            "32",
            "--no-nulls",
            "--no-certificate",
        ],
        ["steer", "--sae", str(file), *text[2:], "--latent", "3", "--unit", "raw", "--max-new-tokens", "2", "--no-certificate"],
        ["attribute", "--sae", str(file), *text[2:], "--prompt", "the dog", "--method", "direct", "--no-certificate"],
    ):
        assert run([*command, "--site", SITE]) == 0, (command[0], capsys.readouterr().err)
    assert read_sae(file, site=SITE).site == SITE
