"""The recipe of bundled+shield: what is shown, what it is asked at each token, what is held out, how it is scored."""

import json

import numpy as np
import pytest

from scope.models.load import load_model
from scope.moderation.moderator import Moderator
from scope.moderation.prompt import Item
from scope.pretrain.organisms.make import make_organism
from scope.pretrain.organisms.shield import NAMES, HeldOutText, ShieldLessons, held_out_texts, text_pair
from scope.pretrain.organisms.themes import THEMES, held_out_words, sampled_sentences, themes_of, write_sentence


@pytest.fixture(scope="module")
def lessons() -> ShieldLessons:
    return ShieldLessons(load_model("bundled").tokenizer)


def test_a_text_violates_a_policy_from_the_token_on_that_ends_its_first_forbidden_word(lessons):
    judged = lessons.judged(np.random.default_rng(0), "The old bear ate the bread on the beach.", "food")
    pieces = lessons.tokenizer.pieces(judged.ids)
    answers = {p: (pieces[p], v, t) for p, v, t in zip(judged.positions, judged.violates, judged.theme, strict=True)}
    asked = list(answers.values())
    assert asked[0] == (" The", False, len(NAMES))
    assert (" bear", False, NAMES.index("animals")) in asked
    assert (" the", False, NAMES.index("animals")) in asked
    assert (" bread", True, NAMES.index("food")) in asked
    assert ("ach", True, NAMES.index("sea")) in asked
    assert asked[-1][1:] == (True, NAMES.index("sea"))
    assert judged.positions[-1] == len(judged.ids) - 1
    assert NAMES[judged.policy] == "food"


def test_no_word_is_of_two_themes_and_a_quarter_of_each_is_held_out():
    words = [word for known in THEMES.values() for word in known]
    assert len(set(words)) == len(words)
    for known in THEMES.values():
        assert len(held_out_words() & set(known)) == len(known) // 4


def test_a_written_sentence_speaks_of_its_theme_by_words_of_its_part():
    rng = np.random.default_rng(0)
    for theme in (*NAMES, None):
        for held_out in (False, True):
            sentence = write_sentence(rng, theme, held_out)
            assert theme is None or theme in sentence.themes
            spoken = {w for w in sentence.text.lower().replace(".", " ").replace("?", " ").split() if themes_of(w)}
            assert all((word in held_out_words()) == held_out for word in spoken)


def test_nothing_that_is_scored_was_trained_on():
    rng = np.random.default_rng(1)
    shown = {text for _ in range(300) for text, _, _ in text_pair(rng)}
    sampled = {s.text: s for s in sampled_sentences()}
    assert not any(sampled[text].held_out for text in shown & sampled.keys())
    sets = held_out_texts(60)
    assert not shown & {t.text for t in sets["sampled sentences"]}
    for texts in sets.values():
        assert [t.violates for t in texts].count(True) == 30
        assert all((t.policy in themes_of(t.text)) == t.violates for t in texts)


def test_pairs_hold_as_many_violations_as_not(lessons):
    examples = lessons.draw(np.random.default_rng(0), 32)
    assert [e.violates[-1] for e in examples].count(True) == 16


def test_a_run_of_two_steps_is_scored_and_written_with_its_template(tmp_path, monkeypatch):
    few = [HeldOutText("The bread was warm.", name, name == "food") for name in NAMES]
    monkeypatch.setattr("scope.pretrain.organisms.shield.held_out_texts", lambda: {"a few": few})
    monkeypatch.setattr("scope.pretrain.organisms.shield.BagOfWords.__init__", lambda self, pairs: None)
    monkeypatch.setattr("scope.pretrain.organisms.shield.BagOfWords.scores", lambda self, texts: np.zeros(len(texts)))
    made = make_organism("shield", tmp_path, steps=2)
    assert made.scores["a few"]["auc of a bag of words"] == 0.5
    model = load_model("bundled", adapter=str(made.folder))
    assert 0 < Moderator(model).judge([Item("The bread was warm.")], "food").verdicts[0].p_yes < 1
    assert model.words.chat_template != load_model("bundled").words.chat_template
    assert "| a few | 6 |" in (made.folder / "README.md").read_text()
    assert json.loads((tmp_path / "scores.json").read_text())["a few"]["texts"] == 6
