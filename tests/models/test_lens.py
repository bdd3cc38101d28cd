"""Models of TransformerLens behind our face: what they record, splice and score is what they compute by themselves."""

import pytest
import torch

from scope.errors import CheckpointError, ConfigError, TokensError, UnknownSite
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.models.transformer_lens import bridge as lens

pytestmark = pytest.mark.filterwarnings("ignore")

FAMILIES = {
    "GPT-2": {"normalization_type": "LN", "act_fn": "gelu_new"},
    "Llama": {
        "normalization_type": "RMS",
        "act_fn": "silu",
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "n_key_value_heads": 2,
        "final_rms": True,
    },
    "NeoX, attention beside the MLP": {
        "normalization_type": "LNPre",
        "act_fn": "gelu",
        "positional_embedding_type": "rotary",
        "rotary_dim": 2,
        "parallel_attn_mlp": True,
    },
}
RESID = "blocks.1.hook_resid_post"


def hf_gpt2_tokenizer(toy_text):
    """Byte-level BPE as GPT-2 has it: one control token that begins, ends and pads."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    given = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": alphabet, "show_progress": False}
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, **given)
    made.train_from_iterator(toy_text, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    wrapped.init_kwargs |= {"name_or_path": "toy", "add_bos_token": True}  # or TransformerLens asks the hub
    return wrapped


def hooked(tokenizer=None, d_vocab=400, **given):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=3, d_model=32, n_ctx=48, d_head=8, n_heads=4, d_mlp=64, d_vocab=d_vocab, seed=0, device="cpu", **given
    )
    model = HookedTransformer(config, tokenizer).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return model


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, toy_text):
    theirs = hooked(hf_gpt2_tokenizer(toy_text), **FAMILIES[request.param])
    return lens.recorder(theirs), theirs


@pytest.fixture(scope="module")
def gpt2(toy_text):
    theirs = hooked(hf_gpt2_tokenizer(toy_text), **FAMILIES["GPT-2"])
    return lens.recorder(theirs), theirs


@pytest.fixture
def tokens():
    return torch.randint(1, 400, (3, 17), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_it_records_at_every_site_what_the_model_caches_by_itself(family, tokens):
    ours, theirs = family
    _, cache = theirs.run_with_cache(tokens)
    sites = ours.sites()
    recorded = ours.record(tokens, list(sites))
    assert {"hook_embed", RESID, "blocks.0.attn.hook_z", "blocks.2.mlp.hook_post", "ln_final.hook_normalized"} <= set(sites)
    assert set(cache.keys()) - set(sites) == {f"blocks.{i}.attn.hook_{x}" for i in range(3) for x in ("attn_scores", "pattern")}
    for name, width in sites.items():
        assert recorded[name].shape == (3, 17, width)
        torch.testing.assert_close(recorded[name], cache[name].expand(3, *cache[name].shape[1:]).flatten(2), rtol=0, atol=1e-6)
    assert set(ours.run_with_cache(tokens)[1]) == set(cache.keys())


def test_it_runs_no_layer_above_the_last_site_and_leaves_no_hook_behind(family, tokens):
    ours, theirs = family
    ran = []
    handles = [block.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, block in enumerate(theirs.blocks)]
    ours.record(tokens, [RESID, "hook_embed"])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]
    assert not any(point.fwd_hooks for point in theirs.hook_points())


@torch.no_grad()
def test_hooks_edit_it_and_know_tokens_and_positions(family, tokens):
    ours, theirs = family
    seen = {}

    def double(x, hook):
        seen.update(layer=hook.layer(), tokens=hook.run.tokens, positions=hook.run.positions[0].tolist())
        return 2 * x

    edited = ours.run_with_hooks(tokens, fwd_hooks=[(RESID, double)])
    torch.testing.assert_close(edited, theirs.run_with_hooks(tokens, fwd_hooks=[(RESID, lambda x, hook: 2 * x)]))
    assert seen["layer"] == 1
    assert seen["tokens"] is tokens
    assert seen["positions"] == list(range(17))


def test_gradients_come_back_through_its_hooks(gpt2, tokens):
    ours, theirs = gpt2
    _, cache = ours.run_with_cache(tokens, names_filter=RESID, incl_bwd=True, return_type="loss")
    _, expected = theirs.run_with_cache(tokens, names_filter=lambda n: n == RESID, incl_bwd=True, return_type="loss")
    theirs.zero_grad()
    torch.testing.assert_close(cache[RESID + "_grad"], expected[RESID + "_grad"])


def test_what_does_not_exist_never_fires_or_cannot_be_taken_is_refused(gpt2, tokens):
    ours, _ = gpt2
    with pytest.raises(UnknownSite, match=r"no hook point blocks\.1\.hook_resid_pots(.|\n)*blocks\.1\.hook_resid_post"):
        ours.record(tokens, ["blocks.1.hook_resid_pots"])
    with pytest.raises(ConfigError, match=r"hook_result is switched off(.|\n)*set_use_attn_result"):
        ours.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_result", lambda x, hook: None)])
    with pytest.raises(TokensError, match="ends at 399"):
        ours(torch.tensor([[3, 400]]))
    with pytest.raises(TokensError, match="context holds 48"):
        ours(torch.ones(1, 49, dtype=torch.long))
    with pytest.raises(ConfigError, match="no tokenizer; give recorder"):
        lens.recorder(hooked(**FAMILIES["GPT-2"]))
    bare = lens.recorder(hooked(**FAMILIES["GPT-2"]), bos=0, eos=0, pad=0)
    assert bare.tokenizer is None
    assert bare.record(tokens, [RESID])[RESID].shape == (3, 17, 32)


@torch.no_grad()
def test_cached_and_whole_runs_agree(family, tokens):
    ours, theirs = family
    whole, cache = ours(tokens), ours.new_cache()
    parts = [ours(part, cache=cache) for part in tokens.split((9, 1, 7), dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole, theirs(tokens))
    stream = ours(tokens, stop_at_layer=3)
    torch.testing.assert_close(ours.logits_of(stream), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padding_on_the_right_changes_no_real_position(family, tokens):
    ours, _ = family
    mask = torch.ones(3, 17, dtype=torch.bool)
    mask[1, 12:] = False
    torch.testing.assert_close(ours(tokens, attention_mask=mask)[1, :12], ours(tokens[1:2, :12])[0], rtol=1e-4, atol=1e-4)


def test_weights_tell_it_from_its_fine_tune(toy_text):
    theirs = hooked(hf_gpt2_tokenizer(toy_text), **FAMILIES["GPT-2"])
    before = lens.recorder(theirs).provenance
    again = lens.recorder(hooked(hf_gpt2_tokenizer(toy_text), **FAMILIES["GPT-2"])).provenance
    assert before == again
    with torch.no_grad():
        theirs.blocks[2].mlp.W_out[5, 3] += 1e-3
    after = lens.recorder(theirs).provenance
    assert after["weights_sha256"] != before["weights_sha256"]
    assert all(after[name] == before[name] for name in ("config_sha256", "tokenizer_sha256"))


def test_byte_level_pieces_are_text_and_parts_of_characters_are_bytes(gpt2):
    ours, theirs = gpt2
    words = ours.tokenizer
    text = "the dog sails over the river → é"
    ids = words.encode(text)
    assert ids[0] == words.bos == words.eos == words.pad == theirs.tokenizer.eos_token_id
    assert words.decode(ids) == text
    pieces = words.pieces(ids)
    assert pieces[0] == "<|endoftext|>"
    assert " dog" in "".join(pieces)
    assert "<0xE2>" in pieces[-6:] or "→" in pieces
    assert ours.to_str_tokens("the dog") == words.pieces(words.encode("the dog"))
    assert len(words.vocab()) == len(words) == theirs.tokenizer.vocab_size


def test_a_recording_of_it_trains_a_dictionary_that_is_evaluated_and_packed(gpt2, toy_text, tmp_path):
    """From end to end, through the faces that `scope harvest`, `train`, `eval` and `features` use."""
    from scope.activations.config import HarvestConfig
    from scope.activations.corpus.sources import Corpus, Document
    from scope.activations.harvest.harvest import harvest

    from scope.evaluation.evaluate import EvaluateConfig, evaluate
    from scope.features.collect.collect_pack import CollectConfig, collect
    from scope.sae.jumprelu import JumpReLUConfig
    from scope.sae.kinds import make_sae
    from scope.training.config import TrainConfig
    from scope.training.trainer import train
    from scope.workflows.training_source import recorded_provenance as provenance

    ours, _ = gpt2
    corpus = Corpus("toy", {"spec": "toy"}, lambda: (Document(str(i), text) for i, text in enumerate(toy_text)))
    config = HarvestConfig(sites=(RESID,), tokens=6000, context=24)
    store = harvest(ours, ours.tokenizer, corpus, config, tmp_path / "recording", ours.provenance)
    assert store.manifest.model["model"] == "lens:custom"
    tokens = torch.as_tensor(store.tokens[:2]).long()
    rows = store[RESID][store.rows_of_context(0)]
    expected = ours.record(tokens, [RESID])[RESID][0][1:]
    torch.testing.assert_close(rows[:5].float(), expected[:5], rtol=1e-2, atol=1e-2)

    sae = make_sae(JumpReLUConfig(d_in=32, d_sae=64, target_l0=4.0), RESID)
    sae.provenance = provenance(store, RESID)
    sae = train(sae, store.shuffled(RESID, 256, 0), TrainConfig(steps=150, batch_size=256), tmp_path / "sae")
    evaluation = evaluate(ours, sae, torch.as_tensor(store.tokens).long(), EvaluateConfig(contexts=32)).to_json()
    assert evaluation["provenance"]["model"]["weights_sha256"] == ours.provenance["weights_sha256"]
    pack = collect(ours, sae, store, CollectConfig(score_prompts=2, score_null=4), tmp_path / "pack")
    assert pack.d_sae == 64


def test_a_name_that_transformer_lens_does_not_know_is_refused_with_its_reason():
    from scope.models.load import load_model

    with pytest.raises(CheckpointError, match=r"TransformerLens cannot load no-such-model(.|\n)*lens:gpt2"):
        load_model("lens:no-such-model")


@torch.no_grad()
def test_a_folder_is_loaded_through_transformers_bridge_and_records_what_transformers_computes(tmp_path, toy_text):
    from transformers import GPT2Config, GPT2LMHeadModel

    from scope.models.load import load_model

    config = GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=400, n_positions=48, bos_token_id=0, eos_token_id=0)
    theirs = GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    hf_gpt2_tokenizer(toy_text).save_pretrained(tmp_path)
    ours = load_model(f"lens:{tmp_path}")
    tokens = torch.randint(1, 400, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = theirs(tokens, output_hidden_states=True)
    torch.testing.assert_close(ours(tokens), expected.logits, rtol=1e-5, atol=1e-5)
    resid = ours.record(tokens, ["blocks.0.hook_resid_post"])["blocks.0.hook_resid_post"]
    torch.testing.assert_close(resid, expected.hidden_states[1], rtol=1e-5, atol=1e-5)
    assert ours.provenance["model"] == f"lens:{tmp_path}"
    assert ours.sites()["blocks.1.hook_resid_post"] == 32
    for stop, site in ((1, "blocks.0.hook_resid_post"), (2, "blocks.1.hook_resid_post")):
        torch.testing.assert_close(ours(tokens, stop_at_layer=stop), ours.record(tokens, [site])[site])
    torch.testing.assert_close(ours.logits_of(ours(tokens, stop_at_layer=2)), expected.logits, rtol=1e-5, atol=1e-5)
    cache = ours.new_cache()
    parts = [ours(part, cache=cache) for part in tokens.split((5, 1, 3), dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), expected.logits, rtol=1e-5, atol=1e-5)
    prompts, greedy = ["the dog", "my sister looks at the river"], SamplingConfig(max_new_tokens=12, temperature=0)
    push = [("blocks.0.hook_resid_post", lambda x, hook: x + 0.3 * hook.run.positions[..., None])]
    for hooks in ([], push):
        cached, whole = (generate(ours, prompts, greedy, fwd_hooks=hooks, use_cache=cache) for cache in (True, False))
        assert cached == whole
