"""P50: token text, labels and file names are shown, never obeyed."""

import html
import re

import pytest

from scope.escape import csv_cell, direction, escape, fold, isolate_runs, visible_token
from scope.features.exports.strip import strength, strip_html, strip_text
from scope.models.text.characters import characters
from tests.features.toy_pack import HOSTILE


@pytest.mark.parametrize("token", [*HOSTILE, "\ud800"])
def test_p50_hostile_text_adds_no_markup(token):
    found = strip_html([token], [1.0], 1.0, 0)
    assert re.findall(r"<(/?\w+)", found) == ["bdi", "span", "/span", "/bdi"]
    attributes = re.fullmatch(r"<bdi [^<>]*><span ([^<>]*)>([^<>]*)</span></bdi>", found)
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
        ("a\u3164b", "a⟪3164⟫b"),
        ("\u115f\u1160\uffa0\u2800", "⟪115F⟫⟪1160⟫⟪FFA0⟫⟪2800⟫"),
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


def test_a_text_runs_in_the_direction_of_most_of_its_letters():
    assert direction("<bos>مرحبا بك") == direction("שלום 12 abc") == "rtl"
    assert direction("the word شمس") == direction("⟨D9⟩⟪RLO⟫ 12") == "ltr"
    assert 'dir="rtl"' in strip_html(["<bos>", "مر", "حبا"], [0, 1, 0], 1.0)


def test_tokens_of_right_to_left_text_join_and_only_names_of_bytes_stand_alone():
    spans = re.findall(r'<span style="([^"]*)"[^>]*>([^<]*)</span>', strip_html(["مر", "حبا", "<0xD9>"], [0, 1, 0], 1.0, 1))
    assert [("isolate" in style, "700" in style, text) for style, text in spans] == [
        (False, False, "مر"),
        (False, False, "حبا"),
        (True, False, "⟨D9⟩"),
    ]


def test_vowel_marks_are_shown_on_their_letter_and_letters_that_are_split_into_bytes_whole():
    assert characters(["<0xD9>", "<0x85>", "<0xD9>", "<0x8E>", "ر"]) == [(0, 4, "مَ"), (4, 5, "ر")]
    assert characters(["e", "\u0301"]) == [(0, 1, "e"), (1, 2, "\u0301")]


@pytest.mark.parametrize(
    ("written", "searched"),
    [
        ("أَحْمَد", "احمد"),
        ("مكتبـــة", "مكتبه"),
        ("على", "علي"),
        ("שָׁלוֹם", "שלום"),
        ("ﻣﺮﺣﺒﺎ", "مرحبا"),
        ("Straße", "STRASSE"),
        ("می\u200cشود\u200f", "میشود"),
    ],
)
def test_search_passes_over_vowel_marks_and_letters_written_for_each_other(written, searched):
    assert fold(written) == fold(searched)


def test_a_terminal_gets_right_to_left_runs_isolated_from_the_columns_beside_them():
    line = "label  مرحبا، 12 \x1b[1mبك\x1b[0m  0.5 │ שלום │ x"
    shown = isolate_runs(line)
    assert shown.replace("\u2067", "[").replace("\u2069", "]") == "label  [مرحبا، 12 \x1b[1mبك]\x1b[0m  0.5 │ [שלום] │ x"
    assert isolate_runs("plain “text”") == "plain “text”"


def test_the_console_isolates_on_a_terminal_and_leaves_what_goes_to_a_file(monkeypatch, capsys):
    from scope.cli.progress import console

    console.print("שלום")
    assert capsys.readouterr().out == "שלום\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    console.print("שלום\u202e")
    assert "\u2067שלום\u2069⟪RLO⟫" in capsys.readouterr().out
