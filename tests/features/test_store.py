"""A pack is read without a model, refuses what is damaged, and loses no more than what is damaged."""

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from scope.errors import PackError
from scope.features.face import Pack
from scope.renamed import RenamedWarning
from tests.features.toy_pack import make_toy_pack


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "pack"
    brute = make_toy_pack(folder)
    return Pack.open(folder), brute


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "pack"
    make_toy_pack(folder, n_contexts=12)
    return folder


@pytest.fixture
def folder(small, tmp_path) -> Path:
    return shutil.copytree(small, tmp_path / "pack")


def test_a_pack_is_read_back_as_it_was_written(toy):
    pack, brute = toy
    for f in range(pack.d_sae):
        assert pack[f].row["count"] == len(brute.firings(f))
        assert (pack[f].histogram[1] == brute.histogram(f)).all()
        found = [(e.context * pack.n_ctx + e.offset, e.value) for e in pack[f].examples("top", 99)]
        assert found == [(p, pytest.approx(v)) for p, v in brute.top(f)]
    assert pack.verify() == []


@pytest.mark.parametrize("latent", [24, -1, 10**9, "1", 1.0, True, None])
def test_an_unknown_latent_is_refused_with_the_range(toy, latent):
    with pytest.raises(PackError, match="0 to 23"):
        toy[0][latent]


def test_a_latent_of_gemma_scope_has_the_address_of_its_page_on_neuronpedia(toy, folder):
    assert toy[0][3].neuronpedia_url is None
    manifest = json.loads((folder / "manifest.json").read_text())
    place = "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    manifest["dictionary"] = manifest["dictionary"] | {"provenance": {"source": place}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert Pack.open(folder)[3].neuronpedia_url == "https://www.neuronpedia.org/gemma-2-2b/12-gemmascope-res-16k/3"


def test_numpy_integers_are_latents(toy):
    assert toy[0][np.int64(3)].id == 3


def test_an_unknown_group_is_refused_with_those_there_are(toy):
    with pytest.raises(PackError, match="top, bands, random, near"):
        toy[0][1].examples("best")


def test_quantiles_follow_the_firings(toy):
    pack, brute = toy
    values = sorted(v for _, v in brute.firings(2))
    for q in (0.1, 0.5, 0.9):
        exact = values[int(q * len(values))]
        assert pack[2].quantile(exact) == pytest.approx(q, abs=0.08)
    assert pack[2].quantile(0) == 0
    assert pack[2].quantile(1e9) == 1


def test_finding_looks_in_labels_and_promoted_tokens(toy):
    pack, _ = toy
    assert 1 in pack.find("DOGS").index
    hits = pack.find("river")
    assert set(hits["found_in"]) <= {"fires on", "label", "promotes", "part of a token"}
    assert (np.diff(hits["score"]) <= 0).all()
    with pytest.raises(PackError, match="empty"):
        pack.find("  ")


def test_a_search_returns_first_the_latent_that_fires_most_on_the_text(toy):
    pack, _ = toy
    for token in (" river", " dogs"):
        hits = pack.search(token.strip())
        assert hits[0].latent == pack.fires_on(token).index[0]
        assert hits[0].why.startswith(f"fires on “{token.strip()}”: ")
        assert 0.5 <= hits[0].score <= 1
    assert len(pack.search("dogs", limit=2)) == 2
    assert len(pack.search("dogs", limit=None)) == len(pack.find("dogs"))


def test_a_search_finds_words_that_are_split_into_several_tokens(toy):
    pack, _ = toy
    latent, example = next((f.id, e) for f in pack if not f.dead for e in f.examples("random") if e.peak > 0)
    text = "".join(example.tokens[example.peak - 1 : example.peak + 1])
    assert latent in [hit.latent for hit in pack.search(text, limit=None)]


def test_a_search_takes_a_number_and_refuses_an_empty_text(toy):
    pack, _ = toy
    assert pack.search("#7")[0].latent == 7
    assert pack.search("hippopotamus") == []
    with pytest.raises(PackError, match="empty"):
        pack.search(" ")


def test_finding_by_token_gives_both_conditional_probabilities(toy):
    pack, brute = toy
    hits = pack.fires_on("dogs")
    counts = {t: n for t, n, _ in brute.token_counts(1)}
    assert hits.loc[1, "p_token_given_fires"] == counts[6] / len(brute.firings(1))
    assert hits.loc[1, "p_fires_given_token"] == counts[6] / (brute.tokens[brute.keep] == 6).sum()
    with pytest.raises(PackError, match="No token"):
        pack.fires_on("hippopotamus")


def test_finding_by_promoted_token_ranks_by_logit(toy):
    hits = toy[0].promotes("river")
    assert len(hits)
    logits = hits["logit"].dropna().to_numpy()
    assert (np.diff(logits) <= 0).all()


def test_random_draws_only_living_latents(toy):
    pack, _ = toy
    assert all(pack.random(seed).row["count"] > 0 for seed in range(30))
    assert pack.random(5).id == pack.random(5).id


def test_p43_a_card_shows_the_source_of_its_label(toy):
    pack, _ = toy
    assert "label from token statistics" in pack[1]._repr_html_()
    assert "label from token statistics" in repr(pack[1])


def test_p50_cards_hold_only_our_own_markup(toy):
    pack, _ = toy
    for f in range(pack.d_sae):
        card = pack[f]._repr_html_()
        assert set(re.findall(r"<(/?\w+)", card)) <= {"div", "/div", "span", "/span", "b", "/b", "bdi", "/bdi"}
        tags = re.findall(r"<[^>]*>", card)
        assert all(re.fullmatch(r'</?\w+(?: (?:style|dir|title|role|aria-label)="[^"]*")*>', tag) for tag in tags)
        assert not re.search(r"url\(|@import|expression", " ".join(re.findall(r'style="([^"]*)"', card)))


def test_a_card_is_small(toy):
    assert max(len(toy[0][f]._repr_html_()) for f in range(24)) < 60_000


def test_a_pack_says_in_words_how_to_read_it_without_this_program(toy):
    pack, _ = toy
    told = (pack.folder / "README.txt").read_text()
    pack.close()
    with h5py.File(pack.folder / "examples.h5") as examples, h5py.File(pack.folder / "relations.h5") as relations:
        names = {name.split("_")[0] for f in (examples, relations) for name in f}
    assert all(name in told for name in names)
    assert all(column in told for column in pack.table.columns)
    assert all(name in told for name in pack.manifest.files if name != "README.txt")


def test_a_pack_without_what_came_later_is_still_read(folder):
    from scope.whole_files import file_sha256

    with h5py.File(folder / "relations.h5", "a") as f:
        for name in (
            "logit_histogram",
            "logit_ends",
            "opposite_id",
            "opposite_cos",
            "control_position",
            "control_start",
            "control_latent",
        ):
            del f[name]
    shutil.rmtree(folder / "README.txt", ignore_errors=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    file = folder / "relations.h5"
    manifest["files"]["relations.h5"] = {"size": file.stat().st_size, "sha256": file_sha256(file)}
    del manifest["files"]["README.txt"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    pack = Pack.open(folder)
    assert pack.controls is None
    assert pack[9].opposites is None
    assert pack.relation("logit_histogram").shape == (24, 0)
    assert pack.export("saedashboard", folder.parent / "x.json", "1-3").exists()
    assert pack.verify() == []


def test_a_pack_is_opened_by_its_class_as_well(folder):
    assert Pack(str(folder)).table.equals(Pack.open(folder).table)


def test_a_pack_is_opened_found_in_and_shown_without_torch_or_network(folder):
    import subprocess
    import sys

    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from scope.features.face import Pack\n"
        f"pack = Pack.open({str(folder)!r})\n"
        "assert len(pack[1]._repr_html_()) > 1000 and len(pack.find('dog')) and pack[1].examples('bands')\n"
        "assert not {'torch', 'transformers', 'tokenizers', 'streamlit'} & set(sys.modules), sys.modules.keys()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_no_pack_says_how_to_make_one(tmp_path):
    with pytest.raises(PackError, match="scope features"):
        Pack.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackError, match="no feature pack"):
        Pack.open(tmp_path / "empty")


def test_a_pack_being_built_says_how_far_it_is(tmp_path):
    (tmp_path / "pack.building").mkdir()
    (tmp_path / "pack.building" / "build.json").write_text(json.dumps({"identity": {}, "done": 1200, "total": 5000}))
    with pytest.raises(PackError, match="1,200 of 5,000"):
        Pack.open(tmp_path / "pack")


def test_another_schema_is_refused_with_both_versions(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(PackError, match=r"schema 99.*schema 1"):
        Pack.open(folder)


def test_a_damaged_manifest_is_refused(folder):
    (folder / "manifest.json").write_text("{")
    with pytest.raises(PackError, match="damaged"):
        Pack.open(folder)


def test_a_file_of_another_size_is_refused_by_name(folder):
    with (folder / "examples.h5").open("ab") as f:
        f.write(b"x")
    with pytest.raises(PackError, match=r"examples.h5 has"):
        Pack.open(folder)


def test_a_missing_file_is_refused_by_name(folder):
    (folder / "vocab.json.gz").unlink()
    with pytest.raises(PackError, match=r"vocab.json.gz is missing"):
        Pack.open(folder)


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 0xFF]))


@pytest.mark.parametrize("name", ["acts", "histogram", "position"])
def test_one_damaged_chunk_affects_one_latent(folder, name):
    with h5py.File(folder / "examples.h5") as f:
        chunk = f[name].id.get_chunk_info_by_coord((7,) + (0,) * (f[name].ndim - 1))
    flip(folder / "examples.h5", chunk.byte_offset + chunk.size // 2)
    pack = Pack.open(folder)
    with pytest.raises(PackError, match="latent 7 are damaged"):
        pack.read_example(name, 7)
    assert "damaged" in pack[7]._repr_html_()
    assert pack[7].row["count"] >= 0
    for f in (6, 8, 23):
        assert "damaged" not in pack[f]._repr_html_()
    assert pack.verify() == ["examples.h5"]


def test_a_folder_that_is_no_pack_is_not_overwritten(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(PackError, match="not overwritten"):
        make_toy_pack(tmp_path / "notes", n_contexts=6)
    assert (tmp_path / "notes" / "thesis.txt").exists()


def test_a_new_pack_replaces_the_old_one_whole(folder, tmp_path):
    make_toy_pack(folder, n_contexts=14, health={"evaluation": {"fvu": 0.1}})
    pack = Pack.open(folder)
    assert len(pack.contexts) == 14
    assert pack.health == {"evaluation": {"fvu": 0.1}}
    assert pack.verify() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pack"]


def test_a_failed_writing_leaves_the_old_pack(folder, monkeypatch):
    from scope.features.pack import write

    def full(*_):
        raise OSError(28, "No space left on device")

    before = Pack.open(folder).manifest
    monkeypatch.setattr(write, "_write_relations", full)
    with pytest.raises(OSError, match="No space"):
        make_toy_pack(folder, n_contexts=14)
    assert Pack.open(folder).manifest == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_latents_to_steer_with_come_by_output_score_and_are_neither_dead_nor_dense(toy):
    best = toy[0].steerable(5, words=False)
    assert (best["out_score"].diff().dropna() <= 0).all()
    assert not best["flags"].str.contains("dead|dense|rare|duplicate").any()


def test_the_manifest_answers_as_the_dictionary_that_it_was_with_a_warning(toy):
    manifest = toy[0].manifest
    assert (manifest.site, manifest.histogram.bins) == ("blocks.2.hook_resid_post", 160)
    with pytest.warns(RenamedWarning, match=r"manifest\.site"):
        assert manifest["site"] == manifest.site
    with pytest.warns(RenamedWarning, match=r"manifest\.l0"):
        assert manifest.get("l0", 7) == 7
