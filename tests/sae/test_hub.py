"""Dictionaries from a hub: a mirror on this machine serves one, breaks off, or refuses as the real one does."""

import numpy as np
import pytest
import torch

from scope.errors import DictionaryError
from scope.sae.files import LocalFolderWarning, read_sae, save_sae
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


CANONICAL = "gemma-scope-2b-pt-res-canonical/layer_3/width_16k/canonical"


@pytest.mark.parametrize(
    "name",
    [
        CANONICAL,
        f"{CANONICAL}/",
        f"{CANONICAL.upper()}/77",
        "gemma-2-2b/3-gemmascope-res-16k",
        "https://www.neuronpedia.org/gemma-2-2b/3-gemmascope-res-16k/77",
        f"https://huggingface.co/{REPO}/blob/main/{INSIDE}/params.npz",
        f"{REPO}@main/{INSIDE}",
        f"{REPO}/layer_3/width_16k/canonical",
    ],
)
def test_all_names_of_an_sae_give_it_with_its_model_site_and_page(hub, name):
    sae = read_sae(name)
    assert torch.equal(sae(X), hub(X))
    assert (sae.site, sae.provenance["model"]) == ("blocks.3.hook_resid_post", {"model": "google/gemma-2-2b"})
    assert sae.cfg.metadata.neuronpedia_id == "gemma-2-2b/3-gemmascope-res-16k"
    assert (sae.provenance["source"], sae.provenance["revision"]) == (f"{REPO}/{INSIDE}", SHA)


def test_a_folder_here_wins_over_a_name_and_that_is_said(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = random_kind("jumprelu", seed=5)
    save_sae(other, CANONICAL)
    with pytest.warns(LocalFolderWarning, match="the folder is read"):
        assert torch.equal(read_sae(CANONICAL)(X), other(X))


def test_without_a_network_it_is_said_what_would_be_fetched_and_how_large_it_is(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DictionaryError, match=rf"To be fetched: {REPO}/{INSIDE} of http://127.*, 302 MB(.|\n)*HF_HUB_OFFLINE"):
        read_sae(CANONICAL)


def test_a_hub_that_does_not_answer_in_time_is_told_from_one_that_breaks_off(hub, in_small_pieces, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.05)
    monkeypatch.setattr(Mirror, "wait", 0.5)
    with pytest.raises(DictionaryError, match="HF_HUB_DOWNLOAD_TIMEOUT=60"):
        read_sae(CANONICAL)


@pytest.fixture
def in_small_pieces(monkeypatch):
    """A download is written in pieces of 250 bytes, and taken up again at once where it broke off."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 250)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


def test_a_download_that_breaks_off_goes_on_from_what_came(hub, in_small_pieces, monkeypatch):
    monkeypatch.setattr(Mirror, "cut", lambda begin: 500 if begin < 1000 else None)
    assert torch.equal(read_sae(CANONICAL)(X), hub(X))
    assert Mirror.ranges == [0, 500, 1000]


def test_a_download_that_does_not_come_back_is_refused_and_the_same_call_fetches_it(hub, in_small_pieces, monkeypatch):
    monkeypatch.setattr(Mirror, "cut", lambda begin: 0 if begin else 500)
    with pytest.raises(DictionaryError, match=r"cannot be fetched(.|\n)*302 MB(.|\n)*same command again"):
        read_sae(CANONICAL)
    monkeypatch.setattr(Mirror, "cut", None)
    assert torch.equal(read_sae(CANONICAL)(X), hub(X))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            f"{REPO}/layer_3/width_16k/average_l0_60",
            r"no dictionary in layer_3(.|\n)*Did you mean layer_4/width_16k/average_l0_60",
        ),
        (f"{REPO}@nothing/{INSIDE}", r"no branch, tag or commit 'nothing'"),
        ("gated/model/folder", r"gated/model is gated: accept its licence"),
        ("absent/model/folder", r"no such repository on http://127"),
        ("broken/model/folder", r"cannot be fetched"),
    ],
)
def test_what_the_hub_does_not_give_is_refused_with_the_reason(hub, name, said):
    with pytest.raises(DictionaryError, match=said):
        read_sae(name)
