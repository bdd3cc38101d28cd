"""Opens pictures of all kinds as RGB, by one rule for each kind, or refuses them.

grey, palette, CMYK      converted to RGB; 16-bit grey is scaled to 8 bits
transparent              laid on white, as transformers does
rotated in EXIF          turned upright, as transformers' load_image does
several frames or pages  refused: which one is meant is not known (a camera's MPO has its photo first, which is taken)
huge                     refused before a pixel is decoded: more than LARGEST pixels
broken, cut short        refused
SVG, PDF, EPS            refused: these are no grids of pixels
"""

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from scope.errors import PictureError
from scope.typed_json import read_bytes

LARGEST = 89_478_485
"""Pixels that a picture may have: a quarter of a gigabyte in RGB, pillow's own limit."""

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO", "TGA", "JPEG2000")
"""What is decoded, by pillow's names. Formats that run other programs, such as EPS, are not among them."""

_STARTS = {b"%PDF": "a PDF", b"%!PS": "PostScript", b"<svg": "an SVG", b"<?xml": "XML, perhaps an SVG", b"<!DOC": "HTML"}


def read_picture(source: Any, name: str | None = None, whole: bool = True) -> Any:
    """A PIL image in RGB, from a path, the bytes of a file, a PIL image, or an array [height width], [height width channel] or
    [channel height width] of 8-bit grey levels. `name` is what refusals call it. Not `whole`: of a file only
    the header is read, and the image holds no pixels yet.

    Raises:
        PictureError: it is no picture, is broken, or is of a kind that is refused.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return to_rgb(source, name or "The picture")
    if isinstance(source, np.ndarray) or _is_tensor(source):
        return to_rgb(Image.fromarray(_grey_levels(source, name or "The array")), name or "The array")
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.exists():
            raise PictureError(
                f"A picture is expected, and {str(source)[:60]!r} is text that names no file.\n"
                "  Give a file, its bytes, a PIL image or an array; text goes where tokens belong."
            )
        return _decoded(read_bytes(path, PictureError, "Give a picture's file."), name or str(path), whole)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decoded(bytes(source), name or "The picture", whole)
    if isinstance(source, os.PathLike):
        return read_picture(os.fspath(source), name, whole)
    raise PictureError(
        f"A picture is expected, and this is a {type(source).__name__}. Give a file, its bytes, a PIL image or an array."
    )


def _decoded(data: bytes, name: str, whole: bool) -> Any:
    from PIL import Image

    if other := next((kind for start, kind in _STARTS.items() if data[:512].lstrip().startswith(start)), None):
        raise PictureError(f"{name} is {other}, and pictures are grids of pixels. Render it to PNG first.")
    try:
        with warnings.catch_warnings():  # pillow's warning of a bomb; the size is checked below, whatever its limit was set to
            warnings.simplefilter("ignore")
            Image.init()
            image = Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])
            if whole:
                return to_rgb(image, name)
            _check(image, name)
            return image
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError(f"{name} has more than {LARGEST:,} pixels. Make it smaller first.") from None
    except Image.UnidentifiedImageError:
        text = "is empty" if not data else "is none of them"
        raise PictureError(f"{name} cannot be read as a picture: it {text}. These are read: {', '.join(FORMATS)}.") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, OverflowError, IndexError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PictureError(f"{name} is broken or was cut short: {reason}.") from None


def _check(image: Any, name: str) -> None:
    """Refuse an image that is too large, empty, or has several frames, by its header."""
    width, height = image.size
    if not width or not height:
        raise PictureError(f"{name} is {width} x {height}: it has no pixels.")
    if width * height > LARGEST:
        raise PictureError(
            f"{name} is {width:,} x {height:,}, and pictures of at most {LARGEST:,} pixels are decoded. Make it smaller first."
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise PictureError(
            f"{name} has {frames} frames or pages, and one picture is meant.\n"
            "  Save the one that you mean: image.seek(0); image.copy() with pillow."
        )


def to_rgb(image: Any, name: str) -> Any:
    """A PIL image by the rules of this module.

    Raises:
        PictureError: it is too large, empty, or has several frames.
    """
    from PIL import Image, ImageOps

    _check(image, name)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N"):  # pillow's own conversion would cut everything above 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise PictureError(f"{name} holds numbers of mode {image.mode}, which say no grey levels. Give 8 or 16 bits a channel.")
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image.convert("RGB")


def _grey_levels(array: Any, name: str) -> np.ndarray:
    """uint8 [height width] or [height width channel]."""
    array = array.detach().cpu().numpy() if _is_tensor(array) else array
    if array.dtype != np.uint8:
        raise PictureError(
            f"{name} holds {array.dtype}; grey levels are uint8 from 0 to 255.\n"
            "  Convert numbers from 0 to 1: (x * 255).round().astype('uint8')."
        )
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        raise PictureError(f"{name} is {list(array.shape)}; a picture is [height, width] or [height, width, 3 or 4 channels].")
    return np.ascontiguousarray(array)


def _is_tensor(source: Any) -> bool:
    """Whether it is a torch tensor. Importing torch to ask would cost seconds, and where there is one it is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)
