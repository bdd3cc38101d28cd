"""The pictures of a pack: small ones of the contexts in which examples lie, and the patches on which a latent fires.

`pack.pictures` reads pictures.h5, `pack[7].pictures()` gives the examples of a latent that have a picture. The file's datasets:
`scope.features.pack.format.PICTURES`.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import h5py
import numpy as np

from scope.activations.pictures.patches import Box, patch_boxes
from scope.errors import PackError, PictureError
from scope.escape import escape, visible_token
from scope.features.pack.files import open_hdf5
from scope.features.pack.manifest import Manifest, PatchGrid, make_again
from scope.models.pictures.draw import img_tag, overlay, png
from scope.models.pictures.read import read_picture

FILE = "pictures.h5"


class PackPictures:
    """The content of pictures.h5, read on first use. Safe to share between threads."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest
        self._lock = RLock()

    @cached_property
    def grid(self) -> PatchGrid:
        """How pictures are cut into patches.

        Raises:
            PackError: the manifest does not say.
        """
        if self.manifest.pictures is None:
            raise self._damaged("the manifest does not say how its pictures are cut into patches")
        return self.manifest.pictures

    @cached_property
    def _file(self) -> h5py.File:
        return open_hdf5(self.folder / FILE, self.manifest)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @cached_property
    def _starts(self) -> np.ndarray:
        return self._rising("file_start", self._file["file"].shape[0])

    @cached_property
    def _patch_starts(self) -> np.ndarray:
        return self._rising("patch_start", self._file["patch"].shape[0])

    @cached_property
    def sizes(self) -> np.ndarray:
        """[pictures 2] width and height of each picture as it was, upright."""
        sizes = self._read("size")
        if len(sizes) != len(self) or (sizes < 1).any():
            raise self._damaged("a picture has no size")
        return sizes

    @cached_property
    def of_context(self) -> np.ndarray:
        """[n_contexts] the picture of each context; -1 where no example lies in it."""
        numbers = self._read("of_context")
        if ((numbers < -1) | (numbers >= len(self))).any():
            raise self._damaged("a context names a picture that is none")
        return numbers

    def read_file(self, picture: int) -> bytes:
        """The bytes of a small picture's file, a PNG or a JPEG."""
        return self._read("file", slice(*self._starts[picture : picture + 2].tolist())).tobytes()

    def acts(self, example: int) -> np.ndarray:
        """float32 [patches] of an example, counted through all latents: the latent's activation at every patch."""
        if not 0 <= example < len(self._patch_starts) - 1:
            raise self._damaged("it has fewer examples than examples.h5")
        some = slice(*self._patch_starts[example : example + 2].tolist())
        patches, values = self._read("patch", some), self._read("patch_act", some)
        out = np.zeros(self.grid.n_patches, np.float32)
        if len(patches) != len(values) or ((patches < 0) | (patches >= len(out))).any() or not np.isfinite(values).all():
            raise self._damaged("a latent fires on a patch that is none")
        out[patches] = values
        return out

    def _rising(self, name: str, last: int) -> np.ndarray:
        starts = self._read(name)
        if not len(starts) or starts[0] != 0 or starts[-1] != last or (np.diff(starts) < 0).any():
            raise self._damaged(f"{name} does not rise from 0 to {last}")
        return starts

    def _read(self, name: str, some: slice | tuple[()] = ()) -> np.ndarray:
        try:
            with self._lock:
                return self._file[name][some]
        except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, problem: str) -> PackError:
        return PackError(f"{self.folder / FILE} is damaged: {problem}.\n  {make_again(self.folder)}")

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        if "_file" in self.__dict__:
            self._file.close()
            del self.__dict__["_file"]


@dataclass(frozen=True, eq=False)
class PictureExample:
    """A picture with a latent's activation at each of its patches. It draws itself in a notebook."""

    file: bytes
    """The file of the small picture, a PNG or a JPEG."""
    size: tuple[int, int]
    """Width and height of the picture as it was, upright."""
    grid: PatchGrid
    acts: np.ndarray
    """float32 [patches], row by row."""
    peak: int | None
    """The patch where the example has its peak; None where that is a row of text beside the picture."""
    value: float
    """Activation at the peak."""
    token: str
    """The token at the peak; "" for a patch."""
    largest: float
    """The latent's maximum in the pack: the strongest colour of the map."""
    band: int | None
    document: str
    context: int
    offset: int

    @property
    def boxes(self) -> list[Box]:
        """(left, top, right, bottom) of each patch in pixels of the picture as it was."""
        return patch_boxes(self.grid.picture_size, self.grid.patch_size, self.size)

    @property
    def box(self) -> Box | None:
        """The box of the peak."""
        return None if self.peak is None else self.boxes[self.peak]

    @property
    def place(self) -> tuple[int, int] | None:
        """(row, column) of the peak."""
        return None if self.peak is None else divmod(self.peak, self.grid.grid)

    @property
    def map(self) -> np.ndarray:
        """float32 [rows columns]."""
        return self.acts.reshape(self.grid.grid, self.grid.grid)

    def picture(self) -> Any:
        """The small picture as a PIL image in RGB.

        Raises:
            PackError: its file is damaged.
        """
        try:
            return read_picture(self.file, f"The picture of {self.document}")
        except PictureError as error:
            raise PackError(f"A picture of this pack is damaged: {error}") from None

    def image(self, heat: bool = True) -> Any:
        """A PIL image: the small picture, with `heat` in grey under the map of the latent's activations."""
        picture = self.picture()
        if not heat:
            return picture
        x, y = picture.width / self.size[0], picture.height / self.size[1]
        boxes = [(left * x, top * y, right * x, bottom * y) for left, top, right, bottom in self.boxes]
        return overlay(picture, boxes, self.acts, max(self.largest, 1e-12))

    def save(self, file: str | Path, heat: bool = True) -> Path:
        """Write the image as a PNG."""
        file = Path(file)
        file.write_bytes(png(self.image(heat)))
        return file

    @property
    def caption(self) -> str:
        """The activation, its place and the document, in a line."""
        where = f"on «{visible_token(self.token)}»" if self.place is None else "row {}, column {}".format(*self.place)
        where = "the whole picture" if self.grid.grid == 1 and self.peak is not None else where
        return f"{self.value:.3g}, {where}, {self.document}"

    def _repr_html_(self) -> str:
        return figure(self)


class PictureExamples(list[PictureExample]):
    """Examples side by side in a notebook."""

    def _repr_html_(self) -> str:
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(map(figure, self))}</div>'


def figure(example: PictureExample) -> str:
    """One example as HTML that holds its picture itself; what the corpus said is escaped."""
    muted = "opacity:.65;font-size:12px;max-width:224px;overflow-wrap:anywhere"
    return (
        f'<figure style="margin:0">{img_tag(example.image(), f"heat map: {example.caption}")}'
        f'<figcaption style="{muted}"><bdi>{escape(example.caption)}</bdi></figcaption></figure>'
    )
