"""Dictionaries from a hub: a mirror on this machine serves one, breaks off, or refuses as the real one does."""

import numpy as np
import pytest
import torch

from scope.errors import DictionaryError
from scope.sae.files import read_sae
from tests.help.mirror import SHA, Mirror, mirrored
from tests.sae.test_kinds import X, random_kind

REPO, INSIDE = "google/gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_59"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A served dictionary; nothing is kept from one test to the next."""
    sae = random_kind("jumprelu")
    (tmp_path / "served" / INSIDE).mkdir(parents=True)
    stored = {name: p.detach().numpy() for name, p in sae.named_parameters()}
    np.savez(tmp_path / "served" / INSIDE / "params.npz", **stored)
    with mirrored(REPO, tmp_path / "served", tmp_path / "cache", monkeypatch):
        yield sae


def test_a_dictionary_comes_from_a_mirror_and_from_then_on_without_a_network(hub, monkeypatch):
    first = read_sae(f"{REPO}/{INSIDE}")
    assert torch.equal(first(X), hub(X))
    assert (first.site, first.provenance["revision"]) == ("blocks.3.hook_resid_post", SHA)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert torch.equal(read_sae(f"{REPO}/{INSIDE}")(X), hub(X))


def test_a_download_that_breaks_off_is_refused_and_the_same_call_fetches_it(hub, monkeypatch):
    monkeypatch.setattr(Mirror, "cut", 500)
    with pytest.raises(DictionaryError, match=r"could not be fetched(.|\n)*same command again"):
        read_sae(f"{REPO}/{INSIDE}")
    monkeypatch.setattr(Mirror, "cut", None)
    assert torch.equal(read_sae(f"{REPO}/{INSIDE}")(X), hub(X))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{REPO}/layer_3/width_16k/average_l0_60", r"no dictionary in layer_3/width_16k/average_l0_60"),
        ("gated/model/folder", r"gated/model is gated: accept its licence"),
        ("absent/model/folder", r"no such repository on http://127"),
        ("broken/model/folder", r"could not be fetched"),
    ],
)
def test_what_the_hub_does_not_give_is_refused_with_the_reason(hub, name, said):
    with pytest.raises(DictionaryError, match=said):
        read_sae(name)
