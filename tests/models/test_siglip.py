"""SigLIP equals transformers' eager model at every hook and its gradient, from folders in every spelling."""

import json

import pytest
import torch
from beartype.door import is_bearable

from scope.errors import CheckpointError, ConfigError, PictureError, TokensError, UnknownSite
from scope.models.face import Model, VisionModel
from scope.models.load import load_model
from tests.models.vision_flow import TowerFlow, assert_same_hooks
from tests.models.vision_twins import respell, siglip, some_pixels

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
SHAPES = {"pixels left over": {}, "one head, one block": {"num_attention_heads": 1, "num_hidden_layers": 1, "image_size": 28}}


def tokens(n: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 97, (n, 9), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request, tmp_path_factory):
    from transformers import SiglipModel

    folder = siglip(tmp_path_factory.mktemp("siglip"), **SHAPES[request.param])
    return load_model(str(folder)), SiglipModel.from_pretrained(folder, attn_implementation="eager").eval()


def test_every_hook_and_its_gradient_equal_what_flows_in_transformers(pair):
    ours, theirs = pair
    pixels, ids = some_pixels(3, ours.cfg.vision.image_size), tokens()
    vision, text, weights = TowerFlow(), TowerFlow(), torch.randn(3, 2, generator=torch.Generator().manual_seed(3))
    with vision.watch(theirs.vision_model, "vision."), text.watch(theirs.text_model, "text."):
        out = theirs(input_ids=ids, pixel_values=pixels)
    loss = (out.logits_per_image * weights).sum()
    vision.seen |= text.seen
    grads = vision.gradients(loss)
    tensors, fwd, bwd = ours.get_caching_hooks(incl_bwd=True)
    with ours.hooks(fwd, bwd):
        logits = ours(ids, pixel_values=pixels)
        (logits * weights).sum().backward()
    ours.zero_grad()
    torch.testing.assert_close(logits, out.logits_per_image, rtol=0, atol=1e-5)
    assert set(vision.seen) == set(ours.match(None))
    exact = assert_same_hooks(ours.match(None), tensors, vision, grads)
    assert exact > 0.6, f"{exact:.0%} of the hooks are equal to the last bit"


@torch.no_grad()
def test_vectors_and_logits_are_those_of_transformers_with_hooks_idle(pair):
    ours, theirs = pair
    pixels, ids = some_pixels(4, ours.cfg.vision.image_size, 1), tokens(5, 1)
    out = theirs(input_ids=ids, pixel_values=pixels)
    close = {"rtol": 0, "atol": 2e-6}
    torch.testing.assert_close(ours.embed_images(pixels), out.image_embeds, **close)
    torch.testing.assert_close(ours.embed_texts(ids), out.text_embeds, **close)
    torch.testing.assert_close(ours(ids, pixel_values=pixels), out.logits_per_image, rtol=0, atol=2e-5)
    torch.testing.assert_close(ours({"input_ids": ids, "pixel_values": pixels}), out.logits_per_image, rtol=0, atol=2e-5)
    square = theirs(input_ids=ids[:4], pixel_values=pixels, return_loss=True)
    torch.testing.assert_close(ours.loss_of(ours(ids[:4], pixel_values=pixels)), square.loss)


@torch.no_grad()
def test_bfloat16_is_as_close_to_float32_as_transformers_bfloat16_is(tmp_path):
    from transformers import SiglipModel

    folder = siglip(tmp_path)
    truth, ours = load_model(str(folder)), load_model(str(folder), dtype="bfloat16")
    theirs = SiglipModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.bfloat16).eval()
    pixels = some_pixels(16, 29)
    exact = truth.embed_images(pixels)
    mine, other = ours.embed_images(pixels), theirs(input_ids=tokens(), pixel_values=pixels.bfloat16()).image_embeds
    assert (mine - exact).abs().mean() <= 1.1 * (other - exact).abs().mean()
    _, cache = ours.run_with_cache(pixels)  # looked at everywhere, the numbers stay within rounding
    torch.testing.assert_close(
        cache["vision.hook_pooled"], ours(pixels) * cache["vision.hook_pooled"].norm(dim=-1)[:, None], rtol=0.05, atol=0.05
    )


def hub_spelling(raw: dict) -> dict:
    """As released: defaults left out, a stale number of positions, fields of generation among the towers' own."""
    raw["vision_config"] |= {"num_positions": 256, "projection_dim": 2048, "projector_hidden_act": "gelu_fast"}
    for tower in ("vision_config", "text_config"):
        for name in ("layer_norm_eps", "hidden_act", "attention_dropout", "num_channels", "vision_use_head", "pad_token_id"):
            raw[tower].pop(name, None)
    return raw | {"torch_dtype": "float32", "initializer_factor": 1.0}


SPELLINGS = {
    "as transformers saves it": (lambda name: name, lambda raw: raw, 1),
    "as released": (lambda name: name, hub_spelling, 1),
    "in shards": (lambda name: name, hub_spelling, 3),
    "with the model's own prefix": (lambda name: f"model.{name}", lambda raw: raw, 1),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@torch.no_grad()
def test_every_spelling_of_a_checkpoint_is_the_same_model(tmp_path, spelling):
    expected = load_model(str(siglip(tmp_path / "a")))(tokens(), pixel_values=some_pixels(2, 29))
    rename, config, shards = SPELLINGS[spelling]
    folder = respell(siglip(tmp_path / "b"), rename, config, shards)
    assert torch.equal(load_model(str(folder))(tokens(), pixel_values=some_pixels(2, 29)), expected)


@pytest.mark.parametrize("use_head", [True, False])
@torch.no_grad()
def test_a_vision_tower_alone_loads_with_and_without_its_head(tmp_path, use_head):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from tests.models.vision_twins import VISION, randomise

    config = SiglipVisionConfig(**VISION, image_size=21, patch_size=7, vision_use_head=use_head)
    theirs = randomise(SiglipVisionModel(config))
    theirs.save_pretrained(tmp_path)
    ours, pixels = load_model(str(tmp_path)), some_pixels(2, 21)
    rows = ours.record(pixels, ["vision.hook_out"])["vision.hook_out"]
    torch.testing.assert_close(rows, theirs(pixels).last_hidden_state, rtol=0, atol=1e-5)
    respell(tmp_path, lambda name: f"vision_model.{name}")
    assert torch.equal(load_model(str(tmp_path)).record(pixels, ["vision.hook_out"])["vision.hook_out"], rows)
    with pytest.raises(TokensError, match="vision tower alone"):
        ours(tokens())
    if use_head:
        torch.testing.assert_close(ours(pixels), torch.nn.functional.normalize(theirs(pixels).pooler_output), rtol=0, atol=1e-5)
    else:
        with pytest.raises(ConfigError, match="no pooling head"):
            ours(pixels)


def test_it_is_a_vision_model_for_the_other_rooms(pair):
    assert is_bearable(pair[0], VisionModel)
    assert is_bearable(pair[0], Model)


def test_a_recording_runs_only_the_tower_and_the_blocks_that_are_asked(pair):
    ours, _ = pair
    n = ours.cfg.vision.n_patches
    pixels, d = some_pixels(2, ours.cfg.vision.image_size), ours.cfg.vision.d_model
    ran = []
    with ours.hooks(
        [(lambda name: name.endswith(("resid_post", "hook_pooled")), lambda x, hook: ran.append(hook.name))], must_fire=False
    ):
        rows = ours.record(pixels, ["vision.blocks.0.hook_mlp_out", "vision.blocks.0.attn.hook_z"])
    assert {name: tuple(x.shape) for name, x in rows.items()} == {
        "vision.blocks.0.hook_mlp_out": (2, n, d),
        "vision.blocks.0.attn.hook_z": (2, n, d),
    }
    assert ran == ["vision.blocks.0.hook_resid_post"]
    rows = ours.record({"input_ids": tokens(), "pixel_values": pixels}, ["text.hook_pooled", "vision.hook_pooled"])
    assert [tuple(x.shape) for x in rows.values()] == [(2, 1, ours.cfg.text.d_out), (2, 1, d)]
    widths = ours.sites()
    assert widths["vision.blocks.0.attn.hook_z"] == d
    assert widths["text.blocks.0.mlp.hook_post"] == ours.cfg.text.d_mlp
    assert list(widths).index("vision.hook_patches") < list(widths).index("vision.blocks.0.hook_resid_pre")
    with pytest.raises(ConfigError, match="needs tokens"):
        ours.record(pixels, ["text.hook_pooled"])
    with pytest.raises(UnknownSite, match=r"vision\.blocks"):
        ours.record(pixels, ["vision.blocks.9.hook_resid_post"])


def test_a_hook_edits_what_the_model_computes(pair):
    ours, _ = pair
    pixels = some_pixels(2, ours.cfg.vision.image_size)
    plain = ours.embed_images(pixels).detach()
    for site in (
        "vision.hook_patches",
        "vision.blocks.0.attn.hook_pattern",
        "vision.head.attn.hook_z",
        "vision.hook_pooled",
        "vision.blocks.0.attn.hook_result",
        "vision.ln_final.hook_normalized",
    ):
        edited = ours.run_with_hooks(pixels, fwd_hooks=[(site, lambda x, hook: x * 0.5 + 0.1)])
        assert (edited - plain).abs().max() > 1e-4, site
        same = ours.run_with_hooks(pixels, fwd_hooks=[(site, lambda x, hook: None)])
        torch.testing.assert_close(same, plain, rtol=0, atol=1e-6)


def test_what_the_model_cannot_take_is_refused_with_the_way_out(pair):
    ours, _ = pair
    size = ours.cfg.vision.image_size
    with pytest.raises(PictureError, match=r"(?s)\[image, 3, .*to_pixels"):
        ours(some_pixels(2, size + 1))
    with pytest.raises(PictureError, match="grey levels"):
        ours(None, pixel_values=(some_pixels(1, size) * 9).to(torch.uint8))
    with pytest.raises(PictureError, match="NaN"):
        ours(some_pixels(1, size) * torch.nan)
    with pytest.raises(PictureError, match="tensor"):
        ours(None, pixel_values="a cat")
    with pytest.raises(TokensError, match="vocabulary ends at 96"):
        ours(torch.full((1, 9), 97))
    with pytest.raises(TokensError, match="10 tokens do not fit"):
        ours(torch.ones(1, 10, dtype=torch.long))
    with pytest.raises(TokensError, match="Neither"):
        ours()
    with pytest.raises(TokensError, match=r"no tokenizer\.json"):
        ours("a cat")


DAMAGE = {
    "an activation of another model": (lambda raw: raw["vision_config"].update(hidden_act="quick_gelu"), "activation"),
    "heads that do not divide": (lambda raw: raw["vision_config"].update(num_attention_heads=5), "5 heads"),
    "text where a number belongs": (lambda raw: raw["vision_config"].update(hidden_size="big"), "hidden_size"),
    "another size of picture": (lambda raw: raw["vision_config"].update(image_size=64), "shape"),
    "no patch in a picture": (lambda raw: raw["vision_config"].update(patch_size=64), "hold no patch"),
    "vectors of unequal length": (lambda raw: raw["text_config"].update(projection_size=7), "must have as many"),
    "more blocks than the file has": (lambda raw: raw["text_config"].update(num_hidden_layers=4), "lacks"),
    "fewer blocks than the file has": (lambda raw: raw["text_config"].update(num_hidden_layers=2), "holds tensors no SigLIP"),
    "pictures that are no squares": (lambda raw: raw["vision_config"].update(image_size=[14, 28]), "squares"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_cannot_be_is_refused(tmp_path, damage):
    folder = siglip(tmp_path)
    change, message = DAMAGE[damage]
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        load_model(str(folder))


def test_a_command_that_reads_text_refuses_a_model_that_reads_pictures(tmp_path):
    from scope.workflows.settings import ModelSettings

    with pytest.raises(ConfigError, match="is a SigLIP, which reads pictures"):
        ModelSettings(model=str(siglip(tmp_path)), device="cpu").load_model()


def test_released_sizes_are_what_config_json_leaves_out(tmp_path):
    """The base checkpoints' config.json names no size at all."""
    from scope.models.siglip.config import SiglipConfig

    base = {"vision_config": {"model_type": "siglip_vision_model"}, "text_config": {"model_type": "siglip_text_model"}}
    c = SiglipConfig.from_hf({"model_type": "siglip"} | base, "google/siglip-base-patch16-224")
    assert (c.vision.n_patches, c.vision.d_model, c.text.d_vocab, c.text.n_ctx) == (196, 768, 32000, 64)
    so400m = {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "model_type": "siglip_vision_model",
    }
    c = SiglipConfig.from_hf(so400m, "google/siglip-so400m-patch14-384")
    assert (c.vision.grid, c.vision.d_head, c.text) == (27, 72, None)
