"""Which files of a folder are the checkpoint: one set of weights, or a refusal that names what there is; damage is named."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from scope.errors import CheckpointError, ConfigError, TokensError
from scope.models import load as loading
from scope.models.load import load_model
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from tests.conftest import random_gemma
from tests.models.twins import save_checkpoint

SINGLE, INDEX, SHARD = "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors"
GREEDY = SamplingConfig(max_new_tokens=4, temperature=0, repetition_penalty=1)


@pytest.fixture
def folder(tmp_path, tiny_config, toy_tokenizer):
    return save_checkpoint(random_gemma(tiny_config), tmp_path / "one", toy_tokenizer)


@pytest.fixture
def sharded(tmp_path, tiny_config, toy_tokenizer):
    return save_checkpoint(random_gemma(tiny_config), tmp_path / "many", toy_tokenizer, shards=2)


def edit(file, **changes):
    """Set entries of a JSON file; None takes one away."""
    content = {**(json.loads(file.read_text()) if file.exists() else {}), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def placed(sharded):
    return json.loads((sharded / INDEX).read_text())["weight_map"]


def test_a_single_file_beside_an_index_of_other_shards_is_refused_and_both_are_named(folder, sharded):
    (folder / INDEX).write_bytes((sharded / INDEX).read_bytes())
    with pytest.raises(CheckpointError, match=rf"two sets of weights: {SINGLE}, and the 2 shards that {INDEX} names"):
        load_model(str(folder))
    for shard in set(placed(sharded).values()):  # and no less with the shards themselves
        (folder / shard).write_bytes((sharded / shard).read_bytes())
    with pytest.raises(CheckpointError, match="two sets of weights"):
        load_model(str(folder))
    (folder / SINGLE).unlink()
    load_model(str(folder))


@torch.no_grad()
def test_an_index_that_places_all_in_the_single_file_is_that_file(folder):
    tokens = torch.tensor([[2, 9, 10]])
    expected = load_model(str(folder))(tokens)
    edit(folder / INDEX, weight_map=dict.fromkeys(load_file(folder / SINGLE), SINGLE))
    assert torch.equal(load_model(str(folder))(tokens), expected)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin.index.json"]
)
def test_weights_in_forms_that_transformers_passes_over_are_passed_over(folder, name):
    (folder / name).write_bytes(b"{}")
    load_model(str(folder))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m | dict.fromkeys(m, "../elsewhere.safetensors"), "not the plain name of a file"),
        (lambda m: m | dict.fromkeys(m, "/etc/passwd"), "not the plain name of a file"),
        (lambda m: {**m, next(iter(m)): 3}, "Expected `str`, got `int`"),
        (lambda m: {}, "names no file"),
        (lambda m: dict(list(m.items())[1:]), "which .* does not name: the index is of other shards"),
    ],
)
def test_an_index_that_is_damaged_or_leads_out_of_the_folder_is_refused(sharded, change, says):
    edit(sharded / INDEX, weight_map=change(placed(sharded)))
    with pytest.raises(CheckpointError, match=says):
        load_model(str(sharded))


def test_a_tensor_that_lies_in_two_shards_is_refused_and_both_are_named(sharded):
    """transformers takes the one that it reads last."""
    name, other = next((name, file) for name, file in placed(sharded).items() if file != SHARD)
    tensors = load_file(sharded / SHARD)
    save_file({**tensors, name: load_file(sharded / other)[name] + 1}, sharded / SHARD)
    with pytest.raises(CheckpointError, match=rf"{SHARD} holds {name}, which {INDEX} places in {other}"):
        load_model(str(sharded))


def test_shards_without_their_index_are_said_to_be_so(sharded):
    (sharded / INDEX).unlink()
    with pytest.raises(CheckpointError, match=rf"no {SINGLE}(.|\n)*shards without {INDEX}"):
        load_model(str(sharded))


def test_weights_that_config_json_names_by_a_name_of_their_own_are_refused(folder):
    edit(folder / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors.*transformers_weights"):
        load_model(str(folder))


def test_an_unembedding_of_its_own_that_no_file_holds_is_refused(folder):
    edit(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"no file holds lm_head\.weight"):
        load_model(str(folder))
    tensors = load_file(folder / SINGLE)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / SINGLE)
    load_model(str(folder))


SMALL_FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json", INDEX)
HUGE = '{"a": ' + "[" * 100_000


@pytest.mark.parametrize("name", [*SMALL_FILES, "tokenizer.json", SHARD, "chat_template.jinja"])
@pytest.mark.parametrize("damage", ["pipe", "folder", "nested", "no text"])
def test_a_file_that_is_none_or_is_damaged_is_refused_by_name(sharded, name, damage):
    file = sharded / name
    file.unlink(missing_ok=True)
    if damage == "pipe":
        os.mkfifo(file)
    elif damage == "folder":
        file.mkdir()
    else:
        file.write_bytes(HUGE.encode() if damage == "nested" else b"\xff\xfe\xff")
    if (name, damage) == ("chat_template.jinja", "nested"):  # a text as good as any
        return
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_model(str(sharded))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocab_size": 2**40}, "d_vocab is .*from 1 to"),
        ({"num_hidden_layers": 10**9}, "n_layers is"),
        ({"num_hidden_layers": 4.0}, "got `float`.*num_hidden_layers"),
        ({"num_hidden_layers": True}, "got `bool`.*num_hidden_layers"),
        ({"rms_norm_eps": "1e-6"}, "got `str`.*rms_norm_eps"),
        ({"layer_types": [[]]}, "layer_types"),
        ({"eos_token_id": "1"}, "eos_token_id"),
        ({"bos_token_id": 10**6}, "bos is 1000000"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "only a Gemma 3 has"),
        ({"rope_parameters": []}, "rope_parameters"),
        ({"compression_config": {"bits": 8}}, "quantised"),
    ],
)
def test_a_value_of_config_json_that_cannot_be_is_refused_by_name(folder, changes, says):
    edit(folder / "config.json", **changes)
    with pytest.raises((CheckpointError, ConfigError), match=says):
        load_model(str(folder))


@pytest.mark.parametrize(
    "entry", [{"dtype": "I64"}, {"shape": ["x"]}, {"data_offsets": [0]}, {"data_offsets": [-4, 0]}, {"shape": [2**70, 0]}]
)
def test_a_header_with_values_that_cannot_be_is_refused(folder, entry):
    raw = (folder / SINGLE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["model.norm.weight"] |= entry
    text = json.dumps(header).encode()
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(CheckpointError):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("named", "ends"), [(7, (1, 7)), ([1, 7], (1, 7)), ([7, 8], (1, 7, 8)), (None, (1,)), ([10**6, -1], (1,))]
)
def test_end_tokens_that_generation_config_json_names_end_a_text(folder, named, ends):
    edit(folder / "generation_config.json", eos_token_id=named, do_sample=True)
    model = load_model(str(folder))
    assert model.cfg.eos == ends
    wanted = ends[-1]

    def insist(x, hook):
        return torch.nn.functional.one_hot(torch.tensor(wanted), x.shape[-1]).to(x).expand_as(x)

    (text,) = generate(model, "the dog", GREEDY, fwd_hooks=[("unembed.hook_out", insist)])
    assert (text.new_ids, text.stopped_by) == ((), "eos")


def test_the_eos_token_of_the_tokenizer_ends_a_text(folder):
    edit(folder / "tokenizer_config.json", eos_token={"content": "<end_of_turn>"})
    (folder / "special_tokens_map.json").unlink()  # the older file goes before, as in transformers
    model = load_model(str(folder))
    assert model.cfg.eos == (1, model.words.backend.token_to_id("<end_of_turn>"))


def test_what_memory_cannot_hold_is_said_in_numbers(folder, monkeypatch):
    def full(*args, **options):
        raise MemoryError

    monkeypatch.setattr(loading, "load_weights", full)
    with pytest.raises(ConfigError, match=r"do not fit into memory: [\d,]+ numbers take .* GB in float32(.|\n)*bfloat16"):
        load_model(str(folder))


# One rule for the edges of the vocabulary, in every room.


@pytest.fixture
def short(folder, toy_tokenizer):
    """A tokenizer with one token more than the embedding has rows, as after add_tokens without a resize."""
    backend = type(toy_tokenizer.backend).from_str(toy_tokenizer.backend.to_str())
    backend.add_special_tokens(["<added>"])
    backend.save(str(folder / "tokenizer.json"))
    return load_model(str(folder))


@pytest.fixture
def padded(tmp_path, tiny_config, toy_tokenizer):
    """An embedding with four rows more than the tokenizer has tokens, as one padded to a round number."""
    from dataclasses import replace

    wide = replace(tiny_config, d_vocab=tiny_config.d_vocab + 4)
    return load_model(str(save_checkpoint(random_gemma(wide), tmp_path / "padded", toy_tokenizer)))


def test_a_token_without_a_row_in_the_embedding_is_refused_by_name_wherever_a_text_has_it(short):
    rows = short.cfg.d_vocab
    for use in (short, short.to_tokens, short.generate, short.words.encode, short.to_str_tokens):
        with pytest.raises(TokensError, match=rf"'<added>' is token {rows}, and this model's embedding ends at row {rows - 1}"):
            use("the <added> dog")
    with pytest.raises(TokensError, match="<added>"):
        short.words.encode_batch(["the dog", "a <added>"])
    assert max(short.special_ids) < rows
    assert len(short.words) == len(short.words.vocab()) == rows
    short("the dog")


@torch.no_grad()
def test_a_row_that_no_token_has_is_written_as_its_id_wherever_it_is_shown(padded):
    last = padded.cfg.d_vocab - 1

    def insist(x, hook):
        return torch.nn.functional.one_hot(torch.tensor(last), x.shape[-1]).to(x).expand_as(x)

    (text,) = generate(padded, "the dog", GREEDY, fwd_hooks=[("unembed.hook_out", insist)])
    assert (text.new_ids, text.text) == ((last,) * 4, f"<{last}>" * 4)
    assert padded.words.pieces([9, last])[1] == padded.words.vocab()[last] == f"<{last}>"
    assert len(padded.words.vocab()) == padded.cfg.d_vocab
    for beyond in (last + 1, -1, 2**40):
        with pytest.raises(TokensError, match=f"vocabulary, which ends at {last}"):
            padded.words.pieces([beyond])


def test_a_tokenizer_with_an_id_of_2_to_the_31_is_bounded(folder, toy_tokenizer):
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["vocab"]["far"] = 2**31
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="has the id 2147483648; ids up to"):
        load_model(str(folder))


def test_half_a_surrogate_pair_is_refused_with_its_place(tiny_model):
    for use in (tiny_model, tiny_model.to_tokens, tiny_model.generate):
        with pytest.raises(TokensError, match=r"'\\ud83d' at character 8: half of a surrogate pair"):
            use("the dog \ud83d")
