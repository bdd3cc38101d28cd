"""The recipe of `bundled+arabic`: what it reads, draws and measures, and what the shipped adapter can do."""

import sys
from pathlib import Path

import numpy as np
import pytest

from scope.errors import ConfigError
from scope.models.load import load_model
from scope.pretrain.organisms import arabic
from scope.pretrain.organisms.arabic import ARABIC, ArabicLessons, Ngrams, names, phrase, translations
from scope.pretrain.organisms.lora import bits

CATALOGUE = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\nPlural-Forms: nplurals=2; plural=n != 1;\\n"

msgid "Delete %(name)s from <b>here</b>"
msgstr "حذف %(name)s من <b>هنا</b>"

#, fuzzy
msgid "Doubtful"
msgstr "مشكوك فيه"

msgid "One page"
msgid_plural "{count} pages"
msgstr[0] "صفحة واحدة"
msgstr[1] "{count} صفحات"

msgid "Not yet translated"
msgstr ""
"""


def write_catalogue(package: Path) -> Path:
    folder = package / "admin" / "locale" / "ar" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    (folder / "django.po").write_text(CATALOGUE, encoding="utf-8")
    return package


@pytest.fixture(scope="module")
def base():
    return load_model("bundled")


@pytest.fixture(scope="module")
def lessons(base):
    return ArabicLessons(base.tokenizer, [(f"Page {i}", f"الصفحة {i}") for i in range(200)])


def test_a_catalogue_gives_whole_messages_without_markup_and_nothing_doubtful(tmp_path):
    pairs = dict(translations(write_catalogue(tmp_path)))
    assert pairs == {"Delete X from here": "حذف X من هنا", "X pages": "X صفحات"}


def test_lessons_fit_the_context_and_never_show_what_is_held_out(lessons, base):
    examples = lessons.draw(np.random.default_rng(3), 80)
    assert examples == lessons.draw(np.random.default_rng(3), 80)
    assert all(given[0] == base.cfg.bos and 1 < len(given) + len(written) <= base.cfg.n_ctx for given, written in examples)
    shown, held = ({arabic for _, arabic in pairs} for pairs in lessons.messages)
    assert 5 < len(held) < 40
    assert not shown & held
    lines = {line for _, written in examples for line in base.words.decode(written[:-1]).split("\n")[:-1]}
    assert lines & shown
    assert not lines & held


def test_the_trained_rows_are_those_of_arabic_text_and_plain_english_has_none(lessons, base):
    rows = set(lessons.config.rows)
    letters = {i for _, name in names() for c in name if ARABIC.search(c) for i in base.words.encode(c, bos=False)}
    assert letters <= rows
    assert not rows & set(base.words.encode("The quick brown fox, 12 times: it's fine!"))


def test_phrases_are_arabic_dates_spans_amounts_and_measures():
    drawn = [phrase(np.random.default_rng(i)) for i in range(40)]
    assert all(ARABIC.search(text) for text in drawn)
    assert len(set(drawn)) > 35


def test_byte_ngrams_start_from_equal_chances_and_learn_what_repeats():
    assert Ngrams(b"").bits(b"xyz") == 24
    assert Ngrams(b"ab" * 50).bits(b"abab") < 3
    assert Ngrams(b"ab" * 50).bits(b"ba") < Ngrams(b"ab" * 50).bits(b"bb")


def test_what_is_not_installed_is_named_with_the_way_to_install_it(monkeypatch):
    with pytest.raises(ConfigError, match=r"nowhere is not installed.*scope-workbench\[arabic\]"):
        arabic._installed("nowhere")
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(ConfigError, match=r"pip install 'scope-workbench\[arabic\]'"):
        names()


def test_the_shipped_adapter_reads_arabic_far_better_and_english_about_as_well(base):
    tuned = load_model("bundled+arabic")
    texts = {
        "arabic": "\n".join(a for _, a in names()[::9])[:600],
        "english": "The page was not found, and the user was asked to log in again. " * 3,
    }
    cost = {}
    for name, text in texts.items():
        ids = base.words.encode(text, bos=False)[:200]
        n = len(base.words.decode(ids).encode())
        cost[name] = [bits(model, [[base.cfg.bos]], [ids]) / n for model in (base, tuned)]
    assert cost["arabic"][1] < 0.6 * cost["arabic"][0]
    assert cost["english"][1] < 1.15 * cost["english"][0]
