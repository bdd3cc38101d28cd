"""Published labels come into a pack with author and score, never over a person's label, never into the pack of another SAE."""

import gzip
import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scope.cli.main import run
from scope.errors import PackError
from scope.features.face import Pack
from scope.features.labels import published
from scope.features.labels.published import import_labels
from tests.features.toy_pack import make_toy_pack

SOURCE = "gemma-2-2b/12-gemmascope-res-16k"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A pack of 24 latents that says to be about an SAE on Neuronpedia."""
    folder = tmp_path_factory.mktemp("published") / "toy.pack"
    make_toy_pack(folder, n_contexts=12)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["dictionary"] |= {"provenance": {"neuronpedia": SOURCE}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def pack(toy, tmp_path):
    return Pack.open(shutil.copytree(toy, tmp_path / "toy.pack"))


def row(index, text, by="gpt-4o-mini", source=SOURCE, **more):
    model, layer = source.split("/")
    about = {"modelId": model, "layer": layer, "index": str(index), "description": text, "explanationModelName": by}
    return {**about, "typeName": "oai_token-act-pair", "embedding": [0.1, 0.2], **more}


def score(value, kind="eleuther_fuzz"):
    return {"value": value, "explanationScoreTypeName": kind, "explanationScoreModelName": "llama-3-70b"}


def write(file, rows):
    data = "".join(json.dumps(one) + "\n" for one in rows).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def test_a_folder_of_batches_is_kept_with_author_score_and_what_the_score_measures(pack, tmp_path):
    write(tmp_path / "out/explanations/batch-0.jsonl.gz", [row(1, " dogs and cats ", scores=[score(0.8), score(0.6)])])
    write(tmp_path / "out/explanations/batch-1.jsonl.gz", [row(2, "rivers", by="gemini-2.0-flash")])
    done = import_labels(pack, tmp_path / "out")
    assert (done.labels, done.scored, done.authors) == (2, 1, {"gpt-4o-mini": 1, "gemini-2.0-flash": 1})
    label = pack.notes.label(1)
    assert (label.text, label.source, label.score) == ("dogs and cats", "Neuronpedia, gpt-4o-mini", 0.8)
    assert label.detail["measure"] == "eleuther_fuzz by llama-3-70b, as published"
    assert label.detail["published"] == f"https://www.neuronpedia.org/{SOURCE}/1"
    assert pack.notes.label(2).score is None
    pack.refresh()
    assert pack.find("rivers").index[0] == 2


@pytest.mark.parametrize("shape", [lambda rows: rows, lambda rows: {"explanations": rows}])
def test_the_older_export_is_one_json_value_whose_rows_may_say_feature_and_saeid(pack, tmp_path, shape):
    model, layer = SOURCE.split("/")
    rows = [{"modelId": model, "saeId": layer, "feature": 3, "description": "numbers"}]
    (tmp_path / "export.json").write_text(json.dumps(shape(rows)))
    assert import_labels(pack, tmp_path / "export.json").labels == 1
    assert pack.notes.label(3).source == "Neuronpedia, an author that it does not name"


def test_a_persons_label_stays_and_a_models_gives_way_only_when_told(pack, tmp_path):
    pack.notes.set_labels([(1, "mine", "you", None, None), (2, "a model's", "bundled", 0.9, None)])
    file = write(tmp_path / "x.jsonl", [row(i, f"published {i}") for i in (1, 2, 3)])
    done = import_labels(pack, file)
    assert (done.labels, done.of_persons, done.of_models) == (1, 1, 1)
    assert [pack.notes.label(i).text for i in (1, 2, 3)] == ["mine", "a model's", "published 3"]
    assert import_labels(pack, file, replace=True).labels == 2
    assert [pack.notes.label(i).text for i in (1, 2)] == ["mine", "published 2"]


def test_of_several_labels_the_best_scored_is_taken_and_the_others_are_kept_beside_it(pack, tmp_path):
    rows = [row(1, "first"), row(1, "worse", scores=[score(0.4)]), row(1, "better", by="claude", scores=[score(0.7)])]
    done = import_labels(pack, write(tmp_path / "x.jsonl", rows))
    label = pack.notes.label(1)
    assert (done.labels, done.further, label.text) == (1, 2, "better")
    assert {other["text"] for other in label.detail["others"]} == {"first", "worse"}
    assert import_labels(pack, tmp_path / "x.jsonl", by="gpt-4o-mini").labels == 1
    assert pack.notes.label(1).text == "worse"


def test_a_score_that_is_no_share_is_kept_in_the_details_alone(pack, tmp_path):
    import_labels(pack, write(tmp_path / "x.jsonl", [row(1, "a", scores=[score(71, "recall_alt")])]))
    assert pack.notes.label(1).score is None
    assert pack.notes.label(1).detail["scores"] == [{"value": 71, "measure": "recall_alt"}]


def test_rows_of_other_saes_and_of_unknown_latents_are_counted_and_left_out(pack, tmp_path, capsys):
    other = row(5, "other", source="gemma-2-2b/13-gemmascope-res-16k")
    file = write(tmp_path / "x.jsonl", [row(1, "a"), other, row(24, "beyond"), row("x", "none"), row(4, " ")])
    done = import_labels(pack, file)
    assert (done.labels, done.unknown, done.without, done.empty) == (1, 1, 1, 1)
    assert done.elsewhere == {"gemma-2-2b/13-gemmascope-res-16k": 1}
    assert 5 not in pack.notes.labels()
    assert run(["labels", "import", str(pack.folder), str(file)]) == 0
    assert "1 rows are of other SAEs" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(PackError, match=r"holds labels of gemma-2-2b/13(.|\n)*this pack is about gemma-2-2b/12"):
        import_labels(pack, write(tmp_path / "y.jsonl", [other]))


def test_rows_of_another_form_are_refused_with_the_form_they_need(pack, tmp_path):
    with pytest.raises(PackError, match=r'names no latent(.|\n)*"index": 12, "description"'):
        import_labels(pack, write(tmp_path / "x.jsonl", [{"latent": 3, "label": "a word"}]))


def test_a_pack_that_does_not_know_its_source_is_told_it(tmp_path):
    make_toy_pack(tmp_path / "toy.pack", n_contexts=12)
    pack, file = Pack.open(tmp_path / "toy.pack"), write(tmp_path / "x.jsonl", [row(1, "a")])
    with pytest.raises(PackError, match="--source gemma-2-2b/12-gemmascope-res-16k"):
        import_labels(pack, file)
    assert import_labels(pack, file, source=SOURCE).labels == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", b'{"index": 1', "line 1, is damaged"),
        ("x.json", b"[" * 100_000, "nested too deeply"),
        ("x.json", b'{"explanations": 7}', "no list of labels"),
        ("x.jsonl", b'{"index": [1]}', "a row of .* is damaged"),
        ("x.jsonl.gz", gzip.compress(b"{}\n" * 1000, mtime=0)[:30], "cut short"),
        ("x.jsonl", None, "cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_and_nothing_is_kept(pack, tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PackError, match=says):
        import_labels(pack, tmp_path / name)
    assert pack.notes.labels() == {}


@pytest.fixture
def web(tmp_path, monkeypatch):
    """The address of a folder that is served on this machine, which stands for the public bucket."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    (tmp_path / "web").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
    monkeypatch.setattr(published, "BUCKET", f"http://127.0.0.1:{server.server_port}")
    yield tmp_path / "web"
    server.shutdown()
    server.server_close()


def test_without_a_place_the_public_files_of_the_packs_sae_are_read_batch_by_batch(pack, web):
    with pytest.raises(PackError, match=r"cannot be fetched: the server says 404(.|\n)*give their folder"):
        import_labels(pack)
    for number in range(3):
        write(web / SOURCE / f"explanations/batch-{number}.jsonl.gz", [row(number, f"published {number}")])
    assert import_labels(pack).labels == 3
    assert import_labels(pack, f"{published.BUCKET}/{SOURCE}/explanations/batch-2.jsonl.gz").labels == 1


def test_files_that_unpack_without_end_are_refused(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "LARGEST", 10_000)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b" " * 100_000))
    with pytest.raises(PackError, match="unpacks to more than"):
        import_labels(pack, tmp_path / "x.jsonl.gz")
