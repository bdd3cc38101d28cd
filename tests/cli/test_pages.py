"""`scope pages` from a folder to a hit taken apart, and its refusals."""

import json

import pytest

from scope.cli.main import run
from scope.models.load import load_model
from scope.sae.files import save_sae
from tests.models.vision_twins import save_with_words
from tests.pages.conftest import picture
from tests.pages.test_explain import random_sae

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'


def test_the_whole_way_from_a_folder_to_a_hit_taken_apart(tmp_path, toy_text, capsys):
    model = tmp_path / "model"
    save_with_words(model, toy_text, retrieval=True)
    pages = tmp_path / "pages"
    pages.mkdir()
    for i in range(3):
        picture(i).save(pages / f"{i}.png")
    (pages / "bad.png").write_bytes(b"nothing")
    save_sae(random_sae(load_model(str(model)), "unembed.hook_in"), tmp_path / "sae")
    (tmp_path / "judged.jsonl").write_text(json.dumps({"query": "the dog", "page": "1.png"}))
    index, sae = str(tmp_path / "index"), ["--sae", str(tmp_path / "sae")]

    def output(*argv: str) -> str:
        assert run(["pages", *argv]) == 0, capsys.readouterr().err
        captured = capsys.readouterr()
        return captured.out + captured.err

    text = output("index", str(pages), "--model", str(model), "--out", index)
    assert "Index of 3 pages (1 more skipped)" in text
    assert "bad.png cannot be read" in text
    assert "All 78 vectors are as they were written" in output("show", index, "--verify")
    assert "the median page scores" in output("search", index, "the dog", "--k", "2", "--csv", str(tmp_path / "hits.csv"))
    assert len((tmp_path / "hits.csv").read_text().splitlines()) == 3
    assert "sum over" in output("map", index, "the dog", "1.png", "--png", str(tmp_path / "map.png"))
    assert "latent x latent" in output("explain", index, "the dog", "1", *sae, "--png", str(tmp_path / "hit.png"))
    assert "random latents of equal rate" in output("suppress", index, "the dog", "--latents", "3,5", *sae, "--draws", "2")
    assert "fire nowhere" in output("latents", index, *sae)
    assert "pages in random order" in output("weigh", index, str(tmp_path / "judged.jsonl"), *sae, "--keep", "0.5")
    for name in ("map.png", "hit.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert run(["pages", "search", index, " "]) == 2
    assert "A query is empty" in capsys.readouterr().err
    assert run(["pages", "search", str(tmp_path / "nothing"), "a"]) == 2
    assert "To make one: scope pages index" in capsys.readouterr().err
