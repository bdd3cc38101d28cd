"""Every page under axe-core, in light and dark, as it opens and with what a reader opens on it."""

import pytest

PAGES = {
    "overview": ("", {}),
    "table": ("features", {"hide": ""}),
    "scatter": ("features", {"view": "Scatter"}),
    "map": ("features", {"view": "Map"}),
    "compared": ("features", {"view": "Compare", "ids": "7,1,4"}),
    "nothing found": ("features", {"q": "zzzzzz"}),
    "latent": ("feature", {"f": 3}),
    "refused": ("feature", {"f": "abc"}),
    "reading": ("prompt", {"text": "the dog runs to the river"}),
    "two readings": ("prompt", {"text": "the dog runs", "with": "a cat looks", "two": "true"}),
    "steering": ("steer", {"f": 3}),
    "settings of steering": ("steer", {"f": 3, "drawer": "open"}),
    "health": ("health", {}),
}

EXCUSED: dict[str, str] = {}
"""Rules that Streamlit's own frame breaks and no page can mend, each with why. There are none."""


def violations(page) -> list[str]:
    """What axe-core finds: rule, weight, element, and what it measured; every rule it has, best practices too."""
    from axe_playwright_python.base import AXE_SCRIPT

    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]} {' '.join(node['failureSummary'].split())[:200]}"
        for rule in found
        if rule["id"] not in EXCUSED
        for node in rule["nodes"]
    ]


@pytest.fixture(scope="module", autouse=True)
def axe():
    pytest.importorskip("axe_playwright_python", reason="axe is not installed: pip install -e '.[browser]'")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_no_page_shuts_anybody_out(visit, name, theme):
    path, params = PAGES[name]
    assert violations(visit(theme=theme).open(path, **params)) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_neither_do_the_pages_of_a_state(visit, theme):
    person = visit(theme=theme, slug="state")
    page = person.open("feature", f=3)
    page.get_by_text("Half-life").first.wait_for()
    assert violations(page) == []
    page = person.open("prompt", text="the dog runs to the river")
    page.get_by_role("heading", name="What is remembered").wait_for()
    assert violations(page) == []
    page = person.open("steer", f=3, drawer="open")
    page.get_by_role("button", name="Add an edit").click()
    page.get_by_role("radio", name="Forget").click()
    person.settle()
    page.get_by_role("textbox", name="Tokens of the prompt").wait_for()
    assert violations(page) == []


@pytest.mark.filterwarnings("ignore")  # transformers'
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_neither_do_the_pages_of_pictures_nor_an_enlarged_one(visit, theme):
    person = visit(theme=theme, slug="pictures")
    pages = (("", {}), ("features", {}), ("prompt", {}), ("prompt", {"context": 3}), ("steer", {"f": 3, "context": 3}))
    for path, params in pages:
        assert violations(person.open(path, **params)) == [], path
    page = person.open("feature", f=3)
    assert violations(page) == []
    page.locator("button.open").first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    assert violations(page) == []
    dialog.get_by_role("group", name="patches").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert "row 1, column" in dialog.locator(".readout").inner_text()
    assert person.latent() == 3  # the page did not hear the arrows
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_neither_do_a_tested_text_an_open_token_and_the_guess_game(visit, theme):
    person = visit(theme=theme)
    page = person.open("feature", f=3, tab="Try a text")
    page.get_by_label("Text to test").fill("the dog runs\na cat sat")
    page.get_by_role("button", name="Read", exact=True).click()
    page.get_by_text("fires on").filter(visible=True).nth(1).wait_for()
    page.locator(".pickable").first.click()
    person.settle()
    assert violations(page) == []
    page = person.open("feature", f=3, tab="Guessing game")
    page.get_by_role("button", name="Play").click()
    page.get_by_test_id("stPills").or_(page.get_by_test_id("stAlert")).first.wait_for()  # a small pack may have too few windows
    person.settle()
    assert violations(page) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_neither_does_a_steered_text(visit, theme):
    person = visit(theme=theme)
    page = person.open("steer", f=3, drawer="open")
    page.get_by_label("New tokens").fill("4")
    page.get_by_label("New tokens").press("Enter")
    person.settle()
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Colour by").wait_for()  # comes with the last of several runs, one upon the other
    person.settle()
    assert violations(page) == []
    page.locator("button.score").first.focus()
    assert violations(page) == []
    for view in ("Sweep", "Effects", "Saved runs"):
        page.get_by_role("radio", name=view).click()
        person.settle()
        assert violations(page) == [], view


def test_axe_itself_sees_what_is_wrong(visit):
    page = visit().open("feature", f="abc")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\"><input>')")
    assert {told.split()[0] for told in violations(page)} >= {"image-alt", "label"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_neither_do_the_results_of_the_search_box_nor_the_bar_of_a_phone(visit, theme):
    person = visit(theme=theme, width=390)
    page = person.open("health")
    page.get_by_role("combobox", name="Search everything").fill("the")
    page.get_by_role("option").first.wait_for()
    page.keyboard.press("ArrowDown")
    assert violations(page) == []
