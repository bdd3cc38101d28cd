"""The recipes of the small models of pictures: resumed runs, labels from the world, folders that load as what was trained."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scope.activations.scenes.pages import WORDS, page, pages
from scope.activations.scenes.scene import crop, scene, scenes
from scope.activations.scenes.words import KINDS
from scope.activations.scenes.world import COLOURS, SHAPES

from scope.errors import ConfigError
from scope.models.load import load_model
from scope.pretrain.pictures.colpali import ColPaliLessons, ColPaliRecipe, draw_query, max_sims, stretched, word_loss
from scope.pretrain.pictures.colpali_scores import ndcg
from scope.pretrain.pictures.folders import write_paligemma, write_siglip
from scope.pretrain.pictures.loop import LoopConfig, optimizers, train
from scope.pretrain.pictures.make import make_picture_model
from scope.pretrain.pictures.paligemma import N_NEW, PaliGemmaLessons, PaliGemmaRecipe, draw_question
from scope.pretrain.pictures.paligemma_scores import ask, overlap, rates
from scope.pretrain.pictures.reading import CELLS, reading_loss
from scope.pretrain.pictures.siglip import SiglipLessons, SiglipRecipe, as_matrix, build, embed_crops, pixels
from scope.whole_files import write_json

SMALL = SiglipRecipe(steps=4, batch=6, aligned_steps=1, crop_steps=2, width=32, text_width=16, save_every=2)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    lessons = SiglipLessons(SMALL)
    out = tmp_path_factory.mktemp("siglip")
    train(lessons.trained, lessons.optimizers(), SMALL, lessons.loss_at, out)
    return lessons, out


@pytest.fixture(scope="module")
def paligemma(siglip):
    recipe = PaliGemmaRecipe(steps=2, batch=2, rank=2, save_every=1)
    return PaliGemmaLessons(recipe, tower=siglip[0].model)


def test_a_run_that_was_stopped_ends_in_the_same_weights(siglip, tmp_path):
    lessons, out = siglip

    class Stopped(Exception):
        pass

    def stops(step):
        if step == 3:
            raise Stopped
        return again.loss_at(step)

    again = SiglipLessons(SMALL)
    with pytest.raises(Stopped):
        train(again.trained, again.optimizers(), SMALL, stops, tmp_path)
    again = SiglipLessons(SMALL)
    train(again.trained, again.optimizers(), SMALL, again.loss_at, tmp_path)
    for name, p in lessons.model.state_dict().items():
        assert torch.equal(p, again.model.state_dict()[name]), name
    assert (tmp_path / "curve.jsonl").read_text() == (out / "curve.jsonl").read_text()


def test_another_recipe_does_not_continue_a_run(siglip):
    lessons, out = siglip
    with pytest.raises(ConfigError, match=r"matrix_lr: 0\.04 then, 0\.5 now"):
        train(lessons.trained, lessons.optimizers(), replace(SMALL, matrix_lr=0.5), lessons.loss_at, out)


def test_the_filters_of_a_convolution_are_trained_as_the_matrix_that_they_are():
    filters, ones = torch.nn.Parameter(torch.ones(4, 3, 2, 2)), torch.ones(4, 3, 2, 2)
    config = LoopConfig(matrix_lr=0.1)
    [opt] = optimizers(config, [as_matrix(filters)], [])
    (filters * ones).sum().backward()
    assert filters.grad is None
    opt.step()
    assert (filters < 1).all()


@torch.no_grad()
def test_a_crop_has_the_vector_of_its_patches_at_their_places():
    """A tower that reads each patch for itself gives a crop what it gives the same patches of the whole."""
    model = build(SMALL)
    square, corner = crop(0, 3)
    x = pixels([square])
    patches = model.vision.patches(x).flatten(2).transpose(1, 2)
    rows = [6 * (corner[0] + i) + corner[1] + j for i in range(3) for j in range(3)]
    expected = model.vision.pool(model.vision.run_blocks(patches + model.vision.W_pos[rows], None))
    torch.testing.assert_close(embed_crops(model.vision, x, torch.tensor([corner])), expected / expected.norm())


@torch.no_grad()
def test_the_pixels_of_a_scene_are_what_the_processor_makes_of_it(siglip):
    some = list(scenes(0, 3))
    torch.testing.assert_close(siglip[0].model.to_pixels([s.picture for s in some]), pixels(some), rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_siglip_is_written_as_it_was_trained(siglip, tmp_path):
    model = siglip[0].model
    folder = write_siglip(model, tmp_path / "model", "card")
    again = load_model(str(folder))
    for name, p in model.named_parameters():
        assert torch.equal(p.detach().bfloat16().float(), again.get_parameter(name)), name
    texts = ["A small Red circle, at the top-left!", "an unheard word"]
    assert torch.equal(again.to_tokens(texts), model.to_tokens(texts))
    assert again.words.decode(again.to_tokens(texts)[0]) == "a small red circle at the topleft".replace("topleft", "").strip()


def test_every_kind_of_question_is_drawn_and_answered_by_the_world():
    rng, kinds = np.random.default_rng(0), set()
    for i in range(60):
        question = draw_question(scene(1, i), rng, PaliGemmaRecipe().kinds)
        assert question in scene(1, i).questions()
        kinds.add(question.kind)
    assert kinds == set(KINDS)


@torch.no_grad()
def test_a_projected_patch_begins_as_long_as_a_word(paligemma):
    model = paligemma.model
    patches = model.projector(model.vision(pixels(list(scenes(8, 8))))).norm(dim=-1).mean()
    words = model.embed_tokens(torch.arange(300, 8192)[None]).norm(dim=-1).mean()
    assert patches / words == pytest.approx(1, abs=0.1)


def test_only_projector_adapter_and_new_rows_are_trained(paligemma, tmp_path):
    before = {name: p.clone() for name, p in paligemma.model.state_dict().items()}
    train(paligemma.trained, paligemma.optimizers(), paligemma.recipe, paligemma.loss_at, tmp_path)
    moved = {name for name, p in paligemma.model.state_dict().items() if not torch.equal(p, before[name])}
    assert moved == {"projector.weight", "projector.bias"}
    assert all(b.abs().max() > 0 for b in paligemma.lora.B)
    assert paligemma.lora.rows.shape == (N_NEW, 256)


@torch.no_grad()
def test_a_paligemma_is_written_without_the_weights_of_its_gemma_and_loads_with_them(paligemma, tmp_path):
    folder = write_paligemma(paligemma.model, paligemma.lora, paligemma.lora_config, tmp_path / "model", "card")
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 2.5e6
    loaded, model = load_model(str(folder)), paligemma.model
    assert torch.equal(loaded.embed.weight[:8192], model.embed.weight[:8192])
    assert torch.equal(loaded.embed.weight[8192:], paligemma.lora.rows.bfloat16().float())
    i = paligemma.lora.names.index("blocks.1.mlp.up_proj")
    a, b = (half[i].bfloat16().float() for half in (paligemma.lora.A, paligemma.lora.B))
    expected = model.get_parameter("blocks.1.mlp.up_proj.weight") + paligemma.lora.scale * b @ a
    torch.testing.assert_close(loaded.get_parameter("blocks.1.mlp.up_proj.weight"), expected)
    inputs = loaded.prepare(["answer en what shape is red?"], [scene(0, 0).picture])
    with paligemma.lora.applied(model):
        near = model(inputs)
    assert torch.nn.functional.cosine_similarity(loaded(inputs), near, dim=-1).min() > 0.999


def test_a_folder_takes_its_gemma_from_a_shipped_model_alone(paligemma, tmp_path):
    folder = write_paligemma(paligemma.model, paligemma.lora, paligemma.lora_config, tmp_path / "model", "card")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"language_model_of": "bundled"', '"language_model_of": "../elsewhere"'))
    with pytest.raises(Exception, match="only that of a shipped model is taken"):
        load_model(str(folder))


def test_yes_and_no_are_balanced_in_what_is_asked_of_held_out_pairs():
    pairs = ask(list(scenes(4, 40, counts=(1,), held_out=True)), ("exists", "shape"), held_out=True)
    answers = [q.answer for _, q in pairs if q.kind == "exists"]
    assert answers.count("yes") == answers.count("no") == 20
    assert all(q.held_out for _, q in pairs)
    right = rates(pairs, [q.answer for _, q in pairs])
    assert right["exists"] == {"right": 1.0, "commonest": 0.5, "n": 40}
    assert rates(pairs, ["yes"] * len(pairs))["exists"]["right"] == 0.5


def test_the_overlap_of_boxes_is_that_of_the_definition():
    assert overlap("<loc0000><loc0000><loc0512><loc0512> red ring", (0, 0, 24, 24), 48) == 1
    assert overlap("<loc0000><loc0000><loc0512><loc0512>", (12, 0, 36, 24), 48) == pytest.approx(1 / 3)
    assert overlap("red ring", (0, 0, 24, 24), 48) == 0


def test_ndcg_is_that_of_the_definition():
    answers = np.array([[True, False, True, False, False, False]])
    assert ndcg(np.array([[6.0, 5, 4, 3, 2, 1]]), answers) == pytest.approx((1 + 1 / 2) / (1 + 1 / np.log2(3)))
    assert ndcg(np.array([[6.0, 1, 5, 3, 2, 1]]), answers) == pytest.approx(1)
    assert ndcg(np.array([[0.0, 1, 0, 3, 2, 4]]), answers) == pytest.approx(1 / np.log2(6) / (1 + 1 / np.log2(3)))


def test_a_stretched_table_of_positions_keeps_its_gradient_of_rows():
    rows = torch.arange(6.0).repeat_interleave(6)[:, None]
    assert torch.allclose(stretched(rows, 6), rows, atol=1e-5)
    wide = stretched(rows, 8)[:, 0].reshape(8, 8)
    assert (wide.diff(dim=0) > 0.3).all()
    assert wide.diff(dim=1).abs().max() < 1e-5


def test_a_colpali_starts_from_the_paligemma_and_learns_which_page_answers(paligemma, tmp_path):
    folder = write_paligemma(paligemma.model, paligemma.lora, paligemma.lora_config, tmp_path / "paligemma", "card")
    recipe = ColPaliRecipe(steps=1, batch=3, d_embed=16, rank=2, save_every=1)
    lessons = ColPaliLessons(recipe, start=load_model(str(folder)))
    i = lessons.lora.names.index("blocks.0.attn.q_proj")
    assert torch.equal(lessons.lora.A[i], paligemma.lora.A[i].detach().bfloat16().float())
    train(lessons.trained, lessons.optimizers(), recipe, lessons.loss_at, tmp_path / "run")
    out = write_paligemma(lessons.model, lessons.lora, lessons.lora_config, tmp_path / "colpali", "card")
    loaded = load_model(str(out))
    some = list(pages(0, 2))
    vectors = loaded.embed_pages(loaded.prepare_pages([p.picture for p in some]))
    with lessons.lora.applied(lessons.model), torch.no_grad():
        near = lessons.embed_pages(some)
    assert torch.nn.functional.cosine_similarity(vectors, near, dim=-1).min() > 0.99


def test_the_patches_of_a_cell_are_those_that_the_page_draws_it_on():
    assert CELLS.shape == (8, 8)
    assert CELLS[0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert CELLS[3].tolist() == [20, 21, 22, 23, 28, 29, 30, 31]
    assert sorted(CELLS.flatten().tolist()) == list(range(64))


def test_reading_costs_nothing_where_every_cell_points_at_its_names_and_the_logarithm_of_their_number_by_chance():
    names = (*WORDS, *COLOURS, *SHAPES)
    items = ["river", ("red", "ring")]
    right = torch.zeros(2, len(names))
    right[0, names.index("river")] = right[1, names.index("red")] = right[1, names.index("ring")] = 50
    assert reading_loss(right, items) < 1e-6
    chance = (math.log(len(names)) + math.log(len(WORDS) + 6)) / 2
    assert reading_loss(torch.zeros(2, len(names)), items).item() == pytest.approx(chance)


def test_a_words_cells_are_compared_with_all_cells_without_it():
    scores = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 3.0]])
    holds = torch.tensor([[True, False, False], [False, True, True]])
    one, two = math.log1p(math.exp(-2) + math.exp(-1)), math.log1p(math.exp(-3))
    assert word_loss(scores, holds).item() == pytest.approx((one + two) / 2, rel=1e-5)


def test_both_lessons_in_reading_train_the_tower_and_the_projector_of_the_colpali_itself(paligemma, tmp_path):
    folder = write_paligemma(paligemma.model, paligemma.lora, paligemma.lora_config, tmp_path / "paligemma", "card")
    recipe = ColPaliRecipe(steps=1, reading=1, batch=3, d_embed=16, rank=2, save_every=1)
    lessons = ColPaliLessons(recipe, start=load_model(str(folder)))
    for name, reading in lessons.lessons_before():
        before = {n: p.detach().clone() for n, p in lessons.model.named_parameters()}
        train(reading.trained, reading.optimizers(), reading.recipe, reading.loss_at, tmp_path / name)
        changed = {n.split(".")[0] for n, p in lessons.model.named_parameters() if not torch.equal(p, before[n])}
        assert changed == {"vision", "projector"}
    assert sorted(path.name for path in tmp_path.glob("reading*")) == ["reading cells", "reading pages"]


def test_the_max_sim_of_the_training_is_that_of_the_model(paligemma):
    from scope.models.paligemma.colpali import ColPali

    generator = torch.Generator().manual_seed(0)
    queries, vectors = torch.randn(3, 5, 4, generator=generator), torch.randn(2, 7, 4, generator=generator)
    queries[1, 3:] = 0
    torch.testing.assert_close(max_sims(queries, vectors), ColPali.scores(queries, vectors))


def test_a_query_names_items_of_its_page():
    rng = np.random.default_rng(0)
    for i in range(20):
        p = page(0, i)
        query = draw_query(p, rng, 0.5, 2)
        assert p.answers(query)
        assert len(set(query)) == len(query)


def test_an_unknown_recipe_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="siglip, paligemma, colpali"):
        make_picture_model("clip", tmp_path)


def test_another_recipe_in_a_folder_is_refused_before_its_lessons_begin(tmp_path):
    write_json(tmp_path / "recipe.json", {"steps": 7})
    with pytest.raises(ConfigError, match="steps: 7 then, 1 now"):
        make_picture_model("colpali", tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]
