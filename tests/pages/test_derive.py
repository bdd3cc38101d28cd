"""An index from another: pages are gone with all that was kept of them, and a trimmed index ranks as its weighing says."""

import json
import shutil

import numpy as np
import pytest
import torch

import scope.pages.build
import scope.pages.derive
from scope.cli.main import run
from scope.pages.build import build_index
from scope.pages.derive import remove_pages, trim
from scope.pages.errors import PagesError
from scope.pages.index import Index
from scope.pages.judgements import read_judgements
from tests.pages.conftest import picture
from tests.pages.test_explain import random_sae

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
QUERY = "the dog runs"


@pytest.fixture(scope="module")
def sharded(model, folder_of_pages, tmp_path_factory):
    """The seven pages in four shards, with one that could not be read."""
    place = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scope.pages.build, "PAGES_A_SHARD", 2)
        shutil.copytree(folder_of_pages, place / "pages")
        (place / "pages" / "z.png").write_bytes(b"nothing")
        return build_index(model, place / "pages", place / "index", dtype="float32", batch=2)


def test_removed_pages_are_gone_and_the_others_are_as_they_were(sharded, model, tmp_path):
    folder = shutil.copytree(sharded.folder, tmp_path / "index")
    assert remove_pages(folder, ["1.png", "2.png", "3.png", "z.png"]) == 3
    left = Index.open(folder, model)
    assert [page.name for page in left.pages] == ["0.png", "4.png", "5.png", "more/6.png"]
    assert not left.skipped
    before, after = sharded.scores(QUERY)[0], left.scores(QUERY)[0]
    assert torch.equal(after, before[[0, 4, 5, 6]])
    for new, old in enumerate((0, 4, 5, 6)):
        assert np.array_equal(np.asarray(left.picture(new)), np.asarray(sharded.picture(old)))
    assert len(list((folder / "pictures").iterdir())) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    again = build_index(model, {"new.png": picture(9), "1.png": picture(1)}, folder, dtype="float32")
    assert [page.name for page in again.pages][4:] == ["new.png", "1.png"]
    assert remove_pages(folder, [page.name for page in again.pages]) == 6
    with pytest.raises(PagesError, match="has no page yet"):
        Index.open(folder, model).search(QUERY)


def test_a_removal_that_is_stopped_leaves_the_index_as_it_was(sharded, model, tmp_path, monkeypatch):
    folder = shutil.copytree(sharded.folder, tmp_path / "index")
    with pytest.raises(PagesError, match=r"no page '9.png', so none was removed"):
        remove_pages(folder, ["1.png", "9.png"])

    def stop(folder, manifest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scope.pages.derive, "write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            remove_pages(folder, ["1.png"])
    assert Index.open(folder, model).pages == sharded.pages
    folder.rename(tmp_path / ".index.abc.old")
    with pytest.raises(PagesError, match=r"It is .*\.index\.abc\.old now"):
        Index.open(folder)


def test_a_trimmed_index_ranks_as_its_weighing_says_and_is_searched_alone(sharded, model, tmp_path, capsys):
    (tmp_path / "judged.jsonl").write_text(json.dumps({"query": QUERY, "page": "4.png"}))
    judged, sae = read_judgements(sharded, tmp_path / "judged.jsonl"), random_sae(model, "hook_embeddings")
    weights = sharded.weigh(judged, sae, keep=(0.5,), draws=1)
    rows = {row.condition: row for row in weights.rows}
    for condition, options in (("far from the mean", {}), ("rare latents", {"sae": sae, "rates": sharded.firing(sae)})):
        small = Index.open(trim(sharded, tmp_path / condition, 0.5, **options), model)
        scores = small.scores(list(judged.queries))
        assert judged.ndcg(scores.double().numpy()) == rows[condition].ndcg
        assert sum(vectors.nbytes for _, _, vectors, _ in small.shards()) == rows[condition].nbytes
        assert (scores <= sharded.scores(list(judged.queries)) + 1e-6).all()
    assert "50% of each page's" in repr(small)
    for ask in (lambda: small.maps(QUERY, 0), lambda: small.firing(sae), lambda: build_index(model, "pages:1", small.folder)):
        with pytest.raises(PagesError, match="of each page's vectors"):
            ask()
    command = ["pages", "weigh", str(sharded.folder), str(tmp_path / "judged.jsonl"), "--out", str(tmp_path / "out")]
    assert run([*command, "--keep", "0.5,0.25"]) == 2
    assert "--keep has 2 shares" in capsys.readouterr().err


def test_a_token_that_the_query_does_not_have_is_refused_with_those_it_has(sharded, capsys):
    assert run(["pages", "map", str(sharded.folder), QUERY, "0", "--token", "zzz"]) == 2
    assert "The query has no token 'zzz'. It has: " in capsys.readouterr().err
