"""A tiny random ColPali with a tokenizer, some pages, and an index of them."""

import numpy as np
import pytest
from PIL import Image

from scope.models.load import load_model
from scope.pages.build import build_index
from tests.models.vision_twins import save_with_words


@pytest.fixture(scope="session")
def colpali_folder(tmp_path_factory, toy_text):
    folder = tmp_path_factory.mktemp("colpali")
    save_with_words(folder, toy_text, retrieval=True)
    return folder


@pytest.fixture(scope="session")
def model(colpali_folder):
    return load_model(str(colpali_folder))


def picture(i: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    grey = np.random.default_rng(i).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(grey).resize(size, Image.Resampling.NEAREST)


@pytest.fixture(scope="session")
def folder_of_pages(tmp_path_factory):
    """Seven pictures, one of them in a folder within."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "more").mkdir()
    for i in range(7):
        picture(i).save(folder / ("more" if i == 6 else "") / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def index(tmp_path_factory, model, folder_of_pages):
    return build_index(model, folder_of_pages, tmp_path_factory.mktemp("index") / "index", dtype="float32", batch=3)
