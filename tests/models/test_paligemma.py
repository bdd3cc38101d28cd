"""PaliGemma 1 and 2 equal transformers' eager model at every hook and its gradient; prefix, pictures, caches and spellings."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from scope.errors import CheckpointError, ConfigError, PictureError, TokensError
from scope.models.face import LanguageModel
from scope.models.load import load_model
from scope.pretrain.tokenizer import save_tokenizer
from tests.models.flow import _loss, at_real_tokens
from tests.models.paligemma_flow import paligemma_flow
from tests.models.vision_flow import assert_same_hooks
from tests.models.vision_twins import IMAGE_TOKEN, paligemma, prompt, respell, save_with_words, some_pixels

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
SHAPES = {
    "PaliGemma": (1, {}),
    "PaliGemma 2, a window shorter than the picture": (2, {}),
    "PaliGemma 2, a kv head each, other layers": (
        2, {"num_key_value_heads": 4, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    ),
}  # fmt: skip


def reference(folder, **options):
    from transformers import PaliGemmaForConditionalGeneration

    options = {"attn_implementation": "eager"} | options
    return PaliGemmaForConditionalGeneration.from_pretrained(folder, **options).eval()


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request, tmp_path_factory, toy_tokenizer):
    version, text = SHAPES[request.param]
    folder = paligemma(tmp_path_factory.mktemp("paligemma"), version, **text)
    save_tokenizer(toy_tokenizer.backend, folder, 128)
    return load_model(str(folder)), reference(folder)


@pytest.mark.parametrize("padding", ["none", "left"])
def test_every_hook_and_its_gradient_equal_what_flows_in_transformers(pair, padding):
    ours, theirs = pair
    inputs = prompt(3)
    mask = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    if padding == "left":
        shifts = [0, 2, 5]
        for name, fill in (("input_ids", 0), ("token_type_ids", 0)):
            rows = [torch.nn.functional.pad(row, (n, 5 - n), value=fill) for row, n in zip(inputs[name], shifts, strict=True)]
            inputs[name] = torch.stack(rows)
        mask = torch.stack([(torch.arange(23) >= n) & (torch.arange(23) < 18 + n) for n in shifts])
        inputs["attention_mask"] = mask.long()
    places = {} if padding == "none" else {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0) + 1}
    given = None if padding == "none" else mask
    values, grads, tower, tower_grads = paligemma_flow(theirs, inputs | places, given)
    tensors, fwd, bwd = ours.get_caching_hooks(incl_bwd=True)
    with ours.hooks(fwd, bwd):
        logits = ours(inputs)
        _loss(logits, inputs["input_ids"], given).backward()
    ours.zero_grad()
    assert set(tower.seen) | set(values) == set(ours.match(None))
    assert_same_hooks(list(tower.seen), tensors, tower, tower_grads)
    exact = 0
    for name in values:
        pairs = [at_real_tokens(name, x, mask) for x in (tensors[name], values[name])]
        slopes = [at_real_tokens(name, x, mask) for x in (tensors[f"{name}_grad"], grads[name])]
        if name.endswith("attn_scores"):  # what is masked differs: theirs were taken before the mask
            seen = pairs[0] > -1e30
            pairs = [x[seen] for x in pairs]
        if name.endswith("hook_pattern"):
            seen = at_real_tokens(name, tensors[name.replace("hook_pattern", "hook_attn_scores")], mask) > -1e30
            slopes = [x[seen] for x in slopes]
        torch.testing.assert_close(*pairs, rtol=1e-5, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        exact += torch.equal(*pairs)
        assert (slopes[0] - slopes[1]).abs().max() < 1e-4 * slopes[1].abs().max(), name
    assert padding == "left" or exact > 0.7 * len(values)


@torch.no_grad()
def test_logits_are_those_of_transformers_with_hooks_idle_whatever_is_looked_at(pair):
    ours, theirs = pair
    for inputs in (prompt(3), prompt(1, answer=0), prompt(2, prefix=1, answer=1), prompt(1, pictures=2)):
        expected = theirs(**inputs).logits
        torch.testing.assert_close(ours(inputs), expected, rtol=0, atol=3e-5)
        tokens, types, pixels = (inputs[name] for name in ("input_ids", "token_type_ids", "pixel_values"))
        named = ours(tokens, pixel_values=pixels, token_type_ids=types)
        torch.testing.assert_close(named, expected, rtol=0, atol=3e-5)
        watched, _ = ours.run_with_cache(inputs)
        torch.testing.assert_close(watched, expected, rtol=0, atol=3e-5)
    words = prompt(2)["input_ids"][:, 9:]
    types = torch.tensor([0] * 4 + [1] * 5).expand(2, -1)
    expected = theirs(input_ids=words, token_type_ids=types).logits  # no picture at all
    torch.testing.assert_close(ours(words, token_type_ids=types), expected, rtol=0, atol=3e-5)


@torch.no_grad()
def test_who_sees_whom_is_the_definition_written_as_a_loop(pair):
    ours, _ = pair
    inputs = prompt(2, prefix=3, answer=4)
    types = inputs["token_type_ids"].clone()
    types[1] = (torch.arange(16) >= 10).long()  # each row has its own prefix
    inputs["token_type_ids"] = types
    _, cache = ours.run_with_cache(inputs, names_filter=lambda name: name.endswith("hook_pattern") and name[0] == "b")
    for layer in range(ours.cfg.n_layers):
        window = ours.cfg.local_window(layer) or 10**9
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        for row, i, j in product(range(2), range(16), range(16)):
            seen = (0 <= i - j < window) or (types[row, i] == 0 and types[row, j] == 0)
            assert bool((pattern[row, :, i, j] > 0).all()) == bool(seen), (layer, row, i, j)


@torch.no_grad()
def test_without_token_types_transformers_computes_two_functions_and_ours_refuses(tmp_path, toy_tokenizer):
    folder = paligemma(tmp_path)
    save_tokenizer(toy_tokenizer.backend, folder, 128)
    inputs = {name: x for name, x in prompt(2).items() if name != "token_type_ids"}
    eager, fused = reference(folder)(**inputs).logits, reference(folder, attn_implementation="sdpa")(**inputs).logits
    assert (eager - fused).abs().max() > 1
    with pytest.raises(TokensError, match="0 for the picture and the prompt"):
        load_model(str(folder))(inputs)


@torch.no_grad()
def test_patches_take_their_place_in_the_stream_unscaled(pair):
    ours, _ = pair
    inputs = prompt(2)
    _, cache = ours.run_with_cache(inputs)
    stream, embedded = cache["blocks.0.hook_resid_pre"], cache["hook_embed"]
    assert torch.equal(stream[:, :9], cache["projector.hook_out"])
    assert torch.equal(stream[:, 9:], embedded[:, 9:])
    assert torch.equal(embedded[:, 9:], ours.W_E[inputs["input_ids"][:, 9:]])


@torch.no_grad()
def test_generation_with_a_cache_equals_the_full_pass_and_transformers(pair):
    """Rows of unequal length are padded on the left; each gives what it gives alone."""
    (ours, theirs), lengths = pair, (6, 2)
    rows = [prompt(1, prefix=n, answer=0, seed=i) for i, n in enumerate(lengths)]
    longest = max(lengths)
    pad = [longest - n for n in lengths]
    batch = {
        name: torch.cat([torch.nn.functional.pad(row[name], (n, 0)) for row, n in zip(rows, pad, strict=True)])
        for name in ("input_ids", "token_type_ids")
    }
    batch["pixel_values"] = torch.cat([row["pixel_values"] for row in rows])
    batch["attention_mask"] = torch.stack([(torch.arange(9 + longest) >= n).long() for n in pad])
    options = {"do_sample": False, "stop_at_eos": False, "return_type": "generations"}
    together = [g.new_ids for g in ours.generate(batch, 8, **options)]
    alone = [ours.generate(row, 8, **options)[0].new_ids for row in rows]
    uncached = [ours.generate(row, 8, **options, use_past_kv_cache=False)[0].new_ids for row in rows]
    assert together == alone == uncached
    out = theirs.generate(**rows[0], max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert tuple(out[0, rows[0]["input_ids"].shape[1] :].tolist()) == alone[0]


@torch.no_grad()
def test_a_cached_pass_has_the_logits_of_the_full_pass(pair):
    ours, _ = pair
    inputs = prompt(2, prefix=4, answer=9)
    full, cut = ours(inputs), 13
    cache = ours.new_cache()
    first = {name: x[:, :cut] if x.dim() == 2 else x for name, x in inputs.items()}
    parts = [ours(first, cache=cache)]
    for at in range(cut, 22, 3):
        parts.append(ours(inputs["input_ids"][:, at : at + 3], cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=0, atol=2e-5)
    with pytest.raises(TokensError, match="continue a cache are an answer"):
        ours(torch.ones(2, 1, dtype=torch.long), token_type_ids=torch.zeros(2, 1, dtype=torch.long), cache=cache)
    for layer in range(ours.cfg.n_layers + 1):
        stream = ours(inputs, stop_at_layer=layer)
        again = ours.logits_from(layer, stream, inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
        torch.testing.assert_close(again, full, rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_loss_is_that_of_the_answer_alone(pair):
    ours, theirs = pair
    inputs = prompt(3)
    labels = inputs["input_ids"].masked_fill(inputs["token_type_ids"] == 0, -100)
    torch.testing.assert_close(ours(inputs, return_type="loss"), theirs(**inputs, labels=labels).loss, rtol=1e-5, atol=1e-5)
    per_token = ours(inputs, return_type="loss", loss_per_token=True)
    assert int((per_token > 0).sum()) == 15
    with pytest.raises(TokensError, match="no answer"):
        ours(prompt(1, answer=0), return_type="loss")


@torch.no_grad()
def test_bfloat16_is_as_close_to_float32_as_transformers_bfloat16_is(tmp_path, toy_tokenizer):
    folder = paligemma(tmp_path, 2)
    save_tokenizer(toy_tokenizer.backend, folder, 128)
    inputs = prompt(16)
    exact = reference(folder)(**inputs).logits
    errors = [
        (model(**given).logits if theirs else model(given)).float().sub(exact).abs().mean()
        for theirs, model, given in (
            (False, load_model(str(folder), dtype="bfloat16"), inputs),
            (True, reference(folder, dtype=torch.bfloat16), inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}),
        )
    ]
    assert errors[0] <= 1.1 * errors[1], errors


def released(name: str) -> str:
    """As on the hub: vision_model within the tower."""
    return name.replace("vision_tower.", "vision_tower.vision_model.").replace("vision_model.vision_model.", "vision_model.")


def in_memory(name: str) -> str:
    """As transformers names parameters of a loaded model."""
    return "model." + name.replace("language_model.model.", "language_model.")


def released_config(raw: dict) -> dict:
    """As released: sizes that are defaults left out, a stale number of positions, a wrong hidden_size on top."""
    text = {name: value for name, value in raw["text_config"].items() if name not in (
        "layer_types", "rope_parameters", "rms_norm_eps", "use_bidirectional_attention", "hidden_activation", "attention_bias",
        "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "use_cache", "dtype")}  # fmt: skip
    vision = {name: value for name, value in raw["vision_config"].items() if name not in ("hidden_act", "layer_norm_eps",
              "attention_dropout", "num_channels")}  # fmt: skip
    vision |= {"num_positions": 256, "projector_hidden_act": "gelu_fast"}
    extra = {"hidden_size": 2048, "eos_token_id": [1, 107], "torch_dtype": "bfloat16", "_vocab_size": 9, "ignore_index": -100}
    return raw | extra | {"text_config": text | {"torch_dtype": "bfloat16"}, "vision_config": vision}


SPELLINGS = {
    "as released": (released, released_config, 1),
    "as released, in shards": (released, released_config, 4),
    "as transformers names them in memory": (in_memory, lambda raw: raw, 2),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("spelling", SPELLINGS)
@torch.no_grad()
def test_every_spelling_of_a_checkpoint_is_the_same_model(tmp_path, toy_tokenizer, spelling, version):
    rename, config, shards = SPELLINGS[spelling]
    folder = paligemma(tmp_path, version)
    expected = reference(folder)(**prompt()).logits
    respell(folder, rename, config, shards)
    save_tokenizer(toy_tokenizer.backend, folder, 128)
    model = load_model(str(folder))
    torch.testing.assert_close(model(prompt()), expected, rtol=0, atol=3e-5)
    assert model.cfg.eos == ((1, 107) if spelling.startswith("as released") else (1,))
    assert isinstance(model, LanguageModel)
    assert model.provenance["model"] == str(folder)


@torch.no_grad()
def test_the_image_token_may_lie_beyond_the_vocabulary(tmp_path, toy_tokenizer):
    folder, inputs = paligemma(tmp_path), prompt()
    respell(folder, lambda name: name, lambda raw: raw | {"image_token_index": 500})
    save_tokenizer(toy_tokenizer.backend, folder, 128)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, 500)
    torch.testing.assert_close(load_model(str(folder))(inputs), reference(folder)(**inputs).logits, rtol=0, atol=3e-5)


def test_sizes_that_released_configs_leave_out_are_known():
    from scope.models.paligemma.config import PaliGemmaConfig

    tower = {"hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model", "num_attention_heads": 16,
             "num_hidden_layers": 27, "num_image_tokens": 4096, "num_positions": 256, "image_size": 896, "patch_size": 14,
             "vision_use_head": False, "projection_dim": 2304}  # fmt: skip
    text = {"hidden_size": 2304, "intermediate_size": 9216, "model_type": "gemma2", "num_hidden_layers": 26,
            "num_key_value_heads": 4, "vocab_size": 257216, "num_image_tokens": 4096}  # fmt: skip
    raw = {"model_type": "paligemma", "hidden_size": 2048, "image_token_index": 257152, "eos_token_id": [1, 107]}
    c = PaliGemmaConfig.from_hf(raw | {"text_config": text, "vision_config": tower}, "google/paligemma2-3b-pt-896")
    assert (c.d_model, c.n_heads, c.d_head, c.window, c.attn_cap, c.final_cap) == (2304, 8, 256, 4096, 50, 30)
    assert (c.n_image_tokens, c.eos, c.family_name, c.image_token) == (4096, (1, 107), "PaliGemma 2", 257152)
    text = {"hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8,
            "num_hidden_layers": 18, "num_key_value_heads": 1, "vocab_size": 257216}  # fmt: skip
    tower = {name: value for name, value in tower.items() if name != "image_size"}
    c = PaliGemmaConfig.from_hf(raw | {"text_config": text, "vision_config": tower}, "google/paligemma-3b-pt-224")
    assert (c.d_head, c.attn_cap, c.n_image_tokens, c.family_name) == (256, None, 256, "PaliGemma")


def another_row(inputs: dict) -> dict:
    ids = inputs["input_ids"].clone()
    ids[0, 0], ids[1, 9] = 5, IMAGE_TOKEN
    return inputs | {"input_ids": ids}


REFUSED = {
    "too few image tokens": (lambda p: p | {"input_ids": p["input_ids"][:, 1:], "token_type_ids": p["token_type_ids"][:, 1:]},
                             PictureError, "18 patches, 9 each, and 16 image tokens"),
    "no pictures for image tokens": (lambda p: p | {"pixel_values": None}, PictureError, "no pixel_values are given"),
    "pictures without image tokens": (lambda p: p | {"input_ids": p["input_ids"].clamp(max=99)}, PictureError, "0 image"),
    "pictures of another size": (lambda p: p | {"pixel_values": some_pixels(2, 16)}, PictureError, r"\[image, 3, 15, 15\]"),
    "pictures without a batch": (lambda p: p | {"pixel_values": some_pixels(1, 15)[0]}, PictureError, "these are"),
    "text where pictures belong": (lambda p: p | {"pixel_values": "a cat"}, PictureError, "this is a str"),
    "a patch in another row": (another_row, PictureError, "part of a picture"),
    "types of another shape": (lambda p: p | {"token_type_ids": p["token_type_ids"][:, 1:]}, TokensError, r"\(2, 17\)"),
    "a type that is none": (lambda p: p | {"token_type_ids": p["token_type_ids"] + 1}, TokensError, "other numbers than 0"),
    "a picture that is hidden": (lambda p: p | {"attention_mask": (torch.arange(18) > 3).long().expand(2, -1)}, PictureError,
                                 "hides image tokens"),
    "ids that are none": (lambda p: p | {"input_ids": p["input_ids"] + (p["input_ids"] == 2) * 200}, TokensError, "202"),
    "text": (lambda p: "what is this?", TokensError, "prepare"),
    "no tokens": (lambda p: {"pixel_values": p["pixel_values"]}, TokensError, "no tokens"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_with_the_way_out(pair, kind):
    change, error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        pair[0](change(prompt(2)))


DAMAGE = {
    "no vision tower": (lambda raw: raw.pop("vision_config"), "no vision_config"),
    "a language model of another kind": (lambda raw: raw["text_config"].update(model_type="llama"), "'llama'"),
    "a word for the image token": (lambda raw: raw.update(image_token_index="<image>"), "image_token_index"),
    "a projector of another width": (lambda raw: raw["text_config"].update(hidden_size=36), "shape"),
    "quantised weights": (lambda raw: raw.update(quantization_config={"bits": 4}), "quantised"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_cannot_be_is_refused(tmp_path, toy_tokenizer, damage):
    folder = paligemma(tmp_path)
    save_tokenizer(toy_tokenizer.backend, folder, 128)
    change, message = DAMAGE[damage]
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        load_model(str(folder))


def test_a_head_that_the_tower_still_has_is_left_out_and_streaming_is_refused(tmp_path, toy_tokenizer):
    folder = paligemma(tmp_path)
    save_tokenizer(toy_tokenizer.backend, folder, 128)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"vision_tower.vision_model.head.probe": torch.ones(1, 1, 24)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(folder)).vision.head is None
    with pytest.raises(ConfigError, match="not streamed"):
        load_model(str(folder), streamed=True)


@torch.no_grad()
def test_rows_of_tower_projector_and_stream_are_recorded(pair):
    ours, _ = pair
    inputs = prompt(2)
    sites = ["vision.blocks.1.hook_resid_post", "vision.hook_out", "projector.hook_out"]
    rows = ours.record(inputs, sites)
    assert [tuple(x.shape) for x in rows.values()] == [(2, 9, 24), (2, 9, 24), (2, 9, 32)]
    ran = []
    with ours.hooks([("blocks.1.hook_resid_pre", lambda x, hook: ran.append(1))], must_fire=False):
        rows = ours.record(inputs, ["blocks.0.hook_resid_post"])
    assert not ran
    assert rows["blocks.0.hook_resid_post"].shape == (2, 18, 32)
    order = list(ours.sites())
    assert order.index("projector.hook_out") < order.index("hook_embed") < order.index("blocks.0.hook_resid_pre")
    assert ours.layers_for(["vision.hook_out"]) == 0


@torch.no_grad()
def test_a_batch_of_a_recording_is_read_as_it_is_written(pair):
    from scope.activations.corpus.inputs import Inputs, record
    from scope.activations.corpus.roles import Role

    ours, inputs = pair[0], prompt(2)
    roles = np.where(inputs["input_ids"] == IMAGE_TOKEN, int(Role.IMAGE), int(Role.TEXT)).astype(np.uint8)
    arguments = {name: inputs[name].numpy() for name in ("token_type_ids", "pixel_values")}
    batch = Inputs(tokens=inputs["input_ids"].numpy(), documents=np.zeros((2, 18), int), roles=roles, arguments=arguments)
    rows = record(ours, batch, ["blocks.1.hook_mlp_out"])["blocks.1.hook_mlp_out"]
    expected = ours.record(inputs, ["blocks.1.hook_mlp_out"])["blocks.1.hook_mlp_out"]
    assert torch.equal(rows, expected.flatten(0, 1))


@pytest.fixture(scope="module")
def with_processor(tmp_path_factory, toy_text):
    """(ours, transformers' PaliGemmaProcessor) of one folder, with tokens for places, shapes and the picture."""
    folder = tmp_path_factory.mktemp("processor")
    processor = save_with_words(folder, toy_text)
    return load_model(str(folder)), processor


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 31, 3), np.uint8).astype(np.uint8))


PROMPTS = ["caption en", "detect the dog ; a cat\n", "", "segment <loc0012><seg003> the river", "  two  spaces"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("answers", [None, ["a dog", "<loc0001><loc1023> cat", "", "the river", "nothing\n"]])
def test_tokens_are_those_of_transformers_processor(with_processor, side, answers):
    ours, theirs = with_processor
    pictures = [picture(i) for i in range(5)]
    expected = theirs(images=pictures, text=PROMPTS, suffix=answers, padding="longest", return_tensors="pt", padding_side=side)
    inputs = ours.prepare(PROMPTS, pictures, answers, padding_side=side)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(inputs[name], expected[name].to(inputs[name].dtype)), name
    real = inputs["attention_mask"]
    assert torch.equal(inputs["token_type_ids"][real], expected["token_type_ids"][real])
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-5)
    with torch.no_grad():
        assert torch.isfinite(ours(inputs)[real]).all()


def test_a_text_places_several_pictures_itself(with_processor):
    ours, theirs = with_processor
    some = [picture(1), picture(2)]
    expected = theirs(images=some, text=["<image><image>compare the dogs"], return_tensors="pt")
    assert torch.equal(ours.prepare("<image><image>compare the dogs", some)["input_ids"], expected["input_ids"])
    assert torch.equal(ours.prepare("compare the dogs", [some])["input_ids"], expected["input_ids"])
    with pytest.raises(PictureError, match="names 1 pictures"):
        ours.prepare("<image>what?", some)
    with pytest.raises(PictureError, match="2 texts have 1"):
        ours.prepare(["a", "b"], [picture()])
    with pytest.raises(PictureError, match="Picture 1"):
        ours.prepare(["a", "b"], [picture(), b"no picture"])


def test_text_and_picture_become_text(with_processor):
    ours, _ = with_processor
    inputs = ours.prepare("caption en", picture())
    (generation,) = ours.generate(inputs, 6, do_sample=False, return_type="generations", stop_at_eos=False)
    assert generation.text == ours.words.decode(list(generation.new_ids))
    tokens = ours.generate(inputs, 6, do_sample=False, stop_at_eos=False)
    assert tokens.shape == (1, inputs["input_ids"].shape[1] + 6)
