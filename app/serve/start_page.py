"""Tells the page that Streamlit serves where its server is, so that it opens its socket at once.

Untold, the page looks for the server below its own address, a tenth of a second later one level higher, and asks two questions
before it opens the socket. `window.__streamlit` is how a host tells it the answers.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from scope.app.serve.session import PAGES

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

_SCRIPT = """<script>
  const base = location.pathname.match(/^(.*?)\\/(?:%s)?$/)?.[1]; // what a proxy puts before a page's name
  if (base !== undefined) window.__streamlit = {
    BACKEND_BASE_URL: `${location.origin}${base}/`,
    HOST_CONFIG: { allowedOrigins: ["https://nobody.invalid"], useExternalAuthToken: false },
  };
</script>"""


class StartPage:
    """ASGI middleware that writes a script into the head of each page. At an address of no page's name it does nothing."""

    def __init__(self, app: Any, pages: Iterable[str] = PAGES):
        self._app, self._head = app, b"<head>" + (_SCRIPT % "|".join(pages)).encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
        headers = dict(scope["headers"]) if scope["type"] == "http" and scope["method"] == "GET" else {}
        if b"text/html" not in headers.get(b"accept", b""):
            await self._app(scope, receive, send)
            return
        plain = [pair for pair in scope["headers"] if pair[0] not in _AS_IT_WAS]
        await self._app({**scope, "headers": plain}, receive, self._completing(send))

    def _completing(self, send: Send) -> Send:
        starts: list[Message] = []
        body = bytearray()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_html(message):
                starts.append(message)
            elif starts and message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    whole = bytes(body).replace(b"<head>", self._head, 1)
                    headers = [pair for pair in starts[0]["headers"] if pair[0].lower() not in _OF_THE_FILE]
                    await send({**starts[0], "headers": [*headers, (b"content-length", str(len(whole)).encode())]})
                    await send({**message, "body": whole})
            else:
                await send(message)

        return sending


_AS_IT_WAS = (b"accept-encoding", b"range")
"""What would bring the browser a page into which no script can be written."""

_OF_THE_FILE = (b"content-length", b"etag", b"last-modified", b"accept-ranges")


def _is_html(start: Message) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in start["headers"])
