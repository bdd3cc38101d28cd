"""Recordings whose files pass their checksums and yet cannot be: every reader refuses them, and a resumed harvest too."""

import json
import shutil
import zlib

import pytest
from scope.activations.errors import RecordingError
from scope.activations.format.files import read_json, write_json
from scope.activations.harvest.repair import examine, repair
from scope.activations.read.store import ActivationStore

from tests.activations.toy import record


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "r"
    record(folder, tokens=3000)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "r")
    return tmp_path / "r"


def put(value: dict, path: str, new) -> None:
    """Replace what a path such as "config/sites/0" leads to; "..." removes it."""
    *way, last = (int(part) if part.isdigit() else part for part in path.replace("acts/a", "acts|a").split("/"))
    for part in way:
        value = value[part.replace("|", "/") if isinstance(part, str) else part]
    last = last.replace("|", "/") if isinstance(last, str) else last
    if new is ...:
        del value[last]
    else:
        value[last] = new


def refused_by_all(folder, match: str) -> None:
    for reader in (ActivationStore.open, examine, repair, lambda folder: record(folder, tokens=6000)):
        with pytest.raises(RecordingError, match=match):
            reader(folder)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("config", ..., "`config`"),
        ("config/sites", "a", "expected `array`|Expected `array`"),
        ("config/sites", [], "no site"),
        ("config/sites", ["a", "a"], "twice"),
        ("config/sites", ["a", "b.x", "c"], "no width of c"),
        ("config/sites/0", 1, "Expected `str`"),
        ("config/context", 0, "`config.context`"),
        ("config/context", 2.0, "`config.context`"),
        ("config/dtype", "float8", "`config.dtype`"),
        ("config/tokens", -1, "`config.tokens`"),
        ("config/exclude", ["bos", "nobody"], "nobody"),
        ("layout/widths/a", -32, "widths"),
        ("layout/widths/a", 2**70, "widths"),
        ("layout/segment_rows", 0, "segment_rows"),
        ("layout", [], "`layout`"),
        ("model", "toy", "`model`"),
        ("outliers/threshold/a", float("nan"), "threshold"),
        ("outliers/threshold", 3, "threshold"),
        ("versions", None, "`versions`"),
        ("version", 4, "version 4"),
        ("version", "2", "version 2"),
        ("version", [2], r"version \[2\]"),
    ],
)
def test_a_forged_manifest_is_refused(folder, path, value, match):
    manifest = read_json(folder / "manifest.json")
    put(manifest, path, value)
    write_json(folder / "manifest.json", manifest)
    refused_by_all(folder, match)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("file", "../victim.h5", "no name of a shard"),
        ("file", "/etc/passwd", "no name of a shard"),
        ("file", "manifest.json", "no name of a shard"),
        ("file", "shard-00000.h5\n", "no name of a shard"),
        ("file", None, "Expected `str`"),
        ("bytes", -1, "`bytes`"),
        ("bytes", "100", "`bytes`"),
        ("bytes", 2**64, "`bytes`"),
        ("rows", [0], "length 2"),
        ("rows", [0, 10**15], "by the manifest it is"),
        ("rows", [5, 1], "rows go from"),
        ("contexts", [1, 32], "missing"),
        ("contexts", [0, 31], "by the manifest it is"),
        ("shard", 7, "shard 7"),
        ("datasets/tokens/offset", -8, "cannot be"),
        ("datasets/tokens/offset", 2**61, "outside of the file"),
        ("datasets/tokens/offset", 8192, "overlap"),
        ("datasets/tokens/dtype", "object", "dtype 'object'"),
        ("datasets/tokens/dtype", "float32", "by the manifest it is int32"),
        ("datasets/tokens/shape", [32, 10**12], "by the manifest it is"),
        ("datasets/tokens/shape", [], "cannot be"),
        ("datasets/tokens/crc32", ..., "no checksum"),
        ("datasets/tokens", ..., "other datasets"),
        ("datasets/acts/a/shape", [1, 2, 3], "by the manifest it is"),
        ("datasets", {}, "other datasets"),
        ("mean_square_norm", {}, "norm"),
        ("max_norm", {"a": float("inf"), "b.x": 1.0}, "norm"),
        ("outliers", {"a": -1}, "outliers"),
        ("cursor", None, "position in the corpus"),
        ("cursor/offset", "3", "`cursor.offset`"),
        ("exhausted", "false", "`exhausted`"),
        ("rest_crc32", ..., "checksum"),
    ],
)
def test_a_forged_journal_entry_is_refused(folder, path, value, match):
    victim = folder.parent / "victim.h5"
    victim.write_text("mine")
    lines = (folder / "journal.jsonl").read_bytes().split(b"\n")
    entry = json.loads(lines[0].partition(b" ")[2])
    put(entry, path, value)
    forge(folder / "journal.jsonl", lines, json.dumps(entry).encode())
    refused_by_all(folder, match)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("text", [b"[" * 100_000, b"7", b"null", b'{"a": "\\ud800"}'])
def test_a_journal_line_that_is_no_entry_is_refused(folder, text):
    forge(folder / "journal.jsonl", (folder / "journal.jsonl").read_bytes().split(b"\n"), text)
    refused_by_all(folder, "line 1, is damaged")


def forge(path, lines: list[bytes], text: bytes) -> None:
    """Put a text with its right checksum in the place of the first line."""
    path.write_bytes(b"\n".join([f"{zlib.crc32(text):08x} ".encode() + text, *lines[1:]]))


@pytest.mark.parametrize("name", ["manifest.json", "journal.jsonl", "shard-00000.h5"])
def test_a_pipe_a_folder_or_a_link_to_itself_in_the_place_of_a_file_is_refused_at_once(folder, name):
    import os

    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink(path.name, path)):
        path = folder / name
        path.unlink() if path.is_file() or path.is_fifo() else path.rmdir()
        make(path)
        with pytest.raises(RecordingError, match=r"no recording|regular file|cannot be read|has 0 bytes|has .* bytes"):
            ActivationStore.open(folder)


@pytest.mark.parametrize("name", ["rows/context", "rows/position", "documents", "document_names"])
def test_numbers_in_a_shard_that_lead_outside_of_the_recording_are_refused(folder, name):
    entry = ActivationStore.open(folder).entries[0]
    place, path = entry.datasets[name], folder / entry.file
    data = bytearray(path.read_bytes())
    data[place.offset : place.offset + 4] = (1_000_000).to_bytes(4, "little")
    path.write_bytes(data)
    lines = (folder / "journal.jsonl").read_bytes().split(b"\n")
    value = json.loads(lines[0].partition(b" ")[2])
    value["datasets"][name]["crc32"] = zlib.crc32(data[place.offset : place.offset + place.nbytes])
    forge(folder / "journal.jsonl", lines, json.dumps(value).encode())
    store = ActivationStore.open(folder)
    with pytest.raises(RecordingError, match=f"{name} holds numbers outside|{name} is damaged"):
        _ = store.contexts_of, store.positions, store.documents, store.document_names
