"""The pack of a transcoder: its latents fire by what it reads, and promote what it writes."""

import json

import numpy as np
import pytest
import torch

from scope.errors import DictionaryError
from scope.evaluation import metrics
from scope.features.collect.collect_pack import collect
from scope.features.collect.config import NEUTRAL, CollectConfig
from scope.features.collect.token_effects import output_scores
from scope.features.face import Pack
from scope.lab import Lab
from scope.sae.files import read_sae, save_sae
from scope.sae.kinds import make_sae
from scope.sae.transcoder import TranscoderConfig
from scope.workflows.folders import info
from tests.conftest import random_gemma
from tests.sae.test_kinds import random_kind

READS, WRITES = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    """(model, transcoder, its pack)."""
    model = random_gemma(tiny_config, toy_tokenizer)
    sae = make_sae(TranscoderConfig(d_in=model.cfg.d_model, d_sae=24, d_out=model.cfg.d_model, site_out=WRITES), READS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in (sae.W_enc, sae.W_dec):
            p.copy_(torch.randn(p.shape, generator=generator))
        sae.threshold.fill_(2.0)
    ids = [i for text in toy_text[:60] for i in toy_tokenizer.encode(text, bos=False)]
    rows = torch.tensor([[model.cfg.bos, *ids[i : i + 31]] for i in range(0, 20 * 31, 31)])
    folder = tmp_path_factory.mktemp("transcoder") / "pack"
    collect(model, sae, rows, CollectConfig(score_prompts=1, score_null=4), folder)
    return model, sae, Pack.open(folder)


def test_a_file_that_names_no_site_is_a_transcoder_between_two_that_are_told(made, tmp_path):
    _, sae, _ = made
    file = tmp_path / "params.npz"
    np.savez(file, **{name: p.detach().numpy() for name, p in sae.named_parameters()})
    read, x = read_sae(file, site=f"{READS}->{WRITES}"), torch.randn(3, sae.d_in)
    assert (read.kind, read.site, read.site_out, read.provenance["site"]) == ("transcoder", READS, WRITES, READS)
    assert torch.equal(read(x), sae(x))
    with pytest.raises(DictionaryError, match="no transcoder"):
        read_sae(save_sae(random_kind("topk"), tmp_path / "topk"), site=f"{READS}->{WRITES}")


def test_it_says_what_is_read_and_what_is_written(made):
    _, _, pack = made
    assert (pack.site, pack.site_out, pack.place) == (READS, WRITES, f"{READS} → {WRITES}")
    assert f"at {READS} -> {WRITES} of" in info(pack.folder).content
    assert json.loads((pack.folder / "manifest.json").read_text())["dictionary"]["kind"] == "transcoder"


@torch.no_grad()
def test_latents_fire_by_what_it_reads(made):
    model, sae, pack = made
    acts = model.record(torch.tensor(pack.contexts[:4].astype(np.int64)), [READS])[READS]
    fired = sae.encode(acts)
    for latent in range(pack.d_sae):
        for example in pack[latent].examples("top", 99):
            if example.context < 4:
                assert example.value == pytest.approx(float(fired[example.context, example.offset, latent]), rel=1e-4)


@torch.no_grad()
def test_what_is_promoted_and_measured_belongs_to_the_writing_side(made):
    model, sae, pack = made
    unit = sae.W_dec[5] / sae.W_dec[5].norm()
    logits = model.direct_logits(unit[None], torch.arange(model.cfg.d_vocab))[0]
    _, logit = pack[5].promoted[0]
    assert logit == pytest.approx(float(logits.max()), rel=1e-4)
    null = pack.manifest.as_written["output_score"]
    prompts = [model.tokenizer.encode(text) for text in NEUTRAL[:1]]
    promoted = pack.relation("promoted_id")[[5]]
    again = output_scores(model, WRITES, sae.W_dec[[5]].float(), promoted, null["length"], prompts)
    assert pack[5].row["out_score"] == pytest.approx(float(again.score[0]), rel=1e-3)
    some = torch.tensor(pack.contexts[:8].astype(np.int64))
    norms = model.record(some, [WRITES])[WRITES][:, 1:].norm(dim=-1)  # without <bos>
    assert null["length"] / null["strength"] == pytest.approx(float(norms.median()), rel=0.05)
    assert pack.table["enc_dec_cos"].isna().all()


@torch.no_grad()
def test_a_text_is_read_with_the_error_of_what_it_predicts(made):
    model, sae, pack = made
    view = pack.read("the dog runs to the river", model, sae)
    recorded = model.record(model.to_tokens("the dog runs to the river"), [READS, WRITES])
    x, y = (recorded[site][0, 1:].float() for site in (READS, WRITES))
    assert view.fvu == pytest.approx(float(metrics.fvu(y, sae(x))), rel=1e-4)


def test_a_lab_reads_with_it_and_refuses_to_steer(made):
    model, sae, pack = made
    lab = Lab(pack, sae, model)
    assert len(lab.activations("the dog runs")) > 0
    with pytest.raises(DictionaryError, match="transcoder"):
        lab.steer(3, 0.5).compare("the dog", n=1)
