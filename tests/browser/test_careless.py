"""What careless readers do: load anew, open two tabs, stop the server, take the pack away, write a label without an end."""

import shutil

import pytest

from tests.browser.conftest import Visitor, free_port, serving

LONG = "a label without an end " * 40 + "x" * 400


@pytest.fixture
def own_pack(packs, tmp_path):
    """A copy of the toy pack, to be maltreated."""
    return shutil.copytree(packs[1], tmp_path / "mine.pack")


def no_error(page) -> None:
    assert page.locator("[data-testid=stException]").all_inner_texts() == []


def narrow_enough(page) -> None:
    wide, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window


def test_loading_a_page_anew_keeps_what_its_address_says(visit):
    person = visit()
    page = person.open("features", q="the", sort="max", hide="")
    told = page.get_by_text("latents", exact=False).first.inner_text()
    page.reload()
    person.settle()
    assert page.get_by_label("Search").first.input_value() == "the"
    assert page.get_by_text("latents", exact=False).first.inner_text() == told
    page = person.open("prompt", text="the dog runs to the river")
    page.reload()
    person.settle()
    page.get_by_text("Next token", exact=True).wait_for()
    no_error(page)


def test_two_tabs_of_one_person_walk_on_their_own(visit):
    person = visit()
    one, other = person.open("feature", f=3), person.open("feature", f=9, page=person.tab())
    one.keyboard.press("j")
    person.at_latent(4)
    other.keyboard.press("k")
    other.wait_for_function("document.querySelector('h1')?.innerText.startsWith('#8 ')")
    assert person.latent() == 4
    no_error(one)
    no_error(other)


def test_fast_keys_end_where_they_lead_and_break_nothing(visit):
    person = visit()
    page = person.open("feature", f=10)
    person.keyed()
    for _ in range(6):
        page.keyboard.press("j")
    person.at_latent(16)
    page.wait_for_function("!document.body.dataset.scopeAhead && !window.scopeAhead.held.length")
    person.at_latent(16)
    page.wait_for_url("**f=16**")
    no_error(page)


def test_a_step_shows_the_next_latent_at_once_and_what_is_pressed_meanwhile_acts_on_it(own_pack, chromium):
    from scope.features.face import Pack

    window = chromium.new_context(viewport={"width": 1280, "height": 900})
    window.set_default_timeout(60_000)
    with serving([own_pack]) as (address, _):
        person = Visitor(window, address, "mine")
        with person.page.expect_response("**/latents?**") as fetched:
            page = person.open("feature", f=5)
        ahead = fetched.value.json()
        latent = next(i for i in (5, 6, 7) if str(i + 1) in ahead)  # one that is dead is shown by the server alone
        if latent != 5:
            with page.expect_response("**/latents?**"):
                person.open("feature", f=latent)
        page.wait_for_timeout(300)
        page.evaluate("document.addEventListener('scope-ahead', ({ detail }) => { window.shown = detail.head.number; })")
        page.keyboard.press("j")
        shown, heading = page.evaluate("[window.shown, document.querySelector('h1').innerText]")  # no server answers so soon
        page.keyboard.press("x")
        assert shown == f"#{latent + 1}"
        assert heading.startswith(f"{shown} ")
        page.get_by_role("button", name="Starred").wait_for()
        person.at_latent(latent + 1)
        page.wait_for_function("!document.body.dataset.scopeAhead")
        assert Pack.open(own_pack).notes.starred() == [latent + 1]
        page.get_by_role("button", name="Previous").click()
        person.at_latent(latent)
        page.get_by_role("button", name="Star", exact=False).first.wait_for()
        assert Pack.open(own_pack).notes.starred() == [latent + 1]
        no_error(page)
    page.wait_for_selector("[data-testid=stApp]:not([data-test-connection-state=CONNECTED])")
    page.keyboard.press("j")
    assert person.latent() == latent  # without a server nothing is shown that it did not say
    window.close()


@pytest.mark.parametrize(
    ("keys", "at", "starred"),
    [("jxj", 7, [6]), ("jkx", 5, [5]), ("jxk", 5, [6]), ("jjjkkkkkj", 4, []), ("kkjjjj", 7, [])],
)
def test_keys_pressed_fast_act_in_their_order(own_pack, chromium, keys, at, starred):
    """Whether the latents that are passed live or not: a dead one is shown by the server alone."""
    from scope.features.face import Pack

    window = chromium.new_context(viewport={"width": 1280, "height": 900})
    window.set_default_timeout(60_000)
    with serving([own_pack]) as (address, _):
        person = Visitor(window, address, "mine")
        page = person.open("feature", f=5)
        person.keyed()
        for key in keys:
            page.keyboard.press(key)
            page.wait_for_timeout(60)
        person.at_latent(at)
        page.wait_for_function("!document.body.dataset.scopeAhead && !window.scopeAhead.held.length")
        person.settle()
        assert person.latent() == at
        assert f"f={at}" in page.url
        assert Pack.open(own_pack).notes.starred() == starred
        page.keyboard.press("j")
        page.get_by_role("button", name="Edit label").click()  # rests until the server has come, and then acts there
        page.get_by_label(f"Label of #{at + 1}").wait_for()
        no_error(page)
    window.close()


def test_after_the_server_was_stopped_and_started_the_page_goes_on_where_it_was(own_pack, chromium):
    port = free_port()
    window = chromium.new_context(viewport={"width": 1280, "height": 900})
    window.set_default_timeout(60_000)
    with serving([own_pack], port) as (address, _):
        person = Visitor(window, address, "mine")
        page = person.open("feature", f=5)
    page.wait_for_selector("[data-testid=stApp]:not([data-test-connection-state=CONNECTED])")
    with serving([own_pack], port):
        person.settle()
        assert person.latent() == 5, page.locator("[data-testid=stMain]").inner_text()[:500]
        page.wait_for_timeout(1000)  # the server is told of the page, and then answers its first click
        person.settle()
        page.get_by_role("button", name="Next").click()
        person.at_latent(6)
        page.wait_for_function("!document.body.dataset.scopeAhead")
        person.at_latent(6)
        no_error(page)
        assert person.outside == []
    window.close()


def test_a_pack_taken_away_is_told_and_one_put_back_is_read_again(own_pack, chromium):
    window = chromium.new_context(viewport={"width": 1280, "height": 900})
    window.set_default_timeout(60_000)
    with serving([own_pack]) as (address, _):
        person = Visitor(window, address, "mine")
        page = person.open("feature", f=5)
        away = own_pack.rename(own_pack.with_name("away"))
        page.get_by_role("button", name="Next").click()
        page.locator("[data-testid=stAlert]").first.wait_for()
        person.settle()
        assert "mine.pack" in person.refused()
        no_error(page)
        for path in ("", "features", "prompt", "steer", "health"):
            person.open(path)
            assert person.refused(), path
            no_error(page)
        away.rename(own_pack)
        person.open("feature", f=6)
        assert person.latent() == 6
    window.close()


@pytest.mark.parametrize("width", [1280, 768])
def test_a_label_without_an_end_leaves_every_page_in_its_window(visit, packs, width):
    from scope.features.face import Pack

    store = Pack.open(packs[1])
    store.notes.set_label(11, LONG, "you", None)
    person = visit(width=width)
    try:
        for path, params in (
            ("feature", {"f": 11}),
            ("features", {"view": "Compare", "ids": "11,3"}),
            ("features", {"q": "label without"}),
            ("steer", {"f": 11}),
            ("", {}),
        ):
            page = person.open(path, **params)
            narrow_enough(page)
            no_error(page)
        assert "a label without an end" in person.open("feature", f=11).locator("h1").inner_text()
    finally:
        store.notes.set_label(11, "", "you", None)
