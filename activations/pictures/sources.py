"""Corpora of pictures, with the text beside them.

folder/                  pictures, each with the text of the .txt of the same name; or what a metadata.jsonl, .csv or .parquet
                         says of them in "file_name", as in an ImageFolder of `datasets`; or files of records with pictures
folder/                  what `datasets.save_to_disk` wrote
data.jsonl .json .csv    one picture a record: a path, a data URL or base64
data.parquet data.arrow  one picture a row: {"bytes", "path"}, as `datasets` has it, or bytes, or a path
owner/name[[:config]:split]  a data set of the Hugging Face hub, streamed
picture.png              one picture
scenes:2000              synthetic scenes whose every factor is known, each with its description and a question
pages:500                synthetic pages of icons and words

The usual names of fields are found: image, picture, file_name; caption, text; question, prompt, prefix; answer, suffix, label.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scope.activations.corpus.document import Document, clean
from scope.activations.corpus.files import PLAIN, check, form_of
from scope.activations.corpus.hub import open_hub
from scope.activations.corpus.readers import known_form, read_file, saved_files
from scope.activations.corpus.sources import Corpus
from scope.activations.errors import CorpusError, CorpusWarning
from scope.activations.pictures.fields import SUFFIXES, OutsideFolder, PictureFields
from scope.activations.scenes.pages import pages
from scope.activations.scenes.scene import Scene, scenes

from scope.typed_json import read_bytes
from scope.whole_files import file_sha256

KNOWN = "a folder of pictures, a .jsonl, .json, .csv, .parquet or .arrow with pictures, a folder of `datasets.save_to_disk`,\n"
KNOWN += "  scenes:N, pages:N, or a hub data set as owner/name"
_BESIDE = (".txt", ".caption")
_SEED, _MOST = 1_000_000, 10_000_000  # a seed of its own: no recipe trains on these scenes
_LONGEST_TEXT = 2**20  # bytes


def open_pictures(spec: str, fields: PictureFields | None = None) -> Corpus:
    """Open a corpus of pictures by its spec (see the top of this file).

    Raises:
        CorpusError: there is no such file or data set, or it holds no pictures.
    """
    fields, path = fields or PictureFields(), Path(spec).expanduser()
    try:
        path.exists()
    except OSError as error:
        raise CorpusError(f"There can be no corpus {spec[:80]}…: {error.strerror}.") from None
    if path.is_dir():
        return _folder(path, spec, fields)
    if path.is_file():
        return _file(path, spec, fields)
    if spec.startswith(("scenes:", "pages:")):
        return _synthetic(spec)
    if path.exists():
        raise CorpusError(f"{spec} is a pipe or a device; a corpus is read several times. Write it to a file first.")
    if spec in ("bundled", "docs") or spec.startswith("docs:"):
        raise CorpusError(f"{spec} is text alone, and this model reads pictures. Give {KNOWN}.")
    if form_of(path) or spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        raise CorpusError(f"There is no corpus of pictures {spec}.\n  Give {KNOWN}.")
    return Corpus(spec, *open_hub(spec, replace(fields, base=None)))


def _synthetic(spec: str) -> Corpus:
    kind, _, number = spec.partition(":")
    if not number.isdecimal() or not 1 <= int(number) <= _MOST:
        raise CorpusError(f"{spec} cannot be read: give a number from 1 to {_MOST:,}, as in {kind}:2000.")
    n = int(number)

    def draw() -> Iterator[Document]:
        for each in scenes(_SEED, n) if kind == "scenes" else pages(_SEED, n):
            name, picture = f"{kind} {each.seed} {each.index}", _png(each.picture)
            question, answer = "", ""
            if isinstance(each, Scene):
                asked = [q for q in each.questions() if q.kind not in ("detect", "caption")]
                chosen = asked[each.index % len(asked)]
                question, answer = chosen.prompt, f" {chosen.answer}"
            yield Document(name, each.text, picture=picture, question=question, answer=answer)

    return Corpus(spec, {"kind": kind, "name": kind, "n": n, "seed": _SEED}, draw)


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _file(path: Path, spec: str, fields: PictureFields) -> Corpus:
    identity = {"kind": "picture", "name": path.name, "sha256": file_sha256(path)}
    if path.suffix.lower() in SUFFIXES:
        return Corpus(spec, identity, lambda: iter([_loose(path, path.name)]))
    form = known_form(path)
    if form.kind in PLAIN:
        raise CorpusError(f"{path} is text alone, and this model reads pictures. Give {KNOWN}.")
    check(path, form)
    fields = _below(path, fields)
    read = _records(path, path.name, fields)
    return Corpus(spec, identity | {"kind": "picture file"} | fields.identity, read)


def _below(path: Path, fields: PictureFields) -> PictureFields:
    """The fields of a file; relative paths are those beside it; an ImageFolder's metadata names none outside its folder."""
    return replace(fields, base=path.parent, confined=path.name.partition(".")[0] == "metadata")


def _records(path: Path, name: str, fields: PictureFields) -> Callable[[], Iterator[Document]]:
    """What reads the documents of a file, whose first record must have a field for pictures.

    A later record without one is a document without a picture, which whoever reads the picture refuses or skips.
    """
    if next(read_file(path, name, fields), None) is None:
        raise CorpusError(f"{path} holds no record, so there are no pictures.")
    return lambda: read_file(path, name, replace(fields, required=False))


def _folder(folder: Path, spec: str, fields: PictureFields) -> Corpus:
    loose, records, others = _listed(folder)
    sources: dict[str, Callable[[], Iterator[Document]]] = {}
    problem: CorpusError | None = None
    for name in records:
        path = folder / name
        try:
            check(path, known_form(path))
            sources[name] = _records(path, name, _below(path, fields))
        except OutsideFolder:
            raise
        except CorpusError as error:
            problem = error
            others.append(name)
    if not sources:
        sources = {name: lambda name=name: iter([_loose(folder / name, name)]) for name in loose}
    if not sources and problem is not None:
        raise problem
    if not sources:
        some = f" It has {', '.join(sorted(others)[:5])}." if others else ""
        raise CorpusError(f"{folder} holds no pictures.{some}\n  Give {KNOWN}.")
    if left_out := sorted(set(others)):
        some = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        warnings.warn(f"Of {folder} the pictures are read; left out: {some}.", CorpusWarning, stacklevel=4)
    digest = hashlib.sha256()
    for name in sorted({*sources, *loose, *(n for n in map(_text_beside(folder), loose) if n)}):
        digest.update(f"{name}\0{file_sha256(folder / name)}\n".encode(errors="surrogateescape"))
    identity = {"kind": "picture folder", "name": folder.resolve().name, "files": len(sources), "sha256": digest.hexdigest()}

    def source() -> Iterator[Document]:
        for name in sorted(sources):
            yield from sources[name]()

    return Corpus(spec, identity | fields.identity, source)


def _listed(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """(pictures, files of records, what is left out) by their names below a folder. Hidden ones are not looked at."""
    if saved := saved_files(folder):
        paths, splits = saved
        return [], [path.relative_to(folder).as_posix() for path in paths], [f"{split}/" for split in splits]
    loose, records, others = [], [], []
    for root, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if name.startswith("."):
                continue
            form, relative = form_of(path), path.relative_to(folder).as_posix()
            if not path.is_file():  # a pipe, or a link that leads nowhere
                others.append(relative)
            elif path.suffix.lower() in SUFFIXES:
                loose.append(relative)
            elif form and form.kind not in PLAIN:
                records.append(relative)
            elif path.suffix.lower() not in _BESIDE and not name.lower().startswith(("readme", "license")):
                others.append(relative)
    return loose, records, others


def _text_beside(folder: Path) -> Callable[[str], str | None]:
    def beside(name: str) -> str | None:
        names = [Path(name).with_suffix(suffix).as_posix() for suffix in _BESIDE]
        return next((each for each in names if (folder / each).is_file()), None)

    return beside


def _loose(path: Path, name: str) -> Document:
    beside = _text_beside(path.parent)(path.name)
    data = b"" if beside is None else read_bytes(path.parent / beside, CorpusError, largest=_LONGEST_TEXT)
    return Document(clean(name), clean(data.decode("utf-8", "replace")).strip(), picture=str(path))
