"""ColPali equals transformers' model from each of its layouts; MaxSim equals the loop; what does not fit is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from scope.errors import CheckpointError, ConfigError, PictureError
from scope.models.load import load_model
from scope.models.paligemma.late_interaction import max_sim
from scope.pretrain.tokenizer import save_tokenizer
from tests.models.flow import _loss, at_real_tokens, flow
from tests.models.paligemma_flow import as_language_model
from tests.models.vision_flow import TowerFlow, assert_same_hooks
from tests.models.vision_twins import colpali, paligemma, prompt, respell, save_with_words, some_pixels

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'


def reference(folder, **options):
    from transformers import ColPaliForRetrieval

    return ColPaliForRetrieval.from_pretrained(folder, attn_implementation="eager", **options).eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory, toy_tokenizer):
    folder = colpali(tmp_path_factory.mktemp("colpali"))
    save_tokenizer(toy_tokenizer.backend, folder, 128)
    return load_model(str(folder)), reference(folder)


@pytest.fixture(scope="module")
def with_words(tmp_path_factory, toy_text):
    """(ours, transformers' ColPaliProcessor) of one folder."""
    folder = tmp_path_factory.mktemp("words")
    processor = save_with_words(folder, toy_text, retrieval=True)
    return load_model(str(folder)), processor


def page(n: int = 2) -> dict[str, torch.Tensor]:
    return prompt(n, prefix=5, answer=0)


def query(n: int = 2) -> dict[str, torch.Tensor]:
    ids = prompt(n, prefix=7, answer=0, seed=4)["input_ids"][:, 9:]
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}


@torch.no_grad()
def test_vectors_of_pages_and_queries_are_those_of_transformers(pair):
    ours, theirs = pair
    close = {"rtol": 0, "atol": 2e-6}
    pages, queries = page(3), query(2)
    vectors = ours.embed_pages(pages["input_ids"], pages["pixel_values"])
    torch.testing.assert_close(vectors, theirs(**pages).embeddings, **close)
    torch.testing.assert_close(ours.embed_queries(queries["input_ids"]), theirs(**queries).embeddings, **close)
    torch.testing.assert_close(ours(pages), vectors, **close)
    for padded in (page(2), query(2)):
        mask = torch.ones_like(padded["input_ids"])
        mask[1, -3:] = 0
        padded["attention_mask"] = mask
        torch.testing.assert_close(ours(padded), theirs(**padded).embeddings, **close)
        assert not ours(padded)[1, -3:].any()


def test_every_hook_and_its_gradient_equal_what_flows_in_transformers(pair):
    """The loss reads the vectors through a fixed random matrix, so that `flow` finds logits of tokens."""
    ours, theirs = pair
    inputs, words = page(2), torch.randn(16, 128, generator=torch.Generator().manual_seed(9))
    tokens = inputs["input_ids"]

    def run(ids, **options):
        names = {name: x for name, x in inputs.items() if name != "input_ids"}
        out = theirs(ids, **names, **options)
        return SimpleNamespace(logits=out.embeddings @ words, attentions=out.attentions, hidden_states=out.hidden_states)

    language = as_language_model(SimpleNamespace(
        config=theirs.config.vlm_config, model=theirs.vlm, lm_head=theirs.embedding_proj_layer), run)  # fmt: skip
    values, grads = flow(language, tokens, grad=True)
    for table in (values, grads):
        table["proj.hook_out"] = table.pop("unembed.hook_out")
    tower = TowerFlow()
    with tower.watch(theirs.vlm.vision_tower, "vision."):
        tower.on(theirs.vlm.multi_modal_projector, "projector.hook_out")
        out = theirs(**inputs)
    tower.seen["hook_embeddings"] = (out.embeddings, lambda x: x)
    tower_grads = tower.gradients(_loss(out.embeddings @ words, tokens, None))
    tensors, fwd, bwd = ours.get_caching_hooks(incl_bwd=True)
    with ours.hooks(fwd, bwd, must_fire=False):
        _loss(ours(inputs) @ words, tokens, None).backward()
    ours.zero_grad()
    assert set(tower.seen) | set(values) == set(ours.match(None)) - {"unembed.hook_out"}
    assert_same_hooks(list(tower.seen), tensors, tower, tower_grads)
    every = torch.ones_like(tokens).bool()
    for name in values:
        if not name.endswith("attn_scores"):
            pairs = [at_real_tokens(name, x, every) for x in (tensors[name], values[name])]
            torch.testing.assert_close(*pairs, rtol=1e-5, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        worst = (tensors[f"{name}_grad"] - grads[name]).abs().max()
        assert worst < 1e-4 * grads[name].abs().max(), name


@torch.no_grad()
def test_sites_of_the_head_are_recorded_and_edited(pair):
    ours, _ = pair
    rows = ours.record(page(2), ["hook_embeddings", "proj.hook_out", "unembed.hook_in", "blocks.0.hook_resid_post"])
    assert {name: x.shape[-1] for name, x in rows.items()} == {
        "hook_embeddings": 16, "proj.hook_out": 16, "unembed.hook_in": 32, "blocks.0.hook_resid_post": 32}  # fmt: skip
    torch.testing.assert_close(rows["hook_embeddings"], ours(page(2)))
    edited = ours.run_with_hooks(page(2), fwd_hooks=[("projector.hook_out", lambda x, hook: x * 0)])
    assert (edited - ours(page(2))).abs().max() > 0.1


def engine(name: str) -> str:
    """As colpali-engine saves it."""
    if name.startswith("embedding_proj_layer."):
        return name.replace("embedding_proj_layer.", "custom_text_proj.")
    return name.replace("vlm.", "model.").replace("vision_tower.", "vision_tower.vision_model.")


def engine_config(raw: dict) -> dict:
    return raw["vlm_config"] | {"architectures": ["ColPali"], "model_type": "paligemma"}


def hub(name: str) -> str:
    """As the hub's -hf has it."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")


SPELLINGS = {
    "-hf": (hub, lambda raw: raw, 2),
    "merged, as colpali-engine saves it": (engine, engine_config, 1),
    "as transformers 5 names it in memory": (lambda name: name.replace(".model.layers", ".layers"), lambda raw: raw, 1),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@torch.no_grad()
def test_every_layout_is_the_same_model(tmp_path, toy_tokenizer, spelling):
    rename, config, shards = SPELLINGS[spelling]
    folder = colpali(tmp_path, d_embed=128)
    expected = reference(folder)(**page()).embeddings
    respell(folder, rename, config, shards)
    save_tokenizer(toy_tokenizer.backend, folder, 128)
    model = load_model(str(folder))
    torch.testing.assert_close(model(page()), expected, rtol=0, atol=2e-6)
    assert model.cfg.family_name == "ColPali"


@torch.no_grad()
def test_an_adapter_in_the_layout_of_colpali_engine_is_added_to_its_base(tmp_path, toy_tokenizer):
    """Low-rank updates of every linear map of the language model and of the projection, alpha / r times B A."""
    base = colpali(tmp_path / "base", d_embed=128)
    theirs, generator = reference(base), torch.Generator().manual_seed(5)
    tensors = {}
    for name, module in theirs.named_modules():
        if not isinstance(module, torch.nn.Linear) or not ("language_model" in name or "embedding_proj" in name):
            continue
        a = torch.randn(4, module.in_features, generator=generator) * 0.2
        b = torch.randn(module.out_features, 4, generator=generator) * 0.2
        module.weight += (8 / 4) * b @ a
        spelled = engine(name.replace("language_model.layers", "language_model.model.layers"))
        tensors[f"base_model.model.{spelled}.lora_A.weight"] = a
        tensors[f"base_model.model.{spelled}.lora_B.weight"] = b
    assert len(tensors) == 2 * (3 * 7 + 1)
    respell(base, engine, engine_config)
    save_tokenizer(toy_tokenizer.backend, base, 128)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 4, "lora_alpha": 8, "bias": "none",
                "init_lora_weights": "gaussian", "task_type": "FEATURE_EXTRACTION", "lora_dropout": 0.1,
                "target_modules": "(.*(language_model).*(down_proj|q_proj).*$|.*(custom_text_proj).*$)"}  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    expected = theirs(**page()).embeddings
    for name in (str(adapter), f"{base}+{adapter}"):
        model = load_model(name)
        torch.testing.assert_close(model(page()), expected, rtol=0, atol=1e-5)
    assert model.provenance["adapter"] == str(adapter)
    assert len(model.adapter.updates) == 22
    other = paligemma(tmp_path / "other")
    save_tokenizer(toy_tokenizer.backend, other, 128)
    with pytest.raises(CheckpointError, match="embedding_proj_layer"):
        load_model(f"{other}+{adapter}")


def by_loop(queries: list[torch.Tensor], pages: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([[sum(max(float(a @ b) for b in page) for a in query) for page in pages] for query in queries])


@pytest.mark.parametrize("at_once", [1, 40, 1 << 24])
def test_max_sim_is_the_loop_whatever_is_padded(at_once):
    """All similarities of one page are negative: a padded slot, whose similarity is 0, must not win."""
    unit = torch.nn.functional.normalize
    generator = torch.Generator().manual_seed(0)
    queries = [unit(torch.randn(n, 6, generator=generator), dim=-1) for n in (3, 5, 1)]
    pages = [unit(torch.randn(n, 6, generator=generator), dim=-1) for n in (4, 2, 7, 3)]
    pages[1] = -unit(queries[0].sum(0, keepdim=True), dim=-1).expand(2, -1)
    expected = by_loop(queries, pages)
    pad = torch.nn.utils.rnn.pad_sequence
    for q, p in ((queries, pages), (pad(queries, True), pad(pages, True)), (queries, pad(pages, True, padding_side="left"))):
        torch.testing.assert_close(max_sim(q, p, at_once), expected, rtol=0, atol=1e-5)


def test_scores_are_those_of_transformers_processor_where_nothing_is_padded(pair):
    from transformers import ColPaliProcessor

    ours, _ = pair
    with torch.no_grad():
        pages, queries = ours.embed_pages(page(3)), ours.embed_queries(query(2))
    expected = ColPaliProcessor.score_retrieval(None, queries, pages)
    torch.testing.assert_close(ours.scores(queries, pages), expected, rtol=0, atol=1e-5)
    assert ours.scores(queries.bfloat16(), pages.bfloat16()).dtype == torch.float32


@torch.no_grad()
def test_a_batch_of_unequal_queries_gives_what_each_gives_alone(with_words):
    ours, _ = with_words
    texts = ["the dog", "an angry crowd counts 12 apples. the teacher"]
    together = ours.embed_queries(ours.prepare_queries(texts))
    pages = torch.nn.functional.normalize(torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    for i, text in enumerate(texts):
        alone = ours.embed_queries(ours.prepare_queries(text))
        torch.testing.assert_close(together[i, : alone.shape[1]], alone[0], rtol=0, atol=5e-6)
        torch.testing.assert_close(ours.scores(together, pages)[i], ours.scores(alone, pages)[0], rtol=0, atol=5e-5)


@torch.no_grad()
def test_tokens_of_pages_and_queries_are_those_of_transformers_processor(with_words):
    (ours, theirs), texts = with_words, ["the dog runs", "who sails over the moon?", ""]
    expected, inputs = theirs(text=texts), ours.prepare_queries(texts)
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["attention_mask"].long(), expected["attention_mask"])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 31, 3)).astype(np.uint8))
    expected, inputs = theirs(images=[picture, picture]), ours.prepare_pages([picture, picture])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-5)
    assert ours.embed_pages(inputs).shape == (2, inputs["input_ids"].shape[1], 16)


def test_what_a_colpali_cannot_do_is_refused_with_the_way_out(pair):
    ours, _ = pair
    pages, queries = page(2), query(2)
    with pytest.raises(PictureError, match="give pixel_values"):
        ours.embed_pages(queries["input_ids"])
    with pytest.raises(PictureError, match="A query is text"):
        ours.embed_queries(pages)
    with pytest.raises(PictureError, match="18 image tokens"):
        ours.embed_pages(pages["input_ids"], some_pixels(1, 15))
    with pytest.raises(PictureError, match="names no file"):
        ours.cfg.pictures.to_pixels(["a page about dogs"])
    with pytest.raises(PictureError, match="no page"):
        ours.prepare_pages([])
    with pytest.raises(ConfigError, match="writes no text"):
        ours(pages, return_type="logits")
    with pytest.raises(ConfigError, match="writes no text"):
        ours.generate(pages)
    for vectors in (torch.ones(2, 16), torch.ones(1, 2, 0, 16)):
        with pytest.raises(ConfigError, match=r"\[n, pos, d_embed\]"):
            ours.scores(vectors, torch.ones(1, 2, 16))
    with pytest.raises(ConfigError, match="Item 0 of 2 is a query without a vector"):
        ours.scores(torch.ones(2, 0, 16), torch.ones(1, 2, 16))
    with pytest.raises(ConfigError, match="There is no page"):
        ours.scores(torch.ones(1, 2, 16), [])
    with pytest.raises(ConfigError, match="Item 1 of 2 is a page without a vector"):
        ours.scores(torch.ones(1, 2, 16), torch.stack([torch.ones(3, 16), torch.zeros(3, 16)]))
    with pytest.raises(ConfigError, match="16 numbers and those of pages 8"):
        ours.scores(torch.ones(1, 2, 16), torch.ones(1, 2, 8))


def test_a_checkpoint_without_its_projection_is_refused(tmp_path, toy_tokenizer):
    folder = colpali(tmp_path)
    save_tokenizer(toy_tokenizer.backend, folder, 128)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("embedding_proj_layer.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="lacks 1 tensors, first embedding_proj_layer"):
        load_model(str(folder))
