"""The pages of picture files, PDFs, folders of them and corpora of pictures, one at a time and in a fixed order.

Pictures are opened by the rules of `scope.models.pictures.read`; pages of PDFs are rendered by pypdfium2. A page that cannot be
read comes as its refusal, so that the pages after it are still reached.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.activations.corpus.document import Document
from scope.activations.errors import CorpusError
from scope.activations.pictures.sources import open_pictures
from scope.errors import PictureError
from scope.models.pictures.read import FORMATS, LARGEST, read_picture
from scope.pages.errors import PagesError
from scope.whole_files import file_sha256

_RECORDS = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
POINTS = 72
"""Units of a PDF to an inch."""


@dataclass(frozen=True, eq=False)
class Source:
    """A file of pages, or a picture in memory."""

    name: str
    """What its pages are found by: its path within the folder that was given, else the file's name."""

    content: Any
    """Path of the file, or the picture."""

    @property
    def is_pdf(self) -> bool:
        return isinstance(self.content, Path) and self.content.suffix.lower() == ".pdf"

    def sha256(self) -> str:
        """SHA-256 of the file, or of the pixels.

        Raises:
            PictureError: it cannot be read.
        """
        if isinstance(self.content, Path):
            try:
                return file_sha256(self.content)
            except OSError as error:
                raise PictureError(f"{self.name} cannot be read: {error.strerror or error}.") from None
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        image = read_picture(self.content, self.name)
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()

    def pages(self, dpi: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Any]]:
        """(number from 1, PIL image in RGB or the PictureError that it has) of each page whose number is wanted; number 0 where
        the file as a whole cannot be read."""
        if self.is_pdf:
            yield from _pages_of_pdf(self.content, self.name, dpi, wanted)
        elif wanted(1):
            try:
                yield 1, read_picture(self.content, self.name)
            except PictureError as error:
                yield 1, error


def find_sources(items: Any) -> tuple[list[Source], list[Iterable[Document]], int]:
    """(files of pages and pictures, documents of corpora of pictures, how many other files the folders hold).

    `items` is one or several paths, names of corpora, PIL images or arrays, or a mapping from names to pictures. Folders are
    searched to their ends, files sorted by path; hidden files are left out.

    Raises:
        PagesError: a path or corpus that is not there, or no page at all.
    """
    if isinstance(items, Mapping):
        return [Source(str(name), picture) for name, picture in items.items()], [], 0
    sources: list[Source] = []
    corpora: list[Iterable[Document]] = []
    others = 0
    for i, item in enumerate(items if isinstance(items, list | tuple) else [items]):
        if not isinstance(item, str | Path):
            sources.append(Source(f"{i:06d}", item))
            continue
        path = Path(item).expanduser()
        if path.is_dir():
            inside, left = _in_folder(path)
            sources += inside
            others += left
        elif path.is_file() and path.suffix.lower() not in _RECORDS:
            sources.append(Source(path.name, path))
        else:
            corpora.append(_corpus(str(item)))
    if not sources and not corpora:
        held = f" ({others:,} other files)" if others else ""
        raise PagesError(f"There is no page in what is given{held}.\n  These are read: {', '.join(FORMATS)}, and PDF.")
    return sources, corpora, others


def sources_in(corpora: Iterable[Iterable[Document]]) -> Iterator[Source]:
    """The pictures of documents, one at a time."""
    for documents in corpora:
        for document in documents:
            picture = document.picture
            yield Source(document.name, Path(picture) if isinstance(picture, str) else picture)


def _corpus(name: str) -> Iterable[Document]:
    try:
        return open_pictures(name).documents(0)
    except CorpusError as error:
        raise PagesError(
            f"There is no {name}: it is neither a folder, a picture or a PDF, nor a corpus of pictures.\n  {error}"
        ) from None


def _in_folder(folder: Path) -> tuple[list[Source], int]:
    from PIL import Image

    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS} | {".pdf"}
    paths = [p for p in sorted(folder.rglob("*")) if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    files = [p for p in paths if p.is_file()]
    chosen = [Source(p.relative_to(folder).as_posix(), p) for p in files if p.suffix.lower() in endings]
    return chosen, len(files) - len(chosen)


def _pages_of_pdf(path: Path, name: str, dpi: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Any]]:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
    except (pypdfium2.PdfiumError, OSError) as error:
        yield 0, PictureError(f"{name} cannot be read as a PDF: {str(error).rstrip('.')}.")
        return
    try:
        if not len(document):
            yield 0, PictureError(f"{name} is a PDF without pages.")
        for i in range(len(document)):
            if wanted(i + 1):
                yield i + 1, _rendered(document, i, f"{name}, page {i + 1},", dpi)
    finally:
        document.close()


def _rendered(document: Any, i: int, name: str, dpi: int) -> Any:
    """A page as a PIL image, or the PictureError that it has."""
    import pypdfium2

    try:
        page = document[i]
        width, height = (side * dpi / POINTS for side in page.get_size())
        if width * height > LARGEST:
            return PictureError(
                f"{name} would have {width:,.0f} x {height:,.0f} pixels at {dpi} dpi, and at most {LARGEST:,} are rendered."
            )
        image = page.render(scale=dpi / POINTS).to_pil().convert("RGB")
        page.close()
    except (pypdfium2.PdfiumError, ValueError, MemoryError) as error:
        return PictureError(f"{name} cannot be rendered: {str(error).rstrip('.')}.")
    return image


def is_blank(image: Any) -> bool:
    """Whether nothing is on a page: all pixels have one colour."""
    return all(low == high for low, high in image.getextrema())
