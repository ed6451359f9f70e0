"""The page of a run in a browser, opened from disk: what is shown, and what a person does with it."""

import io
import json
import re

import numpy as np
import pytest
from fake_engine import FakeEngine, labels, manifest, opened, photographs
from PIL import Image

from stage_rt.noise import stream
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.run.night import follow_all, plans
from stage_rt.run.painters import Alone
from stage_rt.run.reject import read_list

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

ODD = "50% #1?"
COUNTS = {ODD: 33, "crack": 40}
OUTLINE = (255, 45, 85)


def jobs(folder):
    normals = photographs(folder / "normals", 3)
    normals = [
        path.rename(path.with_name(f"<img src=x onerror=alert({n})>'\"&.png"))
        for n, path in enumerate(normals)
    ]
    masks = labels(folder / "masks", 4)
    return [
        Job(normals, masks, f"tile+{kind}", count, 7, True, 4, min_fill=0.4, retries=1)
        for kind, count in COUNTS.items()
    ]


def engine():
    """One that fails at one sample and paints nothing of another."""
    made = FakeEngine(poisoned=(5, stream(5, attempt=1)), idle=lambda number: number % 2**20 == 9)
    model = made.spec.model.model_copy(update={"prompts": {f"tile+{kind}": "a" for kind in COUNTS}})
    made.spec = made.spec.model_copy(update={"model": model})
    return made


def paint(folder, rejected=None):
    def ignore(what):
        pass

    made = plans(engine().spec, jobs(folder), notify=ignore)
    follow_all(Alone(engine()), made, folder / "run", rejected=rejected or {}, notify=ignore, progress=ignore)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the ``run`` of two types of 73 samples; read only."""
    folder = tmp_path_factory.mktemp("page")
    paint(folder)
    return folder


@pytest.fixture
def show(browser):
    """``show(run)`` opens its page; whatever goes wrong in it, or asks for anything but files, fails the test."""
    contexts, wrong = [], []

    def failed(request):
        # A picture that was still being read when the page was left, or loaded again.
        if request.failure != "net::ERR_ABORTED":
            wrong.append(f"{request.failure}: {request.url}")

    def opens(run, width=1300, height=900, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", failed)
        page.on(
            "request", lambda request: request.url.startswith(("file:", "blob:")) or wrong.append(request.url)
        )
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto((run / "report/index.html").as_uri())
        page.wait_for_selector(".grid li")
        return page

    yield opens
    for context in contexts:
        context.close()
    assert not wrong


def paint_holes(run, count, **engine):
    folder = run.parent
    job = Job(photographs(folder / "n", 2), labels(folder / "m", 2), "tile+hole", count, 0, True, 4)
    fill(FakeEngine(**engine), job, run)
    return run


def judge_all(page, key):
    page.locator(".grid button").nth(0).focus()
    for _ in titles(page):
        page.keyboard.press(key)


def titles(page):
    return page.locator(".grid .text span:first-child").all_text_contents()


def lines(run, kind):
    return [line for line in manifest(run / "types" / kind) if line["status"] == "ok"]


def picture(page, selector=".stage"):
    return Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")


def has_outline(shot):
    return bool((np.asarray(shot) == OUTLINE).all(axis=2).any())


def test_every_pair_is_on_some_page_the_least_painted_first(here, show):
    run, page = here / "run", show(here / "run")
    ok = [
        (line["fill"], n, line["index"], kind) for n, kind in enumerate(COUNTS) for line in lines(run, kind)
    ]
    wanted = [f"{kind} {index}" for _, _, index, kind in sorted(ok)]
    assert len(wanted) == sum(COUNTS.values()) - 2
    assert titles(page) == wanted[:60]
    assert page.locator("#found").text_content() == f"1 to 60 of {len(wanted)} pairs"
    page.keyboard.press("PageDown")
    assert titles(page) == wanted[60:]
    assert page.locator(".pager [name=next]").is_disabled()
    # Every thumbnail is there, whatever the type is called.
    loaded = page.evaluate(
        """Promise.all([...document.querySelectorAll(".tile")].map(async (tile) => {
             const image = new Image();
             image.src = tile.style.backgroundImage.slice(5, -2);
             await image.decode();
             return image.naturalWidth;
           }))"""
    )
    assert len(loaded) == 2 * len(wanted[60:])
    assert min(loaded) > 0


def test_types_states_and_orders_are_chosen(here, show):
    run, page = here / "run", show(here / "run")
    page.locator(".type h2 button").nth(1).click()
    assert {title.rpartition(" ")[0] for title in titles(page)} == {"crack"}
    assert page.locator(".bar [name=type]").input_value() == "1"
    page.select_option(".bar [name=order]", "index")
    assert titles(page) == [f"crack {line['index']}" for line in lines(run, "crack")]
    page.select_option(".bar [name=order]", "strong")
    change = sorted(lines(run, "crack"), key=lambda line: (-abs(line["contrast"]), line["index"]))
    assert titles(page) == [f"crack {line['index']}" for line in change]
    page.select_option(".bar [name=show]", "weak")
    weak = [f"crack {line['index']}" for line in lines(run, "crack") if line.get("weak")]
    assert titles(page) == weak == ["crack 9"]


def test_types_are_summed_up_with_what_failed(here, show):
    page = show(here / "run")
    card = page.locator(".type").nth(0)
    assert "32 of 33 pairs" in card.text_content()
    heights = (
        card.locator(".bars")
        .nth(0)
        .locator("rect")
        .evaluate_all("all => all.map(one => +one.getAttribute('height'))")
    )
    assert len(heights) == 20
    assert max(heights) == 1
    assert f"{ODD} 5 (" in page.locator("details").nth(0).text_content()
    assert "is not finite" in page.locator("details").nth(0).text_content()


def test_the_slider_shows_the_photograph_and_the_result_at_the_label(here, show):
    run, page = here / "run", show(here / "run")
    page.select_option(".bar [name=order]", "index")
    page.locator(".grid button").nth(2).click()
    line = lines(run, ODD)[2]
    left, top, right, bottom = line["box"]
    result, photo = (
        opened(run / line["image"]).convert("RGB"),
        opened(here / "normals" / line["normal"]).convert("RGB"),
    )
    stage = page.locator(".stage").bounding_box()
    scale = min(stage["width"] / (right - left), stage["height"] / (bottom - top))
    middle = (left + right) / 2, (top + bottom) / 2

    def at(shot, x, y):
        """What is shown of pixel (x, y) of the picture."""
        place = (
            (x + 0.5 - middle[0]) * scale + stage["width"] / 2,
            (y + 0.5 - middle[1]) * scale + stage["height"] / 2,
        )
        return shot.getpixel((int(place[0]), int(place[1])))

    page.evaluate("Promise.all([...document.querySelectorAll('.layer img')].map((image) => image.decode()))")
    slider = page.locator("[name=cut]")
    slider.focus()
    page.keyboard.press("End")
    before = picture(page)
    page.keyboard.press("Home")
    after = picture(page)
    changed = 0
    for x, y in ((12, 9), (15, 11), (18, 12), (5, 12), (20, 4)):
        for shot, wanted in ((before, photo), (after, result)):
            assert max(abs(a - b) for a, b in zip(at(shot, x, y), wanted.getpixel((x, y)), strict=True)) < 3
        changed += photo.getpixel((x, y)) != result.getpixel((x, y))
    assert changed >= 3
    assert not has_outline(after)
    page.keyboard.press("o")
    assert has_outline(picture(page))
    page.keyboard.press("z")
    assert page.locator("[name=zoom]").text_content() == "Label"
    fitted = min(stage["width"] / 40, stage["height"] / 30) * 40
    assert page.locator(".layer .new").bounding_box()["width"] == pytest.approx(fitted, abs=1)


def test_pairs_are_judged_by_keyboard_and_the_list_paints_them_again(show, tmp_path):
    paint(tmp_path)
    run = tmp_path / "run"
    page = show(run, accept_downloads=True)
    page.select_option(".bar [name=order]", "index")
    page.locator(".grid button").nth(0).focus()
    for key in ("r", "a", "ArrowRight", "Enter", "r", "Escape"):
        page.keyboard.press(key)
    expect(page.locator("#found")).to_have_text(re.compile("3 judged, 2 rejected$"))
    expect(page.locator(".grid button:focus .text span").first).to_have_text(f"{ODD} 4")
    page.keyboard.press("a")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("a")
    expect(page.locator("#found")).to_have_text(re.compile("3 judged, 2 rejected$"))
    page.reload()
    page.wait_for_selector(".grid li")
    expect(page.locator("#found")).to_have_text(re.compile("3 judged, 2 rejected$"))
    page.select_option(".bar [name=show]", "rejected")
    assert sorted(titles(page)) == [f"{ODD} 0", f"{ODD} 3"]
    with page.expect_download() as waiting:
        page.locator("[name=download]").click()
    waiting.value.save_as(tmp_path / "reject.json")
    asked = read_list(tmp_path / "reject.json")
    before = manifest(run / "types" / ODD)
    assert asked == {ODD: {index: before[index]["image_sha256"][:16] for index in (0, 3)}}
    paint(tmp_path, asked)
    assert [line["index"] for line in manifest(run / "types" / ODD) if "rejected" in line] == [0, 3]
    page.reload()
    page.wait_for_selector(".grid li")
    # What was painted anew is not judged yet.
    expect(page.locator("#found")).to_have_text(re.compile("1 judged, 0 rejected$"))
    page.select_option(".bar [name=show]", "repainted")
    assert sorted(titles(page)) == [f"{ODD} 0", f"{ODD} 3"]
    page.select_option(".bar [name=show]", "again")
    again = {f"{kind} {line['index']}" for kind in COUNTS for line in lines(run, kind) if "attempts" in line}
    assert set(titles(page)) == again == {f"{ODD} 9", "crack 9"}


def test_marks_stay_when_another_run_of_the_same_command_is_judged(show, tmp_path):
    """A command with another number of steps, say: nothing but their images tells the runs apart."""
    page = show(paint_holes(tmp_path / "one", 4))
    judge_all(page, "r")
    paint_holes(tmp_path / "two", 4, idle=lambda stream: True)
    page.goto((tmp_path / "two/report/index.html").as_uri())
    expect(page.locator("#found")).to_have_text("4 pairs")
    judge_all(page, "a")
    paint_holes(tmp_path / "one", 6)
    page.goto((tmp_path / "one/report/index.html").as_uri())
    expect(page.locator("#found")).to_have_text("6 pairs · 4 judged, 4 rejected")


def test_two_tabs_of_a_page_keep_one_anothers_marks(show, tmp_path):
    page = show(paint_holes(tmp_path / "run", 4))
    other = page.context.new_page()
    other.goto(page.url)
    for tab, place in ((page, 0), (other, 1), (page, 2)):
        tab.locator(".grid button").nth(place).focus()
        tab.keyboard.press("r")
    for tab in (page, other):
        expect(tab.locator("#found")).to_have_text("4 pairs · 3 judged, 3 rejected")
        assert tab.locator(".grid button.rejected").count() == 3
    page.locator(".grid button").nth(1).focus()
    page.keyboard.press("r")
    expect(other.locator("#found")).to_have_text("4 pairs · 2 judged, 2 rejected")
    page.reload()
    expect(page.locator("#found")).to_have_text("4 pairs · 2 judged, 2 rejected")


def test_the_time_it_took_is_that_of_the_sittings_that_came_to_something(show, tmp_path):
    job = Job(photographs(tmp_path / "n", 2), labels(tmp_path / "m", 2), "tile+hole", 2, 0, True, 4)
    fill(FakeEngine(), job, tmp_path / "run")
    sittings = [(3600, 900), (2400, 600), (5, 0)]
    told = [
        {"started": "2026-01-02T03:04:05+00:00", "seconds": time, "samples": count}
        for time, count in sittings
    ]
    (tmp_path / "run/report/times.js").write_text(f"window.stageTimes = {json.dumps(told)};\n")
    text = show(tmp_path / "run").locator("#times").text_content()
    assert text.startswith(" · painted in 1 h 40 min at 2 times, 4.0 s a pair, until 1/2/2026, ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(here, show, scheme):
    page = show(here / "run", 390, 844, color_scheme=scheme)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    paper = picture(page, "header").getpixel((2, 2))
    assert (sum(paper) < 150) == (scheme == "dark")
    page.locator(".grid button").nth(0).click()
    assert page.locator("#viewer [name=accept]").bounding_box()["y"] < 844 - 30
    assert page.locator("#viewer").evaluate("viewer => viewer.scrollWidth") <= 390


def test_every_control_has_a_name(here, show):
    page = show(here / "run")
    page.locator(".grid button").nth(0).click()
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input, select, a[href]")]
             .filter((one) => !(one.textContent.trim() || one.ariaLabel || one.closest("label")?.textContent.trim()))
             .map((one) => one.outerHTML)"""
    )
    assert unnamed == []


def test_a_run_of_one_type_without_pairs_has_a_page(browser, tmp_path):
    job = Job(photographs(tmp_path / "n", 2), labels(tmp_path / "m", 2), "tile+hole", 2, 0, True, 4)
    fill(FakeEngine(poisoned=(0, 1)), job, tmp_path / "run")
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto((tmp_path / "run/report/index.html").as_uri())
    page.wait_for_selector(".bar:not([hidden])")
    assert page.locator("#found").text_content() == "0 pairs"
    assert errors == []
    page.close()
