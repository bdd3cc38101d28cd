"""Features by role: firings and means on the rows of prefix, suffix and middle, and of control tokens apart from them."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scope.activations.config import HarvestConfig
from scope.activations.corpus.infill import FimMaker, FimShares
from scope.activations.corpus.roles import Role
from scope.activations.corpus.sources import open_corpus
from scope.activations.harvest.harvest import harvest

from scope.features.collect.config import CollectConfig
from scope.features.face import Pack
from tests.features.test_collect import SITE, SIZES, toy_sae
from tests.features.toy_pack import collect, make_toy_pack

CONTEXT = 48
ROLES = ("prefix", "suffix", "middle", "control")


@pytest.fixture(scope="module")
def shown(coding_gemma, toy_text, tmp_path_factory):
    """(maker, corpus, contexts, latents of every row) of infilling examples."""
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in toy_text[:40]))
    maker = FimMaker(coding_gemma.tokenizer, FimShares(psm=0.5, spm=0.5), seed=2)
    corpus = open_corpus(str(file))
    packed = maker.stream(corpus.documents(0), CONTEXT).take(24)
    acts = coding_gemma.record(torch.from_numpy(packed.tokens).long(), [SITE])[SITE]
    return maker, corpus, packed, toy_sae(coding_gemma).encode(acts).detach().numpy()


def pack_of(model, sae, store, folder) -> Pack:
    return collect(model, sae, store, CollectConfig(sizes=SIZES, score_prompts=2, score_null=4), folder)


def agrees(pack: Pack, packed, latents) -> None:
    """Every figure by role is that of all rows of the role."""
    assert [*pack.manifest.roles] == [role.name.lower() for role in Role if role.name.lower() in ROLES]
    for role, n in pack.manifest.roles.items():
        rows = packed.roles == Role[role.upper()]
        assert n == rows.sum()
        fired = latents[rows] > 0
        np.testing.assert_allclose(pack.by_role[f"{role}_density"], fired.mean(0), rtol=1e-6)
        means = np.divide(latents[rows].sum(0), fired.sum(0), out=np.zeros(len(pack)), where=fired.any(0))
        np.testing.assert_allclose(pack.by_role[f"{role}_mean"], means, rtol=1e-4)


def test_figures_by_role_are_those_of_all_rows_of_the_role(coding_gemma, shown, tmp_path):
    _, _, packed, latents = shown
    pack = pack_of(coding_gemma, toy_sae(coding_gemma), packed, tmp_path / "pack")
    agrees(pack, packed, latents)
    latent = int(pack.table["count"].idxmax())
    rows = pack[latent].by_role
    counted = [row for row in rows if row["role"] != "control"]
    assert sum(row["rows"] for row in counted) == pack.n_tokens
    assert sum(row["density"] * row["rows"] for row in counted) == pytest.approx(pack.table["count"][latent])
    assert [row["lift"] for row in rows] == pytest.approx([row["density"] / pack.table["density"][latent] for row in rows])


@pytest.mark.parametrize("exclude", [("bos", "special", "pad"), ("bos", "pad")])
def test_control_tokens_count_in_no_other_figure_and_no_norm_whether_or_not_they_were_recorded(
    coding_gemma, shown, tmp_path, exclude
):
    maker, corpus, packed, latents = shown
    config = HarvestConfig(sites=(SITE,), tokens=packed.tokens.size, context=CONTEXT, dtype="float32", outlier_times=0)
    if "special" not in exclude:
        config = replace(config, exclude=("bos", "pad"))
    store = harvest(coding_gemma, maker, corpus, config, tmp_path / "recording", coding_gemma.provenance)
    assert (store.n_rows > packed.counted().sum()) == ("special" not in exclude)
    pack = pack_of(coding_gemma, toy_sae(coding_gemma), store, tmp_path / "pack")
    control = packed.roles == Role.CONTROL
    assert pack.manifest.roles["control"] == control.sum()
    np.testing.assert_allclose(pack.by_role["control_density"], (latents[control] > 0).mean(0), atol=1e-6)
    ends = (packed.roles == Role.SPECIAL).sum() if "special" not in exclude else 0
    assert pack.n_tokens == packed.counted().sum() + ends
    acts = coding_gemma.record(torch.from_numpy(packed.tokens).long(), [SITE])[SITE].numpy()
    counts = packed.counted() | ((packed.roles == Role.SPECIAL) & bool(ends))
    assert pack.manifest.norm_median == pytest.approx(np.median(np.linalg.norm(acts[counts], axis=1)), rel=1e-5)


def test_a_pack_of_plain_text_and_one_of_an_earlier_version_have_no_roles(tmp_path):
    make_toy_pack(tmp_path / "pack", n_contexts=12)
    pack = Pack.open(tmp_path / "pack")
    assert (pack[1].by_role, list(pack.by_role.columns)) == ([], [])
    assert "fires on" not in repr(pack[1])


def test_exports_and_cards_show_figures_by_role(tmp_path):
    make_toy_pack(tmp_path / "pack", n_contexts=12, roles=True)
    pack = Pack.open(tmp_path / "pack")
    share = pack.by_role["middle_density"][1]
    assert 0 < share < 1
    assert f"middle {share:.2%} of its rows" in repr(pack[1])
    assert f"middle {share:.2%} of its rows" in pack[1]._repr_html_()
    table = pd.read_csv(pack.export("csv", tmp_path / "t.csv", [1]))
    assert table["middle_density"][0] == pytest.approx(share)
    written = json.loads(pack.export("json", tmp_path / "t.json", [1]).read_text())["latents"][0]["by_role"]
    assert [row["role"] for row in written] == ["prefix", "middle"]
    assert written[1]["density"] == pytest.approx(share)
