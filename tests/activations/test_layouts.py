"""Layouts of real data sets, as they are published. A layout is a row of `FILES`, `RECORDS` or `REFUSED`."""

import bz2
import gzip
import io
import json
import lzma
import os
import resource
import zipfile

import numpy as np
import pytest
import zstandard
from scope.activations.corpus.contexts import Packer
from scope.activations.corpus.document import Document, token_ids
from scope.activations.corpus.layouts import document_of
from scope.activations.corpus.sources import open_corpus
from scope.activations.errors import CorpusError, CorpusWarning
from scope.activations.read.store import ActivationStore

from scope.errors import TokensError
from tests.activations.toy import ByteTokenizer, contents, record

TEXTS = ["Once upon a time.", "Es war einmal, über dem See.\nZeile zwei.", 'He said: "well, no".']


class ChatTokenizer(ByteTokenizer):
    """A template like Gemma's: turns in order, no system turn."""

    def chat(self, messages, add_generation_prompt=True):
        assert not add_generation_prompt
        if any(m["role"] == "system" for m in messages):
            raise TokensError("The chat template refuses these messages: System role not supported")
        return "\x02" + "".join(f"<{m['role']}>{m['content']}\n" for m in messages)

    def __len__(self) -> int:
        return 260


def lines(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


ROWS = [{"text": t, "id": i} for i, t in enumerate(TEXTS)]


def csv_bytes(delimiter: str) -> bytes:
    import csv

    out = io.StringIO()
    writer = csv.DictWriter(out, ["id", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def table(kind: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows, sink = pa.table({"id": [0, 1, 2], "text": TEXTS}), io.BytesIO()
    if kind == "parquet":
        parquet.write_table(rows, sink)
    else:
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, rows.schema) as writer:
            writer.write_table(rows)
    return sink.getvalue()


FILES = {
    "data.jsonl": lines(ROWS),
    "data.ndjson": lines(ROWS),
    "data.jsonl.gz": gzip.compress(lines(ROWS)),
    "data.jsonl.xz": lzma.compress(lines(ROWS)),
    "data.jsonl.bz2": bz2.compress(lines(ROWS)),
    "data.jsonl.zst": zstandard.compress(lines(ROWS)),
    "frames.jsonl.zst": zstandard.compress(lines(ROWS[:1])) + zstandard.compress(lines(ROWS[1:])),
    "c4-train.00000-of-01024.json.gz": gzip.compress(lines(ROWS)),
    "list.json": json.dumps(ROWS, indent=2).encode(),
    "within.json": json.dumps({"version": "1.1", "data": ROWS}).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(ROWS),
    "utf16.jsonl": lines(ROWS).decode().encode("utf-16"),
    "crlf.jsonl": lines(ROWS).replace(b"\n", b"\r\n"),
    "data.csv": csv_bytes(","),
    "data.csv.gz": gzip.compress(csv_bytes(",")),
    "data.tsv": csv_bytes("\t"),
    "data.parquet": table("parquet"),
    "stream.arrow": table("stream"),
    "file.arrow": table("file"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_form_of_a_set_gives_its_texts(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert [d.text for d in open_corpus(str(tmp_path / name)).documents()] == TEXTS
    assert [d.text for d in open_corpus(str(tmp_path)).documents()] == TEXTS


def test_a_packed_text_file_and_one_in_utf_16_are_read_as_text(tmp_path):
    text = "Grüße.\n\nZwei."
    for name, data in {"a.txt.gz": gzip.compress(text.encode()), "a.txt": text.encode("utf-16")}.items():
        (tmp_path / name).write_bytes(data)
        assert [d.text for d in open_corpus(str(tmp_path / name)).documents()] == [text]


CHAT = [("user", "Hi."), ("assistant", "Hello!")]
TURNS = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]
RECORDS = {
    "OpenAI, UltraChat, Tulu": (
        {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]},
        CHAT,
    ),
    "ShareGPT, OpenHermes": ({"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello!"}]}, CHAT),
    "LMSYS, WildChat": (
        {"conversation": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]},
        CHAT,
    ),
    "parts of text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}, {"role": "model", "content": "Hello!"}]},
        CHAT,
    ),
    "preferences": ({"prompt": "Hi.", "chosen": "Hello!", "rejected": "No."}, CHAT),
    "UltraFeedback": (
        {"prompt": "Hi.", "chosen": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]},
        CHAT,
    ),
    "preferences, answers alone": (
        {"prompt": [{"role": "user", "content": "Hi."}], "chosen": [{"role": "assistant", "content": "Hello!"}]},
        CHAT,
    ),
    "Alpaca": ({"instruction": "Hi.", "input": "", "output": "Hello!"}, CHAT),
    "Alpaca with input": ({"instruction": "Say", "input": "Hi.", "output": "Hello!"}, [("user", "Say\n\nHi."), CHAT[1]]),
    "Dolly": ({"instruction": "Hi.", "context": "", "response": "Hello!", "category": "x"}, CHAT),
    "GSM8K": ({"question": "Hi.", "answer": "Hello!"}, CHAT),
    "completion": ({"prompt": "Hi.", "completion": "Hello!"}, CHAT),
    "FLAN": ({"inputs": "Hi.", "targets": "Hello!"}, CHAT),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_chat_is_laid_out_by_the_template_of_the_model(name):
    record, turns = RECORDS[name]
    document = document_of(record, "text", "line 1", "d")
    assert [(turn.role, turn.content) for turn in document.turns] == turns
    packed = Packer([document], ChatTokenizer(), 64).take(1)
    laid_out = ChatTokenizer().chat([{"role": role, "content": content} for role, content in turns], False)
    assert packed.tokens[0, : len(laid_out)].tolist() == ChatTokenizer().encode(laid_out, bos=False)
    assert packed.cursor.dropped == 0


def test_a_system_turn_that_the_template_refuses_goes_before_the_first_question():
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello!"}]
    ids = Packer([document_of({"conversations": turns}, "text", "", "d")], ChatTokenizer(), 64).take(1).tokens[0]
    assert "".join(chr(i - 4) for i in ids[1:] if i >= 4) == "<user>Be brief.\n\nHi.\n<assistant>Hello!\n"


def test_a_chat_is_refused_for_a_model_without_a_template():
    document = document_of(RECORDS["Alpaca"][0], "text", "line 1", "d")
    with pytest.raises(CorpusError, match="no chat template"):
        Packer([document], ByteTokenizer(), 16).take(1)


def test_token_ids_are_taken_as_they_are_without_padding_and_bos_and_held_against_the_vocabulary():
    record = {"input_ids": [2, 70, 71, 72, 0, 0], "attention_mask": [1, 1, 1, 1, 0, 0]}
    packed = Packer([document_of(record, "text", "", "d")], ChatTokenizer(), 8).take(1)
    assert packed.tokens[0, :5].tolist() == [2, 70, 71, 72, 1]
    assert packed.cursor.dropped == 0
    for ids in ([70, 260], [-1, 70]):
        with pytest.raises(CorpusError, match=r"vocabulary of this model has ids 0 to 259(.|\n)*another model"):
            Packer([document_of({"tokens": ids}, "text", "", "d")], ChatTokenizer(), 8).take(1)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": "Hi."},
        {"messages": 3},
        {"messages": [{"content": "Hi."}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": [3]},
        {"input_ids": [1.5]},
        {"body": "x"},
        {"text": None},
        {"text": {"a": 1}},
        [],
        7,
    ],
)
def test_a_record_without_text_is_refused_by_its_place(record):
    with pytest.raises(CorpusError, match="line 7, "):
        document_of(record, "text", "line 7", "d")


def test_what_datasets_saves_is_read_by_its_own_list_of_files(tmp_path):
    import datasets

    train, test = datasets.Dataset.from_dict({"text": TEXTS}), datasets.Dataset.from_dict({"text": ["held out"]})
    train.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "several"))
    datasets.DatasetDict({"validation": test, "test": test}).save_to_disk(str(tmp_path / "no_train"))
    assert [d.text for d in open_corpus(str(tmp_path / "one")).documents()] == TEXTS
    with pytest.warns(CorpusWarning, match="left out: test/"):
        assert [d.text for d in open_corpus(str(tmp_path / "several")).documents()] == TEXTS
    with pytest.raises(CorpusError, match="splits validation, test; give the folder of one"):
        open_corpus(str(tmp_path / "no_train"))
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../victim.arrow"
    (tmp_path / "one" / "state.json").write_text(json.dumps(state))
    with pytest.raises(CorpusError, match="plain name"):
        open_corpus(str(tmp_path / "one"))


def test_of_a_cloned_data_set_its_data_are_read_and_what_is_left_out_is_said(tmp_path):
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "c4-train.00000-of-01024.json.gz").write_bytes(gzip.compress(lines(ROWS)))
    for name in ("README.md", "c4.py", "LICENSE.txt", "dataset_infos.json", ".gitattributes"):
        (tmp_path / name).write_text('{"text": "a description"}')
    with pytest.warns(CorpusWarning, match=r"json\.gz will be read; left out: LICENSE\.txt, README\.md, c4\.py, dataset_infos"):
        corpus = open_corpus(str(tmp_path))
    assert [d.text for d in corpus.documents()] == TEXTS


@pytest.mark.parametrize("data", ["data/train.zip", "train-00000.tfrecord", "link.jsonl"])
def test_a_data_set_whose_data_cannot_be_read_is_not_recorded_as_its_readme_and_script(tmp_path, data):
    for name in ("README.md", "loader.py"):
        (tmp_path / name).write_text("a description")
    (tmp_path / data).parent.mkdir(exist_ok=True)
    if data == "link.jsonl":
        (tmp_path / data).symlink_to(tmp_path / "gone.jsonl")
    else:
        (tmp_path / data).write_bytes(b"data")
    with pytest.raises(CorpusError, match=f"in a form that is not read: {data}"):
        open_corpus(str(tmp_path))
    (tmp_path / "notes.txt").write_text("text of its own")
    with pytest.warns(CorpusWarning, match="left out"):
        open_corpus(str(tmp_path))


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("corpus.txt", "text")
    return out.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
REFUSED = {
    "corpus.txt.zip": (zipped(), "unknown suffix"),
    "corpus.txt": (zipped(), "ZIP archive"),
    "pointer.txt": (POINTER, "git lfs pull"),
    "pointer.jsonl": (POINTER, "git lfs pull"),
    "pointer.parquet": (POINTER, "git lfs pull"),
    "pointer.jsonl.gz": (POINTER, "git lfs pull"),
    "annexed.jsonl.zst": (b"/annex/objects/SHA256E-s9--ab.jsonl.zst\n", "git annex get"),
    "letter.txt": (b"{\\rtf1\\ansi A letter.}", "Rich Text"),
    "nomark.txt": ("Ein Text ohne Marke.".encode("utf-16-le"), "iconv -f UTF-16LE"),
    "nomark.md": ("Ein Text ohne Marke.".encode("utf-16-be"), "iconv -f UTF-16BE"),
    "latin.txt": ("Über süße Früchte. ".encode("latin-1") * 9, "iconv -f WINDOWS-1252"),
    "japanese.txt": ("むかしむかし、あるところに".encode("shift-jis") * 9, "is no UTF-8 text"),
    "image.txt": (b"\x89PNG\r\n\x1a\n" + bytes(50), "image"),
    "paper.txt": (b"%PDF-1.7\n" + b"x" * 50, "PDF"),
    "weights.txt": (bytes(range(256)) * 40, "binary"),
    "packed.jsonl": (gzip.compress(lines(ROWS)), r"End its name in \.gz"),
    "table.csv": (table("parquet"), r"End its name in \.parquet"),
    "page.parquet": (b"<!DOCTYPE html><html>login</html>", "damaged"),
    "pickle.txt": (b"\x80\x04\x95" + bytes(30), "pickle"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_is_refused_by_what_it_is(tmp_path, name):
    data, match = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=match):
        list(open_corpus(str(tmp_path / name)).documents())


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(CorpusError, match="pipe or a device"):
        open_corpus(str(tmp_path / "a.txt"))


def test_a_few_bytes_that_are_no_utf_8_and_half_characters_are_recorded_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"fine " * 200 + b'\xff\\ud83d", "name": "\\ud83d"}\n')
    (document,) = open_corpus(str(tmp_path / "a.jsonl")).documents()
    assert document.text.endswith("\ufffd\ufffd")
    assert document.name == "\ufffd"
    assert Packer([document], ByteTokenizer(), 2048).take(1).cursor.replaced == 2


def test_the_manifest_counts_the_characters_that_are_no_utf_8_and_an_extension_counts_on(tmp_path):
    lines = [f"line {i} " + "of a text " * 20 + "\ufffd" * (i % 2) for i in range(60)]
    (tmp_path / "a.txt").write_text("\n\n".join(lines))
    for tokens in (1500, 100_000):
        store = record(tmp_path / "r", open_corpus(str(tmp_path / "a.txt")), tokens=tokens)
    assert ActivationStore.open(tmp_path / "r").manifest.replacement_characters == 30
    record(tmp_path / "once", open_corpus(str(tmp_path / "a.txt")), tokens=100_000)
    assert contents(tmp_path / "r") == contents(tmp_path / "once")
    assert store.manifest.replacement_characters == 30


def test_a_long_document_is_tokenised_in_parts_that_give_the_same_tokens(monkeypatch):
    monkeypatch.setattr("scope.activations.corpus.document._LONGEST", 40)
    text = "some words of a text, " * 30 + "x" * 100
    lengths = []

    class Watched(ByteTokenizer):
        def encode(self, text, bos=True):
            lengths.append(len(text))
            return super().encode(text, bos)

    assert token_ids(Document("d", text), Watched()) == ByteTokenizer().encode(text, bos=False)
    assert max(lengths) <= 40


def test_a_text_in_one_line_is_cut_at_white_space_without_losing_a_character(tmp_path):
    words = " ".join(f"word{i}" for i in range(60_000))
    (tmp_path / "text8.txt").write_text(words)
    pieces = [d.text for d in open_corpus(str(tmp_path / "text8.txt")).documents()]
    assert "".join(pieces) == words
    assert max(map(len, pieces)) < 200_000
    assert all(piece[-1] == " " or piece is pieces[-1] for piece in pieces)


def test_an_arrow_file_that_would_end_the_process_is_refused(tmp_path):
    """A flipped bit in the length of a column's name: pyarrow aborts."""
    import re

    data = bytearray(FILES["stream.arrow"])
    for at in (m.start() - 4 for m in re.finditer(rb"text\x00", data)):
        data[at] ^= 0x80
        data[at + 3] ^= 0x80
    (tmp_path / "a.arrow").write_bytes(data)
    with pytest.raises(CorpusError, match=r"a\.arrow is damaged"):
        list(open_corpus(str(tmp_path / "a.arrow")).documents())


@pytest.mark.parametrize("name", ["line.jsonl.gz", "line.json.xz", "line.csv.bz2"])
def test_a_record_that_unpacks_to_more_than_can_be_is_refused_in_bounded_memory(tmp_path, name, monkeypatch):
    monkeypatch.setattr("scope.activations.corpus.readers.LARGEST", 1 << 20)
    opener = {"gz": gzip.open, "xz": lzma.open, "bz2": bz2.open}[name.rsplit(".", 1)[1]]
    with opener(tmp_path / name, "wb") as file:
        file.write(b'text\n"' if "csv" in name else b'{"text": "')
        for _ in range(60):
            file.write(b"a" * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorpusError, match=r"1,048,576 characters|field larger than"):
        list(open_corpus(str(tmp_path / name)).documents())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.jsonl.zst", "data.parquet", "data.jsonl.xz", "list.json"])
def test_a_damaged_file_is_refused_or_read_and_never_anything_else(tmp_path, name):
    rng, path, sound = np.random.default_rng(0), tmp_path / name, FILES[name]
    refused = 0
    for number in range(60):
        data = bytearray(sound)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data if number % 3 else sound[: int(rng.integers(len(sound)))])
        try:
            for document in open_corpus(str(path)).documents():
                document.text.encode()
        except CorpusError as error:
            refused += name in str(error)
    assert refused > 10
