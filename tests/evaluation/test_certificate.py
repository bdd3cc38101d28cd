"""A dictionary that fits gets its certificate; each way of reading it wrongly is told apart from the others and refused.

What is right is known, since the dictionary was made here, on the bundled model; so every mistake can be made on purpose.
"""

import copy
import hashlib
import json

import pytest
import torch

from scope.cli.main import run as scope
from scope.errors import DictionaryError
from scope.evaluation.certificate import certify as certificate
from scope.evaluation.certificate import rules
from scope.evaluation.certificate.certificate import read
from scope.evaluation.certificate.certify import certify, examine, record, sample_text
from scope.evaluation.certificate.training_text import Text
from scope.evaluation.load import UncheckedWarning
from scope.evaluation.load import load_sae as load_for
from scope.models.load import load_model
from scope.sae.files import read_sae, save_sae
from scope.sae.jumprelu import JumpReLUConfig
from scope.sae.kinds import make_sae
from scope.sae.transcoder import TranscoderConfig
from scope.training.batches import TensorBatches
from scope.training.config import TrainConfig
from scope.training.trainer import train

POST = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return load_model("bundled")


@pytest.fixture(scope="module")
def tokens(model):
    return sample_text(model)[:5]


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A small dictionary of the stream, trained for seconds."""
    x = record(model, sample_text(model, 8_000), [POST], POST)[0][POST]
    config = TrainConfig(steps=250, batch_size=256, warmup=0.02)
    sae = make_sae(JumpReLUConfig(d_in=256, d_sae=512, target_l0=24.0), POST)
    return train(sae, TensorBatches(x, 256), config, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def made(model, tokens, trained):
    """site -> a dictionary that is right there: the trained one, or one of both ends of 96 principal components."""

    def build(site: str = POST, declared: bool = True):
        x = record(model, tokens, [site], site)[0][site]
        sae = copy.deepcopy(trained) if site == POST else _components(x, site)
        sae.provenance = {"model": dict(model.provenance), "site": site, "weights_sha256": "made"}
        if declared:
            latents = sae.encode(x)
            error = (x - sae.decode(latents)).square().sum() / (x - x.mean(0)).square().sum()
            l0 = (latents > 0).sum(1).float().mean()
            sae.provenance["declared"] = {"l0": l0.item(), "fvu": error.item(), "from": "the test"}
        return sae.eval()

    return torch.no_grad()(build)


def _components(x, site):
    mean = x.mean(0)
    axes = torch.linalg.eigh((x - mean).T @ (x - mean)).eigenvectors[:, -96:]
    sae = make_sae(JumpReLUConfig(d_in=len(mean), d_sae=192), site)
    sae.W_dec.copy_(torch.cat([axes.T, -axes.T]))
    sae.W_enc.copy_(sae.W_dec.T)
    sae.b_dec.copy_(mean)
    sae.b_enc.copy_(-mean @ sae.W_enc)
    sae.threshold.copy_(sae.pre_activations(x).relu().quantile(0.8, dim=0).clamp_min(0.05))
    return sae


def refused(model, sae, tokens) -> str:
    with pytest.raises(DictionaryError) as caught:
        certify(model, sae, tokens=tokens)
    return str(caught.value)


def test_a_dictionary_that_fits_is_measured_beside_what_it_declares_and_its_null(model, made, tokens):
    sae = made()
    found = certify(model, sae, tokens=tokens)
    assert found.fits
    assert found.measured["l0"] == pytest.approx(sae.provenance["declared"]["l0"], rel=1e-3)
    assert found.measured["fvu"] == pytest.approx(sae.provenance["declared"]["fvu"], rel=1e-3)
    assert found.null["fvu"] > 1.5 * found.measured["fvu"]
    assert "declared" in found.line()


@pytest.mark.parametrize("site", ["blocks.1.hook_mlp_out", "blocks.1.hook_attn_out"])
def test_p09_a_missing_post_norm_is_told_by_its_name(model, made, tokens, site):
    raw = site.replace("hook_mlp_out", "mlp.hook_out").replace("hook_attn_out", "attn.hook_out")
    sae = made(site)
    sae.site = raw
    said = refused(model, sae, tokens)
    assert f"it reads {site}, not {raw} (between them lies" in said
    assert "post norm" in said
    sae = made(raw)
    sae.site = site
    assert f"it reads {raw}, not {site}" in refused(model, sae, tokens)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("wrong", ["blocks.0.hook_resid_post", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_pre"])
def test_p10_a_site_of_a_block_that_is_not_beside_its_own_is_told(model, made, tokens, wrong, declared):
    sae = made(declared=declared)
    sae.site = wrong
    assert f"it reads {POST}, not {wrong}" in refused(model, sae, tokens)


@pytest.mark.parametrize("wrong", ["blocks.2.hook_resid_pre", "blocks.2.hook_resid_mid", "blocks.3.hook_resid_post"])
@pytest.mark.parametrize("declared", [True, False])
def test_p10_a_neighbouring_site_of_the_stream_is_told_even_when_nothing_is_declared(model, made, tokens, wrong, declared):
    sae = made(declared=declared)
    sae.site = wrong
    assert f"it reads {POST}, not {wrong}" in refused(model, sae, tokens)


def test_p10_two_names_of_one_stream_are_both_right(model, made, tokens):
    sae = made()
    sae.site = "blocks.3.hook_resid_pre"
    assert certify(model, sae, tokens=tokens).fits


def test_p16_the_wrong_weights_are_refused_by_hash_and_what_fits_nothing_by_its_numbers(model, made, tokens):
    sae = made()
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_enc[:, torch.randperm(512, generator=torch.Generator().manual_seed(0))])
    assert "was it made for other weights?" in refused(model, sae, tokens)
    sae = made()
    sae.provenance["model"] = {"model": "other", "weights_sha256": "0" * 64}
    assert "was trained on other" in refused(model, sae, tokens)
    assert certify(model, sae, tokens=tokens, any_model=True).fits


def test_p16_a_width_that_does_not_fit_is_refused_before_anything_runs(model, made, tokens):
    sae = made()
    sae.site = "blocks.2.attn.hook_z"
    assert "192 wide" in refused(model, sae, tokens)
    sae.site = "blocks.2.hook_resid_pots"
    assert "hook_resid_post" in refused(model, sae, tokens)


@pytest.mark.parametrize("how", ["mean square norm 1", "mean norm sqrt(d_in)", "1 / sqrt(d_in)", "sqrt(d_in)"])
def test_p11_p23_a_scale_that_was_not_folded_is_told_with_its_factor(model, made, tokens, how):
    sae = made()
    x = record(model, tokens, [POST], POST)[0][POST]
    factor = certificate_scales(x)[how]
    with torch.no_grad():  # a dictionary of factor * x
        sae.W_enc.div_(factor)
        sae.W_dec.mul_(factor)
        sae.b_dec.mul_(factor)
    said = refused(model, sae, tokens)
    assert f"must be multiplied by {factor:.4g} first ({how})" in said
    assert "a scale was not folded in" in said


def certificate_scales(x):
    from scope.evaluation.certificate.readings import scales

    return scales(x)


def test_p25_a_bias_to_be_subtracted_or_subtracted_twice_is_told(model, made, tokens):
    sae = made()
    with torch.no_grad():
        sae.b_enc.add_(sae.b_dec @ sae.W_enc)
    assert "b_dec must be subtracted before encoding" in refused(model, sae, tokens)
    sae = made()
    with torch.no_grad():
        sae.b_enc.sub_(sae.b_dec @ sae.W_enc)
    assert "b_dec is subtracted before encoding, and must not be" in refused(model, sae, tokens)


def test_p26_thresholds_stored_as_logarithms_are_told_by_the_declared_l0(model, made, tokens):
    sae = made()
    with torch.no_grad():
        sae.threshold.log_()
    assert "its thresholds are stored as logarithms" in refused(model, sae, tokens)
    del sae.provenance["declared"]
    assert any("cannot be detected" in note for note in certify(model, sae, tokens=tokens).notes)


def test_p27_a_topk_read_without_its_k_is_told(model, made, tokens):
    sae = made()
    with torch.no_grad():
        sae.threshold.zero_()
    sae.provenance["declared"] = {"l0": 40.0, "from": "its k"}
    assert "it is a TopK of k = 40" in refused(model, sae, tokens)


def test_p28_both_matrices_of_a_square_dictionary_turned_are_told(model, tokens):
    x = record(model, tokens, [POST], POST)[0][POST]
    mean = x.mean(0)
    axes = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(1))).Q
    sae = make_sae(JumpReLUConfig(d_in=256, d_sae=256), POST)
    with torch.no_grad():  # latents = coordinates + 200, all positive
        sae.W_enc.copy_(axes.T)
        sae.W_dec.copy_(axes)
        sae.b_enc.copy_(200 - mean @ sae.W_enc)
        sae.b_dec.copy_(mean - 200 * sae.W_dec.sum(0))
    assert examine(model, sae, tokens).measured["fvu"] < 1e-3
    with torch.no_grad():
        sae.W_enc.copy_(axes)
        sae.W_dec.copy_(axes.T)
    assert "both transposed" in refused(model, sae, tokens)


def test_p29_thresholds_of_few_bits_are_noted_with_the_firings_that_they_leave_open(model, made, tokens):
    sae = made()
    sae.provenance["stored"] = {"threshold": "bfloat16"}
    note = next(n for n in certify(model, sae, tokens=tokens).notes if "bfloat16" in n)
    assert 0 < float(note.split(": ")[1].split("%")[0]) < 5


def test_p30_what_differs_a_little_is_noted_and_what_differs_much_is_refused(model, made, tokens):
    sae = made()
    l0 = sae.provenance["declared"]["l0"]
    sae.provenance["declared"]["fvu"] *= 0.2
    found = certify(model, sae, tokens=tokens)
    assert found.fits
    assert "less well" in found.said
    sae.provenance["declared"] = {"l0": [6 * l0, 9 * l0], "from": "the test"}
    assert "latents fire per token where" in refused(model, sae, tokens)


def test_p02_tokens_of_huge_norm_are_left_out_and_counted(model, made, tokens, monkeypatch):
    monkeypatch.setattr(certificate, "OUTLIER", 1.2)
    found = examine(model, made(), tokens)
    assert found.measured["outliers"] > 0
    assert any("left out" in note for note in found.notes)


def test_a_transcoder_is_measured_by_what_it_predicts_and_its_input_before_the_norm_is_told(model, made, tokens):
    """One that copies its input: from x / rms(x) it predicts x / rms(x)."""
    site = "blocks.1.ln2.hook_normalized"
    right = made(site)
    sae = make_sae(TranscoderConfig(d_in=256, d_sae=192, site_out=site), site)
    sae.load_state_dict(right.state_dict())
    sae.provenance = dict(right.provenance)
    assert certify(model, sae, tokens=tokens).fits
    sae.site = "blocks.1.hook_resid_mid"
    assert "the norm before the MLP" in refused(model, sae, tokens)
    sae.site = ""
    sae.provenance["reads"] = "the MLP's input, after its norm's gain"
    assert "after its norm's gain" in refused(model, sae, tokens)


# Keeping


def test_a_certificate_lies_beside_the_dictionary_and_is_made_once_for_model_weights_and_site(
    model, made, tokens, tmp_path, monkeypatch
):
    save_sae(made(), tmp_path)
    sae = read_sae(tmp_path)
    first = certify(model, sae, tmp_path, tokens)
    assert read(tmp_path) == first
    content = json.loads((tmp_path / "certificate.json").read_text())
    assert [key.split("-")[0] for key in content["certificates"]] == [model.provenance["weights_sha256"]]
    runs = []
    monkeypatch.setattr(certificate, "examine", lambda *given: runs.append(given) or examine(*given))
    assert certify(model, sae, tmp_path, tokens) == first
    assert not runs
    with torch.no_grad():
        sae.threshold.mul_(1.01)
    certify(model, sae, tmp_path, tokens)
    sae.site = "blocks.2.hook_resid_mid"
    for _ in range(2):
        with pytest.raises(DictionaryError, match="it reads"):
            certify(model, sae, tmp_path, tokens)
    assert len(runs) == 2
    assert len(json.loads((tmp_path / "certificate.json").read_text())["certificates"]) == 3


def test_a_certificate_is_measured_again_when_the_rule_the_text_or_what_is_declared_changes(
    model, made, tokens, tmp_path, monkeypatch
):
    sae = read_sae(save_sae(made(), tmp_path))
    runs = []
    monkeypatch.setattr(certificate, "examine", lambda *given: runs.append(given) or examine(*given))
    certify(model, sae, tmp_path, tokens)
    certify(model, sae, tmp_path, tokens)
    assert len(runs) == 1
    certify(model, sae, tmp_path, tokens[:4])
    monkeypatch.setattr(certificate, "OUTLIER", 19.0)
    certify(model, sae, tmp_path, tokens)
    sae.provenance["declared"] = sae.provenance["declared"] | {"fvu": 0.11}
    certify(model, sae, tmp_path, tokens)
    assert len(runs) == 4
    assert certify(model, sae, tmp_path, tokens).declared["fvu"] == 0.11
    monkeypatch.setattr(rules, "RULES", rules.RULES + 1)
    certify(model, sae, tmp_path, tokens)
    assert len(runs) == 5


def test_a_certificate_of_version_0_1_0_is_found_under_the_hash_that_it_had_and_no_longer_once_the_rules_are_others(
    model, made, tokens, tmp_path, monkeypatch
):
    sae = read_sae(save_sae(made(), tmp_path))
    first = certify(model, sae, tmp_path, tokens)
    file = tmp_path / "certificate.json"
    content = json.loads(file.read_text())
    (key,) = content["certificates"]
    earlier = rules.rules_hash_of_0_1_0(certificate.what_decides(model, sae, Text(tokens)))[:16]
    kept = content["certificates"].pop(key) | {"said": "It fitted, in the words of that version."}
    content["certificates"][f"{key.rsplit('-', 1)[0]}-{earlier}"] = kept
    file.write_text(json.dumps(content))
    runs = []
    monkeypatch.setattr(certificate, "examine", lambda *given: runs.append(given) or examine(*given))
    assert certify(model, sae, tmp_path, tokens) == first
    assert not runs
    monkeypatch.setattr(rules, "RULES", 2)
    certify(model, sae, tmp_path, tokens)
    assert len(runs) == 1


@pytest.mark.parametrize("length", [0, 27, 28, 91, 92, 1000])
def test_hashing_that_goes_on_in_the_middle_comes_to_what_hashing_from_the_start_does(length):
    start = bytes(range(128))
    state = "".join(f"{x:08x}" for x in rules._compress(rules._compress(FIRST, start[:64]), start[64:]))
    more = b"x" * length
    assert rules._continue(state, 128, b"tail", more) == hashlib.sha256(start + b"tail" + more).hexdigest()


FIRST = [int(p**0.5 % 1 * 2**32) for p in (2, 3, 5, 7, 11, 13, 17, 19)]  # FIPS 180-4, 5.3.3


@pytest.mark.parametrize(
    "damage", ["[]", '{"schema": 1, "certificates": []}', '{"fits": true}', '{"fits": true, "said": "It fits."}', '"verdict"']
)
def test_a_certificate_that_is_damaged_or_edited_is_measured_anew_and_that_is_said(model, made, tokens, tmp_path, damage):
    wrong = made()
    with torch.no_grad():
        wrong.W_dec.zero_()
    save_sae(wrong, tmp_path)
    with pytest.raises(DictionaryError, match="FVU"):
        load_for(tmp_path, model=model, tokens=tokens)
    file = tmp_path / "certificate.json"
    content = json.loads(file.read_text())
    key, kept = next(iter(content["certificates"].items()))
    if "fits" in damage:
        content["certificates"][key] = (kept if "said" in damage else {}) | json.loads(damage)
    elif damage == '"verdict"':  # the verdict of another, over numbers that say otherwise
        kept |= {"fits": True, "said": "It fits, less well than declared."}
    file.write_text(damage if "fits" not in damage and damage != '"verdict"' else json.dumps(content))
    with pytest.raises(DictionaryError, match="FVU"):
        load_for(tmp_path, model=model, tokens=tokens)
    again = read(tmp_path)
    assert not again.fits
    assert any("measured again" in note for note in again.notes)


def test_loading_for_a_model_certifies_and_what_is_skipped_by_name_is_said(model, made, tokens, tmp_path):
    save_sae(made(), tmp_path / "right")
    assert load_for(tmp_path / "right", model=model, tokens=tokens).site == POST
    assert read(tmp_path / "right").fits
    wrong = made()
    wrong.site = "blocks.2.hook_resid_mid"
    save_sae(wrong, tmp_path / "wrong")
    with pytest.raises(DictionaryError, match=f"it reads {POST}"):
        load_for(tmp_path / "wrong", model=model, tokens=tokens)
    with pytest.warns(UncheckedWarning, match="was not checked"):
        assert load_for(tmp_path / "wrong", model=model, certify=False).site == wrong.site
    assert load_for(tmp_path / "wrong").site == wrong.site


def test_an_sae_of_other_text_is_measured_on_that_text_and_without_it_what_it_declares_is_not_held_against_it(model, tmp_path):
    words = ["مرحبا", "كتاب", "مدينة", "الشمس", "ماء", "بيت", "ليل", "قمر"]
    text = "\n".join(json.dumps({"text": " ".join(words[i * j % 8] for i in range(60))}) for j in range(1, 60))
    (tmp_path / "ar.jsonl").write_text(text)
    acts, sae = tmp_path / "acts", tmp_path / "sae"
    harvest = ["harvest", "--model", "bundled", "--corpus", str(tmp_path / "ar.jsonl"), "--site", POST, "--out", str(acts)]
    assert scope([*harvest, "--tokens", "6000", "--context", "64"]) == 0
    assert scope(["train", str(acts), "--out", str(sae), "--d-sae", "64", "--target-l0", "6", "--steps", "150"]) == 0
    declared = read_sae(sae)
    with pytest.raises(DictionaryError, match="declared"):  # as it was before: English against what Arabic declares
        certify(model, declared, tokens=sample_text(model))
    found = certify(model, read_sae(sae), sae)
    assert found.fits
    assert found.measured["l0"] == pytest.approx(found.declared["l0"], rel=0.3)
    assert found.line().endswith(f"tokens of {acts.resolve()}")
    acts.rename(tmp_path / "moved")
    found = certify(model, read_sae(sae), sae)
    assert found.fits
    assert found.measured["fvu"] > 2 * found.declared["fvu"]
    assert any("trained on ar.jsonl, which is not where" in note for note in found.notes)
    assert read(sae) == found


def test_one_of_the_hubs_cache_is_kept_apart_and_a_damaged_one_is_made_anew(model, made, tokens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_sae(made(), tmp_path / "snapshots" / "d")
    certify(model, read_sae(folder), folder, tokens)
    assert not (folder / "certificate.json").exists()
    file = next((tmp_path / "runs" / "certificates").iterdir())
    file.write_text("{cut")
    assert certify(model, read_sae(folder), folder, tokens).fits
    assert read(folder).fits
    assert read(tmp_path) is None


def test_scope_evaluate_says_the_certificate_and_refuses_unless_it_is_skipped_by_name(made, tmp_path, capsys):
    save_sae(made(), tmp_path / "right")
    wrong = made()
    wrong.site = "blocks.2.hook_resid_mid"
    save_sae(wrong, tmp_path / "wrong")
    few = ["--corpus", "bundled", "--contexts", "2", "--context", "32", "--no-nulls"]
    assert scope(["evaluate", str(tmp_path / "right"), *few]) == 0
    assert "Certificate: It fits. L0" in " ".join(capsys.readouterr().out.split())
    assert scope(["evaluate", str(tmp_path / "wrong"), *few]) == 2
    assert f"it reads {POST}" in capsys.readouterr().err
    assert scope(["evaluate", str(tmp_path / "wrong"), "--no-certificate", *few]) == 0
    assert "was not checked" in " ".join(capsys.readouterr().out.split())
