"""The Match page shows what `scope match` saved beside a pack, with examples of both sides, and says how to make it."""

import json
import shutil

import pytest

import scope
from scope.features.compare.partners import Match, matches_beside
from tests.app.conftest import said
from tests.help.components import values


@pytest.fixture
def two(folder, toy_text, tmp_path):
    """Two labs of the same SAE, and a match of the one with the other."""
    a, b = (shutil.copytree(folder, tmp_path / name) for name in ("one", "two"))
    documents = (json.dumps({"text": text}) for text in toy_text[:40])
    (tmp_path / "text.jsonl").write_text("\n".join(documents))
    model = str(folder / "checkpoint")
    scope.match(a=a, b=b, model=model, model_b=model, corpus=str(tmp_path / "text.jsonl"), words=2000)
    return a / "pack", b / "pack"


def test_the_page_shows_shares_beside_chance_and_pairs_of_both_packs(open_app, two):
    at = open_app("match", packs=list(two), pack="one")
    assert not at.exception
    result = Match.load(matches_beside(two[0]) / "two.json")
    shown = values(at)
    assert shown["With a partner"] == f"{result.share:.1%}"
    assert shown["By chance"] == f"{result.share_by_chance:.1%}"
    assert shown["Ceiling"] == "–"
    table = next(frame.value for frame in at.dataframe if "its label" in frame.value)
    assert table["partner"].tolist() == result.to_frame()["partner"].tolist()
    assert table["label"].tolist() == table["its label"].tolist()


def test_without_a_match_the_page_says_the_command_and_a_match_of_another_sae_is_not_shown(open_app, two):
    at = open_app("match", packs=list(two), pack="two")
    assert "scope match" in said(at)
    shutil.copytree(matches_beside(two[0]), matches_beside(two[1]))
    file = matches_beside(two[1]) / "two.json"
    file.write_text(file.read_text().replace('"parameters_sha256": "', '"parameters_sha256": "0', 1))
    at = open_app("match", packs=list(two), pack="two")
    assert "made with another SAE" in said(at)
