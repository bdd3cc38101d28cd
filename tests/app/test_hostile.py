"""Hostile text in everything that draws: pages as Streamlit is told to draw them, cards, exports, CSV. Nothing is obeyed."""

import csv
import io
import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest
from scope.app.kit.plain import plain
from scope.app.serve.downloads import export_bytes

from scope.escape import csv_cell, escape, visible_token
from scope.features.exports import tables
from scope.features.exports.strip import strip_html
from tests.app.conftest import MAIN
from tests.help.components import links
from tests.help.hostile import HOSTILE, MARKS, make_hostile_pack

FRAME = MAIN.parent / "frame" / "frame.css"
SAFE_TAGS = {"html", "head", "meta", "title", "body", "h1", "p", "section", "div", "span", "b", "bdi"}
LITERAL = {"code", "text", "dataframe", "arrow_data_frame", "bidi_component", "text_area", "text_input", "plotly_chart", "json"}
"""Elements whose contents Streamlit shows letter by letter, or that are held against text of their own below."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_hostile_pack(tmp_path_factory.mktemp("hostile") / "<img src=x onerror=alert(1)> hostile.pack")


class Reader(HTMLParser):
    """What a browser would make of HTML: its tags and their attributes."""

    def __init__(self, source: str):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def check(source: str) -> Reader:
    read = Reader(source)
    assert read.tags <= SAFE_TAGS
    assert not [a for a in read.attributes if a[1].startswith("on") or a[1] in ("href", "src", "srcset", "action")]
    assert not [value for _, name, value in read.attributes if name == "style" and ("url(" in value or "expression" in value)]
    return read


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_only_text_in_html_markdown_and_csv(text):
    strip = check(strip_html([text], [1.0], 1.0, 0))
    printable = visible_token(text).encode("utf-8", "replace").decode()
    assert "".join(strip.text) == printable
    marked = plain(text)
    assert not obeyed(marked)
    assert "evil.example" not in marked.replace("\\", "") or "\u2060" in marked or "://" not in text
    cell = csv_cell(text)
    assert cell[:1] not in ("=", "@", "\t") or cell[:1] == "'"


@pytest.mark.parametrize("page", ["overview", "features", "feature", "prompt", "steer", "health"])
def test_no_page_hands_on_a_mark_that_would_be_obeyed(open_app, store, page):
    for f in (7, 0, 15) if page == "feature" else (7,):
        at = open_app(page, packs=[store.folder], f=f)
        assert not at.exception
        shown = [(node.type, str(node.proto)) for node in leaves(at) if node.type not in LITERAL]
        assert len(shown) > 3
        for kind, proto in shown:
            if "options" in proto and kind in ("selectbox", "multiselect"):
                continue  # shown letter by letter: the browser's tests look at these
            found = obeyed(proto.encode().decode("unicode_escape", "replace"))
            assert not found, (kind, found, proto[:400])


def obeyed(markdown: str) -> list[str]:
    """Marks that stand in Markdown without the stroke that makes them text."""
    return [mark for mark in MARKS if re.search(r"(?<!\\)" + re.escape(mark), markdown)]


def frame(node) -> bool:
    """The app's own stylesheet, word for word, which holds nothing of a pack's."""
    return node.type == "html" and node.proto.body == f"<style>{FRAME.read_text(encoding='utf-8')}</style>"


def leaves(at):
    def walk(node):
        for child in getattr(node, "children", {}).values():
            yield from walk(child)
        if getattr(node, "proto", None) is not None and not getattr(node, "children", None) and not frame(node):
            yield node

    return list(walk(at._tree))


def test_no_page_uses_raw_html(open_app, store):
    at = open_app("feature", packs=[store.folder], f=7)
    assert [node.type for node in at.get("html") if frame(node)] == ["html"]
    assert not [node for node in leaves(at) if node.type == "html" or getattr(node.proto, "allow_html", False)]


def test_the_card_of_every_latent_is_text(store):
    for feature in store:
        read = check(feature._repr_html_())
        assert unescape(escape(feature.label)).encode("utf-8", "replace").decode()[:20] in "".join(read.text)


def test_an_exported_page_is_text_and_its_policy_forbids_the_rest(store):
    page = export_bytes(store, "html", range(store.d_sae)).decode()
    read = check(page)
    policies = [v for tag, name, v in read.attributes if tag == "meta" and name == "content" and "default-src" in v]
    (policy,) = policies
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed.pop("default-src") == "'none'"
    assert set(allowed) <= {"img-src", "style-src"}
    assert {source for sources in allowed.values() for source in sources.split()} <= {"data:", "blob:", "'unsafe-inline'"}


def test_exported_tables_hold_no_formula_and_lose_no_row(store):
    rows = list(csv.reader(io.StringIO(export_bytes(store, "csv", range(store.d_sae)).decode(), newline="")))
    assert len(rows) == store.d_sae + 1
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "@", "\t") or (cell[:1] in "+-" and not number(cell))]
    shown = store.table[["label", "density"]].head(5)
    assert b"\n=" not in tables.csv(shown)
    assert len(json.loads(export_bytes(store, "json", [7]))["latents"]) == 1


def number(cell: str) -> bool:
    try:
        return cell == "" or float(cell) is not None
    except ValueError:
        return False


def test_a_pack_is_named_by_a_slug_and_its_path_stands_in_no_address(open_app, store):
    at = open_app("feature", packs=[store.folder], f=7)
    (link,) = links(at)
    assert "img-src-x-onerror-alert-1-hostile" in link
    assert "<" not in link
    assert "%3C" not in link
