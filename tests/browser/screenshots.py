"""Screenshots of every page in light and dark at two widths, to be looked at; by hand, no test runs this.

scope app PACK --no-browser &
python -m tests.browser.screenshots http://127.0.0.1:8501 out/ [latent ...]

It also says which hosts the pages asked for anything, how long each took, and what the browser's console complained of.
"""

import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from tests.browser.conftest import CHROMIUM, SETTLED

WIDTHS = (1280, 390)
TEXT = "text=The%20dog%20ran%20to%20the%20river."
PAGES = {
    "overview": "",
    "features": "features",
    "scatter": "features?view=Scatter",
    "map": "features?view=Map",
    "filters": "features?q=dog&hide=dead&d=-3&d=-1",
    "compared": "features?view=Compare&ids=1,2,3",
    "prompt": f"prompt?{TEXT}",
    "two-prompts": f"prompt?two=true&{TEXT}&with=A%20cat%20looked%20at%20the%20moon.",
    "steer": "steer?f=1",
    "health": "health",
    "monitor": "monitor",
    "health-compared": "health?beside=demo2",
    "bad-latent": "feature?f=abc",
}


def main(base: str, out: Path, latents: list[str]) -> None:
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    pages = PAGES | {f"feature-{latent}": f"feature?f={latent}" for latent in latents}
    hosts, complaints = set(), set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for theme, width in ((theme, width) for theme in ("light", "dark") for width in WIDTHS):
            context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 900})
            context.set_default_timeout(180_000)
            page = context.new_page()
            page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
            page.on("response", lambda r: complaints.add(f"{r.status} {r.url}") if r.status >= 400 else None)
            page.on("console", lambda message: complaints.add(message.text[:300]) if message.type == "error" else None)
            page.on("dialog", lambda dialog: complaints.add(f"a dialog opened: {dialog.message}"))
            for name, path in pages.items():
                page.set_viewport_size({"width": width, "height": 900})
                began = time.perf_counter()
                page.goto(f"{base}/{path}")
                page.wait_for_function(SETTLED)
                took = time.perf_counter() - began
                # Streamlit scrolls inside the page, so the window is made as tall as what it holds.
                tall = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
                page.set_viewport_size({"width": width, "height": min(max(tall, 800), 5000)})
                page.wait_for_function(SETTLED)
                page.wait_for_timeout(500)  # figures and tables are drawn anew, which no mark in the page tells
                page.screenshot(path=out / f"{name}-{theme}-{width}.png")
                print(f"{name} {theme} {width}: {took:.2f} s")
            context.close()
        browser.close()
    print("hosts asked:", ", ".join(sorted(hosts)))
    print("complaints:", *(sorted(complaints) or ["none"]), sep="\n  ")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), Path(sys.argv[2]), sys.argv[3:] or ["1"])
