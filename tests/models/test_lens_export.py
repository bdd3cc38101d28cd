"""Our model in TransformerLens' and SAELens' hands: their tools read our numbers off it."""

import pytest
import torch

from scope.models.transformer_lens import bridge as lens
from tests.models.twins import SHAPES, hooked_transformer, some_tokens, twins

pytestmark = pytest.mark.filterwarnings("ignore")
RESID = "blocks.1.hook_resid_post"


@pytest.fixture(
    scope="module", params=["several kv heads, low caps", "Gemma 1, one kv head", "Gemma 3, scaled positions, one kv head"]
)
def pair(request, tmp_path_factory, toy_tokenizer):
    """(ours, TransformerLens' own conversion of the same checkpoint)."""
    ours, theirs = twins(SHAPES[request.param], tmp_path_factory.mktemp("twin"), toy_tokenizer)
    return ours, hooked_transformer(ours.cfg, theirs)


def test_a_hooked_root_shares_the_weights_and_the_names(pair):
    ours, _ = pair
    root = lens.hooked_root(ours)
    assert list(map(id, root.parameters())) == list(map(id, ours.parameters()))
    assert set(root.hook_dict) == set(ours.hook_dict)
    assert all(name == point.name for name, point in {**root.hook_dict, **ours.hook_dict}.items())
    assert root.cfg is ours.cfg
    assert torch.equal(root.W_U, ours.W_U)
    assert root.tokenizer.bos_token_id == ours.cfg.bos


@torch.no_grad()
def test_transformer_lens_methods_on_the_root_give_what_its_own_model_gives(pair):
    ours, theirs = pair
    root, tokens = lens.hooked_root(ours), some_tokens(ours.cfg)
    logits, cache = root.run_with_cache(tokens)
    expected_logits, expected = theirs.run_with_cache(tokens)
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-4)
    assert set(expected.keys()) <= set(cache.keys())
    torch.testing.assert_close(cache["resid_post", -1], expected["resid_post", -1], rtol=0, atol=1e-4)
    half = [(lambda name: name.endswith("2.hook_mlp_out"), lambda x, hook: x / 2)]
    edited, other = (m.run_with_hooks(tokens, fwd_hooks=half, return_type="both", loss_per_token=True) for m in (root, theirs))
    torch.testing.assert_close(edited.logits, other.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(edited.loss, other.loss, rtol=0, atol=1e-4)
    assert not any(point.has_hooks() for point in [*root.hook_dict.values(), *ours.hook_points()])
    stop = root.run_with_cache(tokens, names_filter=[RESID], stop_at_layer=2)[1]
    assert list(stop.keys()) == [RESID]
    assert root.to_tokens("the dog runs").tolist() == ours.to_tokens("the dog runs").tolist()


def test_backward_hooks_on_the_root_see_the_gradients_of_its_own_model(pair):
    grads = []
    for model in (lens.hooked_root(pair[0]), pair[1]):
        with model.hooks(bwd_hooks=[(RESID, lambda grad, hook: grads.append(grad.clone()) and None)]):
            model(some_tokens(pair[0].cfg), return_type="loss").backward()
        model.zero_grad()
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_tool_of_transformer_lens_patches_activations_in_the_root(pair):
    """Its generic patching needs run_with_hooks, cfg and a cache, and nothing else of the class."""
    from transformer_lens.patching import get_act_patch_resid_pre

    root, tokens = lens.hooked_root(pair[0]), some_tokens(pair[0].cfg, batch=1, length=6)
    clean = root.run_with_cache(tokens)[1]
    other = tokens.clone()
    other[0, 2] = 9
    mine = get_act_patch_resid_pre(root, other, clean, lambda logits: logits[0, -1, 7])
    theirs = get_act_patch_resid_pre(pair[1], other, pair[1].run_with_cache(tokens)[1], lambda logits: logits[0, -1, 7])
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_exported_hooked_transformer_computes_the_same_and_takes_text(pair):
    ours, theirs = pair
    twin, tokens = lens.hooked_transformer(ours), some_tokens(ours.cfg)
    torch.testing.assert_close(twin(tokens), ours(tokens), rtol=0, atol=1e-4)
    for (name, made), (_, converted) in zip(twin.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(made, converted, msg=name)
    assert twin.to_tokens("the dog runs").tolist() == ours.to_tokens("the dog runs").tolist()
    assert twin.to_tokens(["the dog", "the dog runs"]).shape == ours.to_tokens(["the dog", "the dog runs"]).shape
    assert twin.embed.W_E.data_ptr() != ours.embed.weight.data_ptr()


# SAELens


def sae_lens_twin(sae, folder):
    """The dictionary as SAELens loads it from the folder that we write."""
    from sae_lens import SAE

    from scope.sae.files import save_sae

    save_sae(sae, folder)
    return SAE.load_from_disk(str(folder))


def sae_lens_store(model, sae, tokens, tmp_path):
    from datasets import Dataset
    from sae_lens import ActivationsStore

    dataset = Dataset.from_dict({"tokens": tokens.tolist()})
    return ActivationsStore.from_sae(
        model,
        sae,
        dataset,
        context_size=tokens.shape[1],
        streaming=False,
        store_batch_size_prompts=4,
        n_batches_in_buffer=2,
        train_batch_size_tokens=64,
        disable_concat_sequences=True,
    )


def trained(model, site, tokens, tmp_path, steps=80):
    """A dictionary trained for a moment on the model's own activations."""
    from scope.activations.corpus.inputs import counted_tokens

    from scope.sae.jumprelu import JumpReLUConfig
    from scope.sae.kinds import make_sae
    from scope.training.batches import TensorBatches
    from scope.training.config import TrainConfig
    from scope.training.trainer import train

    x = model.record(tokens, [site])[site]
    x = x[counted_tokens(tokens, model.special_ids)]
    sae = make_sae(JumpReLUConfig(d_in=x.shape[-1], d_sae=96, target_l0=6.0), site)
    sae.provenance["model"] = dict(model.provenance)
    return train(sae, TensorBatches(x, 256, 0), TrainConfig(steps=steps, batch_size=256), tmp_path / "trained")


@pytest.fixture(scope="module", params=["tiny", "bundled"])
def subject(request, tmp_path_factory, toy_tokenizer, toy_text):
    """(model, site, contexts of tokens, dictionary)."""
    folder = tmp_path_factory.mktemp("sae")
    if request.param == "tiny":
        model, _ = twins(SHAPES["several kv heads, low caps"], folder, toy_tokenizer)
        site, length = RESID, 32
    else:
        from scope.models.load import load_model

        model, site, length = load_model("bundled"), "blocks.2.hook_resid_post", 64
    ids = [i for text in toy_text for i in model.tokenizer.encode(text, bos=False)]
    rows = [[model.cfg.bos, *ids[i : i + length - 1]] for i in range(0, 48 * (length - 1), length - 1)]
    tokens = torch.tensor(rows[: 48 if request.param == "tiny" else 16])
    return model, site, tokens, trained(model, site, tokens, folder)


def test_sae_lens_activation_store_reads_our_activations(subject, tmp_path, monkeypatch):
    model, site, tokens, sae = subject
    monkeypatch.chdir(tmp_path)
    store = sae_lens_store(lens.hooked_root(model), sae_lens_twin(sae, tmp_path / "sae"), tokens, tmp_path)
    batch = store.get_batch_tokens(4)
    assert batch.tolist() == tokens[:4].tolist()
    theirs = store.get_activations(batch).squeeze()
    assert torch.equal(theirs.flatten(0, 1), model.record(batch, [site])[site].flatten(0, 1))
    assert not (tmp_path / "activations").exists()


def test_sae_lens_evals_on_our_model_agree_with_our_own_evaluation(subject, tmp_path, monkeypatch):
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    from scope.evaluation.evaluate import EvaluateConfig, evaluate

    model, site, tokens, sae = subject
    monkeypatch.chdir(tmp_path)
    root, theirs = lens.hooked_root(model), sae_lens_twin(sae, tmp_path / "sae")
    store = sae_lens_store(root, theirs, tokens, tmp_path)
    config = get_eval_everything_config(
        batch_size_prompts=4, n_eval_reconstruction_batches=len(tokens) // 4, n_eval_sparsity_variance_batches=len(tokens) // 4
    )
    metrics, features = run_evals(theirs, store, root, ActivationScaler(), config)
    ours = evaluate(model, sae, tokens, EvaluateConfig(contexts=len(tokens), nulls=False))
    arm = ours.arms["sae"]
    assert metrics["sparsity"]["l0"] == pytest.approx(arm["l0"], rel=1e-4)
    assert metrics["reconstruction_quality"]["explained_variance"] == pytest.approx(1 - arm["fvu"], abs=1e-4)
    assert metrics["reconstruction_quality"]["cossim"] == pytest.approx(arm["cosine"], abs=1e-4)
    losses = metrics["model_performance_preservation"]
    assert losses["ce_loss_without_sae"] == pytest.approx(ours.counted["loss"], abs=1e-4)
    assert losses["ce_loss_with_sae"] == pytest.approx(arm["loss"], abs=1e-4)
    zeroed = model.run_with_hooks(  # their ablation takes <bos> away too, ours does not
        tokens, fwd_hooks=[(site, lambda x, hook: 0 * x)], return_type="loss", loss_per_token=True
    )
    assert losses["ce_loss_with_ablation"] == pytest.approx(float(zeroed[:, 1:].mean()), abs=1e-4)
    assert not (tmp_path / "activations").exists()
    density = torch.tensor(features["feature_density"])
    assert density.sum() == pytest.approx(metrics["sparsity"]["l0"], rel=1e-3)
