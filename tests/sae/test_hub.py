"""Dictionaries from a hub: a mirror on this machine serves one, breaks off, or refuses as the real one does."""

import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from scope.errors import DictionaryError
from scope.sae.files import load_sae
from tests.sae.test_kinds import X, random_kind

SHA = "0123456789abcdef0123456789abcdef01234567"
REPO, INSIDE = "google/gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_59"
ANSWERS = {"gated/model": (401, "GatedRepo"), "absent/model": (401, "RepoNotFound"), "broken/model": (500, "")}


class Hub(BaseHTTPRequestHandler):
    """`cut` is how many bytes of a file come before the line breaks; None sends all."""

    cut: int | None = None

    def __init__(self, folder: Path, *args):
        self.folder = folder
        super().__init__(*args)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/api/models/").strip("/")
        repo = "/".join(path.split("/")[:2])
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        if repo in ANSWERS:
            return self.answer(ANSWERS[repo][0], b"", {"X-Error-Code": ANSWERS[repo][1]})
        if f"/api/models/{REPO}/revision" in self.path:
            siblings = [{"rfilename": str(file.relative_to(self.folder))} for file in files]
            return self.answer(200, json.dumps({"id": REPO, "sha": SHA, "siblings": siblings}).encode())
        if f"/api/models/{REPO}/tree" in self.path:
            listed = [
                {"type": "file", "path": str(f.relative_to(self.folder)), "size": f.stat().st_size, "oid": f.name}
                for f in files
            ]
            return self.answer(200, json.dumps(listed).encode())
        file = self.folder / path.split(f"/resolve/{SHA}/")[-1]
        return self.answer(200, file.read_bytes(), {"ETag": f'"{file.name}"', "X-Repo-Commit": SHA}, Hub.cut)

    def answer(self, status, body, headers=None, cut=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            self.close_connection = cut is not None

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A served dictionary; nothing is kept from one test to the next."""
    from huggingface_hub import constants

    sae = random_kind("jumprelu")
    (tmp_path / "served" / INSIDE).mkdir(parents=True)
    stored = {name: p.detach().numpy() for name, p in sae.named_parameters()}
    np.savez(tmp_path / "served" / INSIDE / "params.npz", **stored)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, tmp_path / "served"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "cut", None)
    yield sae
    server.shutdown()
    server.server_close()


def test_a_dictionary_comes_from_a_mirror_and_from_then_on_without_a_network(hub, monkeypatch):
    first = load_sae(f"{REPO}/{INSIDE}")
    assert torch.equal(first(X), hub(X))
    assert (first.site, first.provenance["revision"]) == ("blocks.3.hook_resid_post", SHA)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert torch.equal(load_sae(f"{REPO}/{INSIDE}")(X), hub(X))


def test_a_download_that_breaks_off_is_refused_and_the_same_call_fetches_it(hub, monkeypatch):
    monkeypatch.setattr(Hub, "cut", 500)
    with pytest.raises(DictionaryError, match=r"could not be fetched(.|\n)*same command again"):
        load_sae(f"{REPO}/{INSIDE}")
    monkeypatch.setattr(Hub, "cut", None)
    assert torch.equal(load_sae(f"{REPO}/{INSIDE}")(X), hub(X))


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
        load_sae(name)
