"""The statistics that the embedded service knows: population, life expectancy and GDP per person of 142 countries, every five
years from 1952 to 2007, as plotly ships them (`plotly.data.gapminder()`, from gapminder.org).

Identifiers are those of Data Commons, so that its clients can ask for them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

SOURCE, SOURCE_URL = "Gapminder", "https://www.gapminder.org/data/"


@dataclass(frozen=True)
class Variable:
    """A statistic: its identifier, its name, the table's column, its unit and other names for it."""

    dcid: str
    name: str
    column: str
    unit: str
    also: tuple[str, ...]

    def shown(self, value: float) -> str:
        """A value as the service gives it: whole persons, hundredths of years and of dollars."""
        return str(round(value)) if self.column == "pop" else f"{value:.2f}"


VARIABLES = (
    Variable("Count_Person", "population", "pop", "", ("number of people", "number of inhabitants", "total population")),
    Variable(
        "LifeExpectancy_Person", "life expectancy", "lifeExp", "years", ("average life expectancy", "life expectancy at birth")
    ),
    Variable(
        "worldBank/NY_GDP_PCAP_PP_KD",
        "GDP per person",
        "gdpPercap",
        "dollars",
        ("GDP per capita", "GDP per head", "gross domestic product per person", "gross domestic product per capita"),
    ),
)

_ALSO = {
    "United States": ("USA", "US", "United States of America", "America"),
    "United Kingdom": ("UK", "Great Britain"),
    "Korea, Rep.": ("South Korea", "Republic of Korea", "Korea Rep"),
    "Korea, Dem. Rep.": ("North Korea", "Korea Dem Rep"),
    "Congo, Rep.": ("Republic of the Congo", "Congo Rep"),
    "Congo, Dem. Rep.": ("DR Congo", "Democratic Republic of the Congo", "Congo Dem Rep", "DRC"),
    "Yemen, Rep.": ("Yemen", "Yemen Rep"),
    "Hong Kong, China": ("Hong Kong",),
    "Cote d'Ivoire": ("Ivory Coast", "Côte d'Ivoire"),
    "Czech Republic": ("Czechia",),
    "Swaziland": ("Eswatini",),
    "Myanmar": ("Burma",),
}
_CODES = {"Korea, Dem. Rep.": "PRK"}  # plotly's table gives both Koreas the code of the southern one


@dataclass(frozen=True)
class Place:
    """A country, a continent or the world. `places` are the countries in it."""

    dcid: str
    name: str
    kind: str
    also: tuple[str, ...] = ()
    places: tuple["Place", ...] = ()


@dataclass(frozen=True)
class Statistics:
    """Values by (variable, place, year), and who is known by which name."""

    places: tuple[Place, ...]
    values: Mapping[tuple[str, str], Mapping[int, float]]
    """(dcid of a variable, dcid of a place) -> value by year."""

    def place(self, name: str) -> Place | None:
        """The place of that name or identifier; letters' case, a leading "the" and a last dot do not matter."""
        return self._names.get(_plain(name))

    def place_by_dcid(self, dcid: str) -> Place | None:
        return next((p for p in self.places if p.dcid == dcid), None)

    @property
    def _names(self) -> dict[str, Place]:
        return _names_of(self.places)


@cache
def _names_of(places: tuple[Place, ...]) -> dict[str, Place]:
    return {_plain(name): place for place in places for name in (place.name, place.dcid, *place.also)}


def _plain(name: str) -> str:
    return re.sub(r"\s+", " ", name.strip(" .").lower()).removeprefix("the ")


@cache
def statistics() -> Statistics:
    """The table on this machine."""
    import plotly.data

    frame = plotly.data.gapminder(return_type="pandas")
    countries: dict[str, Place] = {}
    members: dict[str, list[Place]] = {}
    values: dict[tuple[str, str], dict[int, float]] = {}
    for row in frame.itertuples():
        if row.country not in countries:
            code = _CODES.get(row.country, row.iso_alpha)
            countries[row.country] = Place(f"country/{code}", row.country, "Country", _ALSO.get(row.country, ()))
            members.setdefault(row.continent, []).append(countries[row.country])
        for variable in VARIABLES:
            key = (variable.dcid, countries[row.country].dcid)
            values.setdefault(key, {})[int(row.year)] = float(getattr(row, variable.column))
    continents = [Place(name.lower(), name, "Continent", (), tuple(inside)) for name, inside in sorted(members.items())]
    world = Place("Earth", "World", "Place", ("Earth",), tuple(countries.values()))
    return Statistics((*countries.values(), *continents, world), values)


def variable_of(name: str) -> Variable | None:
    """The statistic of that name or identifier."""
    return next((v for v in VARIABLES if name.strip().lower() in (n.lower() for n in (v.dcid, v.name, *v.also))), None)
