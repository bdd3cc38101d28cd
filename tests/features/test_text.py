"""P50: token text, labels and file names are shown, never obeyed."""

import html
import re

import pytest

from scope.escape import escape, visible_token
from scope.features.exports.strip import strength, strip_html, strip_text
from scope.features.exports.tables import csv_cell
from scope.models.text.characters import characters
from tests.features.toy_pack import HOSTILE


@pytest.mark.parametrize("token", [*HOSTILE, "\ud800"])
def test_p50_hostile_text_adds_no_markup(token):
    found = strip_html([token], [1.0], 1.0, 0)
    assert re.findall(r"<(/?\w+)", found) == ["span", "/span"]
    attributes = re.fullmatch(r"<span ([^<>]*)>([^<>]*)</span>", found)
    assert attributes
    assert re.fullmatch(r'style="[^"]*" title="[^"]*" aria-label="[^"]*"', attributes[1])
    body = html.unescape(attributes[2])
    assert body == "".join(visible_token(text) for _, _, text in characters([token])).replace("\ud800", "?")


@pytest.mark.parametrize("token", HOSTILE)
def test_p50_nothing_that_acts_unseen_remains_in_what_is_shown(token):
    assert not set(visible_token(token)) & set(
        "\n\t\r\x00\x07\x1b\u200b\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
    )


@pytest.mark.parametrize(
    ("token", "glyphs"),
    [
        ("\n\n", "↵↵"),
        ("\t", "⇥"),
        ("  ", "␣␣"),
        (" dog", " dog"),
        ("<0xE2>", "⟨E2⟩"),
        ("\u202e", "⟪RLO⟫"),
        ("\u200d", "⟪ZWJ⟫"),
        ("\x1b", "⟪001B⟫"),
        ("\u0301", "◌\u0301"),
        ("中文", "中文"),
        ("مرحبا", "مرحبا"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_shown_as_a_glyph(token, glyphs):
    assert visible_token(token) == glyphs


def test_a_leading_space_is_marked_where_it_matters():
    assert visible_token(" dog", mark_space=True) == "␣dog"


def test_bytes_that_complete_a_character_become_it():
    assert characters(["a", "<0xE2>", "<0x82>", "<0xAC>", "b"]) == [(0, 1, "a"), (1, 4, "€"), (4, 5, "b")]
    assert characters(["<0xE2>", "x"]) == [(0, 1, "<0xE2>"), (1, 2, "x")]
    assert strip_text(["<0xE2>", "<0x82>", "<0xAC>", " b"], peak=1) == "«€» b"


@pytest.mark.parametrize(("value", "step"), [(0, 0), (0.01, 1), (0.5, 3), (1.0, 5), (9.0, 5), (float("nan"), 0)])
def test_strength_has_five_steps_and_silence(value, step):
    assert strength(value, 1.0, 5) == step


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1", "\r=1"])
def test_p50_no_cell_is_a_formula(cell):
    assert csv_cell(cell) == "'" + cell


@pytest.mark.parametrize("cell", ["dog", -1.5, "-1.5", "1e-3"])
def test_words_and_numbers_stay_as_they_are(cell):
    assert csv_cell(cell) == str(cell)


def test_escaping_covers_attributes():
    assert escape("<a href=\"x\" id='y'>&") == "&lt;a href=&quot;x&quot; id=&#x27;y&#x27;&gt;&amp;"
