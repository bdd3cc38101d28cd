"""Asks Data Commons for a number or a table: one client for the public service and for the embedded one.

Two ways lead to a number. `QueryService` sends a question in plain English to the endpoint that DataGemma was trained with.
`ClientService` takes the question apart and uses `datacommons-client`, the public library for the version 2 API. Both give a
`Statistic` as the service gave it, or raise an error that says what went wrong.
"""

import csv
import io
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import urlsplit

from scope.errors import ConfigError, ScopeError
from scope.retrieval.questions import NumberQuestion, take_apart
from scope.typed_json import parse_json, typed

T = TypeVar("T")

PUBLIC_QUERIES = "https://nl.datacommons.org"
PUBLIC_API = "https://api.datacommons.org/v2"
LARGEST_ANSWER = 16 * 2**20


class RetrievalError(ScopeError):
    """A question brought no number."""


class ServiceDown(RetrievalError):
    """Nobody answers at the address."""


class ServiceTimeout(RetrievalError):
    """The service did not answer in time."""


class ServiceFailed(RetrievalError):
    """The service answered with an error, or with something else than it should."""


class KeyRefused(RetrievalError):
    """The service wants a key, or another one."""


class NothingFound(RetrievalError):
    """The service answers and has no number for the question."""


class UnknownPlace(NothingFound):
    """The service knows no place that the question names."""


@dataclass(frozen=True)
class Statistic:
    """One number as a service gave it. `date` is that of the number, which need not be the one asked for."""

    question: str
    value: str
    unit: str
    title: str
    date: str
    source: str
    url: str = ""
    variable: str = ""

    @property
    def text(self) -> str:
        return f"{self.value} {self.unit}".rstrip()


@dataclass(frozen=True)
class StatisticTable:
    """A table as a service gave it: the first row holds the names of the columns."""

    question: str
    title: str
    rows: tuple[tuple[str, ...], ...]
    unit: str
    source: str
    url: str = ""

    @property
    def heading(self) -> str:
        return f"{self.title}{f' (unit: {self.unit})' if self.unit else ''}, according to {self.source}"

    def __str__(self) -> str:
        names, *rows = (" | ".join(row) for row in self.rows)
        return "\n".join([names, "-" * len(names), *rows])


@runtime_checkable
class StatisticsService(Protocol):
    """Answers questions in plain English with numbers and tables.

    Both methods raise a RetrievalError where there is no answer, and never invent one.
    """

    name: str

    def number(self, question: str) -> Statistic: ...
    def table(self, question: str) -> StatisticTable: ...


# ------------------------------------------------------------------------------ what the endpoint for questions answers with


@dataclass(frozen=True)
class _Highlight:
    value: float | int | str = ""
    date: str = ""


@dataclass(frozen=True)
class _Source:
    name: str = ""
    url: str = ""


@dataclass(frozen=True)
class _Chart:
    type: str = ""
    title: str = ""
    unit: str | None = ""
    highlight: _Highlight | None = None
    srcs: tuple[_Source, ...] | None = ()
    data_csv: str | None = ""
    dcUrl: str | None = ""

    @property
    def source(self) -> str:
        return self.srcs[0].name if self.srcs else ""


@dataclass(frozen=True)
class _QueryAnswer:
    """`err` stands alone; without a place there is no `debug`. `failure` is said by the embedded service only."""

    charts: tuple[_Chart, ...] = ()
    err: str = ""
    failure: str = ""
    debug: dict[str, Any] | None = None


class QueryService:
    """The endpoint that DataGemma's own library asks: /nodejs/query, a question in plain English.

    Source: datacommonsorg/llm-tools, data_gemma/datacommons.py; datacommonsorg/website, static/nodejs_server/query.ts.
    """

    def __init__(self, url: str = PUBLIC_QUERIES, key: str | None = None, timeout: float = 20.0):
        self.url, self.key, self.timeout, self.name = _address(url), key, timeout, url

    def number(self, question: str) -> Statistic:
        """The highlighted number of the first line chart or highlight."""
        charts = self._charts(question, {"allCharts": "1", "mode": "toolformer_rig", "idx": "base_uae_mem"})
        chart = next((c for c in charts if c.type in ("LINE", "HIGHLIGHT")), None)
        value = _rounded(chart.highlight.value) if chart is not None and chart.highlight is not None else ""
        if chart is None or chart.highlight is None or not value:
            raise NothingFound(_nothing(self.name, question))
        if not _is_number(value):
            raise ServiceFailed(f"{self.name} answered {value[:80]!r} to {question!r}, which is no number.")
        highlight = chart.highlight
        return Statistic(question, value, chart.unit or "", chart.title, highlight.date, chart.source, chart.dcUrl or "")

    def table(self, question: str) -> StatisticTable:
        """The table behind the first chart."""
        charts = self._charts(question, {"mode": "toolformer_rag", "client": "table", "idx": "base_uae_mem"})
        rows = [row for row in csv.reader(io.StringIO(charts[0].data_csv or "")) if row] if charts else []
        if len(rows) < 2:
            raise NothingFound(_nothing(self.name, question))
        cells = (tuple(rows[0]), *(tuple(_rounded(cell) for cell in row) for row in rows[1:]))
        return StatisticTable(question, charts[0].title, cells, charts[0].unit or "", charts[0].source, charts[0].dcUrl or "")

    def _charts(self, question: str, params: dict[str, str]) -> tuple[_Chart, ...]:
        params = {"q": question.strip(), **params} | ({"key": self.key} if self.key else {})
        answer = typed(self._get("/nodejs/query", params), _QueryAnswer, f"The answer of {self.name}", ServiceFailed)
        if answer.err:
            raise ServiceFailed(f"{self.name} could not answer {question!r}: {answer.err}")
        if not answer.charts:
            kind = NothingFound if answer.debug is not None else UnknownPlace
            default = (
                _nothing(self.name, question) if answer.debug is not None else f"{self.name} knows no place in {question!r}."
            )
            raise kind(answer.failure or default)
        return answer.charts

    def _get(self, path: str, params: dict[str, str]) -> Any:
        import requests

        def get() -> bytes:
            with requests.get(self.url + path, params=params, timeout=self.timeout, stream=True) as response:
                if response.status_code in (401, 403):
                    raise KeyRefused(_key_refused(self.name, self.key))
                if response.status_code != 200:
                    raise ServiceFailed(f"{self.name} answered with status {response.status_code} ({response.reason}).")
                body = response.raw.read(LARGEST_ANSWER + 1, decode_content=True)
            if len(body) > LARGEST_ANSWER:
                raise ServiceFailed(f"The answer of {self.name} is larger than {LARGEST_ANSWER:,} bytes.")
            return body

        return parse_json(_reached(get, self.name, self.timeout), f"The answer of {self.name}", ServiceFailed)


class ClientService:
    """The version 2 API through the public library `datacommons-client`: place and statistic are looked up by name, then the
    observation is fetched."""

    def __init__(self, url: str | None = None, key: str | None = None, timeout: float = 20.0):
        """Without a url, the public API, which needs a key; else the root of an API, such as http://localhost:8080/core/api/v2.

        Raises:
            ConfigError: the library is not installed, or the public API is meant and there is no key.
        """
        if url is None and not key:
            raise ConfigError(
                "The public Data Commons API needs a key, and none is set.\n  Get one at https://apikeys.datacommons.org and "
                "give --key KEY, or set DC_API_KEY; or leave --service away for the embedded table."
            )
        try:
            from datacommons_client.client import DataCommonsClient
        except ImportError:
            raise ConfigError(
                "The library datacommons-client is not installed.\n"
                "  pip install datacommons-client, or ask without --through client."
            ) from None
        self.key, self.timeout, self.name = key, timeout, url or PUBLIC_API
        kwargs = {"api_key": key} if url is None else {"api_key": key, "url": _address(url)}
        self.client = self._request(lambda: DataCommonsClient(**kwargs))

    def number(self, question: str) -> Statistic:
        parts = take_apart(question)
        if not isinstance(parts, NumberQuestion):
            raise NothingFound(
                f"{question!r} is no question about one number of one place.\n  Ask: what was METRIC of PLACE in YEAR?"
            )
        place, variable = self._place(parts.place, question), self._variable(parts.metric, question)
        values, facet = self._observations(variable, place, parts.year or "LATEST", question)
        date, value = values[-1]
        title = f"{parts.metric} of {parts.place}"
        source, url = facet.importName or "", facet.provenanceUrl or ""
        return Statistic(question, _rounded(value), facet.unit or "", title, date, source, url, variable)

    def table(self, question: str) -> StatisticTable:
        parts = take_apart(question)
        if parts is None:
            raise NothingFound(f"{question!r} has not one of the forms that a table answers.")
        place, variable = self._place(parts.place, question), self._variable(parts.metric, question)
        values, facet = self._observations(variable, place, parts.year or "", question)
        rows = (("date", parts.metric), *((date, _rounded(value)) for date, value in values))
        return StatisticTable(question, f"{parts.metric} of {parts.place}", rows, facet.unit or "", facet.importName or "")

    def _place(self, name: str, question: str) -> str:
        answer = self._request(lambda: self.client.resolve.fetch_dcids_by_name(name))
        candidates = [c.dcid for entity in answer.entities for c in entity.candidates]
        if not candidates:
            raise UnknownPlace(f"{self.name} knows no place named {name!r} (asked: {question!r}).")
        return candidates[0]

    def _variable(self, metric: str, question: str) -> str:
        answer = self._request(lambda: self.client.resolve.fetch_indicators(metric))
        candidates = [c for entity in answer.entities for c in entity.candidates]
        if not candidates:
            raise NothingFound(f"{self.name} knows no statistic named {metric!r} (asked: {question!r}).")
        return candidates[0].dcid

    def _observations(self, variable: str, place: str, date: str, question: str) -> tuple[list[tuple[str, float]], Any]:
        answer = self._request(
            lambda: self.client.observation.fetch_observations_by_entity_dcid(
                date=date, entity_dcids=place, variable_dcids=variable
            )
        )
        facets = answer.get_data_by_entity().get(variable, {}).get(place)
        first = facets.orderedFacets[0] if facets is not None and facets.orderedFacets else None
        values = [(o.date or "", o.value) for o in first.observations if o.value is not None] if first is not None else []
        if not values:
            raise NothingFound(_nothing(self.name, question))
        return sorted(values), answer.facets[first.facetId]

    def _request(self, ask: Callable[[], T]) -> T:
        """What the library brings; each kind of failure, which it wraps into its own errors, has its type again."""
        import requests
        from datacommons_client.utils.error_handling import DataCommonsError

        try:
            return _reached(lambda: _in_time(ask, self.timeout), self.name, self.timeout)
        except DataCommonsError as error:
            cause = error.__cause__
            response = cause.response if isinstance(cause, requests.exceptions.HTTPError) else None
            if response is not None and response.status_code in (401, 403):
                raise KeyRefused(_key_refused(self.name, self.key)) from None
            if response is not None:
                raise ServiceFailed(f"{self.name} answered with status {response.status_code} ({response.reason}).") from None
            if isinstance(cause, requests.exceptions.RequestException):
                _reached(_raising(cause), self.name, self.timeout)
            raise ServiceFailed(f"{self.name} cannot be used: {' '.join(str(error).split())[:300]}") from None
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ServiceFailed(f"The answer of {self.name} is damaged: {str(error).splitlines()[0]}") from None


def _in_time(ask: Callable[[], T], timeout: float) -> T:
    """What a function that may wait for ever brings in time.

    Raises:
        TimeoutError: it is still at it; its thread is left behind.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(ask())
        except BaseException as error:  # handed to the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def _reached(ask: Callable[[], T], name: str, timeout: float) -> T:
    import requests
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    try:
        return ask()
    except (requests.exceptions.Timeout, ReadTimeoutError, TimeoutError):
        raise ServiceTimeout(
            f"{name} did not answer within {timeout:g} seconds.\n  Try again, or give it longer: --timeout {2 * timeout:g}"
        ) from None
    except requests.exceptions.ConnectionError as error:
        raise ServiceDown(_down(name, error)) from None
    except (requests.exceptions.RequestException, HTTPError) as error:
        raise ServiceFailed(f"{name} could not be asked: {str(error).splitlines()[0]}") from None


def _raising(error: BaseException) -> Callable[[], Any]:
    def ask() -> Any:
        raise error

    return ask


def _down(name: str, error: Exception) -> str:
    return (
        f"{name} cannot be reached ({type(error).__name__}).\n"
        "  Check the address and the network, or leave --service away for the embedded table."
    )


def _key_refused(name: str, key: str | None) -> str:
    problem = "refused the key" if key else "needs a key, and none was given"
    return f"{name} {problem}.\n  Get one at https://apikeys.datacommons.org and give --key KEY, or set DC_API_KEY."


def _nothing(name: str, question: str) -> str:
    return f"{name} has no number for {question!r}."


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"The service is {url!r}; give an address such as http://localhost:8080, or {PUBLIC_QUERIES}.")
    return url.rstrip("/")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _rounded(value: Any) -> str:
    """Whole numbers as they are, others to four decimals, nothing for what is not finite; other text stays as it is."""
    text = str(value).strip()
    try:
        return str(int(text))
    except ValueError:
        try:
            number = round(float(text), 4)
        except (ValueError, OverflowError):
            return text
        if not math.isfinite(number):
            return ""
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else str(number)
