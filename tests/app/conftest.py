"""A browser on a toy pack, run page by page without a web browser."""

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from scope.features.face import Pack
from scope.models.load import load_model
from scope.sae.files import read_sae
from tests.conftest import random_gemma
from tests.features.toy_pack import make_toy_pack
from tests.help.labs import make_lab

MAIN = Path(__file__).parents[2] / "app" / "main.py"


@pytest.fixture(scope="session", autouse=True)
def _without_a_search_for_components():
    """No package brings components of its own; Streamlit's test would look into each that is installed, at every run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamlit.components.v2.manifest_scanner.scan_component_manifests", list)
        yield


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """A pack that tests only read."""
    folder = tmp_path_factory.mktemp("packs") / "toy" / "pack"
    make_toy_pack(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, toy_tokenizer, toy_text) -> Path:
    """A lab of a tiny model: checkpoint, recording, dictionary and pack, which the tests of a file may write beside."""
    return make_lab(tmp_path_factory.mktemp("lab") / "tiny", random_gemma(tiny_config, toy_tokenizer), toy_text)


@pytest.fixture(scope="module")
def store(folder) -> Pack:
    return Pack.open(folder / "pack")


@pytest.fixture(scope="module")
def lab(folder):
    """(model, dictionary) of that lab."""
    return load_model(str(folder / "checkpoint")), read_sae(folder / "dictionary")


@pytest.fixture
def open_app(monkeypatch, toy_folder):
    """Open a page of the app on packs; parameters are those of the address."""

    def opened(page: str = "overview", packs: list[Path] | None = None, **params: object) -> AppTest:
        monkeypatch.setenv("SCOPE_PACKS", json.dumps([str(p) for p in (packs or [toy_folder])]))
        at = AppTest.from_file(str(MAIN), default_timeout=60)
        if page != "overview":
            at._page_hash = calc_hash(page)  # before the first run, switch_page takes the file's name for the address
        for name, value in params.items():
            at.query_params[name] = str(value)
        return at.run()

    return opened


def said(at: AppTest) -> str:
    """Every message on the page, without the marks that keep Markdown from reading it."""
    boxes = [*at.error, *at.warning, *at.info]
    return "\n".join([*(box.value.replace("\\", "") for box in boxes), *(code.value for code in at.code)])


def bars(at: AppTest) -> list[dict]:
    """Every list of bars on the page."""
    found = [json.loads(c.proto.json) for c in at.get("bidi_component")]
    return [data for data in found if "bars" in data]
