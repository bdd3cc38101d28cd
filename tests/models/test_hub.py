"""Checkpoints from a hub: a mirror on this machine serves them, or answers as the real one does when it will not."""

import socket

import pytest
import torch

from scope.errors import CheckpointError
from scope.models.load import load_model
from tests.conftest import random_gemma
from tests.help.mirror import SHA, mirrored
from tests.models.twins import save_checkpoint, some_tokens


@pytest.fixture
def hub(tmp_path, tiny_config, toy_tokenizer, monkeypatch):
    """The folder that the mirror serves as mirror/model; nothing is kept from one test to the next."""
    (tmp_path / "served").mkdir()
    folder = save_checkpoint(random_gemma(tiny_config), tmp_path / "served" / "checkpoint", toy_tokenizer, shards=2)
    with mirrored("mirror/model", folder, tmp_path / "cache", monkeypatch):
        yield folder


@torch.no_grad()
def test_a_mirror_named_by_hf_endpoint_serves_a_sharded_checkpoint(hub):
    model, here = load_model("mirror/model"), load_model(str(hub))
    assert torch.equal(model(some_tokens(model.cfg)), here(some_tokens(here.cfg)))
    assert model.provenance["model"] == "mirror/model"
    assert model.provenance["revision"] == SHA
    assert model.provenance["weights_sha256"] == here.provenance["weights_sha256"]


@pytest.mark.parametrize(
    ("name", "revision", "says"),
    [
        ("gated/model", None, r"gated/model is gated: accept its licence on http://127(.|\n)*HF_TOKEN"),
        ("forbidden/model", None, "is gated"),
        ("absent/model", None, "no folder absent/model here, and no such repository on http://127"),
        ("broken/model", None, "cannot be (fetched|reached)"),
        ("mirror/model", "nothing", "has no branch, tag or commit 'nothing'"),
        ("mirror/mo..del", None, "no such name"),
    ],
)
def test_what_the_hub_refuses_is_refused_with_the_way_out(hub, name, revision, says):
    with pytest.raises(CheckpointError, match=says):
        load_model(name, revision=revision)


def test_no_network_is_said_to_be_no_network(hub, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(CheckpointError, match=r"cannot be reached(.|\n)*HF_ENDPOINT names a mirror(.|\n)*--model bundled"):
        load_model("mirror/model")


@pytest.mark.parametrize("endpoint", ["hf-mirror.com", "127.0.0.1:80", "ftp://mirror"])
def test_an_endpoint_without_its_scheme_is_refused_with_the_whole_address(hub, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(CheckpointError, match=rf"HF_ENDPOINT is '{endpoint}', which is no address(.|\n)*https://"):
        load_model("mirror/model")


def test_the_hub_that_is_switched_off_is_not_called_unreachable(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"was not fetched before, and the hub is switched off \(HF_HUB_OFFLINE\)"):
        load_model("mirror/model")


def test_what_was_fetched_before_loads_without_a_network(hub, monkeypatch):
    before = load_model("mirror/model").provenance
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert load_model("mirror/model").provenance == before
