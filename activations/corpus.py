"""Where text comes from: one spec, one stream of documents, one identity that tells two corpora apart.

notes.txt  notes.md      one document; a long one in pieces, cut between paragraphs
data.jsonl(.gz .xz .bz2) one document per line, in the field "text"
data.parquet             one document per row, in the column "text"
folder/                  every such file below it, and .py and .rst
docs  docs:numpy,torch   documentation of installed Python packages
bundled                  the samples shipped with this package, mixed with docs
owner/name[[:config]:split]  a data set of the Hugging Face hub, streamed
"""

import bz2
import gzip
import hashlib
import itertools
import json
import lzma
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from activations.errors import CorpusError
from activations.installed import DOCUMENTED, docstrings, package_root

SAMPLES = Path(__file__).parent / "data"
"""Text that ships with the package: *.jsonl.xz."""

PLAIN = (".txt", ".md", ".rst", ".py")
_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".jsonl": open}
_PIECE = 16_384  # characters: a longer file is many documents, or shuffling could not mix it
_MIXED_DOCUMENTS, _MIXED_CHARACTERS = 512, 16_000_000
_BESIDE_SAMPLES = ("stdlib", "numpy", "pandas", "torch")  # what every installation of this project has


@dataclass(frozen=True)
class Document:
    """A text and where it comes from."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order. `identity` is JSON: what must be equal for two corpora to be the same text."""

    spec: str
    identity: dict
    source: Callable[[], Iterator[Document]]

    def documents(self, seed: int | None = None) -> Iterator[Document]:
        """The documents in the order of the source or, with a seed, mixed by it: the same seed gives the same order."""
        return self.source() if seed is None else mixed(self.source(), seed)


def open_corpus(spec: str, field: str = "text") -> Corpus:
    """A corpus by its spec (see the top of this file). `field` is the JSONL field or the column that holds the text.

    Raises:
        CorpusError: there is no such file, package or data set, or nothing in it can be read.
    """
    path = Path(spec).expanduser()
    if spec == "bundled":
        return _bundled()
    if spec == "docs" or spec.startswith("docs:"):
        return _documentation(spec)
    if path.is_dir():
        return _folder(path, spec, field)
    if path.is_file():
        _reader(path, field)  # refuses a suffix it does not know
        identity = {"kind": "file", "name": path.name, "sha256": file_sha256(path)} | _field(path, field)
        return Corpus(spec, identity, lambda: _read_file(path, path.name, field))
    if path.suffix in (*PLAIN, *_OPENERS, ".parquet") or spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        raise CorpusError(
            f"There is no corpus {spec}.\n"
            "  Give a .txt, .md, .jsonl(.gz, .xz, .bz2) or .parquet file, a folder of them, docs, docs:numpy,torch, bundled,\n"
            "  or a hub data set as owner/name, owner/name:split or owner/name:config:split."
        )
    return _hub(spec, field)


def mixed(documents: Iterable[Document], seed: int) -> Iterator[Document]:
    """The documents in a seeded order, with at most 512 of them or 16 million characters in memory.

    Each comes out at random from a buffer that the source refills, so a document moves by about the buffer's length; a source
    no longer than the buffer is shuffled perfectly.
    """
    uniform = random.Random(seed).random  # the one method whose stream Python promises to keep
    held: list[Document] = []
    characters = 0
    for document in documents:
        held.append(document)
        characters += len(document.text)
        while len(held) > _MIXED_DOCUMENTS or (characters > _MIXED_CHARACTERS and len(held) > 1):
            i = int(uniform() * len(held))
            held[i], held[-1] = held[-1], held[i]
            characters -= len(held[-1].text)
            yield held.pop()
    while held:
        i = int(uniform() * len(held))
        held[i], held[-1] = held[-1], held[i]
        yield held.pop()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_file(path: Path, name: str, field: str) -> Iterator[Document]:
    return _reader(path, field)(path, name)


def _reader(path: Path, field: str) -> Callable[[Path, str], Iterator[Document]]:
    suffixes = [s for s in path.suffixes if s in (*PLAIN, *_OPENERS, ".parquet")]
    if suffixes and suffixes[-1] in PLAIN:
        return _read_plain
    if ".jsonl" in suffixes and path.suffix in _OPENERS:
        return lambda p, name: _read_jsonl(p, name, field)
    if suffixes and suffixes[-1] == ".parquet":
        return lambda p, name: _read_parquet(p, name, field)
    raise CorpusError(f"{path} is of no kind that is read here. Known: {', '.join(PLAIN)}, .jsonl(.gz, .xz, .bz2), .parquet.")


def _read_plain(path: Path, name: str) -> Iterator[Document]:
    with open(path, encoding="utf-8", errors="replace") as file:
        paragraphs: list[str] = []
        characters = number = 0
        for line in file:
            if characters > _PIECE and (not line.strip() or characters > 4 * _PIECE):
                yield Document(f"{name}#{number}", "".join(paragraphs))
                paragraphs, characters, number = [], 0, number + 1
            paragraphs.append(line)
            characters += len(line)
        text = "".join(paragraphs)
        if text.strip():
            yield Document(f"{name}#{number}" if number else name, text)


def _read_jsonl(path: Path, name: str, field: str) -> Iterator[Document]:
    with _OPENERS[path.suffix](path, "rt", encoding="utf-8", errors="replace") as file:
        lines = enumerate(file, 1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise CorpusError(f"{path} is damaged and cannot be unpacked: {error}.") from None
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise CorpusError(f"{path}, line {number}, is not JSON: {error}.") from None
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                there = f"fields: {', '.join(map(str, record))}" if isinstance(record, dict) else f"a {type(record).__name__}"
                raise CorpusError(f'{path}, line {number}, has no text in a field "{field}". It has {there}.')
            yield Document(str(record.get("name") or record.get("id") or f"{name}:{number}"), record[field])


def _read_parquet(path: Path, name: str, field: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise CorpusError(f"{path} needs pyarrow to be read: pip install pyarrow") from None
    try:
        file = parquet.ParquetFile(path)
        if field not in file.schema_arrow.names:
            raise CorpusError(f'{path} has no column "{field}". It has {", ".join(file.schema_arrow.names)}.')
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=[field]):
            for text in batch.column(0).to_pylist():
                if isinstance(text, str):
                    yield Document(f"{name}:{number}", text)
                number += 1
    except pyarrow.ArrowException as error:
        raise CorpusError(f"{path} is damaged or no Parquet file: {error}.") from None


def _field(path: Path, field: str) -> dict[str, str]:
    return {} if path.suffix in PLAIN else {"field": field}


def _folder(folder: Path, spec: str, field: str) -> Corpus:
    known = (*PLAIN, ".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.bz2", ".parquet")
    found = [Path(root) / name for root, _, names in os.walk(folder) for name in names if name.endswith(known)]
    files = {p.relative_to(folder).as_posix(): p for p in found if p.is_file()}  # a link may lead nowhere
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
            yield from _read_file(files[name], name, field)

    return Corpus(spec, identity, source)


def _documentation(spec: str) -> Corpus:
    asked = [p.strip() for p in spec.partition(":")[2].split(",") if p.strip()]
    packages = _versions(asked or [p for p in DOCUMENTED if _installed(p)])
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
        shipped = [_read_jsonl(path, name, "text") for name, path in samples.items()]
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
    found = {}
    for package in packages:
        if package == "stdlib":
            found[package] = ".".join(map(str, sys.version_info[:3]))
            continue
        package_root(package)  # refuses what is not installed
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def in_turn(sources: list[Iterator[Document]]) -> Iterator[Document]:
    """One document of each source, again and again, until all have ended. Nothing is read before it is asked for."""
    while sources:
        left = []
        for source in sources:
            document = next(source, None)
            if document is not None:
                left.append(source)
                yield document
        sources = left


def _hub(spec: str, field: str) -> Corpus:
    try:
        from datasets import load_dataset
        from huggingface_hub import dataset_info
    except ImportError:
        raise CorpusError(f"{spec} is no file, and reading it from the hub needs: pip install datasets") from None
    name, *rest = spec.split(":")
    if len(rest) > 2 or not all(rest):
        raise CorpusError(f"{spec} cannot be read as owner/name, owner/name:split or owner/name:config:split.")
    config, split = rest if len(rest) == 2 else (None, rest[0] if rest else "train")
    try:
        revision = dataset_info(name).sha
        stream = load_dataset(name, config, split=split, revision=revision, streaming=True)
    except Exception as error:  # the hub raises many kinds; all mean that the text cannot be had
        raise CorpusError(f"{spec} is no file here, and the hub does not give it: {_why(error, name)}") from None

    def source() -> Iterator[Document]:
        records = iter(stream)
        for number in itertools.count():
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # the connection broke, or a file there is damaged
                raise CorpusError(
                    f"{spec} broke off at record {number:,}: {_why(error, name)}\n  What is recorded is kept; try again later."
                ) from None
            if not isinstance(record.get(field), str):
                there = ", ".join(map(str, record))
                raise CorpusError(f'{spec} has no text in a field "{field}". It has {there}: name one with --text-field.')
            yield Document(f"{name}:{number}", record[field])

    identity = {"kind": "hub", "name": name, "split": split, "revision": revision, "field": field}
    return Corpus(spec, identity | ({"config": config} if config else {}), source)


def _why(error: Exception, name: str) -> str:
    """What the hub or the network said, and the way out where it is known."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    said = " ".join((str(error).strip() or type(error).__name__).split())
    said = said if len(said) <= 300 else said[:297] + "..."
    if isinstance(error, GatedRepoError):
        return f"{name} is gated. Accept its terms at https://huggingface.co/datasets/{name}, then: hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no data set {name}, or it is private and you are not logged in (hf auth login)."
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OfflineModeIsEnabled | ConnectionError | TimeoutError) or kinds & {"ConnectError", "TransportError"}:
        return f"the hub cannot be reached ({said}).\n  Without a network: a file, a folder, docs, or bundled."
    return said
