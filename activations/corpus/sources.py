"""Corpora: a spec names a source of documents, and an identity tells two corpora apart.

notes.txt  notes.md      one document; a long one in pieces, cut between paragraphs, a long line at white space
data.jsonl  data.json    one document per line or record, in the field "text"; or a chat, or token ids: see layouts.py
data.csv  data.tsv       one document per row, in the column "text"
data.parquet  data.arrow the same
...(.gz .xz .bz2 .zst)   text, JSON and CSV may be packed
folder/                  every such file below it, and .py and .rst; beside files of records no plain text
folder/                  what `datasets.save_to_disk` wrote
docs  docs:numpy,torch   documentation of installed Python packages
bundled                  the samples shipped with this package, mixed with docs
owner/name[[:config]:split]  a data set of the Hugging Face hub, streamed
"""

import hashlib
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scope.activations.corpus.document import Document
from scope.activations.corpus.files import KNOWN, PLAIN, check, form_of
from scope.activations.corpus.hub import open_hub
from scope.activations.corpus.installed import DOCUMENTED, docstrings, package_root
from scope.activations.corpus.readers import known_form, named_field, read_file, read_jsonl, saved_files
from scope.activations.errors import CorpusError, CorpusWarning

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
    try:
        path.exists()
    except OSError as error:
        raise CorpusError(f"There can be no corpus {spec[:80]}…: {error.strerror}.") from None
    if path.is_dir():
        return _folder(path, spec, field)
    if path.is_file():
        form = known_form(path)
        check(path, form)
        identity = {"kind": "file", "name": path.name, "sha256": file_sha256(path)} | named_field(form, field)
        return Corpus(spec, identity, lambda: read_file(path, path.name, field))
    if path.exists():
        raise CorpusError(f"{spec} is a pipe or a device; a corpus is read several times. Write it to a file first.")
    if form_of(path) or spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        raise CorpusError(
            f"There is no corpus {spec}.\n"
            f"  Give a file ending in {KNOWN},\n"
            "  a folder of them, docs, docs:numpy,torch, bundled,\n"
            "  or a hub data set as owner/name, owner/name:split or owner/name:config:split."
        )
    return Corpus(spec, *open_hub(spec, field))


def lines_of(corpus: Corpus) -> Corpus:
    """The corpus with every line of its texts as a document of its own."""

    def source() -> Iterator[Document]:
        for document in corpus.source():
            lines = [line.strip() for line in document.text.splitlines() if line.strip()]
            for number, line in enumerate(lines):
                yield Document(document.name if len(lines) == 1 else f"{document.name}:{number}", line)

    return Corpus(corpus.spec, corpus.identity | {"lines": True}, source)


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
        characters += len(document)
        while len(buffer) > _MIXED_DOCUMENTS or (characters > _MIXED_CHARACTERS and len(buffer) > 1):
            i = int(uniform() * len(buffer))
            buffer[i], buffer[-1] = buffer[-1], buffer[i]
            characters -= len(buffer[-1])
            yield buffer.pop()
    while buffer:
        i = int(uniform() * len(buffer))
        buffer[i], buffer[-1] = buffer[-1], buffer[i]
        yield buffer.pop()


def _folder(folder: Path, spec: str, field: str) -> Corpus:
    files, left_out = _chosen(folder)
    for path in files.values():
        check(path, known_form(path))
    names = sorted(files)
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{file_sha256(files[name])}\n".encode(errors="surrogateescape"))
    if left_out:
        some = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        read = names[0] if len(names) == 1 else f"{len(names)} files, such as {names[0]},"
        warnings.warn(f"Of {folder} {read} will be read; left out: {some}.", CorpusWarning, stacklevel=3)
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


def _chosen(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """(the files of a folder that hold its text, what is left out), by their names below it. Hidden ones are not looked at.

    Raises:
        CorpusError: there is no text.
    """
    if saved := saved_files(folder):
        paths, splits = saved
        return {path.relative_to(folder).as_posix(): path for path in paths}, [f"{split}/" for split in splits]
    kinds: dict[str, str] = {}
    for root, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in names:
            path = Path(root, name)
            if not name.startswith("."):
                form = form_of(path) if path.is_file() else None  # a link may lead nowhere
                kinds[path.relative_to(folder).as_posix()] = form.kind if form else ""
    records = {name for name, kind in kinds.items() if kind and kind not in PLAIN and not _describes(name)}
    chosen = records or {name for name, kind in kinds.items() if kind in PLAIN}
    lost = {name for name in kinds if (folder / name).is_symlink() and not (folder / name).exists()}
    data = sorted(lost | {name for name, kind in kinds.items() if not kind and name.lower().endswith(_UNREAD)})
    if chosen and data and not records and all(_introduces(name) for name in chosen):
        raise CorpusError(
            f"{folder} holds its data in a form that is not read: {', '.join(data[:5])}.\n"
            f"  Unpack or convert it: files that are read end in {KNOWN}. To read {min(chosen)} itself, give its path."
        )
    if not chosen:
        raise CorpusError(f"{folder} holds no text. Files that are read end in {KNOWN}.")
    return {name: folder / name for name in chosen}, sorted(kinds.keys() - chosen)


def _describes(name: str) -> bool:
    """Whether a file describes a data set or a model instead of holding text."""
    return Path(name).name.lower() in _DESCRIPTIONS or name.lower().endswith("config.json")


_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json", "package.json"}


def _introduces(name: str) -> bool:
    """Whether a file at the top of a data set is about it: a README, a licence, the script that loads it."""
    return ("/" not in name and name.lower().endswith(".py")) or name.lower().startswith(_ABOUT)


_ABOUT = ("readme", "license", "licence", "changelog", "changes", "citation", "contributing", "datasheet")
_UNREAD = (".zip", ".tar", ".tgz", ".gz", ".xz", ".bz2", ".zst", ".7z", ".rar", ".bin", ".idx", ".npy", ".npz", ".h5", ".hdf5")
_UNREAD += (".tfrecord", ".mds", ".lance", ".avro", ".orc", ".feather", ".db", ".sqlite", ".pkl", ".pt", ".xml", ".html")


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
