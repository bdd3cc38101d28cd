"""A page of another site cannot read the app, whatever it makes the browser say; localhost and named proxies can."""

import asyncio

import pytest
from scope.app.guard import Guard, host_name

LOCAL = ["localhost", "localhost:8501", "127.0.0.1:8501", "[::1]:8501", "127.0.0.2", "LOCALHOST:9999", "localhost.:80"]
STRANGE = ["evil.example", "evil.example:8501", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.5", "", "a b"]
STRANGE += [
    "localhost@evil.example",
    "evil.example@localhost",
    "localhost:x",
    "[::1",
    "localhost/evil",
    "2130706433",
    "0.0.0.0",
]


def answer(hosts: list[str], origins: list[str] = [], names: tuple[str, ...] = (), kind: str = "http", guard=None):  # noqa: B006
    """(what came back, the headers that the app behind the guard saw; None where it was not asked)."""
    seen, sent = [], []

    async def app(scope, receive, send):
        seen.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def send(message):
        sent.append(message)

    headers = [(b"host", host.encode()) for host in hosts] + [(b"origin", origin.encode()) for origin in origins]
    asyncio.run((guard or Guard(app, names))({"type": kind, "headers": headers}, None, send))
    return sent, (seen or [None])[0]


@pytest.mark.parametrize("host", LOCAL)
def test_this_machine_is_answered_on_any_port_and_may_not_be_framed(host):
    sent, seen = answer([host])
    assert sent[0]["status"] == 200
    headers = dict(sent[0]["headers"])
    assert headers[b"x-frame-options"] == b"DENY"
    assert headers[b"content-security-policy"] == b"frame-ancestors 'none'"
    assert headers[b"a"] == b"b"
    assert seen is not None


@pytest.mark.parametrize("host", STRANGE)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_another_host_is_refused_before_the_app_hears_of_it(host, kind, capsys):
    sent, seen = answer([host], kind=kind)
    assert seen is None
    assert sent[0].get("status") == 403 or sent == [{"type": "websocket.close", "code": 1008}]
    assert "--allow-host" in capsys.readouterr().err


@pytest.mark.parametrize("hosts", [[], ["localhost", "evil.example"], ["localhost", "localhost"]])
def test_a_missing_or_a_second_host_is_refused(hosts):
    assert answer(hosts)[1] is None


@pytest.mark.parametrize(
    "origins",
    [
        ["http://evil.example"],
        ["null"],
        ["http://localhost:3000"],
        ["http://localhost.evil.example:8501"],
        ["", "x"],
        ["file://"],
    ],
)
def test_a_page_of_another_origin_is_refused(origins):
    assert answer(["localhost:8501"], origins, kind="websocket")[1] is None


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:8501", "[::1]:8501"])
def test_a_page_of_the_app_is_answered_and_streamlit_does_not_judge_its_origin_again(host):
    sent, seen = answer([host], [f"http://{host}"])
    assert sent[0]["status"] == 200
    assert b"origin" not in seen


def test_a_proxy_is_let_in_by_name_alone():
    for hosts, origins in (
        (["hub.example.org"], ["https://hub.example.org"]),
        (["localhost:8501"], ["https://hub.example.org"]),
    ):
        assert answer(hosts, origins)[1] is None
        assert answer(hosts, origins, ("hub.example.org",))[1] is not None
        assert answer(hosts, ["https://evil.example"], ("hub.example.org",))[1] is None
    assert answer(["localhost:8501"], ["http://localhost:8888"], ("localhost:8888",))[1] is not None
    assert answer(["localhost:8501"], ["http://localhost:3000"], ("localhost:8888",))[1] is None


def test_a_refusal_names_the_flag_once_a_name_and_prints_no_control_characters(capsys):
    guard = Guard(None)
    for n in range(60):
        answer(["evil.example"], guard=guard)
        answer([f"evil{n}.example\x1b[31m"], guard=guard)
    err = capsys.readouterr().err
    assert err.count("evil.example.") == 1
    assert err.count("\n") < 60
    assert "\x1b" not in err


@pytest.mark.parametrize(
    "text", ["hub.example.org", "https://hub.example.org/", "HUB.example.org", "hub.example.org:443", "", "a b", "http://x/y?z"]
)
def test_a_host_is_given_as_a_browser_shows_it(text):
    name = host_name(text)
    assert (name or "").startswith("hub.example.org") == ("hub" in text.lower())
