"""The app as `scope app` starts it, over HTTP: whom it answers, and that nothing of it is left when it is killed."""

import http.client
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from scope.cli.app import holder, refuse_taken
from scope.errors import ConfigError

ROUTES = ["/", "/steer", "/_stcore/health", "/_stcore/host-config", "/static/x.js", "/media/x.png", "/component/x/index.html"]
ROUTES += ["/_stcore/upload_file/a/b", "/_stcore/metrics", "/_stcore/bidi-components/x/y.js", "/no/such/page"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Port and process of a server without packs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "scope.cli.main", "app", "--no-browser", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=tmp_path_factory.mktemp("empty"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        yield port, process
    finally:
        process.kill()
        process.wait(20)


def get(port: int, path: str, **headers: str) -> http.client.HTTPResponse:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as link:
        link.request("GET", path, headers=headers)
        with link.getresponse() as response:
            response.read()
            return response


@pytest.mark.parametrize("path", ROUTES)
def test_no_route_answers_a_foreign_host_or_page_and_none_may_be_framed(served, path):
    port, _ = served
    assert get(port, path, Host=f"evil.example:{port}").status == 403
    assert get(port, path, Host=f"localhost:{port}", Origin="http://evil.example").status == 403
    for host in (f"localhost:{port}", "127.0.0.1:9000", "[::1]:9000"):
        response = get(port, path, Host=host)
        assert response.status != 403
        assert response.headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]


def test_a_page_says_where_its_server_is_and_never_comes_from_a_store(served):
    port, _ = served
    asked = {
        "Accept": "text/html",
        "Accept-Encoding": "gzip",
        "Range": "bytes=0-99",
    }
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as link:
        link.request("GET", "/feature?f=3", headers=asked)
        with link.getresponse() as response:
            page = response.read()
    assert response.status == 200
    assert response.headers["ETag"] is response.headers["Content-Encoding"] is None
    assert int(response.headers["Content-Length"]) == len(page)
    assert page.count(b"window.__streamlit = {") == 1
    assert page.rstrip().endswith(b"</html>")
    assert response.headers["X-Frame-Options"] == "DENY"


def test_the_socket_of_the_pages_opens_for_a_page_of_the_app_alone(served):
    port, _ = served
    with connect(f"ws://127.0.0.1:{port}/_stcore/stream", origin=f"http://127.0.0.1:{port}"):
        pass
    with (
        socket.create_connection(("127.0.0.1", port)) as forwarded,  # as through ssh -L 9000
        connect("ws://localhost:9000/_stcore/stream", origin="http://localhost:9000", sock=forwarded),
    ):
        pass
    for address, origin in (
        (f"127.0.0.1:{port}", "http://evil.example"),
        (f"evil.example:{port}", f"http://evil.example:{port}"),
    ):
        with (
            socket.create_connection(("127.0.0.1", port)) as link,
            pytest.raises(InvalidStatus, match="403"),
            connect(f"ws://{address}/_stcore/stream", origin=origin, sock=link),
        ):
            pass


def test_a_port_in_use_is_said_with_the_process_that_holds_it_and_killing_it_leaves_nothing(served):
    port, process = served
    with pytest.raises(ConfigError, match=rf"another scope app \(process {process.pid}; `kill {process.pid}` ends it\)"):
        refuse_taken(port)
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    assert "another program" in holder(port)
    refuse_taken(port)
