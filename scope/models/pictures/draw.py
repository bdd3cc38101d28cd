"""Draws one number for each patch over a picture, as the app, notebooks and results show it."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from scope.activations.pictures.patches import Box
from scope.models.pictures.read import read_picture

RAISES, LOWERS = (207, 122, 0), (42, 127, 186)
"""Colours of numbers above and below 0."""

_LONGEST, _SHORTEST = 448, 224  # pixels of the longer side of what is drawn
_STRONGEST = 0.75  # how opaque the largest number is


def overlay(picture: Any, boxes: Sequence[Box], values: Sequence[float] | np.ndarray, largest: float | None = None) -> Any:
    """A PIL image of the picture in grey, with each patch the more coloured the larger its number: orange above 0, blue below.

    Args:
        picture: whatever `read_picture` takes.
        boxes: (left, top, right, bottom) of each patch in the picture's pixels, as `model.patch_boxes(picture.size)` gives.
        values: one number for each patch.
        largest: the size at which a colour is strongest; by default that of the largest number.
    """
    from PIL import Image, ImageDraw

    image = read_picture(picture)
    values = np.asarray(values, dtype=float)
    if len(values) != len(boxes):
        raise ValueError(f"There are {len(values)} numbers for {len(boxes)} patches.")
    factor = min(max(_SHORTEST / max(image.size), 1.0), _LONGEST / max(image.size))
    size = tuple(max(1, round(side * factor)) for side in image.size)
    image = image.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.BICUBIC)
    pale = Image.blend(image.convert("L").convert("RGB"), image, 0.35)
    colours, opacity = Image.new("RGB", size), Image.new("L", size)
    draw_colour, draw_opacity = ImageDraw.Draw(colours), ImageDraw.Draw(opacity)
    scale = float(np.abs(values).max(initial=0)) if largest is None else largest
    for box, value in zip(boxes, values, strict=True):
        left, top, right, bottom = (round(edge * factor) for edge in box)
        place = (left, top, max(left, right - 1), max(top, bottom - 1))
        share = min(1.0, abs(value) / scale) if scale > 0 else 0.0
        draw_colour.rectangle(place, fill=RAISES if value >= 0 else LOWERS)
        draw_opacity.rectangle(place, fill=round(255 * _STRONGEST * share))
    return Image.composite(colours, pale, opacity)


def png(image: Any) -> bytes:
    """The bytes of a PIL image as a PNG, without anything that the picture's file said of itself."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def img_tag(image: Any, alt: str) -> str:
    """An <img> that holds a PIL image itself, so that it is shown without a network or a file."""
    from html import escape

    data = base64.b64encode(png(image)).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}" style="image-rendering:auto">'
