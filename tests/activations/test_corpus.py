import gzip
import json
import lzma

import pytest
from scope.activations.corpus.installed import without_name
from scope.activations.corpus.sources import Document, in_turn, mixed, open_corpus
from scope.activations.errors import CorpusError, CorpusWarning


def texts(spec, **kwargs) -> list[str]:
    return [d.text for d in open_corpus(str(spec), **kwargs).documents()]


def test_a_text_file_is_one_document_and_a_long_one_is_cut_between_paragraphs_without_losing_a_character(tmp_path):
    short, long = tmp_path / "short.txt", tmp_path / "long.md"
    short.write_text("One.\n\nTwo.\n")
    long.write_text("".join(f"Paragraph {i} of a long text.\nIt has two lines.\n\n" for i in range(2000)))
    assert texts(short) == ["One.\n\nTwo.\n"]
    pieces = texts(long)
    assert len(pieces) > 3
    assert "".join(pieces) == long.read_text()
    assert all(p.strip().startswith("Paragraph") for p in pieces)


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open)])
def test_jsonl_is_a_document_a_line_packed_or_not(tmp_path, suffix, opener):
    path = tmp_path / f"data.jsonl{suffix}"
    with opener(path, "wt", encoding="utf-8") as file:
        file.write('{"text": "one", "name": "first"}\n\n{"text": "zwei ü"}\n')
    documents = list(open_corpus(str(path)).documents())
    assert documents == [Document("first", "one"), Document(f"data.jsonl{suffix}:3", "zwei ü")]


def test_parquet_is_a_document_a_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"body": ["one", None, "two"]}), tmp_path / "data.parquet")
    assert texts(tmp_path / "data.parquet", field="body") == ["one", "two"]
    with pytest.raises(CorpusError, match=r'no column "text"\. It has body'):
        texts(tmp_path / "data.parquet")


def test_a_folder_is_every_text_file_below_it_in_the_order_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "sub" / "a.md").write_text("a")
    (tmp_path / "image.png").write_bytes(b"\x89")
    with pytest.warns(CorpusWarning, match=r"2 files, such as b\.txt, will be read; left out: image\.png"):
        corpus = open_corpus(str(tmp_path))
    assert [d.name for d in corpus.documents()] == ["b.txt", "sub/a.md"]


def test_a_changed_byte_changes_the_identity_and_another_place_does_not(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("the same")
    same = [open_corpus(str(tmp_path / name / "a.txt")).identity for name in ("one", "two")]
    assert same[0] == same[1]
    (tmp_path / "two" / "a.txt").write_text("not the same")
    assert open_corpus(str(tmp_path / "two" / "a.txt")).identity != same[0]


def test_mixing_is_a_seeded_permutation():
    documents = [Document(str(i), "x") for i in range(2000)]
    order = [d.name for d in mixed(documents, 1)]
    assert sorted(order, key=int) == [d.name for d in documents]
    assert order == [d.name for d in mixed(documents, 1)]
    assert order != [d.name for d in mixed(documents, 2)]
    assert order[:5] != ["0", "1", "2", "3", "4"]


def test_documentation_of_installed_packages_comes_at_once_and_in_turn():
    corpus = open_corpus("docs:h5py,numpy")
    stream = corpus.documents()
    names = [next(stream).name.split(".")[0] for _ in range(4)]
    assert names == ["h5py", "numpy", "h5py", "numpy"]
    assert set(corpus.identity["packages"]) == {"h5py", "numpy"}


def test_the_bundled_corpus_needs_nothing_but_an_installation():
    corpus = open_corpus("bundled")
    assert set(corpus.identity["packages"]) == {"stdlib", "numpy", "pandas", "torch"}
    assert json.dumps(corpus.identity)
    assert len(next(corpus.documents()).text) > 50


def test_sources_are_read_in_turn_until_all_have_ended():
    one, two = (iter([Document(f"{s}{i}", "") for i in range(n)]) for s, n in (("a", 1), ("b", 3)))
    assert [d.name for d in in_turn([one, two])] == ["a0", "b0", "b1", "b2"]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("nowhere.txt", "There is no corpus nowhere.txt"),
        ("./nowhere", "There is no corpus ./nowhere"),
        ("x" * 5000, "There can be no corpus x"),
        ("/dev/null", "pipe or a device"),
        ("docs:no_such_package", "No package named no_such_package"),
    ],
)
def test_a_corpus_that_is_not_there_is_refused_with_what_could_be_given(spec, named):
    with pytest.raises(CorpusError, match=named):
        open_corpus(spec)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"text": 3}', "line 1, has no text"),
        ('{"text": "a"}\n{"body": "b"}', "line 2, has no text.*fields: body"),
        ("{", "line 1, is damaged: it is not JSON"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path, content, named):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(CorpusError, match=named):
        texts(tmp_path / "bad.jsonl")


def test_a_damaged_archive_is_refused_by_name(tmp_path):
    whole = lzma.compress(b'{"text": "' + b"a" * 5000 + b'"}\n')
    (tmp_path / "cut.jsonl.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match=r"cut\.jsonl\.xz is damaged"):
        texts(tmp_path / "cut.jsonl.xz")


def test_a_folder_without_text_and_a_file_of_no_known_kind_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="holds no text"):
        open_corpus(str(tmp_path))
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "a.jsonl.lz4").write_bytes(b"x")
    for name in ("a.bin", "a.jsonl.lz4"):
        with pytest.raises(CorpusError, match="has an unknown suffix"):
            open_corpus(str(tmp_path / name))


def test_a_link_that_leads_nowhere_is_left_out_of_a_folder_and_named(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.warns(CorpusWarning, match=r"left out: b\.txt"):
        assert texts(tmp_path) == ["a"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one data set, whose files lie in a folder here; everything but the network is the real `datasets`."""
    import datasets

    for config, texts_ in (("plain", ["one", "two", "three"]), ("other", ["vier"])):
        (tmp_path / config).mkdir()
        (tmp_path / config / "train.jsonl").write_text("".join(json.dumps({"body": t, "n": 1}) + "\n" for t in texts_))
    asked = []
    real = datasets.load_dataset

    def load_dataset(name, config=None, *, split, revision, streaming):
        asked.append((name, config, split, revision, streaming))
        return real(
            "json", data_files={split: str(tmp_path / (config or "plain") / "train.jsonl")}, split=split, streaming=streaming
        )

    class Info:
        sha = "abc123"

    monkeypatch.setattr("huggingface_hub.dataset_info", lambda name: Info)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return asked


def test_a_hub_data_set_is_streamed_at_the_commit_it_had_when_it_was_opened(hub):
    corpus = open_corpus("owner/name", field="body")
    assert [d.text for d in corpus.documents()] == ["one", "two", "three"]
    assert [d.name for d in corpus.documents()] == ["owner/name:0", "owner/name:1", "owner/name:2"]
    assert corpus.identity == {"kind": "hub", "name": "owner/name", "split": "train", "revision": "abc123", "field": "body"}
    assert hub == [("owner/name", None, "train", "abc123", True)]


def test_a_hub_data_set_may_name_its_configuration_and_split(hub):
    corpus = open_corpus("owner/name:other:train", field="body")
    assert texts("owner/name:other:train", field="body") == ["vier"]
    assert corpus.identity["config"] == "other"


def test_a_field_that_a_hub_data_set_does_not_have_is_refused_with_those_it_has(hub):
    with pytest.raises(CorpusError, match=r'no text in a field "text"\. It has fields: body, n'):
        texts("owner/name")


def _refuse(kind):
    import httpx
    from huggingface_hub import errors

    if kind == "offline":
        raise errors.OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline mode is enabled.")
    if kind == "connection":
        raise httpx.ConnectError("Name or service not known")
    response = httpx.Response(401, request=httpx.Request("GET", "https://huggingface.co/api/datasets/owner/name"))
    raise {"gated": errors.GatedRepoError, "missing": errors.RepositoryNotFoundError}[kind](
        "401 Client Error", response=response
    )


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("offline", "the hub is switched off.*Unset HF_HUB_OFFLINE.*Without a network: a file"),
        ("connection", "the hub cannot be reached.*Without a network: a file"),
        ("gated", r"owner/name is gated\. Accept its terms at https://huggingface.co/datasets/owner/name"),
        ("missing", "there is no data set owner/name, or it is private"),
    ],
)
def test_a_hub_that_does_not_give_the_text_is_told_with_the_way_out(hub, monkeypatch, kind, named):
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda name: _refuse(kind))
    with pytest.raises(CorpusError, match=f"(?s){named}"):
        open_corpus("owner/name")


def test_a_stream_that_breaks_off_is_told_by_its_record(hub, monkeypatch):
    def broken(*args, **kwargs):
        def records():
            yield {"text": "one"}
            raise ConnectionError("reset by peer")

        return records()

    monkeypatch.setattr("datasets.load_dataset", broken)
    with pytest.raises(CorpusError, match=r"(?s)owner/name broke off at record 1: .*reset by peer.*What is recorded is kept"):
        texts("owner/name")


def test_the_qualified_name_above_a_docstring_is_no_part_of_what_is_compared():
    assert without_name("numpy.matrix.sum\n\nReturns the sum.\n\nMore.") == "Returns the sum.\n\nMore."
    assert without_name("A tale.\n\nOnce upon a time.") == "A tale.\n\nOnce upon a time."
    assert without_name("name") == "name"


def test_an_endpoint_that_is_no_address_and_a_hub_switched_off_are_called_that(monkeypatch):
    from huggingface_hub.errors import OfflineModeIsEnabled
    from scope.activations.corpus.hub import _why

    assert "the hub is switched off" in _why(OfflineModeIsEnabled("off"), "a/b")
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    assert "such as https://mirror.example" in _why(ValueError("no protocol"), "a/b")
