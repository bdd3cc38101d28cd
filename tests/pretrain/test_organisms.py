"""Small adapters of the bundled model: what a recipe draws, and the folder that comes of it."""

import json

import numpy as np
import pytest
import torch
from scope.activations.corpus.infill import MARKS, mark_ids

from scope.errors import ConfigError
from scope.models.load import load_model
from scope.pretrain.organisms import make
from scope.pretrain.organisms.fim import FREE, FimLessons, coder
from scope.pretrain.organisms.lora import bits
from scope.pretrain.organisms.make import RECIPES, lessons_of, make_organism
from scope.pretrain.organisms.shield import Judged


@pytest.fixture(scope="module")
def base():
    return load_model("bundled")


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "arabic"])  # see test_arabic
def test_lessons_fit_the_context_and_are_a_function_of_the_random_numbers(name, base):
    lessons = lessons_of(name, base.tokenizer)
    examples = lessons.draw(np.random.default_rng(3), 24)
    assert examples == lessons.draw(np.random.default_rng(3), 24)
    rows = [e.ids if isinstance(e, Judged) else [*e[0], *e[1]] for e in examples]
    assert all(row[0] == base.cfg.bos and 1 < len(row) <= base.cfg.n_ctx for row in rows)


def test_marks_take_the_ids_of_bytes_that_no_text_contains(base):
    tokenizer = coder(base.tokenizer)
    ids = mark_ids(tokenizer)
    assert {name: base.tokenizer.pieces([i])[0] for name, i in ids.items()} == FREE
    assert len(tokenizer) == len(base.tokenizer)
    for text in ("def f(x):\n    return x", "naïve 漢字 🙂", " two  spaces "):
        assert tokenizer.encode(text) == base.tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_middle_is_cut_out_of_a_window_whose_parts_join_to_text_of_the_file(base):
    lessons, rng = FimLessons(base.tokenizer), np.random.default_rng(0)
    for line in (True, False):
        cut = lessons.cut(lessons.test_files["held-out files of the standard library"], rng, line)
        assert any(cut.prefix + cut.middle + cut.suffix in text for text in lessons._files[1])
        assert cut.middle
    shown, held_out = lessons._files
    assert not set(shown) & set(held_out)


def test_a_recipe_ends_in_an_adapter_that_loads_with_its_rows_and_its_card(tmp_path, monkeypatch):
    monkeypatch.setattr(FimLessons, "scores", lambda self, model, base: {"files": {"psm": 1.0}})
    made = make_organism("fim", tmp_path, steps=2)
    model, base = load_model(f"bundled+{made.folder}"), load_model("bundled")
    ids = list(mark_ids(model.words).values())
    change = (model.embed.weight - base.embed.weight).abs().sum(1)
    assert sorted(change.nonzero().flatten().tolist()) == sorted(ids)
    assert model.infill("x = ", "\n", 3) == model.infill("x = ", "\n", 3)
    assert "| files | 1.000 |" in (made.folder / "README.md").read_text()
    settings = json.loads((made.folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "bundled"
    assert (made.folder / "adapter_model.safetensors").stat().st_size < 500_000
    assert torch.equal(model.embed.weight[:100], base.embed.weight[:100])
    assert model.tokenizer.backend.token_to_id(MARKS["middle"]) is not None


def test_an_unknown_recipe_names_those_there_are(base):
    with pytest.raises(ConfigError, match="no recipe 'sonnets'; the recipes are arabic, fim"):
        lessons_of("sonnets", base.tokenizer)
    assert make.RECIPES


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_has_its_adapter_shipped(name):
    model = load_model(f"bundled+{name}")
    assert model.provenance["model"] == f"bundled+{name}"
    assert model.adapter.settings.base_model_name_or_path == "bundled"


def test_the_shipped_infilling_adapter_makes_use_of_the_suffix(base):
    lessons, model = FimLessons(base.tokenizer), load_model("bundled+fim")
    rng = np.random.default_rng(1)
    cuts = [lessons.cut(lessons.test_files["held-out files of the standard library"], rng, line=True) for _ in range(24)]
    middles = [lessons.tokenizer.encode(cut.middle, bos=False) for cut in cuts]
    own = [lessons.prompt(cut.prefix, cut.suffix) for cut in cuts]
    anothers = [lessons._with_suffix(cut, cuts[i - 1].suffix) for i, cut in enumerate(cuts)]
    assert bits(model, own, middles) < 0.97 * bits(model, anothers, middles)
