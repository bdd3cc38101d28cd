"""Checkpoints from a hub: a mirror on this machine serves them, or answers as the real one does when it will not."""

import json
import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from scope.errors import CheckpointError
from scope.models.load import load_model
from tests.conftest import random_gemma
from tests.models.twins import save_checkpoint, some_tokens

SHA = "0123456789abcdef0123456789abcdef01234567"
ANSWERS = {
    "gated/model": (401, "GatedRepo"),
    "forbidden/model": (403, "GatedRepo"),
    "absent/model": (401, "RepoNotFound"),
    "broken/model": (500, ""),
}


class Hub(BaseHTTPRequestHandler):
    def __init__(self, folder, *args):
        self.folder = folder
        super().__init__(*args)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/api/models/").strip("/")
        repo = "/".join(path.split("/")[:2])
        if repo in ANSWERS:
            return self.answer(ANSWERS[repo][0], b"", {"X-Error-Code": ANSWERS[repo][1]})
        if self.path.startswith("/api/models/mirror/model/revision/main"):
            siblings = [{"rfilename": file.name} for file in self.folder.iterdir()]
            return self.answer(200, json.dumps({"id": "mirror/model", "sha": SHA, "siblings": siblings}).encode())
        if self.path.startswith("/api/models/mirror/model/tree"):
            files = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in self.folder.iterdir()]
            return self.answer(200, json.dumps(files).encode())
        if "/revision/" in self.path:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        file = self.folder / path.split("/")[-1]
        return self.answer(200, file.read_bytes(), {"ETag": f'"{file.name}"', "X-Repo-Commit": SHA})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, tiny_config, toy_tokenizer, monkeypatch):
    """The folder that the mirror serves as mirror/model; nothing is kept from one test to the next."""
    from huggingface_hub import constants

    (tmp_path / "served").mkdir()
    folder = save_checkpoint(random_gemma(tiny_config), tmp_path / "served" / "checkpoint", toy_tokenizer, shards=2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield folder
    server.shutdown()
    server.server_close()


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


def test_what_was_fetched_before_loads_without_a_network(hub, monkeypatch):
    before = load_model("mirror/model").provenance
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert load_model("mirror/model").provenance == before
