"""Screenshots of every page in light and dark at two widths, by hand: no test runs this.

    python -m venv browser && browser/bin/pip install playwright      # Chromium itself comes from the system
    browser/bin/python tests/app/screenshots.py http://127.0.0.1:8501 out/ [latent ...]

It also says which hosts the pages asked for anything, how long each took, and what the browser's console complained of.
"""

import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright

WIDTHS = (1280, 768)
QUIET = "!document.querySelector('[data-testid=stStatusWidget]') && !document.querySelector('[data-stale=true]')"


def settled(page: Page) -> None:
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=180_000)
    page.wait_for_selector("[data-testid=stMainBlockContainer] [data-testid=stElementContainer]", timeout=180_000)
    page.wait_for_function(QUIET, timeout=180_000)
    page.wait_for_timeout(900)


def full_height(page: Page, width: int) -> None:
    """Streamlit scrolls inside the page, so the window is made as tall as what it holds."""
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": width, "height": min(max(height, 800), 5000)})
    page.wait_for_timeout(500)


def main(base: str, out: Path, latents: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    pages = {"overview": "", "features": "features", "scatter": "features?view=Scatter", "steer": "steer"}
    pages |= {f"feature-{latent}": f"feature?f={latent}" for latent in latents} | {"bad-latent": "feature?f=abc"}
    hosts, complaints = set(), set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for theme in ("light", "dark"):
            for width in WIDTHS:
                context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 900})
                page = context.new_page()
                page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
                page.on("response", lambda r: complaints.add(f"{r.status} {r.url}") if r.status >= 400 else None)
                page.on("console", lambda message: complaints.add(message.text[:300]) if message.type == "error" else None)
                page.on("dialog", lambda dialog: complaints.add(f"a dialog opened: {dialog.message}"))
                for name, path in pages.items():
                    page.set_viewport_size({"width": width, "height": 900})
                    began = time.perf_counter()
                    page.goto(f"{base}/{path}")
                    settled(page)
                    took = time.perf_counter() - began - 0.9
                    full_height(page, width)
                    page.screenshot(path=out / f"{name}-{theme}-{width}.png")
                    print(f"{name} {theme} {width}: {took:.2f} s")
                context.close()
        browser.close()
    print("hosts asked:", ", ".join(sorted(hosts)))
    print("complaints:", *(sorted(complaints) or ["none"]), sep="\n  ")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), Path(sys.argv[2]), sys.argv[3:] or ["1"])
