"""Corpora: a spec names a source of documents, and an identity tells two corpora apart.

notes.txt  notes.md      one document; a long one in pieces, cut between paragraphs
data.jsonl(.gz .xz .bz2) one document per line, in the field "text"
data.parquet             one document per row, in the column "text"
folder/                  every such file below it, and .py and .rst
docs  docs:numpy,torch   documentation of installed Python packages
bundled                  the samples shipped with this package, mixed with docs
owner/name[[:config]:split]  a data set of the Hugging Face hub, streamed
"""

import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scope.activations.corpus.hub import open_hub
from scope.activations.corpus.installed import DOCUMENTED, docstrings, package_root
from scope.activations.corpus.readers import PACKED, PLAIN, Document, named_field, read_file, read_jsonl, reader_of
from scope.activations.errors import CorpusError

from scope.whole_files import file_sha256

__all__ = ["Corpus", "Document", "in_turn", "mixed", "open_corpus"]

SAMPLES = Path(__file__).parent / "data"
"""Folder of the text that ships with the package: *.jsonl.xz."""

_MIXED_DOCUMENTS, _MIXED_CHARACTERS = 512, 16_000_000
_BESIDE_SAMPLES = ("stdlib", "numpy", "pandas", "torch")  # what every installation of this project has


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order. Two corpora with equal `identity` (JSON) hold the same text."""

    spec: str
    identity: dict
    source: Callable[[], Iterator[Document]]

    def documents(self, seed: int | None = None) -> Iterator[Document]:
        """The documents in source order, or shuffled by a seed."""
        return self.source() if seed is None else mixed(self.source(), seed)


def open_corpus(spec: str, field: str = "text") -> Corpus:
    """Open a corpus by its spec (see the top of this file). `field` is the JSONL field or the column that holds the text.

    Raises:
        CorpusError: there is no such file, package or data set, or it holds nothing readable.
    """
    path = Path(spec).expanduser()
    if spec == "bundled":
        return _bundled()
    if spec == "docs" or spec.startswith("docs:"):
        return _documentation(spec)
    if path.is_dir():
        return _folder(path, spec, field)
    if path.is_file():
        reader_of(path, field)  # refuses a suffix it does not know
        identity = {"kind": "file", "name": path.name, "sha256": file_sha256(path)} | named_field(path, field)
        return Corpus(spec, identity, lambda: read_file(path, path.name, field))
    if path.suffix in (*PLAIN, *PACKED, ".parquet") or spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        raise CorpusError(
            f"There is no corpus {spec}.\n"
            "  Give a .txt, .md, .jsonl(.gz, .xz, .bz2) or .parquet file, a folder of them, docs, docs:numpy,torch, bundled,\n"
            "  or a hub data set as owner/name, owner/name:split or owner/name:config:split."
        )
    return Corpus(spec, *open_hub(spec, field))


def mixed(documents: Iterable[Document], seed: int) -> Iterator[Document]:
    """Shuffle documents by a seed, holding at most 512 of them or 16 million characters in memory.

    Each is drawn at random from a buffer that the source refills, so it moves by about the length of the buffer; a source no
    longer than the buffer is shuffled perfectly.
    """
    uniform = random.Random(seed).random  # the one method whose results Python promises not to change
    buffer: list[Document] = []
    characters = 0
    for document in documents:
        buffer.append(document)
        characters += len(document.text)
        while len(buffer) > _MIXED_DOCUMENTS or (characters > _MIXED_CHARACTERS and len(buffer) > 1):
            i = int(uniform() * len(buffer))
            buffer[i], buffer[-1] = buffer[-1], buffer[i]
            characters -= len(buffer[-1].text)
            yield buffer.pop()
    while buffer:
        i = int(uniform() * len(buffer))
        buffer[i], buffer[-1] = buffer[-1], buffer[i]
        yield buffer.pop()


def _folder(folder: Path, spec: str, field: str) -> Corpus:
    known = (*PLAIN, ".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.bz2", ".parquet")
    paths = [Path(root) / name for root, _, names in os.walk(folder) for name in names if name.endswith(known)]
    files = {p.relative_to(folder).as_posix(): p for p in paths if p.is_file()}  # a link may lead nowhere
    if not files:
        raise CorpusError(f"{folder} holds no text. Files that are read end in {', '.join(known)}.")
    names = sorted(files)
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{file_sha256(files[name])}\n".encode())
    identity = {
        "kind": "folder",
        "name": folder.resolve().name,
        "files": len(names),
        "sha256": digest.hexdigest(),
        "field": field,
    }

    def source() -> Iterator[Document]:
        for name in names:
            yield from read_file(files[name], name, field)

    return Corpus(spec, identity, source)


def _documentation(spec: str) -> Corpus:
    names = [p.strip() for p in spec.partition(":")[2].split(",") if p.strip()]
    packages = _versions(names or [p for p in DOCUMENTED if _installed(p)])
    return Corpus(spec, {"kind": "docs", "packages": packages}, lambda: in_turn([_docs(p) for p in packages]))


def _bundled() -> Corpus:
    samples = {p.name: p for p in sorted(SAMPLES.glob("*.jsonl.xz"))}
    packages = _versions(list(_BESIDE_SAMPLES))
    identity = {
        "kind": "bundled",
        "samples": {name: file_sha256(path) for name, path in samples.items()},
        "packages": packages,
    }

    def source() -> Iterator[Document]:
        shipped = [read_jsonl(path, name, "text") for name, path in samples.items()]
        return in_turn([*shipped, *map(_docs, packages)])

    return Corpus("bundled", identity, source)


def _docs(package: str) -> Iterator[Document]:
    return (Document(name, text) for name, text in docstrings(package))


def _installed(package: str) -> bool:
    try:
        return package_root(package).is_dir()
    except CorpusError:
        return False


def _versions(packages: list[str]) -> dict[str, str]:
    versions = {}
    for package in packages:
        if package == "stdlib":
            versions[package] = ".".join(map(str, sys.version_info[:3]))
            continue
        package_root(package)  # refuses what is not installed
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def in_turn(sources: list[Iterator[Document]]) -> Iterator[Document]:
    """One document of each source in turn until all have ended. Sources are read lazily."""
    while sources:
        left = []
        for source in sources:
            document = next(source, None)
            if document is not None:
                left.append(source)
                yield document
        sources = left
