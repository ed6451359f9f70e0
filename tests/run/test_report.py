import json
from html.parser import HTMLParser

import pytest
from fake_engine import PROMPT, FakeEngine, contents, labels, opened, photographs

from stage_rt.run import report
from stage_rt.run.fill import fill
from stage_rt.run.job import Job


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


def page(run):
    return (run / "report/index.html").read_text()


def pairs(run, number=0):
    """What the page is given of a type: its fields, and its rows as dicts."""
    text = (run / f"report/pairs-{number}.js").read_text()
    head, _, rest = text.partition("Object.assign(")[2].partition(", {rows: [\n")
    rows, _, tail = rest.rpartition("]}, ")
    script = (run / "report/report.js").read_text()
    columns = json.loads(script.partition("const COLUMNS = ")[2].partition(";")[0])
    found = json.loads(f"[{rows.strip().removesuffix(',')}]")
    fields = json.loads(head) | json.loads(tail.removesuffix("));\n"))
    return fields, [dict(zip(columns, row, strict=True)) for row in found]


def test_the_page_asks_only_for_files_of_the_run(tmp_path):
    run = filled(tmp_path)
    links = Page(page(run)).links
    assert links == ["report.css", "pairs-0.js", "times.js", "report.js"]
    assert all((run / "report" / link).is_file() for link in links)
    assert "default-src 'none'" in page(run)
    for path in (run / "report").glob("*.*s"):
        assert "://" not in path.read_text().replace("http://www.w3.org/2000/svg", "")


def test_a_row_says_what_the_manifest_does(tmp_path):
    run = filled(tmp_path, count=6, poisoned=[4])
    fields, rows = pairs(run)
    lines = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 5]
    for row in rows:
        line = lines[row["index"]]
        same = ("fill", "leak", "contrast", "box")
        assert [row[name] for name in same] == [line[name] for name in same]
        assert (row["pixels"], row["attempts"], row["weak"]) == (line["label_pixels"], 1, 0)
        assert fields["photographs"][row["photograph"]][0] == line["normal"]
        assert fields["labels"][row["label"]] == line["label"]
        assert line["image_sha256"].startswith(row["digest"])
        place = run / fields["photographs"][row["photograph"]][1]
        assert place.read_bytes() == (tmp_path / "normals" / line["normal"]).read_bytes()


def test_the_page_tells_counts_recipe_and_failures(tmp_path):
    text = page(filled(tmp_path, count=6, poisoned=[4]))
    assert "5 of 6 pairs written" in text
    assert "1 failed" in text
    assert "<th>ema_stop</th><td>2</td>" in text
    assert "the sampler&#39;s result is not finite" in text


def test_the_page_says_nothing_of_failures_that_were_not(tmp_path):
    text = page(filled(tmp_path))
    assert "3 of 3 pairs written" in text
    assert "ailed" not in text
    assert "Notices" not in text


def test_more_failures_than_anybody_reads_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "TOLD", 2)
    text = page(filled(tmp_path, count=6, poisoned=[0, 2, 3, 4]))
    assert text.count("is not finite") == 2
    assert "2 more of hole are in" in text


def test_masks_that_were_left_out_are_told(tmp_path):
    labels(tmp_path / "masks", 1, size=(20, 90))[0].rename(tmp_path / "masks" / "tall.png")
    masks = [tmp_path / "masks" / "tall.png", *labels(tmp_path / "masks", 3)]
    fill(
        FakeEngine(),
        Job(photographs(tmp_path / "normals", 3), masks, PROMPT, 3, 0, True, 4),
        tmp_path / "run",
    )
    assert "hole: masks left out, as no photograph has their shape: `tall.png`" in page(tmp_path / "run")


def test_names_of_files_cannot_carry_markup(tmp_path):
    run = filled(tmp_path, names="<script>alert({n})<&", poisoned=[1])
    text = page(run)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(" in text
    # The script puts names into the page as text, and links to them by their encoded path.
    assert "innerHTML" not in (run / "report/report.js").read_text()


def test_names_of_files_cannot_carry_control_characters(tmp_path):
    run = filled(tmp_path, names="a\x1b[2J\n\u202e{n}", poisoned=[1])
    text = page(run)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "a\\x1b[2J\\n\\u202e" in text
    fields, _ = pairs(run)
    assert all("\x1b" not in name and "\u202e" not in name for name, _ in fields["photographs"])


def test_pages_of_older_releases_and_what_a_crash_left_go(tmp_path):
    run = filled(tmp_path)
    whole = contents(run)
    for name in ("report.html", "contact_sheet.png", "labels.png", "report/.index.html.01234567.tmp"):
        (run / name).touch()
    (run / "report/pairs-7.js").touch()
    (run / "report/notes.txt").touch()
    filled(tmp_path)
    assert contents(run) == whole | {"report/notes.txt": b""}


@pytest.mark.parametrize(("count", "tiles"), [(1, 1), (2, 2), (5, 5), (12, 12), (30, 12)])
def test_the_contact_sheet_shows_up_to_twelve_pairs(tmp_path, count, tiles):
    sheet = opened(filled(tmp_path, count=count) / "report/contact_sheet.jpg")
    columns, rows = min(2, tiles), -(-tiles // 2)
    assert sheet.width == 56 + 28 * (columns - 1) + 540 * columns
    assert sheet.height == 110 + 208 * rows


def test_the_contact_sheet_shows_normal_mask_and_result(tmp_path):
    run = filled(tmp_path, count=1)
    sheet = opened(run / "report/contact_sheet.jpg")
    mask = opened(run / "ground_truth/hole/000000_mask.png")
    x, y, scale = 28 + 182, 82 + 22, 176 / 40
    for column, row in ((15, 11), (2, 2)):
        shown = sheet.getpixel((int(x + (column + 0.5) * scale), int(y + (row + 0.5) * scale)))
        assert max(abs(level - mask.getpixel((column, row))) for level in shown) < 8


def test_a_run_in_which_all_failed_has_a_report(tmp_path):
    run = filled(tmp_path, poisoned=[0, 1, 2])
    assert "0 of 3 pairs written" in page(run)
    assert pairs(run)[1] == []
    assert opened(run / "report/contact_sheet.jpg").size == (596, 110)
