"""Hostile tokens, labels, file names, notes and lists in every page and export: shown as text; nothing runs or is fetched."""

from pathlib import Path

import pytest

from app.downloads import written
from scope.features.store import FeatureStore
from tests.hostile import HOSTILE

SLUG = "img-src-x-onerror-alert-1-hostile"
OBEYED = """() => {
  const roots = [document, ...[...document.querySelectorAll('*')].filter(e => e.shadowRoot).map(e => e.shadowRoot)];
  const bad = '[onerror],[onload],[onmouseover],[ontoggle],iframe,a[href*=evil],img[src*=evil],a[href^=javascript],' +
    'link[href*=evil],meta[http-equiv=refresh],[style*=evil],math,.katex a';
  return roots.flatMap(root => [...root.querySelectorAll(bad)]).map(e => e.outerHTML.slice(0, 200));
}"""


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("", {}),
        ("features", {"hide": "", "sort": "max"}),
        ("features", {"view": "Scatter"}),
        ("features", {"view": "Compare", "ids": "7,1,4"}),
        ("features", {"q": HOSTILE[1]}),
        ("feature", {"f": 7}),
        ("feature", {"f": 0}),
        ("feature", {"f": HOSTILE[1]}),
        ("prompt", {"text": HOSTILE[1]}),
        ("steer", {"f": 7}),
        ("health", {"beside": "tiny"}),
    ],
)
def test_nothing_that_others_wrote_is_obeyed(visit, path, params):
    person = visit(slug=SLUG)
    page = person.open(path, **params)
    for _ in range(3):
        page.mouse.wheel(0, 900)
    assert page.evaluate(OBEYED) == []
    for strip in page.locator(".tok").all()[:20]:
        strip.hover(timeout=2000, trial=False, force=True)
    assert page.evaluate(OBEYED) == []


def test_hostile_labels_can_be_read_as_they_stand(visit):
    person = visit(slug=SLUG)
    for latent in (0, 1, 5, 13, 15):
        page = person.open("feature", f=latent)
        assert page.locator("h1").first.inner_text().startswith(f"#{latent} {HOSTILE[latent][:12]}")


def test_an_exported_page_of_cards_runs_nothing_and_asks_for_nothing(visit, packs, tmp_path):
    store = FeatureStore.open(packs[0])
    file = tmp_path / "cards.html"
    file.write_bytes(written(store, "html", range(store.d_sae)))
    person = visit()
    asked = []
    person.page.on("request", lambda request: asked.append(request.url))
    person.outside = []
    person.page.goto(file.as_uri())
    assert person.page.locator("section").count() == store.d_sae
    assert person.page.evaluate(OBEYED) == []
    assert person.page.evaluate("document.scripts.length") == 0
    assert asked == [file.as_uri()]
    person.outside = []


def test_the_server_answers_this_machine_alone(server):
    import socket

    port = int(server.rsplit(":", 1)[1])
    listening = [
        line.split() for name in ("/proc/net/tcp", "/proc/net/tcp6") for line in Path(name).read_text().splitlines()[1:]
    ]
    own = {row[1].split(":")[0] for row in listening if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
    assert own == {"0100007F"}  # 127.0.0.1, and neither 0.0.0.0 nor ::
    with socket.create_connection(("127.0.0.1", port), 5):
        pass
