"""Hostile image files: each is refused by name, and quickly, or read like any other image."""

import io
import os
import random
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from stage_rt.errors import ImageError, InputError, MaskError
from stage_rt.images import inputs
from stage_rt.images.inputs import read_header, read_image
from stage_rt.images.masks import read_mask


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def encoded(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def refused(path, message, *, mask=True):
    for read in (read_header, read_image):
        with pytest.raises(ImageError) as error:
            read(path)
        assert str(error.value) == f"`{path}` {message}"
    with pytest.raises(MaskError) as error:
        read_mask(path)
    assert str(error.value) == f"`{path}` {message}"


def refusal(read, path) -> str | None:
    try:
        read(path)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("size", [(8001, 8000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png(*size, b"\0" * 100))
    refused(tmp_path / "bomb.png", "has more than 64 million pixels: save it smaller")


def test_a_file_too_large_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_BYTES", 2**20)
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**20 + 1)
    refused(tmp_path / "large.png", "is larger than 1 MiB: save it smaller")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PPM", "ICO", "PDF"])
def test_other_formats_are_refused_whatever_the_suffix(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(encoded(kind))
    refused(tmp_path / "a.png", "is not a PNG, JPEG, BMP or TIFF image: convert it to one")


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_a_stub_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_header, read_image, read_mask):
        with pytest.raises(InputError, match=r"a\.png` is (not a PNG|truncated or damaged)"):
            read(tmp_path / "a.png")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "is missing or not a file: check the path")


def test_a_folder_named_like_an_image_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    refused(tmp_path / "a.png", "is missing or not a file: check the path")


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_several_pages_are_refused(tmp_path, kind):
    page = Image.new("L", (4, 4), 255)
    page.save(
        tmp_path / "a.tif", kind, save_all=True, append_images=[Image.new("L", (4, 4), n) for n in (1, 2)]
    )
    refused(tmp_path / "a.tif", "holds several pages: save the one to use as a file of its own")


def test_pages_are_not_counted(tmp_path):
    # Width, height, bits, compression, grey, strip, samples, rows and bytes of a page of one pixel.
    tags = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    size, pages = 2 + len(entries) + 4, 40_000
    links = [8 + size * number for number in range(1, pages)]
    content = b"".join(
        struct.pack("<H", len(tags)) + entries + struct.pack("<I", link) for link in [*links, 0]
    )
    (tmp_path / "a.tif").write_bytes(b"II\x2a\x00" + struct.pack("<I", 8) + content)
    began = time.process_time()
    refused(tmp_path / "a.tif", "holds several pages: save the one to use as a file of its own")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("mode", ["CMYK", "F", "LAB", "YCbCr"])
def test_other_kinds_of_pixels_are_refused(tmp_path, mode):
    image = Image.new("RGB", (4, 4)).convert("L").convert("F") if mode == "F" else Image.new(mode, (4, 4))
    image.save(tmp_path / "a.tif")
    refused(tmp_path / "a.tif", f"has pixels of kind {mode}: save it as 8-bit RGB or grey")


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("BMP", "RGB"), ("TIFF", "RGB"), ("JPEG", "L")]
)
def test_every_truncation_is_refused_or_read(tmp_path, kind, mode):
    content = encoded(kind, mode)
    path = tmp_path / "a.img"
    refusals = 0
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        refusals += refusal(read_image, path) is not None
    assert refusals > len(content) // 7 * 0.9


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_random_damage_is_refused_or_read(tmp_path, kind):
    content = encoded(kind)
    dice = random.Random(kind)
    path = tmp_path / "a.img"
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(dice.randint(1, 6)):
            damaged[dice.randrange(min(len(damaged), 400))] = dice.randrange(256)
        path.write_bytes(damaged)
        for read in (read_header, read_image, read_mask):
            assert str(path) in (refusal(read, path) or str(path))
