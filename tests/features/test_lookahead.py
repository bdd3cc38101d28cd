"""Suffix look-ahead: a planted latent is found and others are not, and there is nothing to find where suffixes mean nothing."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from scope.activations.corpus.infill import mark_ids

from scope.errors import ConfigError, DictionaryError, PackError, TokensError
from scope.features.compare.lookahead import draw_examples, lookahead
from scope.features.face import Pack
from scope.features.pack.lookahead import FILE, Lookahead
from scope.features.pack.write import add_file
from scope.models.gemma.model import Gemma
from tests.conftest import random_gemma
from tests.features.test_collect import SITE, toy_sae
from tests.features.toy_pack import make_toy_pack

PLANTED, SMALL = 7, {"context": 44, "middle": 8, "permutations": 199}


class Copying(Gemma):
    """A Gemma in which one latent's direction is added wherever a token of the middle stood in the suffix."""

    def record(self, batch, sites, *rest, **how):
        recorded, marks = super().record(batch, sites, *rest, **how), mark_ids(self.tokenizer)
        for row, ids in enumerate(batch.tolist()):
            suffix, middle = (ids.index(marks[name]) for name in ("suffix", "middle"))
            seen = set(ids[suffix:middle])
            again = [i for i in range(middle + 1, len(ids)) if ids[i] in seen]
            recorded[SITE][row, again] += self.planted
        return recorded


@pytest.fixture(scope="module")
def sae(coding_gemma):
    return toy_sae(coding_gemma)


@pytest.fixture(scope="module")
def copying(coding_gemma, sae):
    model = Copying(coding_gemma.cfg, coding_gemma.tokenizer)
    model.load_state_dict(coding_gemma.state_dict())
    model.provenance = coding_gemma.provenance | {"model": "copying"}
    direction = sae.W_dec[PLANTED].detach()
    model.planted = 4 * sae.threshold[PLANTED].item() * direction / (direction @ direction)
    return model.eval()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Each document repeats two words of its own."""
    rng, words = np.random.default_rng(0), [a + b for a in "bcdfghklmnprst" for b in ("ox", "ab", "ul", "ine")]
    return [" ".join(rng.choice(rng.choice(words, 2, replace=False), 90)) for _ in range(60)]


@pytest.fixture(scope="module")
def found(copying, coding_gemma, sae, texts):
    return lookahead(copying, sae, texts, 60, floor=coding_gemma, **SMALL)


def test_a_latent_that_copies_from_the_suffix_is_found_with_what_it_loses(found):
    row = found.of(PLANTED)
    assert row in found.ahead
    assert row.z > found.own.threshold
    assert row.own > row.others
    assert row.lost == 1 - row.others / row.own
    assert row.own_density > row.others_density
    assert row.more_z > 3
    assert found.own.confirmed == len(found.ahead)
    gained = np.array(row.place.own) - row.place.others
    assert gained.sum() > 0
    assert len(row.place.tokens) == len(gained)


def test_another_suffix_in_the_place_of_the_own_one_finds_nothing_and_its_p_are_those_of_chance(found):
    assert found.null.found == 0
    assert found.null.nominal < 0.12


def test_a_model_without_look_ahead_has_none(coding_gemma, sae, texts):
    result = lookahead(coding_gemma, sae, texts, 60, **SMALL)
    assert result.floor is result.more is None
    assert PLANTED not in {row.latent for row in result.ahead}


def test_suffixes_from_elsewhere_in_the_document_leave_no_gain_from_its_words_alone(copying, sae, texts):
    result = lookahead(copying, sae, [text * 6 for text in texts], 60, donors="elsewhere", **SMALL)
    assert (result.donors, result.examples) == ("elsewhere", 60)
    assert "3 from elsewhere in the document" in str(result)
    assert "from elsewhere in the document" in result.plot().layout.yaxis.title.text
    assert PLANTED not in {row.latent for row in result.ahead}  # the document's two words stand everywhere in it


def test_examples_are_whole_pieces_of_their_document_with_suffixes_of_one_length(coder, texts):
    examples = draw_examples(coder, texts, 70, 44, 8, seed=3)
    assert len(examples) == 70
    assert {len(e.suffix) for e in examples} == {16}
    for e in examples:
        assert 2 <= len(e.middle) <= 8
        assert coder.decode([*e.prefix, *e.middle, *e.suffix]) in texts[e.document]


def test_a_result_is_saved_whole_shown_as_table_figure_and_page_and_kept_in_a_pack(found, tmp_path):
    again = Lookahead.load(found.save(tmp_path / "look.json"))
    assert again == found
    frame = found.to_frame()
    assert frame.loc[frame["ahead"], "latent"].tolist() == [row.latent for row in found.ahead]
    assert len(found.plot().data) == 3
    assert f"#{PLANTED}" in found.to_html(tmp_path / "look.html")
    make_toy_pack(tmp_path / "pack", n_contexts=12)
    assert Pack.open(tmp_path / "pack").lookahead is None
    add_file(tmp_path / "pack", FILE, found.to_json().encode(), {})
    with pytest.raises(PackError, match="is about another SAE than its pack"):
        assert Pack.open(tmp_path / "pack").lookahead
    of_it = replace(found, dictionary=Pack.open(tmp_path / "pack").manifest.owner)
    add_file(tmp_path / "pack", FILE, of_it.to_json().encode(), {})
    pack = Pack.open(tmp_path / "pack")
    assert pack[PLANTED].lookahead == found.of(PLANTED)
    (tmp_path / "look.json").write_text(found.to_json().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(PackError, match="schema 2"):
        Lookahead.load(tmp_path / "look.json")


def test_what_cannot_be_tested_is_refused(coding_gemma, tiny_model, sae, texts):
    with pytest.raises(ConfigError, match="suffixes is 2 or more"):
        lookahead(coding_gemma, sae, texts, 60, suffixes=1)
    with pytest.raises(TokensError, match="too few"):
        lookahead(coding_gemma, sae, texts[:4], 60, **SMALL)
    with pytest.raises(TokensError, match="no single token"):
        lookahead(tiny_model, toy_sae(tiny_model), texts, 60, **SMALL)
    foreign = copy.deepcopy(sae)
    foreign.provenance = {"model": {"model": "other", "weights_sha256": "another"}}
    named = copy.copy(coding_gemma)
    named.provenance = {"model": "coding", "weights_sha256": "one"}
    with pytest.raises(DictionaryError, match="any_model"):
        lookahead(named, foreign, texts, 60, **SMALL)
    with pytest.raises(TokensError, match="too few"):
        lookahead(named, foreign, texts[:4], 60, any_model=True, **SMALL)
    few = random_gemma(replace(coding_gemma.cfg, d_vocab=coding_gemma.cfg.d_vocab - 1), coding_gemma.tokenizer)
    with pytest.raises(ConfigError, match="--floor none"):
        lookahead(coding_gemma, sae, texts, 60, floor=few, **SMALL)
    with pytest.raises(ConfigError, match="no room"):
        lookahead(coding_gemma, sae, texts, 60, context=12, middle=8)
