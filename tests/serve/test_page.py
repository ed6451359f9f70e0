"""The page in a browser, over a server of its own: draw, paint, judge, order, and load it again in the middle."""

import json
import time

import numpy as np
import pytest
from closed_engine import Site, furnish
from fake_engine import opened


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server that takes a second for a pair."""
    made = Site(furnish(tmp_path_factory.mktemp("page")), delay=0.02)
    yield made
    made.close()


@pytest.fixture
def show(browser, site):
    """``show()`` opens the page; what goes wrong in it, or asks for anything but the server, fails the test."""
    contexts, wrong = [], []

    def opens(url=None, width=1200, height=900, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(25_000)
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((url or site.url, "data:", "blob:")) or wrong.append(request.url)
            ),
        )
        page.goto(url or site.url)
        return page

    yield opens
    for context in contexts:
        context.close()
    assert not wrong


def until(page, true):
    """Wait for an expression to hold; playwright's own way needs `eval`, which the page does not allow."""
    deadline = time.monotonic() + 25
    while not page.evaluate(true):
        assert time.monotonic() < deadline, true
        page.wait_for_timeout(20)


def ready(page):
    until(page, "document.getElementById('canvas').width === 160")
    return page


def drag(page, *points):
    """Draw through points, given in shares of the canvas."""
    box = page.locator("#canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def mask(page):
    """What is drawn, bool ``[120, 160]``."""
    until(page, "sessionStorage.getItem('stage-rt') !== null")
    text = page.evaluate("JSON.parse(sessionStorage.getItem('stage-rt')).mask")
    if text is None:
        return np.zeros((120, 160), bool)
    import base64
    import io

    return np.asarray(opened(io.BytesIO(base64.b64decode(text))).convert("L")) > 0


def done(page):
    page.wait_for_selector("#result:not([hidden])")
    return page


def colours(page):
    """The canvas's pixels ``[120, 160, 4]``."""
    data = page.evaluate(
        "[...document.getElementById('canvas').getContext('2d').getImageData(0, 0, 160, 120).data]"
    )
    return np.array(data, np.uint8).reshape(120, 160, 4)


def test_draw_paint_compare_and_accept(show, site):
    page = ready(show())
    page.get_by_label("001.png").check(force=True)
    until(page, "JSON.parse(sessionStorage.getItem('stage-rt')).photograph === '001.png'")
    drag(page, (0.3, 0.5), (0.6, 0.55))
    drawn = mask(page)
    assert drawn[60:66, 60:90].any()
    assert not drawn[:40].any()
    page.get_by_label("crack").check(force=True)
    page.locator("#steps").fill("40")
    page.locator("#paint").click()
    until(page, "document.getElementById('progress').value > 0")
    done(page)
    photo = np.asarray(opened(site.here / "normals/001.png").convert("RGB"))
    after = colours(page)[..., :3]
    changed = (np.abs(after.astype(int) - photo).max(axis=2) > 2) & ~np.pad(drawn, 0)
    assert (np.abs(after[drawn].astype(int) - photo[drawn]).mean()) > 5
    # The picture of a region of 16 pixels is pasted with a feather of a few around the label.
    assert changed.mean() < 0.1
    page.locator("#compare").evaluate(
        "(slider) => { slider.value = 0; slider.dispatchEvent(new Event('input')); }"
    )
    np.testing.assert_allclose(colours(page)[:, 2:, :3], photo[:, 2:], atol=2)
    assert "Label painted" in page.locator("#figures").text_content()
    page.keyboard.press("a")
    until(page, "document.getElementById('told').textContent.startsWith('Accepted')")
    assert page.locator("#reject").is_disabled()
    kept = site.here / "data/accepted/tiles"
    line = json.loads((kept / "accepted.jsonl").read_text().splitlines()[-1])
    assert line["photograph"] == "001.png"
    np.testing.assert_array_equal(np.asarray(opened(kept / line["mask"])) > 0, drawn)


def test_tools_draw_what_they_are_called(show):
    page = ready(show())
    page.keyboard.press("o")
    drag(page, (0.25, 0.25), (0.75, 0.75))
    ellipse = mask(page)
    assert ellipse.sum() == pytest.approx(np.pi * 40 * 30, rel=0.05)
    page.keyboard.press("e")
    page.locator("#size").evaluate(
        "(slider) => { slider.value = 20; slider.dispatchEvent(new Event('input')); }"
    )
    drag(page, (0.2, 0.5), (0.8, 0.5))
    erased = mask(page)
    assert not erased[55:65, 40:120].any()
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(mask(page), ellipse)
    page.locator("#clear").click()
    assert not mask(page).any()
    page.keyboard.press("p")
    for point in ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)):
        drag(page, point, point)
    page.keyboard.press("Enter")
    assert mask(page).sum() == pytest.approx(80 * 60, rel=0.05)
    page.locator("#clear").click()
    page.keyboard.press("b")
    page.locator("#canvas").focus()
    for key in ("ArrowLeft", "ArrowLeft", " ", "ArrowRight", " "):
        page.keyboard.press(key)
    assert mask(page)[60, 75]
    page.get_by_label("crack").check(force=True)
    page.locator("#alike").click()
    until(page, "document.getElementById('seed').value !== '0'")
    assert mask(page).sum() > 20
    assert not mask(page)[60, 75] or mask(page).sum() > 100


def test_a_page_that_is_loaded_again_in_the_middle_goes_on(show):
    page = ready(show())
    drag(page, (0.3, 0.3), (0.5, 0.6))
    drawn = mask(page)
    page.locator("#steps").fill("40")
    page.locator("#paint").click()
    until(page, "document.getElementById('progress').value > 0")
    pair = page.evaluate("JSON.parse(sessionStorage.getItem('stage-rt')).pair")
    page.reload()
    ready(page)
    done(page)
    assert page.evaluate("JSON.parse(sessionStorage.getItem('stage-rt')).pair") == pair
    np.testing.assert_array_equal(mask(page), drawn)
    page.reload()
    done(ready(page))


def test_two_browsers_paint_at_once_and_one_stops(show, open_site):
    # A busy machine is slow to click, and what is to be stopped has to be there still.
    url = open_site(delay=0.1).url
    pages = [ready(show(url)) for _ in range(2)]
    for number, page in enumerate(pages):
        drag(page, (0.3, 0.3 + 0.2 * number), (0.5, 0.4))
        page.locator("#steps").fill("40")
        page.locator("#paint").click()
    pages[1].locator("#stop").click()
    until(pages[1], "document.getElementById('told').textContent === 'Stopped.'")
    done(pages[0])
    assert pages[1].locator("#paint").is_enabled()


def test_a_run_is_ordered_followed_and_reviewed(show, site):
    page = ready(show())
    drag(page, (0.3, 0.3), (0.5, 0.6))
    page.locator("#steps").fill("10")
    page.locator("#count").fill("3")
    page.locator("#order").click()
    page.wait_for_selector("#runs li[data-state=done] a")
    assert page.locator("#runs li").first.text_content().startswith("3 of 3 ")
    page.locator("#runs a").first.click()
    page.wait_for_selector(".grid li")
    assert page.locator(".grid li").count() == 3


def test_nothing_drawn_and_no_server_are_told(show, open_site):
    other = open_site()
    page = ready(show(other.url))
    page.keyboard.press("Enter")
    assert page.locator("#told").text_content() == "Draw where the defect shall be."
    drag(page, (0.3, 0.3), (0.5, 0.6))
    # Not by closing it: a request that fails is an error of the console, which `show` does not let pass.
    page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('gone')); }")
    page.locator("#paint").click()
    until(page, "document.getElementById('told').textContent.startsWith('The server cannot be reached')")
    assert page.locator("#paint").is_enabled()


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_everything_is_there_and_a_finger_draws(show, dark):
    page = ready(
        show(width=375, height=700, has_touch=True, is_mobile=True, color_scheme="dark" if dark else "light")
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    small = page.evaluate(
        "[...document.querySelectorAll('button')].filter((one) => one.offsetParent && one.offsetHeight < 36).length"
    )
    assert small == 0
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(23, 23, 26)") is dark
    box = page.locator("#canvas").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    time.sleep(0.1)
    assert mask(page)[60, 80]
