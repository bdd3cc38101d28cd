"""A corpus of texts is read as queries of a ColPali: recorded, trained on, certified and collected."""

import json

import pytest
import torch
from scope.activations.corpus.roles import Role
from scope.activations.errors import CorpusError

import scope
from scope.errors import ConfigError
from scope.evaluation.certificate.certify import certify
from scope.sae.files import read_sae

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
SITE = "blocks.1.hook_resid_post"


def test_texts_are_recorded_as_queries_and_the_rest_follows(model, colpali_folder, toy_text, tmp_path):
    texts = [text[:40] for text in toy_text if len(text) > 5][:30]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    corpus, sites = {"corpus": str(tmp_path / "q.jsonl")}, {"sites": (SITE, "proj.hook_out")}
    made = {"model": str(colpali_folder), "queries": True, "tokens": 64 * 30, "dtype": "float32", **corpus, **sites}
    store = scope.harvest(out=str(tmp_path / "recording"), **made)
    assert store.n_contexts == 30
    for context in (0, 11):
        text = store.document_facts[int(store.documents[context, 0])]["text"]
        inputs = model.prepare_queries([text])
        expected = model.record(inputs, [SITE])[SITE][0, 1:]  # without <bos>
        torch.testing.assert_close(store[SITE][store.rows_of_context(context)], expected, rtol=1e-5, atol=1e-5)
        assert store.tokens[context, : len(expected) + 1].tolist() == inputs["input_ids"][0].tolist()
    assert set(store.row_roles) == {Role.PROMPT}
    trained = {"site": SITE, "kind": "topk", "d_sae": 64, "k": 8, "steps": 20, "batch_size": 64}
    scope.train(tmp_path / "recording", out=tmp_path / "sae", **trained)
    sae = read_sae(tmp_path / "sae")
    assert sae.provenance["text_from"]["queries"] is True
    assert certify(model, sae).provenance["text"] == str(tmp_path / "recording")
    pack = scope.collect_features(
        str(tmp_path / "sae"), recording=tmp_path / "recording", out=tmp_path / "pack", certificate=False
    )
    assert pack.manifest.roles.keys() == {"prompt"}


def test_what_reads_no_queries_says_so(model, colpali_folder, tmp_path):
    (tmp_path / "q.txt").write_text("the dog\n\na cat\n")
    place = {"model": str(colpali_folder), "corpus": str(tmp_path / "q.txt"), "out": str(tmp_path / "r")}
    with pytest.raises(CorpusError, match=r"text alone(.|\n)*--queries"):
        scope.harvest(sites=(SITE,), **place)
    with pytest.raises(ConfigError, match="patches of pages"):
        scope.harvest(sites=("vision.blocks.0.hook_resid_post",), queries=True, **place)
    with pytest.raises(ConfigError, match="SigLIP reads no queries"):
        scope.harvest(**(place | {"model": "bundled-siglip"}), queries=True)
    with pytest.raises(ConfigError, match="--queries is for a ColPali"):
        scope.harvest(**(place | {"model": "bundled"}), queries=True)
    assert scope.harvest(sites=(SITE,), queries=True, **place).n_contexts == 2
