"""Copies of pictures that lie beside what was made from them, and the hash by which a picture is known."""

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import Any

from scope.models.pictures.draw import png
from scope.models.pictures.processor import PictureProcessor
from scope.models.pictures.read import read_picture

MOST_PIXELS = 2**20
"""Pixels of a picture that is copied as it is."""

_COLUMNS = 100  # of a line of code


def pixels_sha256(picture: Any) -> str:
    """The hash of the size and the pixels of a picture: a PIL image, upright, in RGB."""
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


def copy_of(picture: Any, processor: PictureProcessor) -> str:
    """A PNG as base64 of which the model reads the same: the pixels of a picture, or of a large one the square of the model."""
    if picture.width * picture.height > MOST_PIXELS:
        picture = picture.resize((processor.size, processor.size), resample=processor.resample)
    return base64.b64encode(png(picture)).decode()


def picture_of_copy(copy: str, name: str = "The copy of the picture") -> Any:
    """The PIL image that `copy_of` wrote.

    Raises:
        PictureError: it is damaged.
    """
    try:
        return read_picture(base64.b64decode(copy, validate=True), name)
    except ValueError:  # no base64
        return read_picture(b"", name)


def code_of_copy(copy: str) -> list[str]:
    """Lines of Python that make the bytes of a copy, named `picture`. Whatever the copy holds, they hold base64 alone.

    Raises:
        PictureError: it is damaged.
    """
    buffer = io.BytesIO()
    picture_of_copy(copy).save(buffer, "PNG", optimize=True)
    text = base64.b64encode(buffer.getvalue()).decode()
    lines: Sequence[str] = [text[at : at + _COLUMNS] for at in range(0, len(text), _COLUMNS)]
    return ["picture = base64.b64decode(", *(f'    "{line}"' for line in lines), ")"]
