"""Rules for labels: properties of tokens, the search on half of the text, words, JSON, and labels of a pack."""

import json

import numpy as np
import pytest

from scope.errors import PackError
from scope.features.face import Pack
from scope.features.labels.properties import Text, TextProperties, class_of
from scope.features.labels.rule_labels import context_label, from_json, label_by_rules, peak_token, to_json, with_peak
from scope.features.labels.rule_search import half_of, search_rules
from scope.features.labels.rules import Rule, holds, in_words
from tests.features.toy_pack import make_toy_pack

VOCAB = ["<bos>", " the", " a", " way", " path", " road", " dog", "\n", ".", " runs", " Way", "(", ")", '"', "ing", " 7"]
N_CTX = 32


@pytest.fixture(scope="module")
def text() -> TextProperties:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, len(VOCAB), (400, N_CTX))
    ids[:, 0] = 0
    totals = np.bincount(ids.ravel(), minlength=len(VOCAB))
    totals[0] = 0
    return TextProperties(Text(ids, VOCAB, totals, np.zeros_like(ids), ["wiki/page"]))


def sampled(mask: np.ndarray, n: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """(sampled positions, count) of latents that fire exactly at these tokens."""
    rng = np.random.default_rng(1)
    rows = [rng.permutation(np.flatnonzero(m))[:n] for m in mask]
    sample = np.stack([np.r_[row, np.full(n - len(row), -1)] for row in rows])
    return sample, mask.sum(1)


def test_the_search_finds_a_token_after_a_token_and_scores_it_where_it_was_not_chosen(text):
    truth = Rule(("token", "previous token"), (("way", "the"), ("path", "the")))
    other = Rule(("place in the line",), (("first in a line",),))
    masks = np.stack([holds(rule, text) for rule in (truth, other)])
    scores = search_rules(text, *sampled(masks))
    assert (holds(scores[0].rule, text) == masks[0]).all()
    assert scores[0].score > 0.95
    assert "after “the”" in in_words(scores[0].rule)
    assert (holds(scores[1].rule, text) == masks[1]).mean() > 0.99
    assert all(one.null < 0.3 and one.single_token < 0.5 for one in scores)


def test_the_score_is_the_f1_of_the_other_half(text):
    rng = np.random.default_rng(2)
    fires = (text["token"].values == text["token"].names.index("dog")) & (rng.random(len(text.ids)) < 0.7)
    one = search_rules(text, *sampled(fires[None], 4096))[0]
    rule, half = holds(one.rule, text), half_of(np.arange(len(text.ids)), N_CTX) == 1
    f1 = 2 * (rule & fires & half).sum() / ((rule & half).sum() + (fires & half).sum())
    assert one.score == pytest.approx(f1, abs=0.01)


def test_firings_at_random_positions_get_no_rule_worth_naming(text):
    fires = (np.random.default_rng(3).random(len(text.ids)) < 0.02) & text.counted
    one = search_rules(text, *sampled(fires[None]))[0]
    assert one.score < 0.2
    assert abs(one.score - one.null) < 0.1


def test_the_same_search_gives_the_same_rules(text):
    sample, count = sampled(holds(Rule(("class",), (("digit",),)), text)[None])
    assert search_rules(text, sample, count) == search_rules(text, sample, count)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(("token",), (("way",), ("path",))), "“way” or “path”"),
        (Rule(("token",), tuple((f"w{i}",) for i in range(9))), "“w0”, “w1”, “w2”, “w3” or 5 other tokens"),
        (Rule(("token", "previous token"), (("way", "the"),)), "“way” after “the”"),
        (Rule(("class", "next class"), (("quote", "newline"),)), "quote before a newline"),
        (Rule(("previous token",), (("of",),)), "the token after “of”"),
        (Rule(("token", "domain"), (("it", "books"),)), "“it” in documents of books"),
        (Rule(("next token",), (("the",),), promoted=True), "before what it promotes: “the”"),
        (Rule(("token",), (("<b>\n",),)), "“<b>↵”"),
    ],
)
def test_a_rule_reads_as_a_phrase(rule, words):
    assert in_words(rule) == words


def test_a_rule_is_json_and_comes_back_as_it_was():
    rule = Rule(("token", "class"), (("way", "word"), ('"', "quote")))
    assert from_json(json.dumps(to_json(rule))) == rule
    with pytest.raises(PackError, match="later version"):
        from_json('{"version": 99, "properties": [], "values": []}')


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        (" way", "word"),
        ("ing", "inside of a word"),
        (" Way", "capitalised word"),
        ("\n", "newline"),
        ("7", "digit"),
        ("<0xE2>", "byte"),
        ("    ", "indentation"),
        ("(", "opening bracket"),
        (").", "closing bracket"),
        ('"', "quote"),
    ],
)
def test_each_piece_has_a_class(piece, kind):
    assert class_of(piece) == kind


def test_a_label_of_contexts_marks_the_token_that_fires():
    assert context_label([(["the", " way", " home"], 1), (["a", "b"], 0)]) == "in “the «way» home” · “«a»b”"


def test_a_pack_is_labelled_by_rules_beside_what_people_wrote(tmp_path):
    make_toy_pack(tmp_path / "pack")
    pack = Pack.open(tmp_path / "pack")
    pack.notes.set_label(2, "mine", "you")
    labelled = label_by_rules(pack, range(pack.d_sae))
    pack.refresh()
    assert pack.table["label"][2] == "mine"
    assert set(pack.table["label_source"]) <= {"rule", "strongest contexts", "a person", "token statistics"}
    assert "“dog" in pack.table["label"][1]
    assert not pack.table["label"].str.contains("no token").any()
    detail = pack.notes.label(labelled[0]["latent"]).detail
    assert {"score", "single_token", "null", "made_by"} <= set(detail)
    assert label_by_rules(pack, range(pack.d_sae)) == []


@pytest.mark.parametrize(
    ("tokens", "peak", "label"),
    [
        ([" water", " Water", " sea", " water"], "water", "peaks on “water”; “ps”, “world” or “ower”"),
        ([" world", " world"], "world", "“ps”, “world” or “ower”"),
        ([" a", " b", " c"], None, "“ps”, “world” or “ower”"),
        ([], None, "“ps”, “world” or “ower”"),
    ],
)
def test_a_label_names_the_token_of_most_of_the_strongest_examples(tokens, peak, label):
    assert peak_token(tokens) == peak
    assert with_peak("“ps”, “world” or “ower”", peak) == label
