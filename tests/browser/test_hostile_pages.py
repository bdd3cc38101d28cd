"""Hostile tokens, labels, file names, notes and lists in every page and export: shown as text; nothing runs or is fetched."""

from pathlib import Path

import pytest
from scope.app.serve.downloads import export_bytes

from scope.features.face import Pack
from tests.help.hostile import HOSTILE

SLUG = "img-src-x-onerror-alert-1-hostile"
OBEYED = """() => {
  const roots = [document, ...[...document.querySelectorAll('*')].filter(e => e.shadowRoot).map(e => e.shadowRoot)];
  const bad = '[onerror],[onload],[onmouseover],[ontoggle],iframe,a[href*=evil],img[src*=evil],a[href^=javascript],' +
    'link[href*=evil],meta[http-equiv=refresh],[style*=evil],math,.katex,[*|href*=evil],[*|href^=javascript]';
  return roots.flatMap(root => [...root.querySelectorAll(bad)]).map(e => e.outerHTML.slice(0, 200));
}"""


def bare(text: str) -> str:
    """Without spaces, nor the glyph that stands for a token of nothing but spaces."""
    return "".join(text.replace("␣", "").split())


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
    if path == "feature" and params["f"] != HOSTILE[1]:
        page.locator(".tok, .bars .row").first.wait_for()
    assert page.evaluate(OBEYED) == []
    for told in page.locator(".tok").all()[:20]:
        told.hover(force=True)
    for figure in page.locator(".plotly .drag").all()[:3]:
        figure.hover(force=True)  # the labels under the pointer are Plotly's own, which reads some markup
    for button in [each for each in page.get_by_test_id("stPopover").all() if each.is_visible()][:4]:
        button.get_by_role("button").first.click()
        assert page.evaluate(OBEYED) == []
        page.keyboard.press("Escape")
    assert page.evaluate(OBEYED) == []


def test_hostile_labels_can_be_read_as_they_stand(visit):
    person = visit(slug=SLUG)
    for latent in (0, 1, 5, 13, 15):
        page = person.open("feature", f=latent)
        assert page.locator("h1").first.inner_text().startswith(f"#{latent} {HOSTILE[latent][:12]}")


@pytest.mark.parametrize("first", range(0, len(HOSTILE), 8))
def test_hostile_texts_that_a_person_reads_are_shown_as_they_stand(visit, first):
    lines = [" ".join(text.split())[:60] or "nothing" for text in HOSTILE[first : first + 8]]
    person = visit()
    page = person.open("feature", f=3, tab="Try a text")
    page.get_by_label("Text to test").fill("\n".join(lines).replace("\x00", "").replace("\ud800", ""))
    page.get_by_role("button", name="Read", exact=True).click()
    page.get_by_text("unexplained (FVU)").nth(len(lines) - 1).wait_for()
    person.settle()
    assert page.evaluate(OBEYED) == []
    shown = "".join(page.locator(".tok").all_text_contents())
    for line in lines:
        if line.isascii() and line.isprintable():
            assert bare(line) in bare(shown)


@pytest.mark.parametrize("text", [HOSTILE[1], HOSTILE[14], HOSTILE[35]])
def test_a_hostile_prompt_is_read_compared_and_steered_and_never_obeyed(visit, text):
    person = visit()
    page = person.open("prompt", text=text, two="true", **{"with": HOSTILE[30]})
    page.get_by_text("Differences").wait_for()
    assert page.evaluate(OBEYED) == []
    page = person.open("prompt", text=text)
    page.locator(".tok").first.wait_for()
    assert bare(text) in bare("".join(page.locator(".tok").all_text_contents()))
    assert page.evaluate(OBEYED) == []
    page = person.open("steer", f=3, drawer="open")
    page.get_by_label("Prompt", exact=True).fill(text)
    page.get_by_label("New tokens").fill("4")
    page.get_by_label("New tokens").press("Enter")
    person.settle()
    page.get_by_role("button", name="Generate").click()
    page.wait_for_url("**/steer?*run=*")
    person.settle()
    page.locator(".tok").first.wait_for()
    assert page.evaluate(OBEYED) == []
    page.get_by_role("radio", name="Saved runs").click()
    person.settle()
    assert page.evaluate(OBEYED) == []


def test_an_exported_page_of_cards_runs_nothing_and_asks_for_nothing(visit, packs, tmp_path):
    store = Pack.open(packs[0])
    file = tmp_path / "cards.html"
    file.write_bytes(export_bytes(store, "html", range(store.d_sae)))
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
