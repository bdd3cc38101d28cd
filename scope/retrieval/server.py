"""The embedded service over HTTP: `scope datacommons serve`, or, within a program, `with embedded_service() as url`."""

import hmac
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scope.errors import ConfigError, ScopeError
from scope.retrieval import answers
from scope.retrieval.table import statistics
from scope.typed_json import parse_json, typed

API = "/core/api/v2"
"""Where Data Commons' own servers have version 2 of the interface."""

LARGEST_REQUEST = 2**20
HOST = "127.0.0.1"


def application(key: str | None = None, links: bool = False) -> Any:
    """The service as an ASGI application. With a key, every request must bring it, as X-API-Key or key=...; with
    `links`, an answer links to itself here, else to where the table comes from."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

    def refused(request: Request) -> bool:
        given = request.headers.get("x-api-key") or request.query_params.get("key") or ""
        return key is not None and not hmac.compare_digest(given.encode(), key.encode())

    async def query(request: Request) -> JSONResponse:
        if refused(request):
            return JSONResponse({"message": "A valid key is needed."}, 401)
        question, mode = request.query_params.get("q", ""), request.query_params.get("mode", "")
        answer = answers.answer_number if mode == "toolformer_rig" else answers.answer_table
        root = str(request.base_url).rstrip("/") if links else ""
        return JSONResponse(await run_in_threadpool(answer, statistics(), question, root))

    async def api(request: Request) -> JSONResponse:
        if refused(request):
            return JSONResponse({"message": "A valid key is needed."}, 401)
        try:
            return JSONResponse(_answer(request.path_params["endpoint"], await _content(request)))
        except ScopeError as error:
            return JSONResponse({"message": str(error)}, 400)

    async def explore(request: Request) -> PlainTextResponse:
        """What the link of a footnote leads to."""
        question = request.query_params.get("q", "")
        charts = answers.answer_number(statistics(), question, "")["charts"]
        lines = [
            f"{c['title']}: {c['highlight']['value']} {c['unit']} ({c['highlight']['date']}; {c['srcs'][0]['name']})"
            for c in charts
        ]
        return PlainTextResponse("\n".join(lines) or f"There is no number for {question!r}.")

    routes = [
        Route("/nodejs/query", query),
        Route("/explore", explore),
        Route(API + "/{endpoint}", api, methods=["GET", "POST"]),
    ]
    return Starlette(routes=routes)


async def _content(request: Any) -> dict[str, Any]:
    if request.method == "GET":
        return {"nodes": request.query_params.getlist("nodes"), "property": request.query_params.get("property")}
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_REQUEST:
            raise answers.NotUnderstood(f"A request has at most {LARGEST_REQUEST:,} bytes.")
    return typed(parse_json(body, "The request"), dict[str, Any], "The request")


def _answer(endpoint: str, content: dict[str, Any]) -> dict[str, Any]:
    table = statistics()
    if endpoint == "node":
        return answers.describe(table, _names(content, "nodes"), typed(content.get("property", ""), str, "property"))
    if endpoint == "resolve":
        expression, resolver = (typed(content.get(name), str | None, name) for name in ("property", "resolver"))
        return answers.resolve(table, _names(content, "nodes"), expression, resolver)
    if endpoint == "observation":
        entity = typed(content.get("entity"), dict[str, Any], "entity")
        entities = answers.entities_of(table, str(entity["expression"])) if "expression" in entity else _names(entity, "dcids")
        variables = _names(typed(content.get("variable"), dict[str, Any], "variable"), "dcids")
        return answers.observe(
            table, variables, entities, typed(content.get("date", ""), str, "date"), _names(content, "select")
        )
    raise answers.NotUnderstood(f"There is no {endpoint!r} here; there are node, resolve and observation.")


def _names(content: dict[str, Any], field: str) -> list[str]:
    value = content.get(field, [])
    return [value] if isinstance(value, str) else typed(value, list[str], field)


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"Port {port} of {host} cannot be had: {error}.\n  Give another --port; 0 takes a free one."
        ) from None


@contextmanager
def embedded_service(port: int = 0, key: str | None = None) -> Iterator[str]:
    """The address of the embedded service, which runs on this machine alone while the block does."""
    server, sockets = _server(key), [listen(HOST, port)]
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, daemon=True)
    statistics()  # reading the table takes a second, which is no answer's
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise ConfigError("The embedded service did not start.")
        time.sleep(0.005)
    try:
        yield f"http://{HOST}:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        sockets[0].close()


def serve(listening: socket.socket, key: str | None = None) -> None:
    """Answer until Ctrl-C. Footnotes link to this service."""
    _server(key, links=True).run(sockets=[listening])


def _server(key: str | None, links: bool = False) -> Any:
    import uvicorn

    config = uvicorn.Config(
        application(key, links), log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    return uvicorn.Server(config)
