"""Latents taken out of an index: which ranks move beside random ones, which latents tell nothing, and what an index weighs."""

import json

import numpy as np
import pytest
import torch

from scope.pages.errors import PagesError
from scope.pages.head import Head, encode, page_rows
from scope.pages.judgements import judgements, read_judgements
from scope.pages.suppress import ranks
from tests.pages.test_explain import QUERY, SITES, random_sae

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_suppressed_scores_are_those_of_pages_embedded_without_the_latents(index, model, site):
    """The model itself runs on: a hook takes the latents out at the site, and what follows is the model's own code."""
    sae = random_sae(model, site)
    latents = index.firing(sae).to_frame().sort_values("vectors")["latent"].tolist()[-3:]
    result = index.suppress(QUERY, latents, sae, draws=2)
    np.testing.assert_allclose(result.before, index.scores(QUERY)[0], atol=2e-5)

    def without(x, hook):
        x = x - (sae.encode(x)[..., latents] @ sae.W_dec[latents])
        return torch.nn.functional.normalize(x, dim=-1) if site == "hook_embeddings" else x

    for page in range(2):
        inputs = model.prepare_pages(index.picture(page))
        vectors = model.run_with_hooks(inputs, fwd_hooks=[(site, without)])
        score = model.scores([index.queries([QUERY])[0]], vectors)[0, 0]
        assert result.after[page] == pytest.approx(float(score), abs=2e-5)
    assert np.abs(result.after - result.before).max() > 1e-3
    assert len(result.random_ranks) == 2
    assert not {i for chosen in result.random_latents for i in chosen} & set(latents)
    assert "with random latents of equal rate by" in str(result)


def test_a_latent_that_fires_nowhere_moves_nothing_and_that_is_said(index, model):
    sae = random_sae(model, "hook_embeddings")
    with torch.no_grad():
        sae.b_enc[7] = -100
    result = index.suppress(QUERY, 7, sae, draws=1)
    np.testing.assert_array_equal(result.before, result.after)
    assert result.moved == 0
    assert "fire nowhere in this index change nothing: 7" in str(result)
    assert 7 in index.firing(sae).dead


def test_ranks_begin_with_1_and_equal_scores_keep_their_order():
    assert ranks(np.array([0.5, 2.0, 0.5, 1.0])).tolist() == [3, 1, 4, 2]


@torch.no_grad()
def test_shares_of_firing_are_counts_over_the_index(index, model):
    sae = random_sae(model, "proj.hook_out")
    with torch.no_grad():
        sae.b_enc[3] = 100
    acts = [encode(sae, page_rows(index, i, "proj.hook_out")) > 0 for i in range(len(index))]
    firing = index.firing(sae)
    np.testing.assert_allclose(firing.vectors, torch.cat(acts).double().mean(0), atol=1e-12)
    np.testing.assert_allclose(firing.pages, torch.stack([a.any(0) for a in acts]).double().mean(0), atol=1e-12)
    assert 3 in firing.everywhere
    assert "on at least 95%" in str(firing)


def write(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_judgements_are_read_in_the_layouts_of_others_and_ndcg_is_the_formula(index, tmp_path):
    rows = [
        {"query": "the dog", "page": "2.png", "relevance": 2},
        {"query": "the dog", "page": "0.png", "relevance": 1},
        {"query": "the dog", "page": "1.png", "relevance": 0},
        {"query": "the moon", "page": "more/6.png"},
        {"query": "nothing", "page": "1.png", "relevance": 0},
    ]
    judged = read_judgements(index, write(tmp_path / "judged.jsonl", rows))
    assert judged.queries == ("the dog", "the moon")
    assert judged.relevant == ({2: 2, 0: 1}, {6: 1})
    assert judged.unanswered == 1
    table = "query-id\tcorpus-id\tscore\nq1\t2.png\t2\nq1\t0.png\t1\nq2\t6\t1\n"
    (tmp_path / "qrels.tsv").write_text(table)
    queries = write(tmp_path / "queries.jsonl", [{"_id": "q1", "text": "the dog"}, {"_id": "q2", "text": "the moon"}])
    assert read_judgements(index, tmp_path / "qrels.tsv", queries).relevant == judged.relevant
    scores = np.array([[9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3]])
    first = (1 + 2 / 2) / (2 + 1 / np.log2(3))  # page 0 at rank 1, page 2 at rank 3; the second query's page is at rank 7
    assert judged.ndcg(scores) == pytest.approx(first / 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"query": "a"}], "without page"),
        ([{"query": "a", "page": "99.png"}], "no page '99.png'"),
        ([{"query": "a", "page": "0.png", "relevance": "much"}], "relevance of 'much'"),
        ([{"query": "a", "page": "0.png", "relevance": -1}], "relevance of '-1'"),
        ([{"query": "a", "page": "0.png", "relevance": 0}], "no relevant page"),
        (["text"], "which is no object"),
    ],
)
def test_judgements_that_cannot_be_are_refused_with_the_way_out(index, tmp_path, rows, message):
    with pytest.raises(PagesError, match=message):
        read_judgements(index, write(tmp_path / "judged.jsonl", rows))


def test_an_index_is_weighed_with_parts_left_out_beside_random_choices(index, model):
    judged = judgements(index, [{"query": QUERY, "page": "2.png"}, {"query": "the moon", "page": "1.png"}])
    sae = random_sae(model, "unembed.hook_in")
    with torch.no_grad():
        sae.b_enc[3] = 100
    weights = index.weigh(judged, sae, keep=(0.5,), draws=2)
    rows = {row.condition: row for row in weights.rows}
    assert list(rows) == ["all vectors", "far from the mean", "rare latents", "latents", "latents, not everywhere"]
    n = sum(page.vectors for page in index.pages)
    assert rows["all vectors"].nbytes == n * 16 * 4
    assert rows["all vectors"].ndcg == pytest.approx(judged.ndcg(index.scores(list(judged.queries)).double().numpy()))
    assert rows["rare latents"].nbytes == rows["far from the mean"].nbytes == pytest.approx(n * 16 * 2, rel=0.1)
    assert [len(row.random) for row in rows.values()] == [0, 2, 2, 0, 2]
    assert rows["latents"].nbytes == 6 * n * 4  # k latents a vector, two bytes each for number and value
    assert rows["latents, not everywhere"].nbytes < rows["latents"].nbytes
    assert 3 in weights.everywhere
    assert "pages in random order" in str(weights)
    exact = Head(model, "unembed.hook_in")
    assert exact.unit
    with pytest.raises(PagesError, match="between 0 and 1"):
        index.weigh(judged, keep=(1.5,))


def test_latents_that_are_none_are_refused(index, model):
    sae = random_sae(model, "hook_embeddings")
    for latents, message in (([], "none is given"), ([40], "40 is none of them"), ([-1], "-1 is none")):
        with pytest.raises(PagesError, match=message):
            index.suppress(QUERY, latents, sae)
