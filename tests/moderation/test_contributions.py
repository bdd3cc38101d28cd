"""A moderator's log-odds latent by latent: the rows add up, and the labels of a pack stand beside their latents."""

import json

import pytest
import torch

import scope
from scope.errors import PackError
from scope.features.pack.data import pack_beside
from scope.moderation.contributions import contributions
from scope.moderation.prompt import Item
from scope.sae.files import save_sae
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from tests.features.toy_pack import make_toy_pack

SITE = "blocks.0.hook_resid_post"
TEXT, POLICIES = "the dog runs to the river", ("harassment", "hate")


@pytest.fixture(scope="module")
def sae(moderator):
    made = JumpReLUSAE(JumpReLUConfig(d_in=moderator.model.cfg.d_model, d_sae=24, target_l0=4.0), SITE)
    with torch.no_grad():
        made.W_enc.copy_(torch.randn(made.W_enc.shape, generator=torch.Generator().manual_seed(0)))
        made.W_dec.copy_(made.W_enc.T)
        made.threshold.fill_(0.5)
    made.provenance = {"model": dict(moderator.model.provenance), "site": SITE}
    return made


@pytest.fixture(scope="module")
def lab(sae, tmp_path_factory):
    """dictionary/ and pack/ side by side; the pack names the toy's latents."""
    folder = tmp_path_factory.mktemp("moderated")
    save_sae(sae, folder / "dictionary")
    make_toy_pack(folder / "pack", n_contexts=12)
    manifest = folder / "pack" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("blocks.2.hook_resid_post", SITE))
    return folder


def test_rows_add_up_to_the_log_odds_and_labels_stand_beside_their_latents(moderator, sae, lab):
    pack = pack_beside(lab / "dictionary", SITE, sae.d_sae)
    why = contributions(moderator, sae, Item(TEXT), POLICIES, any_model=True, pack=pack)
    table = why.to_frame()
    for policy, odds in why.log_odds.items():
        assert table[policy].sum() == pytest.approx(odds, abs=1e-4)
    latents = table[table["latent"].notna()]
    assert len(latents)
    assert latents["label"].tolist() == [pack.table["label"].iat[int(i)] for i in latents["latent"]]
    assert set(table[table["latent"].isna()]["label"]) == {""}
    first = latents.iloc[0]
    line = next(line for line in why.text().splitlines() if line.startswith(f"{first.name} "))
    assert line.endswith(first["label"])
    assert json.loads(why.to_json())["labels"][first.name] == first["label"]
    assert "<th" in why._repr_html_()


def test_without_a_pack_there_are_no_labels(moderator, sae):
    why = contributions(moderator, sae, Item(TEXT), POLICIES, any_model=True)
    assert set(why.to_frame()["label"]) == {""}
    assert "labels" not in json.loads(why.to_json())


def test_the_command_takes_the_pack_beside_the_dictionary_and_refuses_one_of_another(shield_folder, lab, tmp_path):
    how = {"policy": POLICIES, "model": str(shield_folder), "sae": lab / "dictionary", "any_model": True, "device": "cpu"}
    [why] = scope.moderate(TEXT, **how)
    assert why.labels
    make_toy_pack(tmp_path / "other", n_contexts=12)
    with pytest.raises(PackError, match=r"24 latents at blocks\.2\.hook_resid_post, not about"):
        scope.moderate(TEXT, **how, pack=tmp_path / "other")
