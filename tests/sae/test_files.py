"""Dictionaries on disk: what we write SAELens reads to the bit, what others write we read or refuse by name."""

import errno
import json
import os
import resource

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scope.errors import ConfigError, DictionaryError
from scope.renamed import RenamedWarning
from scope.sae.convert import convert
from scope.sae.files import parameters_sha256, read_sae, save_sae
from scope.sae.jumprelu import JumpReLUSAE
from scope.sae.kinds import KINDS, make_sae
from tests.sae.test_jumprelu import random_sae

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def saved(tmp_path):
    sae = random_sae()
    sae.site = "blocks.1.hook_resid_post"
    sae.provenance = {"model": {"model": "tiny", "weights_sha256": "abc"}, "site": sae.site}
    return sae, save_sae(sae, tmp_path / "dictionary")


def arrays(sae: JumpReLUSAE) -> dict[str, np.ndarray]:
    return {name: p.detach().contiguous().numpy() for name, p in sae.named_parameters()}


def test_a_dictionary_comes_back_as_it_was_saved(saved):
    sae, folder = saved
    loaded = read_sae(folder)
    assert (loaded.site, loaded.config, loaded.kind) == (sae.site, sae.config, "jumprelu")
    assert loaded.provenance["model"]["weights_sha256"] == "abc"
    assert torch.equal(loaded.encode(X), sae.encode(X))
    assert not list(folder.glob("*.tmp"))


def test_a_disk_that_takes_no_more_is_told_with_its_number_and_leaves_no_half_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, before[1]))
    try:
        with pytest.raises(OSError, match=r".") as caught:
            save_sae(random_sae(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_readable_as_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_sae(random_sae(), tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "theirs", "gemma_scope")
    finally:
        os.umask(before)
    files = [*(tmp_path / "ours").iterdir(), *(tmp_path / "theirs").iterdir()]
    assert {file.name: file.stat().st_mode & 0o777 for file in files} == dict.fromkeys((f.name for f in files), mode)
    assert len(files) == 5


HASHES = {
    "jumprelu": "a7d60206568e37d5e7655a05df6e486d18ded54d6b95f00696c1abbcd2f1f517",
    "topk": "a73151d184c68495ce54397243b0ca9dbc78df00f463cd286a0f5f9ac1eeaa77",
    "batch_topk": "a7d60206568e37d5e7655a05df6e486d18ded54d6b95f00696c1abbcd2f1f517",
    "gated": "67b7839de77a39f693b8cd750e52be117908d2274ddd2dd64bfd07fd140952dd",
    "transcoder": "a7d60206568e37d5e7655a05df6e486d18ded54d6b95f00696c1abbcd2f1f517",
}
"""What version 0.1.0 wrote into packs, and into the keys of certificates, for the dictionaries of the test below."""


@pytest.mark.parametrize("kind", HASHES)
def test_the_hash_of_the_parameters_is_the_one_that_packs_and_certificates_of_0_1_0_hold(kind):
    settings = {"jumprelu": {"target_l0": 2.0}, "gated": {"target_l0": 2.0}, "topk": {"k": 2}, "batch_topk": {"k": 2}}
    sae = make_sae(KINDS[kind].config(d_in=3, d_sae=4, **settings.get(kind, {})))
    for i, (_, p) in enumerate(sorted(sae.named_parameters())):
        p.data = (torch.arange(p.numel()).float().view(p.shape) + i) / 8
    assert parameters_sha256(sae) == HASHES[kind]
    sae.b_dec.data[0] += 1
    assert parameters_sha256(sae) != HASHES[kind]


def test_an_exported_program_of_0_1_0_still_finds_load_sae(saved):
    with pytest.warns(RenamedWarning, match=r"scope\.load_sae"):
        from scope.sae.files import load_sae
    assert torch.equal(load_sae(saved[1]).W_enc, saved[0].W_enc)


@pytest.mark.filterwarnings("ignore")  # sae_lens and what it imports warn at import
def test_saelens_loads_what_we_write_and_encodes_bit_for_bit_the_same(saved):
    from sae_lens import SAE

    sae, folder = saved
    theirs = SAE.load_from_disk(str(folder))
    assert torch.equal(theirs.encode(X), sae.encode(X))
    assert torch.equal(theirs(X), sae(X))
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"


@pytest.mark.filterwarnings("ignore")
def test_what_saelens_writes_we_load_and_encode_bit_for_bit_the_same(tmp_path):
    from sae_lens import JumpReLUSAE as Theirs
    from sae_lens import JumpReLUSAEConfig

    theirs = Theirs(JumpReLUSAEConfig(d_in=6, d_sae=20, apply_b_dec_to_input=False))
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in arrays(random_sae(seed=4)).items()})
    theirs.save_model(str(tmp_path))
    assert torch.equal(read_sae(tmp_path).encode(X), theirs.encode(X))


def test_p25_a_bias_subtracted_before_encoding_is_folded_into_the_encoder(saved):
    sae, folder = saved
    rewrite(folder, apply_b_dec_to_input=True)
    torch.testing.assert_close(read_sae(folder).encode(X), sae.encode(X - sae.b_dec))


def test_p25_without_a_version_saelens_older_default_holds(saved):
    sae, folder = saved
    rewrite(folder, apply_b_dec_to_input=None, metadata={})
    torch.testing.assert_close(read_sae(folder).encode(X), sae.encode(X - sae.b_dec))


def test_p26_thresholds_stored_as_logarithms_are_read_under_their_name_and_refused_under_the_other(saved):
    sae, folder = saved
    rewrite(folder)
    file = folder / "sae_weights.safetensors"
    stored = load_file(file)
    stored["log_threshold"] = stored.pop("threshold").log()
    save_file(stored, file)
    torch.testing.assert_close(read_sae(folder).threshold, sae.threshold)
    stored["threshold"] = stored.pop("log_threshold") - 3
    save_file(stored, file)
    with pytest.raises(DictionaryError, match="logarithms"):
        read_sae(folder)


def test_a_relu_dictionary_is_read_as_jumprelu_with_thresholds_of_zero(saved):
    sae, folder = saved
    rewrite(folder, architecture="standard")
    arrays = load_file(folder / "sae_weights.safetensors")
    save_file({name: array for name, array in arrays.items() if name != "threshold"}, folder / "sae_weights.safetensors")
    assert torch.equal(read_sae(folder).encode(X), torch.relu(sae.pre_activations(X)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "topk"}, "does not say k"),  # P27
        ({"architecture": "temporal"}, "temporal"),
        ({"architecture": "standard", "activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ({"normalize_activations": "expected_average_only_in"}, "normalised"),  # P23
        ({"normalize_activations": "layer_norm"}, "token by token"),
        ({"metadata": {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 3}}, "head 3 alone"),
    ],
)
def test_p23_p27_a_form_that_would_be_read_wrongly_is_refused(saved, change, said):
    _, folder = saved
    rewrite(folder, **change)
    with pytest.raises(DictionaryError, match=said):
        read_sae(folder)


def rewrite(folder, **changes):
    """Make it a plain SAELens folder with another cfg.json."""
    (folder / "scope.json").unlink()
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize("keys", [str, lambda name: name.replace("W_", "w_")])
def test_gemma_scope_files_load_and_the_path_says_the_site(tmp_path, keys):
    sae = random_sae()
    folder = tmp_path / "google" / "gemma-scope-2b-pt-mlp" / "layer_12" / "width_16k" / "average_l0_82"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{keys(name): array for name, array in arrays(sae).items()})
    for path in (folder, folder / "params.npz"):
        loaded = read_sae(path)
        assert torch.equal(loaded.encode(X), sae.encode(X))
        assert loaded.site == "blocks.12.hook_mlp_out"
        assert loaded.provenance["model"]["model"] == "google/gemma-2-2b"


def test_p49_pickles_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "params.npz", **arrays(random_sae()) | {"W_enc": np.array([{"run": "me"}], dtype=object)})
    with pytest.raises(DictionaryError, match="pickled"):
        read_sae(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda a: a | {"W_dec": a["W_dec"].T}, "transposed"),  # P28
        (lambda a: a | {"W_enc": a["W_enc"][:, :-1]}, "W_enc"),
        (lambda a: {k: v for k, v in a.items() if k != "threshold"}, "lacks threshold"),
        (lambda a: a | {"b_enc": np.full(20, np.nan, np.float32)}, "NaN"),
    ],
)
def test_arrays_that_do_not_fit_together_are_named(tmp_path, spoil, said):
    np.savez(tmp_path / "params.npz", **spoil(arrays(random_sae())))
    with pytest.raises(DictionaryError, match=said):
        read_sae(tmp_path)


def test_a_folder_copied_half_way_is_known_as_one(saved):
    _, folder = saved
    save_file({k: torch.from_numpy(v) for k, v in arrays(random_sae(seed=2)).items()}, folder / "sae_weights.safetensors")
    with pytest.raises(DictionaryError, match=r"not what scope\.json describes"):
        read_sae(folder)
    (folder / "sae_weights.safetensors").write_bytes(b"cut")
    with pytest.raises(DictionaryError, match="damaged"):
        read_sae(folder)
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(DictionaryError, match="has no sae_weights"):
        read_sae(folder)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at/all"])
def test_a_folder_that_is_not_there_is_said_with_what_would_do(name):
    with pytest.raises(DictionaryError, match="There is no folder"):
        read_sae(name)


@pytest.mark.parametrize(("name", "strange"), [("provenance", None), ("config", []), ("site", None)])
def test_a_damaged_description_is_refused_by_what_it_lacks(saved, name, strange):
    _, folder = saved
    manifest = json.loads((folder / "scope.json").read_text())
    (folder / "scope.json").write_text(json.dumps(manifest | {name: strange}))
    with pytest.raises(DictionaryError, match=rf"scope.json is damaged: Expected .* at `{name}`"):
        read_sae(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": ["jumprelu"]}, "Expected `str`, got `array` - at `kind`"),
        ({"config": {"d_sae": 20.0}}, "settings in .* cannot be"),
        ({"config": {"d_sae": 10**9}}, "says 1000000000 latents over width 6.*b_enc \\(20,\\)"),
        ({"config": {"d_in": 7}}, "over width 7"),
        ({"config": {"decoder": "banana"}}, "settings in .* cannot be"),
    ],
)
def test_a_description_that_cannot_be_of_these_weights_is_refused_before_anything_is_made(saved, change, said):
    _, folder = saved
    manifest = json.loads((folder / "scope.json").read_text())
    if "config" in change:
        change = {"config": manifest["config"] | change["config"]}
    (folder / "scope.json").write_text(json.dumps(manifest | change))
    with pytest.raises(DictionaryError, match=said):
        read_sae(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "matryoshka_batchtopk", "k": 3, "matryoshka_widths": ["a", 20]}, "matryoshka_widths"),
        ({"metadata": {"hook_name": 5}}, "Expected `str . null`, got `int` - at `metadata.hook_name`"),
        ({"d_in": 17}, "d_in = 17; the arrays beside it say 6"),
        ({"d_sae": "20"}, "Expected `int . null`, got `str` - at `d_sae`"),
        ({"architecture": "topk", "k": 2.7}, "k = 2.7"),
        ({"architecture": "topk", "k": True}, "got `bool` - at `k`"),
        ({"normalize_activations": "expected_average_only_in", "norm_scaling_factor": float("inf")}, "which has inf"),
        ({"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 1e300}, "NaN or Inf once"),
    ],
)
def test_what_saelens_config_says_is_held_against_the_arrays_and_refused_where_it_cannot_be(saved, change, said):
    _, folder = saved
    stored = load_file(folder / "sae_weights.safetensors")
    if change.get("architecture") == "topk":
        del stored["threshold"]
        save_file(stored, folder / "sae_weights.safetensors")
    rewrite(folder, **change)
    with pytest.raises(DictionaryError, match=said):
        read_sae(folder)


def test_metadata_of_saelens_that_are_no_object_are_refused(saved):
    _, folder = saved
    (folder / "scope.json").unlink()
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": "none"}))
    with pytest.raises(DictionaryError, match=r"cfg.json is damaged"):
        read_sae(folder)


def test_an_empty_folder_and_a_file_of_another_kind_are_no_dictionaries(tmp_path):
    with pytest.raises(DictionaryError, match="holds no dictionary"):
        read_sae(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(DictionaryError, match="no dictionary"):
        read_sae(tmp_path / "weights.pt")
    (tmp_path / "params.npz").write_bytes(b"no zip")
    with pytest.raises(DictionaryError, match="npz"):
        read_sae(tmp_path)


def test_a_device_that_is_not_there_is_refused(saved):
    with pytest.raises(ConfigError, match="cannot be used here"):
        read_sae(saved[1], "cuda:99")
