"""The search page as a person uses it, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import needs_browser
from driven_browser import Browser, browsing
from served import Client, serving

from stores import Store

pytestmark = needs_browser
FIRST = "document.querySelector('#results .hit img')"


@pytest.fixture(scope="module")
def client(searched_store: Store) -> Iterator[Client]:
    with serving(searched_store.root) as client:
        yield client


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def first(browser: Browser) -> str:
    return str(browser.run(f"{FIRST}.getAttribute('src').split('?')[0]"))


def test_a_person_types_a_text_and_goes_from_picture_to_picture(
    client: Client, browser: Browser, searched_store: Store
) -> None:
    """By the keyboard alone: the known picture comes first, and what is near it next."""
    browser.screen(1200, 900, dark=False)
    browser.open(client.url)
    browser.run("document.activeElement.blur()")
    browser.press("/")
    browser.type(searched_store.captions["text"][7].as_py())
    browser.press("Enter")
    browser.wait(f"{FIRST} && {FIRST}.complete && {FIRST}.naturalWidth > 0")
    row = searched_store.captions["sample"][7].as_py()
    assert first(browser) == f"/thumbnail/{row}"
    assert "q=" in browser.run("location.search"), "the address can be kept"
    browser.press("ArrowDown")
    browser.press("Enter")
    browser.wait("document.querySelector('.near') && document.readyState == 'complete'")
    assert f"row={row}" in browser.run("location.search")
    assert first(browser) != f"/thumbnail/{row}", "itself is not near itself"


def test_a_person_chooses_an_image_and_adds_words(
    client: Client, browser: Browser, searched_store: Store, tmp_path: Path
) -> None:
    (tmp_path / "mine.png").write_bytes(searched_store.images[3])
    browser.open(client.url)
    browser.choose("#image", tmp_path / "mine.png")
    browser.wait(f"{FIRST} && {FIRST}.complete")
    assert first(browser) == "/thumbnail/3"
    browser.wait("document.querySelector('#drop img').naturalWidth > 0")
    before = browser.run("document.querySelectorAll('#results .hit')[1].innerHTML")
    browser.run(f"document.querySelector('[name=q]').value = {searched_store.captions['text'][100].as_py()!r}")
    browser.run("document.querySelector('#ask').requestSubmit()")
    browser.wait(f"document.querySelectorAll('#results .hit')[1].innerHTML != {before!r}")
    browser.run("document.querySelector('[name=find]').value = 'text'")
    browser.run("document.querySelector('#ask').requestSubmit()")
    browser.wait("document.querySelector('#results .texts')")


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)], ids=["wide-light", "phone-dark"])
def test_the_page_fits_and_follows_the_colour_scheme(
    client: Client, browser: Browser, searched_store: Store, width: int, dark: bool
) -> None:
    browser.screen(width, 844, dark=dark)
    browser.open(f"{client.url}/?q=a+red+circle&beside=hog-color&split=test")
    browser.wait(f"{FIRST}.complete && {FIRST}.naturalWidth > 0")
    assert browser.run("document.scrollingElement.scrollWidth") <= width, "nothing runs over the edge"
    seen = browser.shot()
    assert seen.shape == (844, width, 3)
    assert (seen[:, :4].mean() < 60) == dark
    assert (seen[:, :4].mean() > 200) == (not dark)


def test_text_search_needs_no_script(client: Client, browser: Browser, searched_store: Store) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(client.url)
        browser.run("document.querySelector('[name=q]').focus()")
        browser.type(searched_store.captions["text"][7].as_py())
        browser.press("Enter")
        browser.wait(f"{FIRST} && document.readyState == 'complete'")
        assert first(browser) == f"/thumbnail/{searched_store.captions['sample'][7].as_py()}"
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
