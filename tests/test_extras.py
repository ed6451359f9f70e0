"""Optional libraries that are missing, and those that are there and do not load."""

import pytest

from stage_rt.errors import MissingExtraError
from stage_rt.extras import library


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package of some source that can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, source):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)

    return write


def said(module):
    with pytest.raises(MissingExtraError) as refused:
        library(module, "this engine needs Painter", "paint")
    return str(refused.value)


def test_what_is_not_installed_is_named_with_its_extra(package):
    package("painter_there", "")
    for module in ("painter_nowhere", "painter_nowhere.part", "painter_there.part"):
        assert said(module) == (
            "this engine needs Painter, which is not installed: `pip install 'stage-rt[paint]'`"
        )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libpaint.so.3: cannot open')", "libpaint.so.3: cannot open"),
        ("raise OSError('libpaint.so.3: cannot open')", "libpaint.so.3: cannot open"),
        ("import painters_own_need", "No module named 'painters_own_need'"),
    ],
)
def test_what_does_not_load_is_told_with_the_reason(package, source, reason):
    package("painter_broken", source)
    assert said("painter_broken") == (
        f"this engine needs Painter, which is installed and cannot be loaded ({reason}): install it again"
    )
