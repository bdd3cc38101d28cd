"""PEFT adapters give what PEFT gives, under a name and a hash of their own; what is not computed is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scope.errors import CheckpointError, ConfigError
from scope.models.checkpoints import BUNDLED
from scope.models.load import load_model
from tests.conftest import random_gemma
from tests.models.twins import SHAPES, reference, save_checkpoint, some_tokens

CLOSE = {"rtol": 0, "atol": 1e-4}  # theirs adds the update to the outputs, ours to the weights
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "LoRA of all linear layers": {"target_modules": ALL_LINEAR, "lora_alpha": 16},
    "rsLoRA of two": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True, "lora_alpha": 3},
    "DoRA": {"target_modules": ["v_proj", "up_proj"], "use_dora": True},
    "ranks and alphas by pattern": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "up_proj": 3},
        "alpha_pattern": {r"layers\.[12]\..*q_proj": 32},
    },
    "some layers, chosen by an expression": {"target_modules": r".*\.(0|2)\.(self_attn|mlp)\.(k|gate)_proj"},
    "layers by number": {"target_modules": ["o_proj"], "layers_to_transform": [1]},
    "norms saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["norm", "input_layernorm"]},
    "rows of the embedding": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 9, 30]}},
}
FAMILY = ["several kv heads, low caps", "Gemma 1, one kv head", "Gemma 3, scaled positions, one kv head"]

CASES = [(FAMILY[0], kind) for kind in KINDS] + [(shape, "LoRA of all linear layers") for shape in FAMILY[1:]]


def save_adapter(folder: Path, base: Path, **settings) -> tuple[Path, torch.nn.Module]:
    """(an adapter of random numbers as PEFT saves it, PEFT's model with it applied and not merged)."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(reference(base), LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM"} | settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and "base_layer" not in name:
                noise = torch.randn(p.shape, generator=generator)
                p.copy_(p + 0.1 * noise if "lora_magnitude" in name else 0.2 * noise)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return folder, model.eval()


@pytest.fixture
def gemma_2(tmp_path, toy_tokenizer) -> Path:
    return save_checkpoint(random_gemma(SHAPES[FAMILY[0]]), tmp_path / "base", toy_tokenizer)


@pytest.mark.filterwarnings("ignore")  # peft's
@pytest.mark.parametrize(("shape", "kind"), CASES)
@torch.no_grad()
def test_an_adapter_gives_the_logits_that_peft_gives(shape, kind, tmp_path, toy_tokenizer):
    base = save_checkpoint(random_gemma(SHAPES[shape]), tmp_path / "base", toy_tokenizer)
    adapter, theirs = save_adapter(tmp_path / "adapter", base, **KINDS[kind])
    ours = load_model(str(base), adapter=str(adapter))
    tokens = some_tokens(ours.cfg)
    logits = ours(tokens)
    torch.testing.assert_close(logits, theirs(tokens, use_cache=False).logits, **CLOSE)
    assert (logits - load_model(str(base))(tokens)).abs().max() > 0.05
    if kind != "rows of the embedding":
        streamed = load_model(f"{base}+{adapter}", streamed=True)
        torch.testing.assert_close(streamed(tokens), logits, **CLOSE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(p.name for p in (BUNDLED / "adapters").iterdir()))
@torch.no_grad()
def test_a_shipped_adapter_is_read_back_by_peft_with_equal_logits(name):
    from peft import PeftModel

    folder = BUNDLED / "adapters" / name
    theirs = PeftModel.from_pretrained(reference(BUNDLED), folder).eval()
    rows = (json.loads((folder / "adapter_config.json").read_text()).get("trainable_token_indices") or {}).get(
        "embed_tokens", []
    )
    ours = load_model(f"bundled+{name}")
    tokens = torch.randint(7, ours.cfg.d_vocab, (2, 40), generator=torch.Generator().manual_seed(0))
    tokens[0, : len(rows[:40])] = torch.tensor(rows[:40], dtype=torch.long)  # the rows that it trained are among them
    torch.testing.assert_close(ours(tokens), theirs(tokens, use_cache=False).logits, **CLOSE)
    assert (ours(tokens) - load_model("bundled")(tokens)).abs().max() > 1


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_an_adapter_is_found_in_three_ways_and_named_with_its_base(gemma_2, tmp_path):
    adapter, _ = save_adapter(tmp_path / "adapter", gemma_2, **KINDS["LoRA of all linear layers"])
    loaded = [load_model(str(gemma_2), adapter=str(adapter)), load_model(f"{gemma_2}+{adapter}"), load_model(str(adapter))]
    tokens = some_tokens(loaded[0].cfg)
    assert all(torch.equal(model(tokens), loaded[0](tokens)) for model in loaded)
    assert {json.dumps(model.provenance) for model in loaded} == {json.dumps(loaded[0].provenance)}
    provenance, plain = loaded[0].provenance, load_model(str(gemma_2)).provenance
    assert (provenance["model"], provenance["adapter"]) == (f"{gemma_2}+{adapter}", str(adapter))
    assert provenance["weights_sha256"] != plain["weights_sha256"]
    assert torch.equal(load_model(provenance["model"])(tokens), loaded[0](tokens))
    update = loaded[0].adapter.updates["blocks.1.attn.q_proj.weight"]
    assert update.delta().shape == loaded[0].blocks[1].attn.q_proj.weight.shape


@pytest.mark.filterwarnings("ignore")
def test_another_adapter_of_the_same_base_is_another_model(gemma_2, tmp_path):
    adapter, _ = save_adapter(tmp_path / "adapter", gemma_2, **KINDS["DoRA"])
    before = load_model(str(adapter)).provenance["weights_sha256"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(tensors))
    tensors[name][0, 0] += 1e-3
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert load_model(str(adapter)).provenance["weights_sha256"] != before


REFUSED = {
    "another method": ({"peft_type": "IA3"}, "of type IA3; LORA is applied here"),
    "a start that changes the base": ({"init_lora_weights": "pissa_niter_4"}, "changes the base too"),
    "biases": ({"bias": "all"}, "sets bias"),
    "a setting of tomorrow": ({"use_moonlora": True}, "sets use_moonlora"),
    "a rank that is not that of the matrices": ({"r": 8}, "says rank 8 .* have 4"),
    "a rank of a wrong type": ({"r": "4"}, "Expected `int`"),
    "DoRA without its magnitudes": ({"use_dora": True}, "says use_dora True"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_not_computed_is_refused_with_the_way_out(case, gemma_2, tmp_path):
    adapter, _ = save_adapter(tmp_path / "adapter", gemma_2, **KINDS["rsLoRA of two"])
    file, (change, says) = adapter / "adapter_config.json", REFUSED[case]
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=says):
        load_model(str(adapter))


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_for_another_base_is_refused(gemma_2, tmp_path, toy_tokenizer):
    adapter, _ = save_adapter(tmp_path / "adapter", gemma_2, **KINDS["LoRA of all linear layers"])
    for shape in ("one kv head, three layers", "query scale that is not 1/sqrt(d_head)"):
        other = save_checkpoint(random_gemma(SHAPES[shape]), tmp_path / shape.replace("/", ""), toy_tokenizer)
        with pytest.raises(CheckpointError, match=rf"does not fit {re.escape(str(other))}(.|\n)*made for .*/base; give that"):
            load_model(f"{other}+{adapter}")


@pytest.mark.filterwarnings("ignore")  # peft's
def test_an_adapter_of_another_base_of_the_same_shape_is_applied_with_a_warning(gemma_2, tmp_path):
    adapter, _ = save_adapter(tmp_path / "adapter", gemma_2, **KINDS["LoRA of all linear layers"])
    tuned = shutil.copytree(gemma_2, tmp_path / "tuned")
    with pytest.warns(UserWarning, match=r"was made for .*/base; it is applied to .*/tuned"):
        load_model(str(tuned), adapter=str(adapter))


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_or_unfinished_adapter_is_named(gemma_2, tmp_path):
    adapter, _ = save_adapter(tmp_path / "adapter", gemma_2, **KINDS["LoRA of all linear layers"])
    weights = adapter / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is damaged or was cut short"):
        load_model(str(adapter))
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors; it holds"):
        load_model(str(adapter))
    (adapter / "adapter_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is damaged"):
        load_model(str(adapter))
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match=r"does not name its base(.|\n)*BASE\+"):
        load_model(str(adapter))


def test_a_base_that_cannot_be_found_is_named_with_the_way_to_give_another(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "./nowhere"}')
    with pytest.raises(CheckpointError, match=r"adapter of \./nowhere: There is no folder(.|\n)*give BASE\+"):
        load_model(str(adapter))
    with pytest.raises(CheckpointError, match="There is no adapter sonnets"):
        load_model("bundled+sonnets")


@pytest.mark.filterwarnings("ignore")
def test_an_embedding_of_its_own_is_refused_where_the_unembedding_stays_the_bases(gemma_2, tmp_path):
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    adapter, _ = save_adapter(tmp_path / "adapter", gemma_2, **settings)
    with pytest.raises(CheckpointError, match="a Gemma ties the two"):
        load_model(str(adapter))


def test_an_adapter_beside_whole_weights_is_refused_rather_than_left_out(gemma_2):
    (gemma_2 / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match=r"whole model and beside it an adapter(.|\n)*move adapter_config\.json away"):
        load_model(str(gemma_2))


def test_transformer_lens_models_take_no_adapter():
    with pytest.raises(ConfigError, match="TransformerLens' models take none"):
        load_model("lens:gpt2", adapter="x")
