"""Refuses requests that reach the server under another machine's name, or from another site's page, and forbids framing.

A page anywhere can make the reader's browser ask 127.0.0.1: by a form or a socket of its own, or under its own host name, which
it lets point to 127.0.0.1 for a moment (DNS rebinding). The name in `Host` and the page in `Origin` give both away.
"""

import ipaddress
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

HEADERS = {
    "x-frame-options": "DENY",
    "content-security-policy": "frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_TOLD = 20
"""Refused names that are printed at most: a page could send any number of them."""


class Guard:
    """ASGI middleware in front of every route, media and sockets included."""

    def __init__(self, app: Any, names: Sequence[str] = ()):
        self._app, self._names = app, frozenset(name.lower() for name in names)
        self._refused: set[str] = set()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = [(name.lower().decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        stranger = self.stranger(*([value for name, value in headers if name == wanted] for wanted in ("host", "origin")))
        if stranger is None:
            rest = [pair for pair in scope["headers"] if pair[0].lower() != b"origin"]  # checked; Streamlit would ask the net
            await self._app({**scope, "headers": rest}, receive, _with_headers(send))
            return
        text = self._refusal(stranger)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        kind = [(b"content-type", b"text/plain; charset=utf-8")]
        await _with_headers(send)({"type": "http.response.start", "status": 403, "headers": kind})
        await send({"type": "http.response.body", "body": text.encode()})

    def stranger(self, hosts: Sequence[str], origins: Sequence[str]) -> str | None:
        """The first name that is not allowed, "" for a missing or a doubled one; None where all are.

        A page may ask the server that it came from, whatever the port: a forwarded port has another number. A page of another
        origin must be allowed by name.
        """
        host = _parts(f"//{hosts[0]}") if len(hosts) == 1 else None
        if host is None or not (_is_local(host) or self._is_named(host)):
            return hosts[0] if hosts else ""
        if not origins:  # programs other than browsers, and a browser that opens an address
            return None
        origin = _parts(origins[0]) if len(origins) == 1 else None
        if origin is not None and (origin.netloc.lower() == host.netloc.lower() or self._is_named(origin)):
            return None
        return origins[0]

    def _is_named(self, parts: SplitResult) -> bool:
        return not self._names.isdisjoint((parts.hostname, parts.netloc.lower()))

    def _refusal(self, stranger: str) -> str:
        name = ascii((_parts(stranger if "://" in stranger else f"//{stranger}") or _EMPTY).netloc[:100])[1:-1]
        text = (
            f"This server answers requests for localhost and 127.0.0.1 alone, not for {name or 'a page without a name'}.\n"
            f"To allow a proxy or a name of this machine: scope app --allow-host {name or 'NAME'}\n"
        )
        if name not in self._refused and len(self._refused) < _TOLD:
            self._refused.add(name)
            print(f"Refused a request: {text}", file=sys.stderr, flush=True)
        return text


_EMPTY = urlsplit("")


def host_name(text: str) -> str | None:
    """A host as `Guard` takes it, perhaps with a port, from a name or from an address that a browser shows, or None."""
    parts = _parts(text if "://" in text else f"//{text}".rstrip("/"))
    return None if parts is None else parts.netloc.lower()


def _parts(address: str) -> SplitResult | None:
    """An address that names a host and nothing but a port beside it."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    plain = parts.hostname and "@" not in parts.netloc and not (parts.path.strip("/") or parts.query or parts.fragment)
    return parts if plain and not any(char.isspace() for char in address) else None


def _is_local(parts: SplitResult) -> bool:
    name = (parts.hostname or "").rstrip(".")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return sending
