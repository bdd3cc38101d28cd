"""What SAELens' tutorials call, on our model and our SAEs: loading and analysing, HookedSAETransformer, steering, training."""

import copy
from functools import partial

import pytest
import torch

import scope
from scope.errors import ConfigError
from scope.sae.jumprelu import JumpReLUConfig
from scope.sae.kinds import make_sae
from tests.conftest import random_gemma
from tests.models.twins import some_tokens
from tests.steering.conftest import random_sae

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPT = "the dog runs to the river"


@pytest.fixture(scope="module")
def ours(tiny_config, toy_tokenizer):
    return random_gemma(tiny_config, toy_tokenizer)


@pytest.fixture(scope="module")
def sae(ours):
    made = random_sae(ours.cfg.d_model, 48)
    made.provenance = {"model": dict(ours.provenance), "site": made.site, "training": {"l0": 7.25}}
    return made


@pytest.fixture
def theirs(ours):
    """SAELens' class with our weights."""
    return scope.hooked_sae_transformer(ours)


@pytest.fixture(scope="module")
def tokens(ours):
    return some_tokens(ours.cfg, batch=2, length=9)


# basic_loading_and_analysing


@torch.no_grad()
def test_an_sae_of_ours_is_analysed_as_the_tutorial_does(ours, sae, tokens):
    _, cache = ours.run_with_cache(tokens, prepend_bos=True)
    hook_name = sae.cfg.metadata.hook_name
    acts = sae.encode(cache[hook_name])
    sae_out = sae.decode(acts)
    assert (acts > 0).float().sum(-1).mean() > 0
    assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.architecture()) == (ours.cfg.d_model, 48, "jumprelu")
    assert (sae.device, sae.dtype) == (ours.device, torch.float32)
    losses = [
        ours.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(hook_name, hook)]).item()
        for hook in (partial(lambda x, hook, sae_out: sae_out, sae_out=sae_out), lambda x, hook: torch.zeros_like(x))
    ]
    assert losses[0] != losses[1] != ours(tokens, return_type="loss").item()


def test_the_tutorials_tools_read_our_model_and_tokenizer(ours, capsys):
    from transformer_lens.utils import test_prompt

    test_prompt(PROMPT, " river", ours, prepend_bos=True)
    assert "Ranks of the answer tokens" in capsys.readouterr().out
    vocab = ours.tokenizer.get_vocab()
    assert vocab["<bos>"] == ours.tokenizer.bos_token_id == ours.cfg.bos


def test_the_tokenizer_answers_as_transformers_own_does_for_the_same_file(ours):
    from scope.models.transformer_lens.hooked_root import hf_tokenizer

    mine, wrapped = ours.tokenizer, hf_tokenizer(ours.tokenizer, ours.cfg.n_ctx)
    texts = [PROMPT, "a cat"]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "bos_token", "eos_token", "pad_token"):
        assert getattr(mine, name) == getattr(wrapped, name), name
    assert mine.get_vocab() == wrapped.get_vocab()
    assert len(mine) == len(wrapped)
    for options in (
        {},
        {"padding": True, "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 9, "padding_side": "left"},
    ):
        ids, expected = mine(texts, add_special_tokens=False, **options), wrapped(texts, add_special_tokens=False, **options)
        for part in ("input_ids", "attention_mask"):
            assert (
                torch.equal(torch.as_tensor(ids[part]), expected[part])
                if "return_tensors" in options
                else ids[part] == expected[part]
            )
    assert mine(texts, truncation=True, max_length=3)["input_ids"] == [row[:3] for row in mine(texts).input_ids]
    assert mine(PROMPT)["input_ids"][0] == mine.bos
    ids = mine.encode(PROMPT, add_special_tokens=False)
    assert ids == wrapped.encode(PROMPT, add_special_tokens=False)
    assert mine.encode(PROMPT, return_tensors="pt").shape == (1, len(ids) + 1)
    assert mine.convert_ids_to_tokens(ids) == wrapped.convert_ids_to_tokens(ids) == mine.tokenize(PROMPT)
    assert mine.convert_tokens_to_ids(mine.tokenize(PROMPT)) == ids
    for skip in (True, False):
        given = {"skip_special_tokens": skip}
        assert mine.batch_decode([[2, *ids]], **given) == wrapped.batch_decode([[2, *ids]], **given)
    with pytest.raises(ConfigError, match="padding=True"):
        mine(texts, return_tensors="pt")


# Hooked_SAE_Transformer_Demo


@torch.no_grad()
def test_saes_of_ours_are_attached_run_ablated_and_reset(ours, theirs, sae, tokens):
    plain, acts_name = theirs(tokens), f"{sae.site}.hook_sae_acts_post"
    torch.testing.assert_close(plain, ours(tokens), rtol=0, atol=1e-4)
    spliced = ours.run_with_hooks(tokens, fwd_hooks=[(sae.site, lambda x, hook: sae(x))])
    torch.testing.assert_close(theirs.run_with_saes(tokens, saes=sae), spliced, rtol=0, atol=1e-4)
    torch.testing.assert_close(theirs.run_with_saes(tokens, saes=[sae], use_error_term=True), plain, rtol=0, atol=1e-4)
    logits, cache = theirs.run_with_cache_with_saes(tokens, saes=[sae])
    torch.testing.assert_close(logits, spliced, rtol=0, atol=1e-4)
    latents = sae.encode(ours.run_with_cache(tokens)[1][sae.site])
    torch.testing.assert_close(cache[acts_name], latents, rtol=0, atol=1e-4)
    latent = int(latents[0, 4].argmax())

    def ablate(acts, hook, pos, feature_id):
        acts[:, pos, feature_id] = 0.0
        return acts

    hooks = [(acts_name, partial(ablate, pos=4, feature_id=latent))]
    ablated = theirs.run_with_hooks_with_saes(tokens, saes=sae, fwd_hooks=hooks)
    assert not torch.allclose(ablated, spliced, atol=1e-3)
    theirs.add_sae(sae)
    assert list(theirs.acts_to_saes) == [sae.site]
    torch.testing.assert_close(theirs(tokens), spliced, rtol=0, atol=1e-4)
    with theirs.saes(saes=[sae], use_error_term=True):  # honoured: an edit moves the stream by what it changes alone
        edited = theirs.run_with_hooks(tokens, fwd_hooks=hooks)
    change = torch.zeros_like(latents)
    change[:, 4, latent] = -latents[:, 4, latent]
    expected = ours.run_with_hooks(tokens, fwd_hooks=[(sae.site, lambda x, hook: x + change @ sae.W_dec)])
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(theirs(tokens), spliced, rtol=0, atol=1e-4)
    theirs.reset_saes()
    torch.testing.assert_close(theirs(tokens), plain)


def test_gradients_reach_the_latents_of_an_attached_sae(theirs, sae, tokens):
    theirs.add_sae(sae)
    seen, at = {}, lambda name: "hook_sae_acts_post" in name
    theirs.add_hook(at, lambda act, hook: seen.__setitem__("act", act.detach()), "fwd")
    theirs.add_hook(at, lambda grad, hook: seen.__setitem__("grad", grad.detach()), "bwd")
    theirs(tokens, return_type="loss").backward()
    theirs.reset_hooks()
    theirs.reset_saes()
    assert seen["grad"].shape == seen["act"].shape == (*tokens.shape, 48)
    assert seen["grad"].abs().max() > 0


@torch.no_grad()
def test_a_copy_with_saelens_own_error_term_gives_back_what_it_reads(theirs, sae, tokens):
    object_of_theirs = scope.to_sae_lens(sae)
    with_error = copy.deepcopy(object_of_theirs)
    with_error.use_error_term = True
    plain = theirs(tokens)
    theirs.add_sae(with_error)
    torch.testing.assert_close(theirs(tokens), plain, rtol=0, atol=1e-4)
    theirs.reset_saes()
    x = torch.randn(3, sae.d_in)
    assert torch.equal(object_of_theirs.encode(x), sae.encode(x))
    assert scope.to_sae_lens(object_of_theirs) is object_of_theirs


def test_an_error_term_on_an_sae_of_ours_is_refused_and_says_where_it_is_honoured(sae):
    sae.use_error_term = False
    with pytest.raises(ConfigError, match=r"hooked_sae_transformer\(model\)\.add_sae\(sae, use_error_term=True\)"):
        sae.use_error_term = True
    assert not sae.use_error_term


@pytest.mark.parametrize(
    ("provenance", "says"),
    [
        ({"model": {"model": "bundled"}, "training": {"l0": 7.25}}, "L0 7.25 by its training, of bundled, from memory"),
        (
            {"declared": {"l0": 71.0, "from": "the folder's name"}, "source": "a/b"},
            "L0 71 by the folder's name, of no stated model, from a/b",
        ),
        ({"declared": {"l0": [20, 60]}}, "L0 20 to 60 by its format"),
        ({}, "L0 not stated"),
    ],
)
def test_the_repr_says_width_site_l0_and_source(provenance, says):
    made = make_sae(JumpReLUConfig(d_in=32, d_sae=2048), "blocks.2.hook_resid_post")
    made.provenance = provenance
    assert f"JumpReLUSAE(2,048 latents on 32 numbers at blocks.2.hook_resid_post, {says}" in repr(made)


def test_an_sae_read_from_a_folder_names_it(sae, tmp_path):
    scope.save_sae(sae, tmp_path / "dictionary")
    assert f"from {tmp_path / 'dictionary'})" in repr(scope.load_sae(tmp_path / "dictionary"))


# using_an_sae_as_a_steering_vector


@torch.no_grad()
def test_a_steering_hook_of_the_tutorial_acts_on_the_prompt_while_texts_are_generated(ours, sae):
    prompt = ours.to_tokens([PROMPT] * 2)

    def steering_hook(resid, hook):
        if resid.shape[1] > 1:
            resid[:, : prompt.shape[1] - 1] += 30 * sae.W_dec[3]

    def hooked_generate(hooks):
        with ours.hooks(fwd_hooks=hooks):
            return ours.generate(stop_at_eos=False, input=prompt, max_new_tokens=8, do_sample=False, freq_penalty=1.0)

    plain, steered = hooked_generate([]), hooked_generate([(sae.site, steering_hook)])
    assert plain.shape == steered.shape == (2, prompt.shape[1] + 8)
    assert not torch.equal(plain, steered)
    assert len(ours.to_string(steered[:, 1:])) == 2


# training_a_sparse_autoencoder


def test_saelens_trains_on_our_model(ours, toy_text, tmp_path, monkeypatch):
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, SAETrainingRunner, StandardTrainingSAEConfig

    from scope.models.transformer_lens.bridge import hooked_root

    monkeypatch.chdir(tmp_path)
    config = LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(d_in=ours.cfg.d_model, d_sae=64, l1_coefficient=1.0),
        model_name="tiny",
        hook_name="blocks.1.hook_resid_post",
        dataset_path="given",
        is_dataset_tokenized=False,
        streaming=False,
        context_size=24,
        training_tokens=512,
        train_batch_size_tokens=128,
        n_batches_in_buffer=16,
        store_batch_size_prompts=4,
        n_checkpoints=0,
        device="cpu",
        checkpoint_path=str(tmp_path / "checkpoints"),
        logger=LoggingConfig(log_to_wandb=False),
    )
    root = hooked_root(ours)
    trained = SAETrainingRunner(config, override_dataset=Dataset.from_dict({"text": toy_text * 4}), override_model=root).run()
    assert trained.W_dec.shape == (64, ours.cfg.d_model)
    assert (trained.W_dec @ ours.W_U).shape == (64, ours.cfg.d_vocab)
