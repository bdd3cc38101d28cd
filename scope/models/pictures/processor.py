"""From pictures to pixel_values, as a checkpoint's own processor makes them, and back from patches to boxes in the picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scope.activations.pictures.patches import Box, patch_boxes
from scope.errors import CheckpointError
from scope.models.pictures.read import read_picture
from scope.shapes import Pixels
from scope.typed_json import read_json, typed

FILES = ("preprocessor_config.json", "processor_config.json")
_AGAIN = "Fetch it again."
_RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
_KNOWN = ("Siglip", "PaliGemma", "ColPali")


@dataclass(frozen=True)
class _Size:
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class _Settings:
    """The fields of a processor's config that are read; what is left out is what transformers takes for a SigLIP."""

    image_processor_type: str | None = None
    do_resize: bool | None = True
    do_rescale: bool | None = True
    do_normalize: bool | None = True
    do_center_crop: bool | None = False
    do_pad: bool | None = False
    size: _Size | int | None = None
    resample: int | str | None = 3
    rescale_factor: float | None = 1 / 255
    image_mean: list[float] | float | None = None
    image_std: list[float] | float | None = None
    image_seq_length: int | None = None
    visual_prompt_prefix: str | None = None
    query_prefix: str | None = None


@dataclass(frozen=True, kw_only=True)
class PictureProcessor:
    """Resizes to a square without keeping the aspect ratio, scales grey levels, subtracts `mean` and divides by `std`."""

    size: int
    resample: int = 3
    """Pillow's number of the filter: 3 is bicubic."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    texts: dict[str, str] = field(default_factory=dict)
    """Texts that the processor writes, by name, where its config names them."""

    def to_pixels(self, pictures: Any) -> Pixels:
        """pixel_values of one picture or several: files, their bytes, PIL images or arrays of grey levels.

        Raises:
            PictureError: one cannot be read; its place in the list is named.
        """
        one = not isinstance(pictures, list | tuple)
        items = [pictures] if one else pictures
        rows = [self.row(item, None if one else f"Picture {i}") for i, item in enumerate(items)]
        shape = (0, 3, self.size, self.size)
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(shape)

    def row(self, picture: Any, name: str | None = None) -> np.ndarray:
        """float32 [channel height width] of one picture."""
        if name is not None and isinstance(picture, str | Path):
            name = f"{name} ({picture})" if Path(picture).expanduser().exists() else None
        image = read_picture(picture, name).resize((self.size, self.size), resample=self.resample)
        x = np.asarray(image).astype(np.float32) * np.float32(self.scale)
        x = (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(x.transpose(2, 0, 1))

    def to_grey_levels(self, pixels: Pixels) -> np.ndarray:
        """uint8 [image height width channel] of prepared pixels: what the model sees, to be drawn."""
        mean, std = (torch.tensor(t, dtype=torch.float32)[:, None, None] for t in (self.mean, self.std))
        levels = (pixels.detach().cpu().float() * std + mean) / self.scale
        return levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def patch_boxes(self, patch_size: int, picture_size: Sequence[int]) -> list[Box]:
        """(left, top, right, bottom) of each patch in the pixels of a picture of (width, height), upright, row by row."""
        return patch_boxes(self.size, patch_size, picture_size)

    def to_hf(self) -> dict[str, Any]:
        """The dictionary of a preprocessor_config.json that transformers reads as the same."""
        return {
            "image_processor_type": "SiglipImageProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "size": {"height": self.size, "width": self.size},
            "resample": self.resample,
            "rescale_factor": self.scale,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @classmethod
    def from_folder(cls, folder: Path, size: int) -> "PictureProcessor":
        """From the processor's config in a checkpoint's folder, of either name; where there is none, as every released SigLIP
        prepares pictures. `size` is what the tower takes.

        Raises:
            CheckpointError: the config cannot be read, is for pictures of another size, or asks for what is not computed here.
        """
        file = next((folder / name for name in FILES if (folder / name).exists()), None)
        if file is None:
            return cls(size=size)
        raw = read_json(file, CheckpointError, _AGAIN)
        if isinstance(raw, dict) and isinstance(raw.get("image_processor"), dict):
            raw = raw | raw["image_processor"]
        s = typed(raw, _Settings, file, CheckpointError, _AGAIN)
        return cls._from_settings(s, file, size)

    @classmethod
    def _from_settings(cls, s: _Settings, file: Path, size: int) -> "PictureProcessor":
        if s.image_processor_type is not None and not s.image_processor_type.startswith(_KNOWN):
            raise CheckpointError(f"{file} is of a {s.image_processor_type}; a SigLIP's is a SiglipImageProcessor.")
        for name in ("do_center_crop", "do_pad"):
            if getattr(s, name):
                raise CheckpointError(f"{file} sets {name}, which is not computed here: pictures are resized to a square.")
        if s.do_resize is False:
            raise CheckpointError(f"{file} sets do_resize to false, and this model takes pictures of {size} x {size} alone.")
        sides = (size, size) if s.size is None else (s.size,) * 2 if isinstance(s.size, int) else (s.size.height, s.size.width)
        if sides != (size, size):
            raise CheckpointError(
                f"{file} makes pictures of {sides[0]} x {sides[1]}, and this model takes {size} x {size}: they do not belong "
                "together.\n  Fetch the processor's config of this checkpoint, or remove the file to use SigLIP's settings."
            )
        resample = _RESAMPLING.get(s.resample.lower(), -1) if isinstance(s.resample, str) else s.resample
        resample = 3 if resample is None else resample
        if resample not in _RESAMPLING.values():
            raise CheckpointError(f"{file} asks for resampling {s.resample!r}; {', '.join(_RESAMPLING)} are known.")
        scale = 1 / 255 if s.rescale_factor is None else s.rescale_factor
        mean, std = _three(s.image_mean, file), _three(s.image_std, file)
        if s.do_normalize is False:
            mean, std = (0.0,) * 3, (1.0,) * 3
        if not all(x > 0 for x in (*std, scale)):
            raise CheckpointError(f"{file} has an image_std or a rescale_factor that is not above 0. {_AGAIN}")
        named = {"visual_prompt_prefix": s.visual_prompt_prefix, "query_prefix": s.query_prefix}
        texts = {name: text for name, text in named.items() if text is not None}
        return cls(size=size, resample=resample, scale=1.0 if s.do_rescale is False else scale, mean=mean, std=std, texts=texts)


def _three(values: list[float] | float | None, file: Path) -> tuple[float, ...]:
    values = 0.5 if values is None else values
    values = [values] * 3 if isinstance(values, int | float) else values
    if len(values) != 3:
        raise CheckpointError(f"{file} has {len(values)} numbers for three channels. {_AGAIN}")
    return tuple(map(float, values))
