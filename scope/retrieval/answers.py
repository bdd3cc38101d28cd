"""Answers of the embedded service, for the two interfaces of Data Commons: questions in plain English, and version 2.

A question is answered only if every word of it is understood: "urban population of Chad" is not the population, and a year that
the table does not have is not rounded to one that it has.
"""

import csv
import io
import re
from typing import Any
from urllib.parse import quote

from scope.errors import ScopeError
from scope.retrieval.questions import ChangeQuestion, NumberQuestion, take_apart
from scope.retrieval.table import SOURCE, SOURCE_URL, VARIABLES, Place, Statistics, Variable, variable_of

FORMS = "what was METRIC of PLACE in YEAR?, what is METRIC in PLACE?, how has METRIC changed over time in PLACE?"


class NotUnderstood(ScopeError):
    """A request that the version 2 interface refuses with status 400."""


def answer_number(table: Statistics, question: str, root: str) -> dict[str, Any]:
    """The answer of /nodejs/query to a question about one number: a chart with a highlighted value."""
    parts = take_apart(question)
    if not isinstance(parts, NumberQuestion):
        return _failure(table, question, parts)
    place, variable = table.place(parts.place), variable_of(parts.metric)
    if place is None or variable is None:
        return _failure(table, question, parts)
    values = table.values.get((variable.dcid, place.dcid), {})
    year = int(parts.year) if parts.year else max(values, default=0)
    if year not in values:
        return _empty(variable, _no_value(table, variable, place, parts.year))
    highlight = {"value": variable.shown(values[year]), "date": str(year)}
    chart = {"type": "HIGHLIGHT", "title": f"{_capital(variable.name)} of {place.name}", "highlight": highlight}
    return {"charts": [chart | _origin(variable, question, root)], "debug": _debug(variable)}


def answer_table(table: Statistics, question: str, root: str) -> dict[str, Any]:
    """The answer of /nodejs/query to a question that a table answers: the table as CSV. Of a place of places, such as a
    continent, each country is a row."""
    parts = take_apart(question)
    if parts is None:
        return _failure(table, question, parts)
    name = re.sub(r"(?:'s)? countries$", "", parts.place)
    place, variable = table.place(name), variable_of(parts.metric)
    if place is None or variable is None:
        return _failure(table, question, parts)
    if place.places:
        years = sorted({y for p in place.places for y in table.values[variable.dcid, p.dcid]})
        if parts.year and int(parts.year) not in years:
            return _empty(variable, _no_value(table, variable, place.places[0], parts.year))
        shown = years if isinstance(parts, ChangeQuestion) else [int(parts.year) if parts.year else years[-1]]
        rows = [["country", *map(str, shown)]]
        rows += [[p.name, *(variable.shown(table.values[variable.dcid, p.dcid][y]) for y in shown)] for p in place.places]
        title = f"{_capital(variable.name)} of countries in {place.name}"
    else:
        values = table.values[variable.dcid, place.dcid]
        if parts.year and int(parts.year) not in values:
            return _empty(variable, _no_value(table, variable, place, parts.year))
        rows = [["year", variable.name]]
        rows += [[str(y), variable.shown(v)] for y, v in values.items() if not parts.year or int(parts.year) == y]
        title = f"{_capital(variable.name)} of {place.name}"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    chart = {"type": "LINE", "title": title, "data_csv": text.getvalue()}
    return {"charts": [chart | _origin(variable, question, root)], "debug": _debug(variable)}


def _origin(variable: Variable, question: str, root: str) -> dict[str, Any]:
    source = {"name": SOURCE, "url": SOURCE_URL}
    return {"unit": variable.unit, "srcs": [source], "dcUrl": f"{root}/explore?q={quote(question)}" if root else SOURCE_URL}


def _debug(variable: Variable) -> dict[str, Any]:
    return {"debug": {"sv_matching": {"SV": [variable.dcid], "CosineScore": [1.0]}}}


def _empty(variable: Variable | None, failure: str) -> dict[str, Any]:
    return {"charts": [], "failure": failure, "debug": _debug(variable) if variable else {"debug": {}}}


def _failure(table: Statistics, question: str, parts: NumberQuestion | ChangeQuestion | None) -> dict[str, Any]:
    """Why a question has no answer: its form, its place (then, as in Data Commons, there is no debug), or its statistic."""
    if parts is None:
        return _empty(None, f"The embedded table cannot take {question[:100]!r} apart. It understands: {FORMS}")
    if table.place(re.sub(r"(?:'s)? countries$", "", parts.place)) is None:
        near = _nearest(parts.place, [p.name for p in table.places])
        return {"charts": [], "failure": f"The embedded table knows no place {parts.place!r}.{near}"}
    known = ", ".join(v.name for v in VARIABLES)
    return _empty(None, f"The embedded table has no statistic {parts.metric!r}; it has {known}.")


def _no_value(table: Statistics, variable: Variable, place: Place, year: str | None) -> str:
    years = table.values.get((variable.dcid, place.dcid), {})
    if not years:
        return f"The embedded table has {variable.name} of countries, not of {place.name}."
    span = f"{min(years)} to {max(years)}, every fifth year"
    return f"The embedded table has no {variable.name} of {place.name} in {year}; it has {span}."


def _nearest(name: str, names: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f" Nearest: {', '.join(close)}." if close else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# ------------------------------------------------------------------------------------------------- version 2 of the interface


def resolve(table: Statistics, nodes: list[str], expression: str | None, resolver: str | None) -> dict[str, Any]:
    """/resolve: identifiers of places by description, or of statistics (resolver "indicator").

    Raises:
        NotUnderstood: another way of looking up.
    """
    if resolver == "indicator":
        found = {name: [v.dcid] if (v := variable_of(name)) else [] for name in nodes}
        kind = "StatisticalVariable"
    else:
        match = re.fullmatch(r"<-description(?:\{typeOf:(\w+)\})?->dcid", expression or "")
        if match is None:
            raise NotUnderstood(f"The embedded table resolves by '<-description->dcid' only, not by {expression!r}.")
        places = {name: table.place(name) for name in nodes}
        found = {n: [p.dcid] if p and match[1] in (None, p.kind) else [] for n, p in places.items()}
        kind = ""
    entities = [
        {"node": n, "candidates": [{"dcid": d} | ({"typeOf": [kind]} if kind else {}) for d in ids]} for n, ids in found.items()
    ]
    return {"entities": entities}


def observe(table: Statistics, variables: list[str], entities: list[str], date: str, select: list[str]) -> dict[str, Any]:
    """/observation: values by statistic and place. The date is a year, "LATEST", or "" for all."""
    by_variable: dict[str, Any] = {}
    facets = {}
    for dcid in variables:
        by_entity: dict[str, Any] = {}
        for entity in entities:
            values = table.values.get((dcid, entity), {})
            years = [y for y in values if date == "" or str(y) == date or (date == "LATEST" and y == max(values))]
            if not years:
                by_entity[entity] = {}
                continue
            variable = next(v for v in VARIABLES if v.dcid == dcid)
            facet_id = f"gapminder-{variable.column}"  # a facet has one unit
            facet = {
                "facetId": facet_id,
                "earliestDate": str(min(years)),
                "latestDate": str(max(years)),
                "obsCount": len(years),
            }
            if "value" in select or "date" in select:
                facet["observations"] = [{"date": str(y), "value": values[y]} for y in years]
            by_entity[entity] = {"orderedFacets": [facet]}
            unit = {"unit": variable.unit} if variable.unit else {}
            facets[facet_id] = {"importName": SOURCE, "provenanceUrl": SOURCE_URL, "observationPeriod": "P5Y"} | unit
        by_variable[dcid] = {"byEntity": by_entity}
    return {"byVariable": by_variable, "facets": facets}


def entities_of(table: Statistics, expression: str) -> list[str]:
    """The places that an expression such as `africa<-containedInPlace+{typeOf:Country}` means.

    Raises:
        NotUnderstood: another expression, or a place that there is not.
    """
    match = re.fullmatch(r"([\w/]+)<-containedInPlace\+?\{typeOf:(\w+)\}", expression)
    place = table.place_by_dcid(match[1]) if match else None
    if match is None or place is None:
        raise NotUnderstood(f"The embedded table understands PLACE<-containedInPlace+{{typeOf:Country}}, not {expression!r}.")
    return [p.dcid for p in place.places if p.kind == match[2]]


def describe(table: Statistics, nodes: list[str], expression: str) -> dict[str, Any]:
    """/node: names, types and neighbours of places and statistics; "->" and "<-" list the properties that there are.

    Raises:
        NotUnderstood: another property.
    """
    return {"data": {node: _described(table, node, expression) for node in nodes}}


def _described(table: Statistics, node: str, expression: str) -> dict[str, Any]:
    place, variable = table.place_by_dcid(node), next((v for v in VARIABLES if v.dcid == node), None)
    if place is None and variable is None:
        return {}
    if expression in ("->", "<-"):
        return {
            "properties": ["name", "typeOf", *(["containedInPlace"] if place else [])]
            if expression == "->"
            else ["containedInPlace"]
        }
    arcs: dict[str, Any] = {}
    for name in re.sub(r"^->\[?|\]$", "", expression).split(",") if expression.startswith("->") else ():
        name = name.strip()
        if name in ("name", "nameWithLanguage"):
            text = place.name if place else _capital(variable.name)  # type: ignore[union-attr]
            arcs[name] = {"nodes": [{"value": text if name == "name" else f"{text}@en"}]}
        elif name == "typeOf":
            kind = place.kind if place else "StatisticalVariable"
            arcs[name] = {"nodes": [{"dcid": kind, "name": kind}]}
        elif place and re.fullmatch(r"containedInPlace\+?(?:\{typeOf:\w+\})?", name):
            arcs[name.partition("{")[0]] = {"nodes": [_node(p) for p in table.places if place in p.places]}
        else:
            raise NotUnderstood(f"The embedded table knows name, typeOf and containedInPlace, not {name!r}.")
    if match := re.fullmatch(r"<-(containedInPlace\+?)(?:\{typeOf:(\w+)\})?", expression):
        inside = [p for p in (place.places if place else ()) if match[2] in (None, p.kind)]
        arcs[match[1]] = {"nodes": [_node(p) for p in inside]}
    elif expression.startswith("<-"):
        raise NotUnderstood(f"The embedded table knows <-containedInPlace, not {expression!r}.")
    return {"arcs": arcs}


def _node(place: Place) -> dict[str, Any]:
    return {"dcid": place.dcid, "name": place.name, "types": [place.kind]}
