"""Each format as its own library writes it, read here; and what is written here, read there. The bytes are laid by hand."""

import json
import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scope.cli.main import run as scope
from scope.errors import ConfigError, DictionaryError
from scope.sae.convert import convert
from scope.sae.files import read_sae, save_sae
from scope.sae.kinds import KINDS
from tests.sae.test_kinds import SITE, X, lens, random_kind


def arrays(sae) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone().contiguous() for name, p in sae.named_parameters()}


def write_json(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# SAELens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", [SITE, "blocks.1.attn.hook_z"])
def test_saelens_loads_every_kind_that_we_write_and_encodes_bit_for_bit_the_same(kind, site, tmp_path):
    sae = random_kind(kind)
    sae.site = site
    sae = read_sae(save_sae(sae, tmp_path))
    theirs = lens("SAE").load_from_disk(str(tmp_path))
    x = X.view(40, 2, 3) if theirs.cfg.reshape_activations == "hook_z" else X
    assert torch.equal(theirs.encode(x), sae.encode(X))
    assert torch.equal(theirs.encode(x[:1]), sae.encode(X[:1]))
    assert torch.equal(theirs(x).reshape(40, -1), sae(X))


@pytest.mark.parametrize("name", ["Standard", "JumpReLU", "TopK", "Gated", "JumpReLUTranscoder", "SkipTranscoder"])
def test_what_saelens_writes_of_any_architecture_we_encode_bit_for_bit_the_same(name, tmp_path):
    end = "" if "Transcoder" in name else "SAE"
    more = {"k": 3} if name == "TopK" else {"d_out": 4} if "Transcoder" in name else {}
    theirs = lens(name + end)(lens(f"{name}{end}Config")(d_in=6, d_sae=20, apply_b_dec_to_input=False, **more))
    _randomise(theirs)
    theirs.cfg.metadata.hook_name, theirs.cfg.metadata.hook_name_out = SITE, "blocks.1.hook_mlp_out"
    theirs.save_model(str(tmp_path))
    ours = read_sae(tmp_path)
    assert torch.equal(ours.encode(X), theirs.encode(X))
    torch.testing.assert_close(ours(X), theirs(X))
    assert ours.site == SITE
    assert getattr(ours, "site_out", "blocks.1.hook_mlp_out") == "blocks.1.hook_mlp_out"


@pytest.mark.parametrize("name", ["BatchTopK", "MatryoshkaBatchTopK"])
@pytest.mark.parametrize("rescale", [False, True])
def test_p27_saelens_batch_topk_is_read_with_its_threshold_as_a_checkpoint_and_as_saved_for_inference(name, rescale, tmp_path):
    more = {"matryoshka_widths": [5, 20]} if name.startswith("Mat") else {}
    config = lens(f"{name}TrainingSAEConfig")
    theirs = lens(f"{name}TrainingSAE")(config(d_in=6, d_sae=20, k=2.5, rescale_acts_by_decoder_norm=rescale, **more))
    _randomise(theirs)
    theirs.topk_threshold = torch.tensor(0.7, dtype=torch.double)
    theirs.save_model(str(tmp_path / "checkpoint"))
    theirs.save_inference_model(str(tmp_path / "inference"))
    inference = lens("SAE").load_from_disk(str(tmp_path / "inference"))
    for folder in ("checkpoint", "inference"):
        ours = read_sae(tmp_path / folder)
        torch.testing.assert_close(ours.encode(X), inference.encode(X))
        torch.testing.assert_close(ours(X), inference(X))
    checkpoint = read_sae(tmp_path / "checkpoint")
    assert (checkpoint.kind, checkpoint.config.k) == ("batch_topk", 2.5)
    assert checkpoint.config.nested == ((5,) if more else ())


def test_p24_saelens_topk_chosen_by_decoder_norm_has_the_norms_folded_in(tmp_path):
    theirs = lens("TopKSAE")(lens("TopKSAEConfig")(d_in=6, d_sae=20, k=3, rescale_acts_by_decoder_norm=True))
    _randomise(theirs)
    theirs.save_model(str(tmp_path))
    ours = read_sae(tmp_path)
    torch.testing.assert_close(ours.encode(X), theirs.encode(X))
    torch.testing.assert_close(ours(X), theirs(X))
    torch.testing.assert_close(ours.W_dec.norm(dim=1), torch.ones(20))


def test_p23_a_scale_that_lies_beside_the_weights_is_folded_into_them_as_saelens_folds_it(tmp_path):
    theirs = lens("GatedSAE")(
        lens("GatedSAEConfig")(d_in=6, d_sae=20, apply_b_dec_to_input=True, normalize_activations="expected_average_only_in")
    )
    _randomise(theirs)
    theirs.save_model(str(tmp_path))
    write_json(tmp_path / "activation_scaler.json", {"scaling_factor": 0.25, "has_whitening": False})
    ours = read_sae(tmp_path)
    torch.testing.assert_close(ours.encode(X), theirs.encode(X * 0.25))
    torch.testing.assert_close(ours(X), theirs(X * 0.25) / 0.25)
    theirs.fold_activation_norm_scaling_factor(0.25)
    torch.testing.assert_close(ours(X), theirs(X))


def test_p25_a_gated_dictionary_that_subtracts_its_b_dec_has_both_paths_shifted(tmp_path):
    theirs = lens("GatedSAE")(lens("GatedSAEConfig")(d_in=6, d_sae=20, apply_b_dec_to_input=True))
    _randomise(theirs)
    theirs.save_model(str(tmp_path))
    torch.testing.assert_close(read_sae(tmp_path).encode(X), theirs.encode(X))


def old_folder(tmp_path, config, **more):
    """A SAELens folder as versions before 6 wrote it: no metadata, older names."""
    sae = random_kind("jumprelu")
    stored = arrays(sae) | more
    save_file({k: v for k, v in stored.items() if v is not None}, tmp_path / "sae_weights.safetensors")
    config = {"d_in": 6, "d_sae": 20, "dtype": "float32", "hook_point": SITE, "model_name": "gemma-2-2b"} | config
    write_json(tmp_path / "cfg.json", config)
    return sae


def test_p27_an_older_standard_dictionary_with_topk_as_its_activation_function_is_a_topk(tmp_path):
    config = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    sae = old_folder(tmp_path, config, threshold=None)
    ours = read_sae(tmp_path)
    assert (ours.kind, ours.site, ours.provenance["declared"]["l0"]) == ("topk", SITE, 3.0)
    theirs = lens("SAE").load_from_disk(str(tmp_path))
    torch.testing.assert_close(ours.encode(X), theirs.encode(X))
    assert not torch.equal(ours.encode(X), sae.encode(X))


def test_a_fine_tuning_factor_goes_into_the_decoder_and_one_of_ones_is_none(tmp_path):
    config = {"architecture": "jumprelu", "apply_b_dec_to_input": False, "finetuning_scaling_factor": True}
    factor = torch.linspace(0.5, 2, 20)
    sae = old_folder(tmp_path, config, scaling_factor=factor)
    ours = read_sae(tmp_path)
    torch.testing.assert_close(ours(X), (sae.encode(X) * factor) @ sae.W_dec + sae.b_dec)
    old_folder(tmp_path, config, scaling_factor=torch.ones(20))
    assert torch.equal(read_sae(tmp_path)(X), sae(X))
    old_folder(tmp_path, config, scaling_factor=torch.ones(7) * 2)
    with pytest.raises(DictionaryError, match="one per latent"):
        read_sae(tmp_path)


def test_p30_declared_l0_is_read_from_the_sparsity_file(tmp_path):
    old_folder(tmp_path, {"architecture": "jumprelu", "apply_b_dec_to_input": False})
    save_file({"sparsity": torch.full((20,), -1.0)}, tmp_path / "sparsity.safetensors")
    assert read_sae(tmp_path).provenance["declared"]["l0"] == pytest.approx(2.0)


def _randomise(module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
            if name == "threshold":
                p.abs_()


# Gemma Scope


def npz(folder, stored):
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in stored.items()})
    return folder


@pytest.mark.parametrize(
    ("path", "site"),
    [
        ("gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_59", "blocks.3.hook_resid_post"),
        ("gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_59", "blocks.3.attn.hook_z"),
        ("gemma-scope-9b-it-res/layer_20/width_131k/average_l0_59", "blocks.20.hook_resid_post"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_59", "hook_embed"),
        ("gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_59", "blocks.3.ln2.hook_normalized"),
    ],
)
def test_gemma_scope_files_load_identically_here_and_in_saelens(path, site, tmp_path, monkeypatch):
    folder = npz(tmp_path / "google" / path, arrays(random_kind("jumprelu")))
    ours, theirs = read_sae(folder), _saelens_gemma_scope(folder, path, monkeypatch)
    assert (ours.site, ours.provenance["declared"]["l0"]) == (site, 59.0)
    assert theirs.cfg.metadata.hook_name == site
    x = X.view(40, 2, 3) if site.endswith("hook_z") else X
    assert torch.equal(ours.encode(X), theirs.encode(x))
    if site != "hook_embed":  # whose b_dec SAELens leaves in units of the unscaled embedding
        assert torch.equal(ours(X), theirs(x).reshape(40, -1))


def _saelens_gemma_scope(folder, path, monkeypatch):
    """SAELens' own loader of these files, fed with this one instead of the hub."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sae_lens.loading import pretrained_sae_loaders as loaders
    monkeypatch.setattr(loaders, "hf_hub_download", lambda **asked: str(folder / "params.npz"))
    repo, inside = path.split("/", 1)
    kind = "gemma_2_transcoder" if "transcoders" in repo else "gemma_2_sae"
    overrides = {"d_in": 6, "d_sae": 20} | ({"d_out": 6} if "transcoders" in repo else {})
    config, state, _ = getattr(loaders, f"{kind}_huggingface_loader")(f"google/{repo}", inside, "cpu", False, overrides)
    theirs = lens("SAE").from_dict(loaders.handle_config_defaulting(config))
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize(
    "above",
    ["embedding", "layer_5_runs", "my-transcoders/gemma-scope-2b", "gemma-scope-2b-pt-res-mine/layer_5", "layer_5/width_1"],
)
@pytest.mark.parametrize("release", ["", "gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_59"])
def test_only_the_releases_own_layout_says_what_a_params_npz_is_and_no_word_in_a_folder_above_it(above, release, tmp_path):
    sae = random_kind("jumprelu")
    ours = read_sae(npz(tmp_path / above / release, arrays(sae)))
    assert torch.equal(ours(X), sae(X))
    assert (ours.kind, ours.site) == ("jumprelu", "blocks.3.hook_mlp_out" if release else "")
    assert ("declared" in ours.provenance) is bool(release)


@pytest.mark.parametrize("config", [{"site": "blocks.1.hook_resid_post"}, {"hf_hook_point_in": "model.layers.1.output"}])
def test_a_config_beside_a_params_npz_stands_before_the_names_of_its_folders(config, tmp_path):
    sae = random_kind("jumprelu")
    folder = npz(tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_21", arrays(sae))
    write_json(folder / "config.json", config)
    ours = read_sae(folder)
    assert torch.equal(ours(X), sae(X))
    assert ours.site == SITE
    write_json(folder / "config.json", {"site": 5})
    with pytest.raises(DictionaryError, match="Expected `str"):
        read_sae(folder)


def test_a_release_is_known_by_a_relative_path_and_through_a_link_to_it(tmp_path, monkeypatch):
    root = tmp_path / "gemma-scope-2b-pt-res"
    folder = npz(root / "layer_3/width_16k/average_l0_59", arrays(random_kind("jumprelu")))
    monkeypatch.chdir(root)
    assert read_sae("layer_3/width_16k/average_l0_59").site == "blocks.3.hook_resid_post"
    (tmp_path / "mine").symlink_to(folder)
    assert read_sae(tmp_path / "mine").site == "blocks.3.hook_resid_post"


@pytest.mark.parametrize("both", ["w_enc", "w_dec"])
def test_an_array_under_two_names_is_refused_in_every_format(both, tmp_path):
    stored = arrays(random_kind("jumprelu"))
    with pytest.raises(DictionaryError, match=f"twice .*{both}"):
        read_sae(npz(tmp_path / "npz", stored | {both: stored[both.replace("w", "W")]}))
    folder = scope_2(tmp_path / "2", stored)
    save_file(stored | {both: stored[both.replace("w", "W")] + 0}, folder / "params.safetensors")
    with pytest.raises(DictionaryError, match=f"twice .*{both}"):
        read_sae(folder)
    old_folder(tmp_path, {"architecture": "jumprelu"}, log_threshold=stored["threshold"])
    with pytest.raises(DictionaryError, match="threshold twice"):
        read_sae(tmp_path)
    sparse(tmp_path / "layers.3", random_kind("topk"), more={"W_enc": stored["W_enc"]})
    with pytest.raises(DictionaryError, match="twice"):
        read_sae(tmp_path / "layers.3")


def declares(shape, data=b"", dtype="<f4"):
    """The bytes of an npy member that says it has this shape."""
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (declares((1 << 25, 1 << 25)), "4,503,599,627,370,496 bytes, and 0 are there"),
        (declares((-1, 20)), "shape"),
        (declares((6, 20), b"x" * 481), "480 bytes, and 481 are there"),
        (declares("(" * 5000), "damaged"),
        (declares((6, 20), b"x" * 480, "|O"), "pickled"),
        (declares((6, 20), b"x" * 480, "<i4"), "int32"),
        (b"no array", "damaged"),
    ],
)
def test_an_npz_whose_members_are_not_what_their_headers_say_is_refused_before_it_is_unpacked(member, said, tmp_path):
    folder = npz(tmp_path / "d", {n: a for n, a in arrays(random_kind("jumprelu")).items() if n != "W_enc"})
    with zipfile.ZipFile(folder / "params.npz", "a") as archive:
        archive.writestr("W_enc.npy", member)
    with pytest.raises(DictionaryError, match=said):
        read_sae(folder)


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch):
    from scope.sae.formats import files

    monkeypatch.setattr(files, "_SMALL", 1 << 20)
    zeros = np.zeros((512, 1024), np.float32)
    np.savez_compressed(tmp_path / "params.npz", W_enc=zeros, W_dec=zeros.T)
    with pytest.raises(DictionaryError, match="unpacks to 4"):
        read_sae(tmp_path)
    topk = random_kind("topk")
    learning(tmp_path / "learnt", "AutoEncoder", {})
    with zipfile.ZipFile(tmp_path / "learnt" / "ae.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(4 << 20))
    with pytest.raises(DictionaryError, match="unpacks to 4"):
        read_sae(tmp_path / "learnt")
    monkeypatch.setattr(files, "free_memory", lambda: 100)
    with pytest.raises(DictionaryError, match="100 bytes of memory are free"):
        read_sae(save_sae(topk, tmp_path / "ours"))


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors", "scope.json", "params.npz", "ae.pt"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(file, tmp_path):
    save_sae(random_kind("jumprelu"), tmp_path)
    if file in ("params.npz", "ae.pt"):
        for other in tmp_path.iterdir():
            other.unlink()
        write_json(tmp_path / "config.json", {"trainer": {"dict_class": "AutoEncoder"}} if file == "ae.pt" else {})
    (tmp_path / file).unlink(missing_ok=True)
    os.mkfifo(tmp_path / file)
    with pytest.raises(DictionaryError, match="not a regular file"):
        read_sae(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": "standard"}, "hold thresholds"),
        ({"hook_name": "blocks.2.hook_resid_post", "metadata": {"hook_name": "blocks.3.hook_resid_post"}}, "two hook points"),
    ],
)
def test_a_description_that_contradicts_itself_or_its_arrays_is_refused(settings, said, tmp_path):
    old_folder(tmp_path, {"architecture": "jumprelu"} | settings)
    with pytest.raises(DictionaryError, match=said):
        read_sae(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input"),
        ({"rescale_acts_by_decoder_norm": "true"}, "rescale_acts_by_decoder_norm"),
        ({"architecture": ["jumprelu"]}, "architecture"),
        ({"normalize_activations": 3}, "normalize_activations"),
        ({"d_in": 6.0}, "d_in"),
        ({"hook_head_index": "1"}, "hook_head_index"),
        ({"metadata": []}, "metadata"),
        ({"activation_fn_kwargs": {"k": "3"}}, "activation_fn_kwargs.k"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_its_name(settings, said, tmp_path):
    old_folder(tmp_path, {"architecture": "jumprelu", "apply_b_dec_to_input": False} | settings)
    with pytest.raises(DictionaryError, match=rf"Expected .* - at `{said}`"):
        read_sae(tmp_path)


@pytest.mark.parametrize("settings", [{"signed": "false"}, {"transcode": 1}, {"k": 3.0}, {"num_latents": 21}, {"d_in": 7}])
def test_sparsifys_settings_of_another_type_or_of_another_dictionary_are_refused(settings, tmp_path):
    with pytest.raises(DictionaryError, match=rf"{next(iter(settings))}"):
        read_sae(sparse(tmp_path / "layers.5", random_kind("topk"), **settings))


@pytest.mark.parametrize(("value", "n"), [(float("nan"), 1), (float("inf"), 1), (-0.1, 11)])
def test_thresholds_that_are_no_numbers_or_mostly_negative_are_refused(value, n, tmp_path):
    stored = arrays(random_kind("jumprelu"))
    stored["threshold"][:n] = value
    with pytest.raises(DictionaryError, match=r"threshold.* in .*"):
        read_sae(npz(tmp_path / "d", stored))


def test_biases_that_are_far_longer_than_their_matrices_are_refused_without_taking_memory(tmp_path):
    stored = arrays(random_kind("jumprelu")) | {"b_enc": torch.zeros(1 << 20), "b_dec": torch.zeros(1 << 20)}
    with pytest.raises(DictionaryError, match="must be"):
        read_sae(npz(tmp_path / "d", stored))


def test_a_flipped_bit_of_an_ae_pt_fails_its_checksum(tmp_path):
    folder = learning(tmp_path, "JumpReluAutoEncoder", arrays(random_kind("jumprelu")))
    data = bytearray((folder / "ae.pt").read_bytes())
    at = data.index(arrays(random_kind("jumprelu"))["b_enc"].numpy().tobytes())
    data[at + 2] ^= 1
    (folder / "ae.pt").write_bytes(data)
    with pytest.raises(DictionaryError, match="checksum"):
        read_sae(folder)


def test_an_ae_pt_whose_tensor_repeats_one_number_without_end_is_refused(tmp_path):
    stored = arrays(random_kind("jumprelu")) | {"W_enc": torch.zeros(1).expand(1 << 20, 1 << 20)}
    with pytest.raises(DictionaryError, match="does not hold so many numbers"):
        read_sae(learning(tmp_path, "JumpReluAutoEncoder", stored))


def test_p11_the_embeddings_dictionary_reads_embeddings_times_their_factor(tmp_path):
    sae = random_kind("jumprelu")
    ours = read_sae(npz(tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_21", arrays(sae)))
    root = 6**0.5
    torch.testing.assert_close(ours.encode(root * X), sae.encode(X))
    torch.testing.assert_close(ours(root * X), root * sae(X))


def test_p29_coarse_numbers_are_widened_and_said(tmp_path):
    stored = arrays(random_kind("jumprelu"))
    ours = read_sae(npz(tmp_path / "half", {name: a.half() for name, a in stored.items()}))
    assert ours.W_enc.dtype == torch.float32
    assert ours.provenance["stored"]["threshold"] == "float16"
    save_file({name: a.bfloat16() for name, a in stored.items()}, tmp_path / "sae_weights.safetensors")
    write_json(tmp_path / "cfg.json", {"architecture": "jumprelu", "d_in": 6, "d_sae": 20, "apply_b_dec_to_input": False})
    assert set(read_sae(tmp_path).provenance["stored"].values()) == {"bfloat16"}


def test_p28_a_square_decoder_that_is_turned_is_told_by_its_encoder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(32, 32, generator=generator), dim=1)
    right = {"W_enc": rows.T, "W_dec": rows, "b_enc": torch.zeros(32), "b_dec": torch.zeros(32), "threshold": torch.ones(32)}
    read_sae(npz(tmp_path / "right", right))
    with pytest.raises(DictionaryError, match="W_enc or W_dec is transposed"):
        read_sae(npz(tmp_path / "turned", right | {"W_dec": rows.T}))
    with pytest.raises(DictionaryError, match="W_enc or W_dec is transposed"):
        read_sae(npz(tmp_path / "turned_encoder", right | {"W_enc": rows}))


def test_a_file_cut_short_is_known_as_one(tmp_path):
    folder = npz(tmp_path / "d", arrays(random_kind("jumprelu")))
    file = folder / "params.npz"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DictionaryError, match="damaged"):
        read_sae(folder)
    file.rename(folder / "params.npz.incomplete")
    with pytest.raises(DictionaryError, match="interrupted"):
        read_sae(folder)


# Gemma Scope 2


def scope_2(folder, stored, **config):
    folder.mkdir(parents=True)
    lower = {"W_enc": "w_enc", "W_dec": "w_dec", "W_skip": "affine_skip_connection"}
    save_file({lower.get(name, name): value.contiguous() for name, value in stored.items()}, folder / "params.safetensors")
    write_json(folder / "config.json", {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt"} | config)
    return folder


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("model.layers.12.output", "blocks.12.hook_resid_post"),
        ("model.layers.12.self_attn.o_proj.input", "blocks.12.attn.hook_z"),
        ("model.layers.12.post_feedforward_layernorm.output", "blocks.12.hook_mlp_out"),
    ],
)
def test_gemma_scope_2_is_read_by_its_config(hook, site, tmp_path):
    sae = random_kind("jumprelu")
    folder = scope_2(tmp_path / "layer_12_width_16k_l0_medium", arrays(sae), hf_hook_point_in=hook)
    ours = read_sae(folder)
    assert torch.equal(ours(X), sae(X))
    assert (ours.site, ours.provenance["declared"]["l0"]) == (site, [30.0, 60.0])


@pytest.mark.parametrize(
    ("part", "hook"), [("resid_post", "output"), ("mlp_out", "post_feedforward_layernorm.output"), ("transcoder", None)]
)
def test_gemma_scope_2_files_load_identically_here_and_in_saelens(part, hook, tmp_path, monkeypatch):
    sae = random_kind("transcoder" if part == "transcoder" else "jumprelu")
    stored = arrays(sae)
    config = {"hf_hook_point_in": f"model.layers.3.{hook}"}
    if part == "transcoder":
        stored["W_skip"] = stored["W_skip"].T
        ends = {"in": "pre_feedforward_layernorm.output", "out": "post_feedforward_layernorm.output"}
        config = {f"hf_hook_point_{end}": f"model.layers.3.{name}" for end, name in ends.items()} | {"affine_connection": True}
    name = f"{part}/layer_3_width_16k_l0_small"
    ours = read_sae(scope_2(tmp_path / name, stored, **config))
    theirs = _saelens_gemma_scope_2(tmp_path, name, stored, monkeypatch)
    assert torch.equal(ours.encode(X), theirs.encode(X))
    torch.testing.assert_close(ours(X), theirs(X))
    if part != "transcoder":  # theirs names the stream before the MLP's norm; what it reads lies after that norm's gain
        assert ours.site == theirs.cfg.metadata.hook_name
    else:
        assert ours.site_out == theirs.cfg.metadata.hook_name_out


def _saelens_gemma_scope_2(folder, name, stored, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sae_lens.loading import pretrained_sae_loaders as loaders
    lower = {"w_enc": list(stored["W_enc"].shape), "w_dec": list(stored["W_dec"].shape)}

    def local(repo_id, filename, subfolder="", **asked):
        return str(folder / subfolder / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda repo, file: lower)
    config, state, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-1b-pt", name, "cpu")
    theirs = lens("SAE").from_dict(loaders.handle_config_defaulting(config))
    theirs.load_state_dict(state)
    return theirs


def test_gemma_scope_2s_transcoder_predicts_its_output_and_adds_its_affine_map(tmp_path):
    sae = random_kind("transcoder")
    stored = arrays(sae)
    stored["W_skip"] = stored["W_skip"].T
    config = {
        "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
        "affine_connection": True,
    }
    ours = read_sae(scope_2(tmp_path / "layer_3_width_16k_l0_big_affine", stored, **config))
    assert torch.equal(ours(X), sae(X))
    assert (ours.site, ours.site_out) == ("", "blocks.3.hook_mlp_out")  # its input lies after the norm's gain: no site here
    assert "pre_feedforward" in ours.provenance["reads"]


def test_p27_a_cross_layer_transcoder_is_refused(tmp_path):
    stored = arrays(random_kind("jumprelu"))
    stored["W_dec"] = stored["W_dec"][:, None].repeat(1, 4, 1)
    with pytest.raises(DictionaryError, match="4 layers"):
        read_sae(scope_2(tmp_path / "clt", stored))


# dictionary_learning


def learning(folder, name, stored, **trainer):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(stored, folder / "ae.pt")
    trainer = {"dict_class": name, "layer": 3, "lm_name": "google/gemma-2-2b", "submodule_name": "resid_post_layer_3"} | trainer
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {"io": "out", "ctx_len": 128}})
    return folder


def linear(sae, **more):
    """The arrays as torch's linear layers hold them."""
    stored = {"encoder.weight": sae.W_enc.detach().T.contiguous(), "decoder.weight": sae.W_dec.detach().T.contiguous()}
    return stored | {name: value.detach() for name, value in more.items()}


def test_dictionary_learnings_relu_subtracts_its_bias_and_is_read_with_unit_rows(tmp_path):
    sae = random_kind("jumprelu")
    stored = linear(sae, **{"encoder.bias": sae.b_enc, "bias": sae.b_dec})
    ours = read_sae(learning(tmp_path, "AutoEncoder", stored))
    latents = torch.relu((X - sae.b_dec) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=1)
    torch.testing.assert_close(ours.encode(X), latents)
    torch.testing.assert_close(ours.W_dec.norm(dim=1), torch.ones(20))
    assert ours.site == "blocks.3.hook_resid_post"
    assert ours.provenance["model"]["model"] == "google/gemma-2-2b"


def test_dictionary_learnings_newer_relu_subtracts_nothing(tmp_path):
    sae = random_kind("jumprelu")
    stored = linear(sae, **{"encoder.bias": sae.b_enc, "decoder.bias": sae.b_dec})
    ours = read_sae(learning(tmp_path, "AutoEncoderNew", stored))
    torch.testing.assert_close(ours.encode(X), torch.relu(X @ sae.W_enc + sae.b_enc))


def test_dictionary_learnings_jumprelu_topk_batch_topk_and_gated_are_read_as_what_they_are(tmp_path):
    jump, topk, gated = random_kind("jumprelu"), random_kind("topk"), random_kind("gated")
    assert torch.equal(read_sae(learning(tmp_path / "j", "JumpReluAutoEncoder", arrays(jump))).encode(X), jump.encode(X))
    k = {"k": torch.tensor(3, dtype=torch.int), "threshold": torch.tensor(0.4)}
    stored = linear(topk, **{"encoder.bias": topk.b_enc, "b_dec": topk.b_dec}) | k
    ours = read_sae(learning(tmp_path / "t", "AutoEncoderTopK", stored))
    torch.testing.assert_close(ours.encode(X), topk.encode(X - topk.b_dec))
    ours = read_sae(learning(tmp_path / "b", "BatchTopKSAE", stored))
    pre = topk.pre_activations(X - topk.b_dec)
    torch.testing.assert_close(ours.encode(X), torch.relu(pre) * (pre > 0.4))
    names = {"decoder_bias": gated.b_dec, "r_mag": gated.r_mag, "gate_bias": gated.b_enc, "mag_bias": gated.b_mag}
    ours = read_sae(learning(tmp_path / "g", "GatedAutoEncoder", linear(gated, **names)))
    torch.testing.assert_close(ours.encode(X), gated.encode(X - gated.b_dec))


@pytest.mark.parametrize("k", [2.7, True, "3", None, float("nan")])
def test_dictionary_learnings_topk_whose_k_is_no_whole_number_is_refused(tmp_path, k):
    topk = random_kind("topk")
    stored = linear(topk, **{"encoder.bias": topk.b_enc, "b_dec": topk.b_dec})
    with pytest.raises(DictionaryError, match=r"no number of latents|at `trainer.k`"):
        read_sae(learning(tmp_path, "AutoEncoderTopK", stored, k=k))


def test_p27_a_batch_topk_whose_threshold_was_never_set_is_refused(tmp_path):
    topk = random_kind("topk")
    stored = linear(topk, **{"encoder.bias": topk.b_enc, "b_dec": topk.b_dec})
    stored |= {"k": torch.tensor(3, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    with pytest.raises(DictionaryError, match="never set"):
        read_sae(learning(tmp_path, "BatchTopKSAE", stored))


def test_dictionary_learnings_matryoshka_keeps_its_groups_as_nested_widths(tmp_path):
    stored = arrays(random_kind("topk"))
    stored |= {"k": torch.tensor(3), "threshold": torch.tensor(0.4), "group_sizes": torch.tensor([5, 5, 10])}
    assert read_sae(learning(tmp_path, "MatryoshkaBatchTopKSAE", stored)).config.nested == (5, 10)


class Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_p49_an_ae_pt_that_would_run_code_is_refused_and_runs_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learning(tmp_path, "AutoEncoder", {})
    (tmp_path / "ae.pt").write_bytes(pickle.dumps({"bias": Harm()}))
    with pytest.raises(DictionaryError, match="refused"):
        read_sae(tmp_path)
    torch.save({"bias": Harm()}, tmp_path / "ae.pt")
    with pytest.raises(DictionaryError, match="refused"):
        read_sae(tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_an_ae_pt_cut_short_alone_or_of_an_unknown_class_is_refused(tmp_path):
    learning(tmp_path, "IdentityDict", {})
    with pytest.raises(DictionaryError, match="IdentityDict"):
        read_sae(tmp_path)
    learning(tmp_path, "AutoEncoder", arrays(random_kind("topk")))
    whole = (tmp_path / "ae.pt").read_bytes()
    (tmp_path / "ae.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DictionaryError, match=r"damaged|refused"):
        read_sae(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(DictionaryError, match=r"without config\.json"):
        read_sae(tmp_path)


# sparsify


def sparse(folder, sae, more=None, **config):
    folder.mkdir(parents=True)
    stored = arrays(sae)
    stored = {"encoder.weight": stored["W_enc"].T.contiguous(), "encoder.bias": stored["b_enc"]} | {
        name: stored[name] for name in ("W_dec", "b_dec", "W_skip") if name in stored
    }
    save_file(stored | (more or {}), folder / "sae.safetensors")
    write_json(folder / "cfg.json", {"activation": "topk", "k": 3, "num_latents": 20, "d_in": 6, "transcode": False} | config)
    return folder


@pytest.mark.parametrize(
    ("hook", "site"), [("layers.5", "blocks.5.hook_resid_post"), ("layers.5.mlp", "blocks.5.mlp.hook_out"), ("other", "")]
)
def test_sparsifys_topk_subtracts_b_dec_and_reads_the_output_of_the_module_it_is_named_after(hook, site, tmp_path):
    sae = random_kind("topk")
    ours = read_sae(sparse(tmp_path / hook, sae))
    assert (ours.kind, ours.site, ours.config.k) == ("topk", site, 3)
    torch.testing.assert_close(ours.encode(X), sae.encode(X - sae.b_dec))


def test_sparsifys_transcoder_subtracts_nothing_and_names_what_it_predicts(tmp_path):
    sae = random_kind("transcoder", d_out=6, k=3)
    ours = read_sae(sparse(tmp_path / "layers.5.mlp", sae, transcode=True, skip_connection=True))
    torch.testing.assert_close(ours(X), sae(X))
    assert (ours.kind, ours.site_out) == ("transcoder", "blocks.5.mlp.hook_out")


@pytest.mark.parametrize(
    ("change", "said"), [({"activation": "groupmax"}, "groupmax"), ({"signed": True}, "signed"), ({"k": None}, "k")]
)
def test_sparsifys_other_kinds_are_refused(change, said, tmp_path):
    with pytest.raises(DictionaryError, match=said):
        read_sae(sparse(tmp_path / "layers.5", random_kind("topk"), **change))


# Converting


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", ["scope", "sae_lens"])
def test_a_round_trip_is_the_same_to_the_bit(kind, to, tmp_path):
    sae = random_kind(kind)
    save_sae(sae, tmp_path / "a")
    done = convert(tmp_path / "a", tmp_path / "b", to)
    assert done.furthest == 0
    back = convert(tmp_path / "b", tmp_path / "c", "scope").sae
    assert torch.equal(back(X), read_sae(tmp_path / "a")(X))
    assert back.kind == ("jumprelu" if (kind, to) == ("batch_topk", "sae_lens") else kind)


def test_a_site_that_is_given_stands_before_the_sources_and_that_is_said(tmp_path):
    sae = random_kind("jumprelu")
    save_sae(sae, tmp_path / "a")
    other = "blocks.7.hook_resid_post"
    assert sae.site not in ("", other)
    done = convert(tmp_path / "a", tmp_path / "b", "scope", other)
    assert read_sae(tmp_path / "b").site == other
    assert done.lost == [f"that it reads {sae.site}, which the source says"]
    assert convert(tmp_path / "a", tmp_path / "c", "scope", sae.site).lost == []


@pytest.mark.parametrize("kind", ["jumprelu", "batch_topk", "gated"])
def test_what_thresholds_can_express_goes_to_gemma_scope_and_what_is_lost_is_said(kind, tmp_path):
    sae = random_kind(kind, nested=(5,))
    save_sae(sae, tmp_path / "a")
    done = convert(tmp_path / "a", tmp_path / "b", "gemma_scope")
    assert done.furthest == 0
    torch.testing.assert_close(read_sae(tmp_path / "b").encode(X), sae.encode(X), rtol=1e-5, atol=1e-6)
    told = " ".join(done.lost)
    assert "layer_1/width_0k" in told
    assert "nested widths 5" in told
    assert ("trained as" in told) is (kind != "jumprelu")


@pytest.mark.parametrize("site", ["blocks.1.ln2.hook_normalized", "hook_embed", ""])
@pytest.mark.parametrize("kind", ["jumprelu", "transcoder"])
def test_a_dictionary_written_as_params_npz_comes_back_as_the_kind_and_at_the_site_that_it_was(kind, site, tmp_path):
    sae = random_kind(kind, **({"skip": False} if kind == "transcoder" else {}))
    sae.site = site
    save_sae(sae, tmp_path / "a")
    done = convert(tmp_path / "a", tmp_path / "transcoders" / "embedding", "gemma_scope")
    back = read_sae(done.folder)
    assert (back.kind, back.reads, back.writes) == (sae.kind, sae.reads, sae.writes)
    torch.testing.assert_close(back.encode(X), sae.encode(X))
    torch.testing.assert_close(back(X), sae(X))


def test_a_topk_transcoder_is_saved_and_where_no_format_has_a_place_for_it_that_one_is_named(tmp_path):
    sae = random_kind("transcoder", k=3)
    back = read_sae(save_sae(sae, tmp_path / "a"))
    assert torch.equal(back(X), sae(X))
    assert (back.kind, back.config) == ("transcoder", sae.config)
    assert convert(tmp_path / "a", tmp_path / "b", "scope").furthest == 0
    for to in ("sae_lens", "gemma_scope"):
        with pytest.raises(DictionaryError, match="--to scope"):
            convert(tmp_path / "a", tmp_path / to, to)
        assert not (tmp_path / to).exists()


def test_gemma_scope_to_ours_and_back_is_the_same_file_content(tmp_path):
    stored = arrays(random_kind("jumprelu"))
    source = npz(tmp_path / "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_59", stored)
    convert(source, tmp_path / "ours", "scope")
    convert(tmp_path / "ours", tmp_path / "back", "gemma_scope")
    with np.load(tmp_path / "back" / "params.npz") as archive:
        assert all(np.array_equal(archive[name], value.numpy()) for name, value in stored.items())


def test_p27_topk_cannot_be_said_in_gemma_scopes_format_and_leaves_nothing_behind(tmp_path):
    save_sae(random_kind("topk"), tmp_path / "a")
    with pytest.raises(DictionaryError, match="sae_lens"):
        convert(tmp_path / "a", tmp_path / "b", "gemma_scope")
    assert not (tmp_path / "b").exists()
    save_sae(random_kind("transcoder"), tmp_path / "t")
    with pytest.raises(DictionaryError, match="skip"):
        convert(tmp_path / "t", tmp_path / "b", "gemma_scope")


@pytest.mark.parametrize("agree", [False, True])
def test_p27_a_manifest_of_another_kind_than_the_weights_is_refused(tmp_path, agree):
    save_sae(random_kind("batch_topk"), tmp_path)
    manifest = json.loads((tmp_path / "scope.json").read_text())
    config = {"d_in": 6, "d_sae": 20, "k": 3}
    (tmp_path / "scope.json").write_text(json.dumps(manifest | {"kind": "topk", "config": config}))
    if agree:  # the weights alone still say it
        content = json.loads((tmp_path / "cfg.json").read_text())
        (tmp_path / "cfg.json").write_text(json.dumps(content | {"architecture": "topk", "k": 3}))
    with pytest.raises(DictionaryError, match="holds threshold" if agree else "kind topk, and cfg.json .* 'jumprelu'"):
        read_sae(tmp_path)
    (tmp_path / "scope.json").unlink()
    if agree:
        with pytest.raises(DictionaryError, match="holds threshold"):
            read_sae(tmp_path)


def test_converting_into_a_file_is_refused(tmp_path):
    save_sae(random_kind("jumprelu"), tmp_path / "a")
    (tmp_path / "file").write_text("x")
    for out in ("file", "file/below"):
        with pytest.raises(DictionaryError, match="cannot be a folder"):
            convert(tmp_path / "a", tmp_path / out, "scope")


def test_converting_overwrites_nothing_and_knows_its_targets(tmp_path):
    save_sae(random_kind("topk"), tmp_path / "a")
    with pytest.raises(DictionaryError, match="already holds"):
        convert(tmp_path / "a", tmp_path / "a", "sae_lens")
    with pytest.raises(ConfigError, match="gemma_scope"):
        convert(tmp_path / "a", tmp_path / "b", "onnx")


def test_the_command_says_what_it_wrote_and_a_hub_id_without_the_hub_is_refused(tmp_path, capsys):
    save_sae(random_kind("batch_topk"), tmp_path / "a")
    assert scope(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "sae_lens"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "bit for bit the same" in said
    assert "not kept: that it was trained as batch_topk" in said
    assert (
        scope(["convert", "google/gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_59", str(tmp_path / "c"), "--to", "scope"])
        == 2
    )
    assert "To be fetched: google/gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_59" in capsys.readouterr().err


def test_a_hub_id_is_read_from_the_hubs_cache(tmp_path, monkeypatch):
    """As huggingface_hub lays it, so that what was fetched once is found without a network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--google--gemma-scope-2b-pt-mlp"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    sae = random_kind("jumprelu")
    npz(repo / "snapshots" / ("a" * 40) / "layer_2" / "width_16k" / "average_l0_7", arrays(sae))
    name = "google/gemma-scope-2b-pt-mlp/layer_2/width_16k/average_l0_7"
    ours = read_sae(name)
    assert torch.equal(ours(X), sae(X))
    assert (ours.site, ours.provenance["source"]) == ("blocks.2.hook_mlp_out", name)
    assert ours.provenance["model"]["model"] == "google/gemma-2-2b"
