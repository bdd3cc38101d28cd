"""Ways to damage a file: its bytes, values of its JSON, the header of an array, the file itself."""

import json
import os
import random
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VALUES = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**40, 0.5, -1.5, 1e308, float("nan"), float("inf")),
    *("", "x", "false", "1", "../../etc/passwd", "/etc/passwd", "x/..", "a[/b]", "\ud800", "\x00", "=HYPERLINK(1)", "<script>"),
    *([], {}, [1], {"a": 1}, [[]], ["x"]),
]
"""What takes the place of a JSON value."""


@dataclass(frozen=True)
class Mutation:
    """What was done to a file; `wrong_type` where a JSON value became one of another type."""

    text: str
    wrong_type: bool = False


def mutate(file: Path, rng: random.Random, reseal: bool) -> Mutation:
    """Damage one file. With `reseal`, JSON that ends with its own CRC-32 gets a right one: it is forged, not damaged."""
    ways: list[Callable[[Path, random.Random], Mutation | None]] = [_bytes] * 4 + [_file]
    if file.suffix in (".json", ".jsonl"):
        ways += [lambda f, r: _json(f, r, reseal)] * 8
    if file.suffix == ".safetensors":
        ways += [_safetensors_header] * 4
    if file.suffix in (".npy", ".npz"):
        ways += [_numpy_header] * 3
    while (done := rng.choice(ways)(file, rng)) is None:
        pass
    return done


def _bytes(file: Path, rng: random.Random) -> Mutation | None:
    data = bytearray(file.read_bytes())
    if not data:
        return None
    at, n = rng.randrange(len(data)), rng.choice((1, 4, 64, 4096))
    way = rng.choice(("flip", "flip", "flip", "byte", "cut", "zero", "insert", "repeat", "append", "drop"))
    if way == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif way == "byte":
        data[at] = rng.randrange(256)
    elif way == "cut":
        del data[at:]
    elif way == "zero":
        data[at : at + n] = bytes(len(data[at : at + n]))
    elif way == "insert":
        data[at:at] = rng.randbytes(n)
    elif way == "repeat":
        data[at:at] = data[at : at + n]
    elif way == "append":
        data += rng.randbytes(n)
    else:
        del data[at : at + n]
    file.write_bytes(data)
    return Mutation(f"{way} at byte {at}")


def _file(file: Path, rng: random.Random) -> Mutation:
    way = rng.choice(("missing", "empty", "folder", "pipe", "link to itself", "text"))
    file.unlink()
    if way == "empty":
        file.touch()
    elif way == "folder":
        file.mkdir()
    elif way == "pipe":
        os.mkfifo(file)
    elif way == "link to itself":
        file.symlink_to(file.name)
    elif way == "text":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return Mutation(f"file {way}")


def _json(file: Path, rng: random.Random, reseal: bool) -> Mutation | None:
    raw = file.read_bytes()
    lines = raw.split(b"\n") if file.suffix == ".jsonl" else [raw]
    at = rng.choice([i for i, line in enumerate(lines) if line.strip()] or [-1])
    if at < 0:
        return None
    crc, _, text = lines[at].partition(b" ")
    journal = re.fullmatch(rb"[0-9a-f]{8}", crc) is not None
    try:
        value = json.loads(text if journal else lines[at])
    except ValueError:
        return None
    value, mutation = _changed(value, rng)
    body = json.dumps(value, separators=(",", ":"), sort_keys=journal).encode()
    if rng.random() < 0.03:
        body, mutation = b"[" * 100_000, Mutation("100,000 brackets", wrong_type=True)
    if journal and reseal:
        body = f"{zlib.crc32(body):08x} ".encode() + body
    elif isinstance(value, dict) and "crc32" in value and reseal and body[:1] == b"{":
        value.pop("crc32")
        inner = json.dumps(value, indent=1, sort_keys=True).removesuffix("\n}").encode()
        body = inner + f',\n "crc32": "{zlib.crc32(inner):08x}"\n}}\n'.encode()
    elif journal:
        body = crc + b" " + body
    lines[at] = body
    file.write_bytes(b"\n".join(lines))
    return mutation


def _changed(value: Any, rng: random.Random) -> tuple[Any, Mutation]:
    """The value with one of its nodes replaced, removed or doubled."""
    nodes: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        if len(nodes) < 5000:
            for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
                nodes.append((node, key))
                walk(node[key])

    walk(value)
    if not nodes:
        return rng.choice(VALUES), Mutation("the whole value")
    node, key = rng.choice(nodes)
    before, where = node[key], f"{key!r}"
    if rng.random() < 0.25:
        del node[key]
        return value, Mutation(f"without {where}")
    node[key] = rng.choice(VALUES)
    return value, Mutation(f"{where}: {str(before)[:30]!r} -> {str(node[key])[:30]!r}", _unlike(before, node[key]))


def _unlike(before: Any, after: Any) -> bool:
    number = (int, float)
    if before is None or after is None:
        return False  # an optional field
    if all(isinstance(v, number) and not isinstance(v, bool) for v in (before, after)):
        return False
    return type(before) is not type(after)


def _safetensors_header(file: Path, rng: random.Random) -> Mutation | None:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    try:
        header = json.loads(raw[8 : 8 + length])
    except ValueError:
        return None
    header, mutation = _changed(header, rng)
    body = json.dumps(header).encode()
    file.write_bytes(len(body).to_bytes(8, "little") + body + raw[8 + length :])
    return Mutation(f"header {mutation.text}")


def _numpy_header(file: Path, rng: random.Random) -> Mutation | None:
    """Another shape or type in an array's header; in an .npz the member is written anew with right checksums."""
    import io
    import zipfile

    def forged(raw: bytes) -> tuple[bytes, str]:
        shape, kind = rng.choice(
            [("(1125899906842624,)", None), ("(-1,)", None), ("()", None), (None, "|O"), (None, "<U8"), (None, "<f2")]
        )
        start = 10 if raw[6:7] == b"\x01" else 12
        size = int.from_bytes(raw[8:start], "little")
        text = raw[start : start + size].decode("latin1")
        if shape:
            text = re.sub(r"'shape': \([^)]*\)", f"'shape': {shape}", text)
        if kind:
            text = re.sub(r"'descr': '[^']*'", f"'descr': '{kind}'", text)
        text = text.rstrip() + "\n"
        return raw[:8] + len(text).to_bytes(start - 8, "little") + text.encode("latin1") + raw[
            start + size :
        ], shape or kind or ""

    raw = file.read_bytes()
    try:
        if file.suffix == ".npy":
            raw, what = forged(raw)
            file.write_bytes(raw)
            return Mutation(f"array header {what}")
        with zipfile.ZipFile(io.BytesIO(raw)) as source:
            members = {name: source.read(name) for name in source.namelist()}
    except (zipfile.BadZipFile, ValueError):
        return None
    name = rng.choice(sorted(members))
    members[name], what = forged(members[name])
    with zipfile.ZipFile(file, "w") as target:
        for other, data in members.items():
            target.writestr(other, data)
    return Mutation(f"header of {name} {what}")


def clean(path: Path) -> None:
    """Remove a file, link, pipe or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
