"""What the app's own components show, read from the data that a page sent them."""

import json
from dataclasses import dataclass

from streamlit.testing.v1 import AppTest


@dataclass(frozen=True)
class Tile:
    name: str
    value: str
    note: str
    meaning: str


def component_data(at: AppTest) -> list[dict]:
    """The data of every component on the page, in order."""
    return [json.loads(c.proto.json) for c in at.get("bidi_component")]


def heading(at: AppTest) -> dict:
    """The heading of the latent page: its number, label, source, flags and place."""
    (told,) = (data for data in component_data(at) if data.get("part") == "head")
    return told


def links(at: AppTest) -> list[str]:
    """The addresses that the page offers to copy."""
    return [data["address"] for data in component_data(at) if "address" in data]


def edited(at: AppTest) -> AppTest:
    """After a press of "Edit label", which is a button of the heading."""
    at.session_state["editing"] = int(heading(at)["number"][1:])
    return at.run()


def tiles(at: AppTest) -> dict[str, Tile]:
    """Tiles by name."""
    return {tile[0]: Tile(*tile) for data in component_data(at) for tile in data.get("tiles", [])}


def values(at: AppTest) -> dict[str, str]:
    """Values of the tiles by name."""
    return {name: tile.value for name, tile in tiles(at).items()}


def small_tables(at: AppTest) -> list[dict[str, list[str]]]:
    """The small tables: the texts of each column by its name."""
    return [{c["name"]: c["texts"] for c in data["table"]} for data in component_data(at) if "table" in data]
