"""JSON from disk becomes checked types, or a message that names the file and the field."""

import os
from dataclasses import dataclass

import pytest

from scope.errors import PackError, ScopeError
from scope.typed_json import json_lines, parse_json, plain_name, read_bytes, read_json, read_typed, typed


@dataclass(frozen=True)
class Shard:
    rows: int
    share: float = 0.0
    sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    shards: list[Shard]
    complete: bool = False


def test_fields_get_their_types_and_unknown_ones_are_left_out(tmp_path):
    (tmp_path / "m.json").write_text('{"shards": [{"rows": 3, "share": 1, "sites": ["a"], "later": 1}]}')
    assert read_typed(tmp_path / "m.json", Manifest) == Manifest([Shard(3, 1.0, ("a",))])


@pytest.mark.parametrize(
    "text",
    ['{"shards": [{"rows": "3"}]}', '{"shards": [{"rows": 3.5}]}', '{"shards": [{}]}', '{"shards": [null]}', "[]", "7", "null"],
)
def test_a_wrong_type_is_refused_and_named(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(PackError, match=r"m\.json is damaged: .*(Expected|missing)") as refusal:
        read_typed(tmp_path / "m.json", Manifest, PackError, "Copy the pack again.")
    assert str(refusal.value).endswith("\n  Copy the pack again.")


def test_a_string_is_no_bool():
    with pytest.raises(PackError, match="Expected `bool`, got `str` - at `complete`"):
        typed({"shards": [], "complete": "false"}, Manifest, "x", PackError)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000])
def test_what_is_not_json_is_refused(data):
    with pytest.raises(PackError, match="damaged"):
        parse_json(data, "x", PackError)


def test_pipes_folders_missing_and_huge_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").write_bytes(b"x" * 100)
    problems = {"pipe": "not a regular file", ".": "directory", "none": "No such file", "huge": "has 100 bytes"}
    for name, problem in problems.items():
        with pytest.raises(PackError, match=problem):
            read_bytes(tmp_path / name, PackError, largest=99)
    (tmp_path / "huge").write_bytes(b"[1]")
    assert read_json(tmp_path / "huge", PackError) == [1]


def test_a_bad_line_is_named_by_its_number():
    assert list(json_lines(b'{"a": 1}\n\n2\n', "x")) == [{"a": 1}, 2]
    with pytest.raises(PackError, match="x, line 2, is damaged"):
        list(json_lines(b"1\n[\n", "x", PackError))


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../victim.txt", "/etc/passwd", "a/b", "a\\b", "C:x", "a\nb", "\x00", "x" * 300, "\ud800"]
)
def test_a_name_from_a_file_that_leads_elsewhere_is_refused(name):
    assert plain_name("shard-00001.h5", "manifest.json") == "shard-00001.h5"
    with pytest.raises(PackError, match="not the plain name of a file"):
        plain_name(name, "manifest.json", PackError)


def test_a_file_that_holds_half_of_a_character_is_refused(tmp_path):
    file = tmp_path / "tokens.json"
    file.write_text(r'{"eos_token": "\ud800", "pair": "\ud83d\ude00"}')
    with pytest.raises(ScopeError, match="half of a surrogate pair"):
        read_json(file)
    file.write_text(r'{"pair": "\ud83d\ude00"}')
    assert read_json(file) == {"pair": "\N{GRINNING FACE}"}
