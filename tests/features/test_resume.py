"""A collection that was stopped goes on, and ends in the pack of one that was not; refusals come before any work."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scope.activations.corpus.roles import Role

from scope.errors import ConfigError, DictionaryError, PackError, TokensError
from scope.evaluation import metrics
from scope.features.collect import first_pass
from scope.features.collect.config import CollectConfig
from scope.features.collect.source import from_recording
from scope.features.face import Pack
from scope.features.reading.read_text import check_same
from scope.whole_files import FolderInUse, only_writer
from tests.activations.test_inputs import make as make_pictures
from tests.conftest import random_gemma
from tests.features.test_collect import SIZES, toy_contexts, toy_sae  # noqa: F401
from tests.features.toy_pack import collect

CONFIG = CollectConfig(chunk_tokens=400, sizes=SIZES, score_prompts=0)


@pytest.fixture(scope="module")
def model(tiny_config, toy_tokenizer):
    return random_gemma(tiny_config, toy_tokenizer)


@pytest.fixture(scope="module")
def contexts(toy_contexts):  # noqa: F811
    return toy_contexts[:40]


def same(one: Pack, other: Pack) -> bool:
    hashes = [{name: entry.sha256 for name, entry in pack.manifest.files.items()} for pack in (one, other)]
    return hashes[0] == hashes[1]


def test_a_stopped_run_goes_on_where_it_stopped(model, contexts, tmp_path, monkeypatch):
    sae = toy_sae(model)
    whole = collect(model, sae, contexts, CONFIG, tmp_path / "whole")
    encoded: list[int] = []
    encode = first_pass.encode

    def counted(sae, source, a, b):
        encoded.append(a)
        return encode(sae, source, a, b)

    def stop(done, total, numbers):
        if done > total / 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(first_pass, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        collect(model, sae, contexts, CONFIG, tmp_path / "pack", stop)
    before = len(encoded)
    assert 0 < before < 4
    with pytest.raises(PackError, match="stopped"):
        Pack.open(tmp_path / "pack")
    torn = tmp_path / "pack.building" / "codes-00000.npz"
    torn.write_bytes(torn.read_bytes()[:-40])  # a chunk that was damaged meanwhile is made again
    resumed = collect(model, sae, contexts, CONFIG, tmp_path / "pack")
    assert encoded[before:] == [0, *range(encoded[before - 1] + encoded[1], 40, encoded[1])]
    assert same(whole, resumed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pack", "whole"]


def test_chunks_of_another_dictionary_are_not_taken_up(model, contexts, tmp_path):
    def stop(done, total, numbers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, toy_sae(model, seed=1), contexts, CONFIG, tmp_path / "pack", stop)
    mixed = collect(model, toy_sae(model), contexts, CONFIG, tmp_path / "pack")
    clean = collect(model, toy_sae(model), contexts, CONFIG, tmp_path / "clean")
    assert same(mixed, clean)


def test_two_builders_of_one_pack_are_refused(model, contexts, tmp_path):
    (tmp_path / "pack.building").mkdir()
    with only_writer(tmp_path / "pack.building"), pytest.raises(FolderInUse, match="being built by process"):
        collect(model, toy_sae(model), contexts, CONFIG, tmp_path / "pack")


def test_p16_a_dictionary_of_another_model_or_site_is_refused(model, contexts, tmp_path):
    sae = toy_sae(model)
    sae.provenance = {"model": {"model": "other", "weights_sha256": "0" * 64}}
    with pytest.raises(DictionaryError, match="trained on other"):
        collect(model, sae, contexts, CONFIG, tmp_path / "pack")
    sae = toy_sae(model)
    sae.site = "blocks.99.hook_resid_post"
    with pytest.raises(DictionaryError, match=r"blocks\.99"):
        collect(model, sae, contexts, CONFIG, tmp_path / "pack")
    sae.site = "blocks.1.mlp.hook_pre"
    with pytest.raises(DictionaryError, match="48"):
        collect(model, sae, contexts, CONFIG, tmp_path / "pack")


def test_p35_latents_that_are_not_finite_are_refused_with_their_context(model, contexts, tmp_path):
    sae = toy_sae(model)
    with torch.no_grad():
        sae.b_enc[3] = torch.inf
    with pytest.raises(DictionaryError, match="context 0 are not finite"):
        collect(model, sae, contexts, CONFIG, tmp_path / "pack")


def test_p5_contexts_without_bos_are_refused(model, contexts, tmp_path):
    with pytest.raises(TokensError, match="<bos>"):
        collect(model, toy_sae(model), contexts[:, 1:], CONFIG, tmp_path / "pack")


def test_text_of_padding_alone_is_refused(model, tmp_path):
    nothing = torch.tensor([[2, 0, 0, 0]])
    with pytest.raises(ConfigError, match="no token"):
        collect(model, toy_sae(model), nothing, CONFIG, tmp_path / "pack")


def test_p44_a_site_outside_the_residual_stream_has_no_logits_and_says_so(model, contexts, tmp_path):
    sae = toy_sae(model)
    sae.site, sae.config = "blocks.1.attn.hook_z", replace(sae.config, d_in=48)
    with torch.no_grad():
        for name, shape in (("W_enc", (48, 48)), ("W_dec", (48, 48)), ("b_dec", (48,))):
            getattr(sae, name).data = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    pack = collect(model, sae, contexts, CollectConfig(sizes=SIZES), tmp_path / "pack")
    assert pack[3].promoted == []
    assert np.isnan(pack[3].row["out_score"])
    assert "residual stream" in pack.manifest.output_score.why
    assert "promotes" not in repr(pack[3])


def test_reading_a_text_gives_what_the_dictionary_gives(model, contexts, tmp_path):
    sae = toy_sae(model)
    pack = collect(model, sae, contexts, CONFIG, tmp_path / "pack")
    view = pack.read("the dog runs to the river.", model, sae)
    tokens = model.to_tokens("the dog runs to the river.")
    expected = sae.encode(model.record(tokens, [sae.site])[sae.site][0]).detach().numpy()
    np.testing.assert_allclose(view.latents[1:], expected[1:], rtol=1e-5)
    assert (view.latents[0] == 0).all()
    acts = model.record(tokens, [sae.site])[sae.site][0][1:]
    x_hat = sae.decode(sae.encode(acts))
    assert view.fvu == pytest.approx(metrics.fvu(acts, x_hat).item(), rel=1e-5)
    assert np.nanmean(view.fvu_at) == pytest.approx(view.fvu)
    assert np.isnan(view.fvu_at).tolist() == [True] + [False] * (len(view.ids) - 1)
    latent = int(view.top(1, by="value").index[0])
    assert view.latents.max() == pytest.approx(view.top(1, by="value")["value"].iloc[0])
    assert view.values(latent).max() > 0
    assert "<script" not in view._repr_html_()
    assert view.top(5).index.is_unique
    with pytest.raises(PackError, match="surprise"):
        view.top(by="magic")
    with pytest.raises(TokensError, match="no text"):
        pack.read("", model, sae)
    with pytest.raises(PackError, match="dictionary parameters"):
        pack.read("the dog", model, toy_sae(model, seed=5))


@pytest.fixture
def pack_and_model(model, contexts, tmp_path):
    sae = toy_sae(model)
    return collect(model, sae, contexts, CONFIG, tmp_path / "pack"), model, sae


def test_p16_another_tuning_is_read_with_what_it_leaves_unexplained_and_another_model_is_refused(pack_and_model, monkeypatch):
    pack, model, sae = pack_and_model
    base = pack.manifest.model | {"model": "google/gemma-2-2b", "weights_sha256": "base"}
    monkeypatch.setattr(pack, "manifest", replace(pack.manifest, model=base))
    monkeypatch.setattr(model, "provenance", model.provenance | {"model": "/models/gemma-2-2b-it"})
    view = pack.read("the dog runs", model, sae)
    assert "made with google/gemma-2-2b, and the text was read by /models/gemma-2-2b-it" in view.tuning
    assert f"leaves {view.fvu:.1%} of this text unexplained" in repr(view)
    with pytest.raises(PackError, match="model weights"):  # the weights decide: asked without a text to measure on
        check_same(pack, model, sae)
    monkeypatch.setattr(model, "provenance", model.provenance | {"model": "/models/gemma-2-9b-it"})
    with pytest.raises(PackError, match="model weights"):
        pack.read("the dog runs", model, sae)
    monkeypatch.setattr(model, "provenance", model.provenance | {"model": "gemma-2-2b-it", "tokenizer_sha256": "another"})
    with pytest.raises(PackError, match="tokenizer"):
        pack.read("the dog runs", model, sae)


def test_p16_a_dictionary_of_the_base_model_on_the_tuned_one_is_told(pack_and_model, monkeypatch):
    pack, model, sae = pack_and_model
    assert pack.read("the dog runs", model, sae).tuning == ""
    name = str(model.provenance["model"])
    monkeypatch.setattr(sae, "provenance", {"model": {"model": name + "-it"}})
    assert f"The dictionary was trained on {name}-it" in pack.read("the dog runs", model, sae).tuning


def test_rows_of_a_recording_that_are_no_tokens_are_shown_by_what_they_are(model, tmp_path):
    store = make_pictures(tmp_path / "pictures")
    store.manifest = replace(store.manifest, model=model.provenance)
    source = from_recording(store, "trunk", model)
    rows = store.rows_of_context(1)
    expected = [f"<{role.name.lower()}>" if role == Role.IMAGE else None for role in map(Role, store.row_roles[rows])]
    shown = [source.vocab[i] for i in source.contexts[1][source.keep[1]]]
    assert [piece if piece.startswith("<image") else None for piece in shown] == expected
    assert expected.count("<image>") == 4
    assert len(source.read(1, 2)) == len(shown) == rows.stop - rows.start
