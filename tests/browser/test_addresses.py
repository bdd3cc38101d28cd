"""Addresses, history, search and the phone's bar in a real browser, behind a proxy's path: the part of the browser's tests that
`.ci/run` runs. One server and one small pack serve all of them."""

import re
import signal
from contextlib import suppress

import pytest

from tests.browser.conftest import Visitor, free_port, serving

BASE = "/user/me/proxy/absolute/8501"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    from tests.conftest import random_gemma
    from tests.help.labs import make_lab

    return make_lab(tmp_path_factory.mktemp("addresses") / "tiny", random_gemma(tiny_config, toy_tokenizer), toy_text) / "pack"


@pytest.fixture(scope="module")
def based(tiny):
    """The address of a server whose pages lie below a path."""
    with serving([tiny], base=BASE) as (address, _):
        yield address


@pytest.fixture(scope="module")
def open_window(chromium):
    windows = []

    def opening(width: int = 1280, height: int = 800):
        windows.append(chromium.new_context(viewport={"width": width, "height": height}))
        windows[-1].set_default_timeout(30_000)
        return windows[-1]

    yield opening
    for window in windows:
        window.close()


@pytest.fixture(scope="module")
def window(open_window):
    return open_window()


@pytest.fixture
def person(window, based):
    one = Visitor(window, based)
    yield one
    for tab in one.tabs:
        tab.close()
    assert one.outside == []


SEARCHES = "document.querySelector('input[aria-label=Search]')?.value === {!r}"
"""Whether the field of the Features page holds a text."""


def find(person: Visitor, text: str) -> None:
    """Type into the search box, by the keyboard alone, and take the first result."""
    begin_to_search(person)
    person.page.keyboard.type(text)
    person.page.locator(".option").first.wait_for()
    person.page.keyboard.press("Enter")


def begin_to_search(person: Visitor) -> None:
    """Press / until the box has the cursor: a page that has only just come may not hear keys yet."""
    for _ in range(50):
        if person.page.evaluate("document.activeElement?.shadowRoot?.activeElement?.getAttribute('role') === 'combobox'"):
            return
        person.page.keyboard.press("/")
        person.page.wait_for_timeout(50)
    raise AssertionError("no cursor in the search box")


def test_back_and_forward_step_through_search_filter_latent_and_random(person):
    page = person.open("features")
    search = page.locator("input[aria-label=Search]").first
    search.fill("the")
    search.press("Enter")
    page.wait_for_url("**q=the**")
    person.settle()
    page.get_by_text("Filters", exact=True).click()
    page.get_by_text("Include dense latents").first.click()
    page.wait_for_url("**dense=false**")
    person.settle()
    find(person, "7")
    page.wait_for_url("**/feature?**f=7**")
    person.at_latent(7)
    page.get_by_role("button", name="Random Shortcut A").click()
    page.wait_for_function("!document.querySelector('h1')?.innerText.startsWith('#7 ')")
    person.settle()
    page.go_back()
    person.at_latent(7)
    page.go_back()
    page.wait_for_url("**/features?**dense=false**")
    page.wait_for_function(SEARCHES.format("the"))
    page.go_back()
    page.wait_for_function("!location.search.includes('dense')")
    page.wait_for_function(SEARCHES.format("the"))
    page.go_back()
    page.wait_for_function("!location.search.includes('q=')")
    page.wait_for_function(SEARCHES.format(""))
    page.go_forward()
    page.wait_for_url("**q=the**")
    page.wait_for_function(SEARCHES.format("the"))


def test_a_link_keeps_the_path_of_a_proxy_and_opens_in_another_browser(person, open_window, based):
    asked: list[str] = []
    person.page.on("request", lambda request: asked.append(request.url))
    page = person.open("feature", f=5)
    assert not [url for url in asked if "feature/_stcore" in url]  # the page knows where its server is
    assert re.match(r"latent 5 · .* — scope", page.title())
    page.get_by_role("radio", name="Related").click()
    page.wait_for_url("**tab=Related**")
    page.get_by_role("button", name="Link", exact=True).click()
    page.get_by_role("button", name="Copy", exact=True).wait_for()
    link = page.locator(".link code").inner_text()
    assert link.startswith(f"{based}/feature?")
    other = Visitor(open_window(), based)
    other.page.goto(link)
    other.at_latent(5)
    other.page.get_by_text("Related latents", exact=True).wait_for()


def test_the_search_box_opens_pages_and_texts_by_the_keyboard_alone(person):
    page = person.open("health")
    find(person, "steer")
    page.wait_for_url("**/steer?**")
    page.get_by_role("heading", name="Steer with").wait_for()
    person.settle()
    find(person, "the dog runs to the river")
    page.wait_for_url("**/prompt?**text=the**")
    page.get_by_text("Latents by tokens").wait_for()
    begin_to_search(person)
    page.keyboard.type("river")
    page.locator(".option").nth(1).wait_for()
    page.keyboard.press("ArrowDown")
    assert page.locator(".option[aria-selected=true]").get_attribute("id") == "found-1"
    page.keyboard.press("Escape")
    page.locator("[role=listbox]").wait_for(state="hidden")
    person.headed("Read a text")


def test_on_a_phone_every_page_is_one_named_tap_away_and_generate_is_on_the_first_screen(open_window, based):
    person = Visitor(open_window(390, 844), based)
    page = person.open("steer", f=3)
    for title in ("Overview", "Features", "Feature", "Prompt", "Steer", "Health", "Match"):
        assert page.locator(".st-key-frame-pages").get_by_role("link", name=title, exact=True).count() == 1
    assert page.get_by_role("button", name="Generate").bounding_box()["y"] < 500
    page.locator(".st-key-frame-pages").get_by_role("link", name="Prompt").click()
    page.wait_for_url("**/prompt?**")
    person.headed("Read a text")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.go_back()
    page.wait_for_url("**/steer**")
    person.headed("#3")


def test_two_sessions_steer_at_once_and_each_sees_its_own_texts(person, open_window, based):
    other = Visitor(open_window(), based)
    for one, latent in ((person, 3), (other, 5)):
        one.open("steer", f=latent)
        one.page.get_by_role("button", name="Generate").click()
    for one, latent in ((person, 3), (other, 5)):
        one.page.wait_for_url("**run=**")
        one.headed(f"#{latent}")
        one.page.locator("[class*=st-key-steer-row-of-texts] strong", has_text="Random direction").wait_for()
    assert person.page.url != other.page.url


def test_a_server_killed_in_mid_generation_comes_back_to_the_same_settings(tiny, open_window):
    from playwright.sync_api import TimeoutError

    port = free_port()
    with serving([tiny], port) as (address, process):
        person = Visitor(open_window(), address)
        page = person.open("steer", f=3)
        page.get_by_label("Prompt", exact=True).fill("the old king")
        page.get_by_label("Prompt", exact=True).press("Control+Enter")
        page.wait_for_url("**draft=**")
        person.settle()
        began = page.get_by_role("button", name="Stop").or_(page.get_by_text("Loading")).first
        for _ in range(3):  # a click on a page that is just being drawn anew can be lost
            page.get_by_role("button", name="Generate").click()
            with suppress(TimeoutError):
                began.wait_for(timeout=8_000)
                break
        began.wait_for()
        process.send_signal(signal.SIGKILL)
        page.wait_for_selector("[data-testid=stApp]:not([data-test-connection-state=CONNECTED])")
    with serving([tiny], port):
        person.settle()
        assert page.get_by_label("Prompt", exact=True).input_value() == "the old king"
        page.wait_for_function("!document.querySelector('[data-testid=stBaseButton-primary]').disabled")
        page.get_by_role("button", name="Generate").click()
        page.wait_for_url("**run=**")
