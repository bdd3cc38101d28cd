"""A hub on this machine, as huggingface_hub speaks to one: it serves repositories and refuses others as a real one does."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

SHA = "0123456789abcdef0123456789abcdef01234567"
"""The commit of what is served."""
REFUSED = {
    "gated/model": (401, "GatedRepo"),
    "forbidden/model": (403, "GatedRepo"),
    "absent/model": (401, "RepoNotFound"),
    "broken/model": (500, ""),
}


class Mirror(BaseHTTPRequestHandler):
    """`cut` says how many bytes come before the line breaks, by the byte from which on a file was asked for; None for all.
    `wait` are seconds before a file comes. `ranges` collects from which byte on files were asked for."""

    cut: Callable[[int], int] | None = None
    wait = 0.0
    ranges: ClassVar[list[int]] = []

    def __init__(self, served: dict[str, Path], *args):
        self.served = served
        super().__init__(*args)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/api/models/").strip("/")
        asked, files = "/".join(path.split("/")[:2]), {}
        if asked not in self.served:
            status, code = REFUSED.get(asked, (401, "RepoNotFound"))
            return self.answer(status, b"", {"X-Error-Code": code})
        for file in self.served[asked].rglob("*"):
            if file.is_file():
                files[file.relative_to(self.served[asked]).as_posix()] = file
        if path in (f"{asked}/revision/main", f"{asked}/revision/{SHA}"):
            return self.tell({"id": asked, "sha": SHA, "siblings": [{"rfilename": name} for name in files]})
        if path.startswith(f"{asked}/tree/"):
            return self.tell(
                [{"type": "file", "path": name, "size": f.stat().st_size, "oid": f.name} for name, f in files.items()]
            )
        if "/revision/" in path:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        file = files[path.removeprefix(f"{asked}/resolve/{SHA}/")]
        content, begin = file.read_bytes(), 0
        if self.command == "GET":
            threading.Event().wait(Mirror.wait)
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            Mirror.ranges.append(begin)
        headers = {"ETag": f'"{file.name}"', "X-Repo-Commit": SHA}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        return self.answer(206 if begin else 200, content[begin:], headers, Mirror.cut and Mirror.cut(begin))

    def tell(self, what) -> None:
        self.answer(200, json.dumps(what).encode())

    def answer(self, status: int, body: bytes, headers=None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):  # of who does not wait
                self.wfile.write(body[:cut])
            self.close_connection = cut is not None

    def log_message(self, *args):
        pass


@contextmanager
def mirrored(repo: str, folder: Path, cache: Path, monkeypatch, **more: Path) -> Iterator[None]:
    """Within the block the hub is this machine's and has a repository, what lies in `folder`, and `more`; fetched files go to
    `cache`."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Mirror, {repo: folder, **more}))
    threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Mirror, "cut", None)
    monkeypatch.setattr(Mirror, "wait", 0.0)
    Mirror.ranges.clear()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
