"""The ways a person takes through the app, in a real browser."""

import re
from urllib.parse import urlencode

import pytest

PAGES = (("", {}), ("features", {}), ("feature", {"f": 3}), ("prompt", {"text": "the dog"}), ("health", {}))

TOKENS = "[...document.querySelectorAll('*')].filter(e => e.shadowRoot)"
TOKENS += ".flatMap(e => [...e.shadowRoot.querySelectorAll('.tok')]).map(t => t.textContent)"
"""The tokens of all strips on a page."""


def cell(page, row: int, x: int = 300) -> None:
    """Click a cell of the first table; it is a canvas, so by place."""
    box = page.locator("[data-testid=stDataFrame] canvas").first.bounding_box()
    page.mouse.click(box["x"] + x, box["y"] + 35 * (row + 1) + 17)


def test_open_search_open_a_latent_walk_with_the_keyboard_and_come_back(visit):
    person = visit()
    page = person.open()
    page.get_by_role("combobox", name="Search everything").fill("the")
    page.get_by_role("option", name="All latents that match").click()
    page.wait_for_url(re.compile(r"/features\?.*q=the"))
    person.settle()
    cell(page, 0)
    page.wait_for_url(re.compile(r"/feature\?.*f=\d+"))
    person.headed("#")
    first = person.latent()
    assert "of" in page.get_by_text("in the list").inner_text()
    page.keyboard.press("j")
    page.wait_for_function(f"!document.querySelector('h1').innerText.startsWith('#{first} ')")
    person.settle()
    second = person.latent()
    person.keyed()
    page.wait_for_url(f"**f={second}**")
    page.keyboard.press("ArrowLeft")
    person.at_latent(first)
    page.keyboard.press("ArrowRight")
    person.at_latent(second)
    page.go_back()
    person.at_latent(first)
    page.go_forward()
    person.at_latent(second)
    other = person.open(page=person.tab(), path="feature", f=second)
    assert other.locator("h1").first.inner_text() == page.locator("h1").first.inner_text()


def test_ticked_latents_are_compared_by_an_address_of_their_own(visit):
    person = visit()
    page = person.open("features", sort="max")
    for told, row in (("1 ticked", 0), ("2 ticked", 2)):
        cell(page, row, 15)
        page.get_by_text(told).wait_for()  # the row of buttons that comes with the first moves the table
        person.settle()
    page.get_by_role("button", name="Compare these").click()
    page.wait_for_url(re.compile(r"ids=\d+(%2C|,)\d+"))
    person.settle()
    page.get_by_role("button", name="Open #").nth(1).wait_for()


def test_after_the_key_for_a_text_another_tab_can_be_opened(visit):
    person = visit()
    page = person.open("feature", f=5)
    person.keyed()
    page.keyboard.press("t")
    page.wait_for_function("document.activeElement?.ariaLabel === 'Text to test'")
    person.settle()
    page.get_by_role("radio", name="Related").click()
    page.wait_for_url("**tab=Related**")
    page.get_by_text("Related latents", exact=True).wait_for()


def test_typing_walks_nowhere_and_what_was_written_stays(visit):
    person = visit()
    page = person.open("feature", f=5)
    person.keyed()
    page.keyboard.press("t")
    page.wait_for_function("document.activeElement?.ariaLabel === 'Text to test'")
    page.keyboard.type("jkxse4 the dog")
    assert page.get_by_label("Text to test").input_value() == "jkxse4 the dog"
    assert person.latent() == 5
    page.locator("h1").first.click()
    page.keyboard.press("e")
    field = page.get_by_label("Label of #5")
    field.wait_for()
    person.settle()
    field.fill("jumping <b>dogs</b>")
    field.press("Enter")
    page.wait_for_function("document.querySelector('h1')?.innerText.includes('jumping')")
    person.settle()
    assert page.locator("h1").first.inner_text() == "#5 jumping <b>dogs</b>"
    page.locator("h1").first.click()
    page.keyboard.press("x")
    page.get_by_role("button", name="Starred").wait_for()
    person.open("feature", f=5)
    assert "jumping" in page.locator("h1").first.inner_text()
    page.get_by_role("button", name="Starred").wait_for()


def test_texts_are_tested_and_sent_on(visit):
    person = visit()
    page = person.open("feature", f=3, tab="Try a text")
    field = page.get_by_label("Text to test")
    field.fill("the dog runs\na cat sat")
    page.get_by_role("button", name="Read", exact=True).click()
    page.get_by_text(re.compile(r"fires on \d")).nth(1).wait_for()
    assert page.get_by_text("unexplained (FVU)").count() == 2
    page.get_by_role("button", name="prompt").last.click()
    page.wait_for_url(re.compile(r"/prompt\?.*text="))
    person.settle()
    page.get_by_text("Next token", exact=True).wait_for()


def test_two_prompts_are_compared_by_their_address_in_a_fresh_tab(visit):
    person = visit()
    params = {"text": "the dog runs to the river", "with": "a cat looks at the moon", "two": "true"}
    page = person.open("prompt", **params)
    page.get_by_text("Differences").wait_for()
    assert page.get_by_label("Second text").input_value() == params["with"]
    page.locator("[data-testid=stDataFrame]").first.wait_for()


def tab_to(page, name: str) -> None:
    """Press Tab until something of this name has the cursor."""
    for _ in range(80):
        page.keyboard.press("Tab")
        told = page.evaluate("(e => e.matches('main, body') ? '' : e.ariaLabel ?? e.innerText)(document.activeElement)")
        if name in told.split("\n"):
            return
    raise AssertionError(f"no way to {name!r} by Tab")


def test_a_steered_text_is_reached_by_the_keyboard_alone(visit):
    person = visit()
    page = person.open("feature", f=3)
    person.keyed()
    page.keyboard.press("s")
    page.wait_for_url(re.compile(r"/steer\?.*f=3"))
    person.headed("#3")
    tab_to(page, "Generate")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/steer\?.*run="))
    person.settle()
    page.locator(".tok").first.wait_for()


def test_two_sessions_at_once_share_the_model_and_what_was_said_and_nothing_else(visit):
    texts = {visit(): "the dog runs to the river", visit(theme="dark", width=768): "a cat looks at the moon"}
    for person, text in texts.items():  # both ask before either was answered
        person.page.goto(f"{person.server}/prompt?{urlencode({'pack': 'tiny', 'text': text})}", wait_until="commit")
    for person, text in texts.items():
        person.page.get_by_text("Next token", exact=True).wait_for()
        person.page.locator(".tok").first.wait_for()
        person.settle()
        assert person.page.get_by_label("Text", exact=True).input_value() == text
        assert "".join(text.split()) in "".join("".join(person.page.evaluate(TOKENS)).split())
        assert not person.page.locator("[data-testid=stException], [data-testid=stAlertContentError]").count()
    one, other = texts
    one.open("feature", f=7)
    one.keyed()
    one.page.keyboard.press("e")
    field = one.page.get_by_label("Label of #7")
    field.wait_for()
    one.settle()
    field.fill("said by the first")
    field.press("Enter")
    one.page.wait_for_function("document.querySelector('h1')?.innerText.includes('said by the first')")
    assert "said by the first" in other.open("feature", f=7).locator("h1").first.inner_text()


def test_a_latent_out_of_range_is_refused_in_the_browser_too(visit):
    person = visit()
    person.open("feature", f="abc")
    assert "whole numbers from 0 to" in person.refused()


@pytest.mark.parametrize(("theme", "width", "pages"), [("dark", 768, PAGES), ("light", 1280, PAGES[1:3])])
def test_every_page_fits_its_window_in_light_and_dark(visit, theme, width, pages):
    person = visit(theme=theme, width=width)
    for path, params in pages:
        page = person.open(path, **params)
        wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], path
        colour = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 200) == (theme == "dark")


def test_chinese_arabic_and_emoji_tokens_are_shown_in_the_texts_order_and_names_of_what_is_unseen_stand_apart(visit):
    person = visit(slug="img-src-x-onerror-alert-1-hostile")
    page = person.open("feature", f=2)
    page.locator(".tok").first.wait_for()
    shown = page.evaluate(
        "[...document.querySelectorAll('*')]"
        ".filter(e => e.shadowRoot).flatMap(e => [...e.shadowRoot.querySelectorAll('.tok')])"
        ".map(t => [t.textContent, getComputedStyle(t).unicodeBidi])"
    )
    texts = {text.strip() for text, _ in shown}
    assert {"中文", "مرحبا"} <= texts
    assert any("👩" in text for text in texts)
    named = {bidi for text, bidi in shown if re.fullmatch("[⟨⟪][^⟨⟪⟩⟫]*[⟩⟫]", text)}
    assert named <= {"isolate"}
    assert {bidi for text, bidi in shown if text.strip() in ("中文", "مرحبا")} == {"normal"}
