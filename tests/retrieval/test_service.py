"""The two clients of Data Commons against the embedded service, and against services that fail."""

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from scope.errors import ConfigError
from scope.retrieval.server import API, embedded_service, listen
from scope.retrieval.service import (
    ClientService,
    KeyRefused,
    NothingFound,
    QueryService,
    ServiceDown,
    ServiceFailed,
    ServiceTimeout,
    UnknownPlace,
)

CHAD = "what was the population of Chad in 1952?"


@pytest.fixture(scope="module")
def url():
    with embedded_service() as url:
        yield url


@pytest.fixture(scope="module", params=["query", "client"])
def service(request, url):
    return QueryService(url) if request.param == "query" else ClientService(url + API)


@contextmanager
def answering(status: int, body: bytes, wait: threading.Event | None = None):
    """The address of a service that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if wait is not None:
                wait.wait(10)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(BrokenPipeError):  # who asked has gone
                self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            if wait is not None:
                wait.set()
            server.shutdown()
            thread.join()


def test_both_clients_bring_the_number_of_the_table_with_its_date_and_source(service):
    number = service.number(CHAD)
    assert (number.value, number.date, number.source) == ("2682462", "1952", "Gapminder")
    assert service.number("In 2007, how large was the GDP per capita of the USA?").value.startswith("42951.6")
    assert service.number("Tell me the life expectancy of Korea, Dem. Rep. in 2007.").text in ("67.3 years", "67.297 years")


def test_the_two_koreas_have_their_own_numbers(service):
    north, south = (service.number(f"what was the population of {c} in 2007?").value for c in ("North Korea", "South Korea"))
    assert (north, south) == ("23301725", "49044790")


def test_without_a_year_the_latest_is_given(service):
    assert service.number("What is population in Chad?").date == "2007"


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ("what was the population of Atlantis in 1952?", UnknownPlace),
        ("what was the urban population of Chad in 1952?", NothingFound),
        ("what was the population growth of Chad in 1952?", NothingFound),
        ("what was the population of Chad in 1953?", NothingFound),
        ("what was the population of Chad and Peru in 1952?", NothingFound),
        ("what is the population of Africa?", NothingFound),
        ("who is it?", NothingFound),
        ("", NothingFound),
    ],
)
def test_what_the_table_does_not_know_is_no_number(service, question, error):
    with pytest.raises(error):
        service.number(question)


def test_tables_show_a_change_over_time_and_the_countries_of_a_continent(url, service):
    change = service.table("How has life expectancy changed over time in Chad?")
    assert (len(change.rows), change.rows[1][0], change.rows[-1][0]) == (13, "1952", "2007")
    oceania = QueryService(url).table("What is population in Oceania countries?")
    assert oceania.rows == (("country", "2007"), ("Australia", "20434176"), ("New Zealand", "4115771"))


def test_the_public_client_has_its_frames_and_names_from_the_embedded_service(url):
    client = ClientService(url + API).client
    frame = client.observations_dataframe(
        variable_dcids=["Count_Person", "LifeExpectancy_Person"], date="latest", entity_type="Country", parent_entity="oceania"
    )
    assert set(frame.entity_name) == {"Australia", "New Zealand"}
    assert list(frame[frame.variable == "Count_Person"].value) == [20434176, 4115771]
    assert frame[frame.variable == "Count_Person"].unit.isna().all()  # people have no unit, years of life have
    assert set(frame[frame.variable == "LifeExpectancy_Person"].unit) == {"years"}
    assert client.node.fetch_place_parents("country/TCD")["country/TCD"][0]["name"] == "Africa"


def test_a_service_that_is_down_is_said_to_be_down():
    listening = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()
    with pytest.raises(ServiceDown, match="cannot be reached"):
        QueryService(url).number(CHAD)
    with pytest.raises(ServiceDown, match="cannot be reached"):
        ClientService(url + API)


def test_a_service_that_does_not_answer_in_time_is_not_waited_for():
    timely = pytest.raises(ServiceTimeout, match=r"within 0.2 seconds.\n.*--timeout 0.4")
    with answering(200, b"{}", threading.Event()) as url, timely:
        QueryService(url, timeout=0.2).number(CHAD)
    with answering(200, b"{}", threading.Event()) as url, pytest.raises(ServiceTimeout):
        ClientService(url, timeout=0.2)


def test_a_key_that_is_missing_or_wrong_is_named():
    with embedded_service(key="k") as url:
        for make in (lambda key: QueryService(url, key).number(CHAD), lambda key: ClientService(url + API, key).number(CHAD)):
            assert make("k").value == "2682462"
            with pytest.raises(KeyRefused, match="none was given"):
                make(None)
            with pytest.raises(KeyRefused, match="refused the key"):
                make("z")
    with pytest.raises(ConfigError, match="needs a key"):
        ClientService()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, b"", ServiceFailed),
        (200, b"<html>", ServiceFailed),
        (200, b"[1]", ServiceFailed),
        (200, b"[" * 50_000, ServiceFailed),
        (200, b'{"err": "Error fetching data."}', ServiceFailed),
        (200, b'{"charts": "many"}', ServiceFailed),
        (200, b'{"charts": [{"type": "LINE", "highlight": {"value": "high"}}]}', ServiceFailed),
        (200, b'{"charts": [{"type": "LINE", "highlight": {"value": ""}}], "debug": {}}', NothingFound),
        (200, b'{"charts": [{"type": "BAR", "highlight": {"value": 5}}], "debug": {}}', NothingFound),
        (200, b'{"charts": [{"type": "LINE"}], "debug": {}}', NothingFound),
        (200, b'{"charts": [], "debug": {}}', NothingFound),
        (200, b'{"charts": []}', UnknownPlace),
    ],
)
def test_an_answer_that_holds_no_number_is_refused(status, body, error):
    with answering(status, body) as url, pytest.raises(error) as refused:
        QueryService(url).number(CHAD)
    assert type(refused.value) is error


def test_an_answer_of_the_public_service_is_read():
    chart = {"type": "LINE", "title": "Population", "unit": "", "highlight": {"value": 39.12345678, "date": "2020"}}
    answer = {"charts": [{"type": "MAP"}, chart | {"srcs": [{"name": "census.gov", "url": "u"}], "dcUrl": "d"}], "debug": {}}
    with answering(200, json.dumps(answer).encode()) as url:
        number = QueryService(url).number("population of California")
    assert (number.value, number.source, number.url) == ("39.1235", "census.gov", "d")


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="such as http"):
        QueryService("localhost:80")
