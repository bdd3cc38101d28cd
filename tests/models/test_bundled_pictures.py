"""The small models of pictures that ship: the same in transformers, small, and skilled beyond chance on scenes and pages."""

import json

import pytest
import torch
from scope.activations.scenes.pages import pages
from scope.activations.scenes.scene import scene, scenes

import scope
from scope.errors import ConfigError
from scope.models.checkpoints import BUNDLED, SHIPPED
from scope.pretrain.pictures.colpali_scores import search
from scope.pretrain.pictures.folders import write_whole
from scope.pretrain.pictures.paligemma_scores import answers, ask
from scope.pretrain.pictures.siglip_scores import zero_shot

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
SEED = 31_337
QUESTION = "answer en what shape is red?"


@pytest.fixture(scope="module")
def siglip():
    return scope.load_model("bundled-siglip")


@pytest.fixture(scope="module")
def paligemma():
    return scope.load_model("bundled-paligemma")


@pytest.fixture(scope="module")
def colpali():
    return scope.load_model("bundled-colpali")


@torch.no_grad()
def test_the_siglip_gives_the_logits_of_transformers(siglip):
    from transformers import AutoModel, AutoTokenizer

    folder = SHIPPED["bundled-siglip"]
    theirs = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    texts = ["A red circle.", "a small shape at the top left"]
    ids = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=20, return_tensors="pt").input_ids
    assert torch.equal(siglip.to_tokens(texts), ids)
    pixels = siglip.to_pixels([s.picture for s in scenes(SEED, 2)])
    expected = theirs(input_ids=ids, pixel_values=pixels).logits_per_image
    torch.testing.assert_close(siglip(ids, pixel_values=pixels), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_paligemma_written_whole_gives_the_logits_of_transformers(paligemma, tmp_path):
    from transformers import PaliGemmaForConditionalGeneration, PaliGemmaProcessor

    folder = write_whole(paligemma, tmp_path / "whole")
    theirs = PaliGemmaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = paligemma.prepare([QUESTION], [scene(SEED, 0).picture], [" circle"])
    torch.testing.assert_close(paligemma(inputs), theirs(**inputs).logits, rtol=0, atol=1e-4)
    processed = PaliGemmaProcessor.from_pretrained(folder)(
        text=[f"<image>{QUESTION}"], images=[scene(SEED, 0).picture], suffix=[" circle"], return_tensors="pt"
    )
    assert torch.equal(processed["input_ids"], inputs["input_ids"])
    assert torch.equal(scope.load_model(str(folder))(inputs), paligemma(inputs))


@torch.no_grad()
def test_the_colpali_written_whole_gives_the_vectors_of_transformers(colpali, tmp_path):
    from transformers import ColPaliForRetrieval

    folder = write_whole(colpali, tmp_path / "whole")
    theirs = ColPaliForRetrieval.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = colpali.prepare_pages([p.picture for p in pages(SEED, 2)])
    expected = theirs(**inputs).embeddings
    torch.testing.assert_close(colpali.embed_pages(inputs), expected, rtol=0, atol=1e-4)


def test_the_siglip_tells_colour_shape_size_and_place_of_scenes_it_never_saw(siglip):
    right = zero_shot(siglip, list(scenes(SEED, 100, counts=(1,))))
    assert min(right[factor] for factor in ("colour", "shape", "size", "place")) > 0.85
    shuffled = zero_shot(siglip, list(scenes(SEED, 100, counts=(1,))), shuffled=True)
    assert max(shuffled[factor] for factor in ("colour", "shape", "place")) < 0.35


def test_the_paligemma_answers_questions_about_one_object(paligemma):
    queries = ask(list(scenes(SEED, 24, counts=(1,))), ("colour", "shape", "where", "count"))
    right = [answer == q.answer for (_, q), answer in zip(queries, answers(paligemma, queries), strict=True)]
    wrong = [answer == q.answer for (_, q), answer in zip(queries, answers(paligemma, queries, shuffled=True), strict=True)]
    assert sum(right) / len(right) > 0.7
    assert sum(wrong) / len(wrong) < 0.55


def test_the_colpali_finds_the_pages_that_hold_an_icon(colpali):
    some = list(pages(SEED, 40))
    icons = sorted({item for p in some for item in p.items if isinstance(item, tuple)})
    found = search(colpali, some, [[item] for item in icons])
    assert found["ndcg5"] > 0.8
    assert found["random"] < 0.4


def test_the_colpali_finds_the_pages_that_hold_a_word(colpali):
    some = list(pages(SEED, 40))
    words = sorted({item for p in some for item in p.items if isinstance(item, str)})
    found = search(colpali, some, [[word] for word in words])
    assert found["ndcg5"] > 0.8
    assert found["random"] < 0.3


def test_a_second_adapter_is_refused():
    with pytest.raises(ConfigError, match="no second is applied"):
        scope.load_model("bundled-paligemma", adapter=str(BUNDLED / "adapters" / "fim"))


def test_their_folders_are_small_and_hold_no_weight_of_the_gemma_twice(paligemma):
    for name in ("bundled-siglip", "bundled-paligemma", "bundled-colpali"):
        files = [file for file in SHIPPED[name].rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) < 4e6
        card = (SHIPPED[name] / "README.md").read_text(encoding="utf-8")
        for part in (name, "## Training", "## Measured", "## Limits", "held-out pair"):
            assert part in card, part
        assert "/tmp" not in card
    assert json.loads((SHIPPED["bundled-paligemma"] / "config.json").read_text())["language_model_of"] == "bundled"
    base = scope.load_model("bundled")
    assert torch.equal(paligemma.embed.weight[: base.cfg.d_vocab], base.embed.weight)
    assert paligemma.provenance["model"] == "bundled-paligemma"
