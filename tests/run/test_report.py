from html.parser import HTMLParser

import pytest
from fake_engine import PROMPT, FakeEngine, labels, opened, photographs
from PIL import Image

from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.run.report import stack


def filled(tmp_path, *, count=3, names="{n:03d}", **engine):
    normals = photographs(tmp_path / "normals", 3)
    normals = [path.rename(path.with_name(f"{names.format(n=n)}.png")) for n, path in enumerate(normals)]
    job = Job(normals, labels(tmp_path / "masks", 3), PROMPT, count, 0, True, 4)
    fill(FakeEngine(**engine), job, tmp_path / "run")
    return tmp_path / "run"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_links_only_to_files_of_the_run(tmp_path):
    run = filled(tmp_path)
    page = Page((run / "report.html").read_text())
    assert "contact_sheet.png" in page.links
    assert "labels.png" in page.links
    assert len(page.links) == 2 + 2 * 3
    for link in page.links:
        assert (run / link).is_file()
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_the_page_tells_counts_recipe_and_failures(tmp_path):
    text = (filled(tmp_path, count=6, poisoned=[4]) / "report.html").read_text()
    assert "5 of 6 pairs written" in text
    assert "1 failed" in text
    assert "<th>ema_stop</th><td>2</td>" in text
    assert "the sampler&#39;s result is not finite" in text


def test_the_page_says_nothing_of_failures_that_were_not(tmp_path):
    text = (filled(tmp_path) / "report.html").read_text()
    assert "3 of 3 pairs written" in text
    assert "ailed" not in text
    assert "empty" not in text


def test_names_of_files_cannot_carry_markup(tmp_path):
    text = (filled(tmp_path, names="<script>alert({n})<&") / "report.html").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;&amp;.png" in text


def test_names_of_files_cannot_carry_control_characters(tmp_path):
    text = (filled(tmp_path, names="a\x1b[2J\n\u202e{n}") / "report.html").read_text()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "a\\x1b[2J\\n\\u202e1.png" in text


@pytest.mark.parametrize(("count", "tiles"), [(1, 1), (2, 2), (5, 5), (12, 12), (30, 12)])
def test_the_contact_sheet_shows_up_to_twelve_pairs(tmp_path, count, tiles):
    sheet = opened(filled(tmp_path, count=count) / "contact_sheet.png")
    columns, rows = min(2, tiles), -(-tiles // 2)
    assert sheet.width == 56 + 28 * (columns - 1) + 540 * columns
    assert sheet.height == 110 + 208 * rows


def test_the_contact_sheet_shows_normal_mask_and_result(tmp_path):
    run = filled(tmp_path, count=1)
    sheet = opened(run / "contact_sheet.png")
    mask = opened(run / "ground_truth/hole/000000_mask.png")
    x, y, scale = 28 + 182, 82 + 22, 176 / 40
    for column, row in ((15, 11), (2, 2)):
        shown = sheet.getpixel((int(x + (column + 0.5) * scale), int(y + (row + 0.5) * scale)))
        assert shown == (mask.getpixel((column, row)),) * 3


def test_sheets_are_stacked_in_order(tmp_path):
    for name, size, level in (("a", (5, 3), 10), ("b", (7, 2), 20)):
        Image.new("RGB", size, (level,) * 3).save(tmp_path / f"{name}.png")
    stack([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "all.png")
    whole = opened(tmp_path / "all.png")
    assert whole.size == (7, 5)
    assert [whole.getpixel((0, y))[0] for y in range(5)] == [10, 10, 10, 20, 20]


def test_a_run_in_which_all_failed_has_a_report(tmp_path):
    run = filled(tmp_path, poisoned=[0, 1, 2])
    assert "0 of 3 pairs written" in (run / "report.html").read_text()
    assert opened(run / "contact_sheet.png").size == (596, 110)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (5, 3), (20, 6)])
def test_the_label_sheet_shows_up_to_twelve_of_the_weakest(tmp_path, count, rows):
    sheet = opened(filled(tmp_path, count=count) / "labels.png")
    assert sheet.height == 2 * 28 + rows * (176 + 20 + 12)
