"""A real server and a headless Chromium. Without playwright or a Chromium of the system, the tests here are skipped.

pip install -e '.[browser]'        # the driver alone; the browser comes from the system, as by apt install chromium
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "playwright is not installed: pip install -e '.[browser]'" if find_spec("playwright") is None else ""
MISSING = MISSING or ("" if CHROMIUM else "no Chromium on this machine: apt install chromium")

SETTLED = """() => {
  const state = document.querySelector('[data-testid=stApp]')?.dataset;
  const drawn = [...document.querySelectorAll('[data-testid^=stBidiComponent]')];
  return state?.testScriptState === 'notRunning' && state.testConnectionState === 'CONNECTED'
    && document.querySelector('[data-testid=stMainBlockContainer] [data-testid=stElementContainer]') !== null
    && !document.querySelector('[data-stale=true], [data-testid=stSkeleton], [data-testid=stSpinner]')
    && drawn.every(each => (each.shadowRoot ?? each).childElementCount > 0)
    && !document.getAnimations().some(one => one.playState === 'running' && one.effect?.getComputedTiming().endTime < 1e9);
}"""
"""The script has run, all of what it said is drawn, nothing on the page is of the run before, and nothing fades any more."""


def pytest_collection_modifyitems(items):
    for item in items:
        if MISSING and Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session")
def packs(tmp_path_factory, tiny_config, toy_tokenizer, toy_text) -> list[Path]:
    """A pack full of hostile text, one of a tiny model that can read, one of the state of a recurrent model, and one of a model
    that sees, whose pictures have hostile names."""
    from tests.conftest import random_gemma
    from tests.help.hostile import make_hostile_pack
    from tests.help.labs import make_lab
    from tests.help.picture_labs import make_picture_lab
    from tests.models.griffin_twins import tiny_griffin

    folder = tmp_path_factory.mktemp("browser")
    hostile = make_hostile_pack(folder / "<img src=x onerror=alert(1)> hostile.pack").folder
    lab = make_lab(folder / "tiny", random_gemma(tiny_config, toy_tokenizer), toy_text)
    state = make_lab(folder / "state", tiny_griffin(toy_tokenizer), toy_text, "blocks.1.rec.hook_state")
    seen = make_picture_lab(folder / "pictures", "paligemma", n=16)
    return [hostile, lab / "pack", state / "pack", seen / "pack"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(packs: list[Path], port: int | None = None, base: str = "") -> Iterator[tuple[str, subprocess.Popen]]:
    """The app as `scope app` starts it, on this port or a free one, below a path: its address and its process."""
    port = port or free_port()
    given = {"PYTHONPATH": str(ROOT), "SCOPE_PACKS": json.dumps([str(p) for p in packs]), "SCOPE_BASE_PATH": base}
    command = [sys.executable, "-P", str(ROOT / "app" / "launch.py"), str(port), "quiet"]
    process = subprocess.Popen(command, env=os.environ | given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}{base}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.2)
        yield address, process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def server(packs) -> Iterator[str]:
    with serving(packs) as (address, _):
        yield address


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A person at a browser. Whatever the pages ask of another host, and every dialog that opens, is written down."""

    def __init__(self, context, server: str, slug: str = "tiny"):
        self.context, self.server, self.slug = context, server, slug
        self.outside: list[str] = []
        self.dialogs: list[str] = []
        self.tabs: list[Any] = []
        self.page = self.tab()

    def tab(self):
        page = self.context.new_page()
        self.tabs.append(page)
        page.on("request", lambda request: self._note(request.url))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        return page

    def _note(self, url: str) -> None:
        parts, own = urlsplit(url), urlsplit(self.server)
        if parts.scheme not in ("data", "blob") and parts.netloc != own.netloc:
            self.outside.append(url)

    def open(self, path: str = "", page=None, **params: object):
        """Go to a page of this visitor's pack and wait until it stands."""
        from urllib.parse import urlencode

        page = page or self.page
        page.goto(f"{self.server}/{path}?{urlencode({'pack': self.slug, **params})}")
        self.settle(page)
        return page

    def settle(self, page=None) -> None:
        """Until no script runs and all that the last one said is drawn."""
        (page or self.page).wait_for_function(SETTLED)

    def keyed(self) -> None:
        """Until the page hears keys."""
        self.page.wait_for_selector("body[data-scope-keys=heard]", state="attached")

    def latent(self) -> int:
        """Which latent the page shows, by its heading."""
        return int(self.page.locator("h1").first.inner_text().split()[0].lstrip("#"))

    def at_latent(self, wanted: int) -> None:
        self.headed(f"#{wanted} ")

    def headed(self, text: str) -> None:
        """Until the heading holds a text, and the page stands. A step in the browser's history or a click on a link changes the
        address at once, the page only when the server has answered: whoever asks in between sees the page of before."""
        self.page.wait_for_function("text => document.querySelector('h1')?.innerText.includes(text)", arg=text)
        self.settle()

    def refused(self) -> str:
        return " ".join(self.page.locator("[data-testid=stAlert]").all_inner_texts())


@pytest.fixture(scope="session")
def windows(chromium) -> dict[tuple[str, int], Any]:
    """Windows by theme and width, shared by all tests so that the app's scripts are fetched once."""
    return {}


@pytest.fixture
def visit(chromium, server, windows):
    """Visitors of this test; none of them may have caused a request to another host, or a dialog."""
    visitors: list[Visitor] = []

    def visiting(theme: str = "light", width: int = 1280, slug: str = "tiny") -> Visitor:
        if (theme, width) not in windows:
            windows[theme, width] = chromium.new_context(color_scheme=theme, viewport={"width": width, "height": 900})
            windows[theme, width].set_default_timeout(60_000)
        visitors.append(Visitor(windows[theme, width], server, slug))
        return visitors[-1]

    yield visiting
    for visitor in visitors:
        for tab in visitor.tabs:
            tab.close()
        assert visitor.outside == []
        assert visitor.dialogs == []
