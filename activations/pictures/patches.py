"""The places of patches in a picture. Importing this loads no torch."""

from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""


def patch_boxes(size: int, patch_size: int, picture_size: Sequence[int]) -> list[Box]:
    """The box of each patch, row by row, in a picture of (width, height) that was resized to `size` x `size`."""
    width, height = picture_size
    x, y = width / size * patch_size, height / size * patch_size
    n = size // patch_size
    return [(x * column, y * row, x * (column + 1), y * (row + 1)) for row in range(n) for column in range(n)]
