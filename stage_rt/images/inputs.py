"""Photographs and masks from disk, and the arrays the networks are handed.

PNG, JPEG, BMP and TIFF are read; anything else, more than ``MAX_PIXELS`` pixels or ``MAX_BYTES`` bytes is
refused before a pixel is decoded. 16-bit grey becomes 8-bit by ``round(v / 257)``. The EXIF orientation is
applied. Opaque alpha is dropped; a transparent pixel has no defined colour, so it is refused.
"""

import hashlib
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from stage_rt.errors import ImageError, InputError, MaskError
from stage_rt.spec import ModelSpec

MAX_PIXELS = 64_000_000
MAX_BYTES = 512 * 2**20
ASPECT_TOLERANCE = 0.05
"""How far the aspect ratios of a mask and its photograph may be apart."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)


class Header(NamedTuple):
    """What an image file says of itself before a pixel is decoded; sizes in pixels, upright."""

    width: int
    height: int
    grey: bool


def read_header(path: Path, error: type[InputError] = ImageError) -> Header:
    """Size and channels of an image, without decoding it.

    Raises:
        ImageError (or ``error``): the file is missing, no image, too large or of a refused kind.
    """
    with _opened(path, error) as image:
        return _header(image)


def check_image(path: Path) -> tuple[Header, str, int | None]:
    """The header of a photograph and the sha256 of its file, which was opened once and found to decode.

    The third is the highest grey value of a photograph of 16 bits, None of others.

    Raises:
        ImageError: as `read_image`.
    """
    content = _content(path, ImageError)
    with _whole(path, ImageError, content) as image:
        header = _header(image)
        _photograph(image, path)
        brightest = int(np.asarray(image).max()) if image.mode.startswith("I") else None
    return header, hashlib.sha256(content).hexdigest(), brightest


def read_image(path: Path, digest: str | None = None) -> NDArray[np.uint8]:
    """A photograph as uint8 ``[H, W, 3]``, upright; grey photographs have three equal channels.

    Raises:
        ImageError: the file is missing, no image, damaged, too large, of a refused kind, or has not the sha256
            ``digest`` that is asked for.
    """
    return image_of(_as_checked(_content(path, ImageError), digest, path, ImageError), path)


def image_of(content: bytes, name: Path) -> NDArray[np.uint8]:
    """`read_image` of what a file would hold; ``name`` is what errors call it and is never opened.

    Raises:
        ImageError: as `read_image`.
    """
    with _whole(name, ImageError, content) as image:
        return np.asarray(_photograph(image, name)).copy()


def pixels_digest(photo: NDArray[np.uint8]) -> str:
    """sha256 of what a photograph uint8 ``[H, W, 3]`` shows, in whatever format it was saved."""
    return hashlib.sha256(f"{photo.shape}".encode() + photo.tobytes()).hexdigest()


def header_of(content: bytes, name: Path, error: type[InputError] = ImageError) -> Header:
    """`read_header` of what a file would hold, named as in `image_of`.

    Raises:
        ImageError (or ``error``): as `read_header`.
    """
    with _opened(name, error, content) as image:
        return _header(image)


class Values(NamedTuple):
    """What the pixels of a mask hold, upright ``[H, W]``.

    ``grey`` are their grey values, ``white`` is that of white: 255, or 65535 of 16 bit. ``indices`` are their numbers
    in the file's palette, None without one.
    """

    grey: NDArray[np.integer]
    white: int
    indices: NDArray[np.uint8] | None


def read_grey(path: Path, digest: str | None = None) -> Values:
    """The values of a mask.

    Raises:
        MaskError: the file cannot be read as an image, or has not the sha256 ``digest`` that is asked for.
    """
    return grey_of(_as_checked(_content(path, MaskError), digest, path, MaskError), path)


def grey_of(content: bytes, name: Path) -> Values:
    """`read_grey` of what a file would hold, named as in `image_of`.

    Raises:
        MaskError: as `read_grey`.
    """
    with _whole(name, MaskError, content) as image:
        orientation = _orientation(image)
        sixteen_bit = image.mode.startswith("I")
        flat = image if sixteen_bit else _opaque(image, name, MaskError).convert("L")
        indices = np.asarray(_upright(image, orientation)) if image.mode == "P" else None
        return Values(np.asarray(_upright(flat, orientation)), 65535 if sixteen_bit else 255, indices)


def same_aspect(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two (width, height) sizes have the same aspect ratio within ``ASPECT_TOLERANCE``."""
    left, right = a[0] * b[1], b[0] * a[1]
    return max(left, right) <= (1 + ASPECT_TOLERANCE) * min(left, right)


def fit_mask(label: NDArray[np.bool_], size: tuple[int, int], path: Path) -> NDArray[np.bool_]:
    """The label of file ``path`` at the (width, height) of its photograph, by nearest pixel.

    Raises:
        MaskError: the aspect ratios disagree, or nothing of the label is left at that size.
    """
    height, width = label.shape
    if (width, height) == size:
        return label
    wanted = f"{size[0]}x{size[1]}"
    if not same_aspect((width, height), size):
        raise MaskError(
            f"`{path}` is {width}x{height} but its photograph is {wanted}: draw the mask at that size"
        )
    fitted = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
    if not fitted.any():
        raise MaskError(
            f"`{path}` vanishes at its photograph's size {wanted}: draw the defect larger or remove it"
        )
    return fitted


def network_image(photo: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.float32]:
    """A photograph as the encoder wants it: uint8 ``[H, W, 3]`` to float32 ``[c, S, S]`` in [-1, 1].

    Bicubic, neither cropped nor keeping the aspect, as the authors' code does.
    """
    image = Image.fromarray(photo)
    if spec.image_channels == 1:
        image = image.convert("L")
    small = np.asarray(image.resize((spec.image_size, spec.image_size), Image.Resampling.BICUBIC))
    scaled = small.reshape(spec.image_size, spec.image_size, spec.image_channels) / 127.5 - 1
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32)


def network_mask(label: NDArray[np.bool_], spec: ModelSpec) -> NDArray[np.bool_]:
    """A label bool ``[H, W]`` at the network's image size, bool ``[S, S]``: bicubic in float, then >= 0.5."""
    image = Image.fromarray(label.astype(np.uint8) * 255).convert("F")
    small = image.resize((spec.image_size, spec.image_size), Image.Resampling.BICUBIC)
    return np.asarray(np.asarray(small) / 255 >= 0.5)


def decoded_label(label: NDArray[np.bool_], spec: ModelSpec) -> NDArray[np.bool_]:
    """The label bool ``[S, S]`` of a decoded image whose photograph had the label bool ``[H, W]``.

    It is `network_mask`; by the mask rule ``cover``, which paints the thinnest part of a label, pixels that touch it
    are labelled too where it is too thin for that: more than one beyond what is left, and those beside them.
    """
    small = network_mask(label, spec)
    if spec.recipe.mask_rule != "cover":
        return small
    touched, around = cover(label, spec.image_size), np.ones((3, 3), dtype=np.bool_)
    lost = touched & ~ndimage.binary_dilation(small, around)
    return np.asarray(small | (touched & ndimage.binary_dilation(lost, around)))


def latent_mask(label: NDArray[np.bool_], spec: ModelSpec) -> NDArray[np.float32]:
    """The mask the sampler is handed: bool ``[H, W]`` to float32 ``[1, h, w]`` in {0, 1}.

    The recipe's ``mask_rule`` decides: ``cover`` sets every cell that shares any area with a labelled pixel;
    ``authors`` is their resize to the image size, then to the latent size without antialiasing.
    """
    if spec.recipe.mask_rule == "cover":
        cells = cover(label, spec.latent_size)
    else:
        cells = _centres(network_mask(label, spec), spec.image_size // spec.latent_size)
    return cells[None].astype(np.float32)


def grown(mask: NDArray[np.float32], cells: int = 1) -> NDArray[np.float32]:
    """A latent mask ``[1, h, w]`` with the cells around it, corners too."""
    around = np.ones((1, 3, 3), dtype=np.bool_)
    return np.asarray(ndimage.binary_dilation(mask > 0, around, iterations=cells), dtype=np.float32)


def widened(label: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """A label bool ``[H, W]`` and every pixel of which some part lies less than so many pixels beyond its outline."""
    if not pixels or not label.any():
        return label
    touching = ndimage.binary_dilation(label, np.ones((3, 3), dtype=np.bool_))
    return np.asarray(ndimage.distance_transform_edt(~touching) < pixels)


def cover(label: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """The cells bool ``[size, size]`` that share any area with a labelled pixel of bool ``[H, W]``."""
    rows = np.stack([label[span].any(axis=0) for span in _spans(label.shape[0], size)])
    return np.stack([rows[:, span].any(axis=1) for span in _spans(label.shape[1], size)], axis=1)


def _spans(pixels: int, cells: int) -> list[slice]:
    # Cell c covers [c, c + 1) * pixels / cells: integer floor and ceiling keep the borders exact.
    return [slice(c * pixels // cells, -(-(c + 1) * pixels // cells)) for c in range(cells)]


def _centres(label: NDArray[np.bool_], cell: int) -> NDArray[np.bool_]:
    # Bilinear without antialiasing and with align_corners off reads the 2x2 pixels at the centre of each cell
    # (one pixel where the cell is odd).
    low, high = (cell - 1) // 2, cell // 2
    rows = label[low::cell].astype(np.float32) + label[high::cell]
    return np.asarray((rows[:, low::cell] + rows[:, high::cell]) / 4 >= 0.5)


def _header(image: Image.Image) -> Header:
    width, height = image.size
    if _orientation(image) in _QUARTER_TURNS:
        width, height = height, width
    return Header(width, height, image.mode in _GREY)


def _photograph(image: Image.Image, path: Path) -> Image.Image:
    orientation = _orientation(image)
    flat = _opaque(_eight_bit(image, path, ImageError), path, ImageError).convert("RGB")
    return _upright(flat, orientation)


def _content(path: Path, error: type[InputError]) -> bytes:
    _check_file(path, error)
    with _refusing(path, error):
        return path.read_bytes()


def _as_checked(content: bytes, digest: str | None, path: Path, error: type[InputError]) -> bytes:
    # Of the bytes in hand: the file may change again between a look at it and its reading.
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise error(f"`{path}` changed since it was checked", "put it back and run the same command again")
    return content


@contextmanager
def _whole(path: Path, error: type[InputError], content: bytes) -> Iterator[Image.Image]:
    """As `_opened`, once the checksums in the file were seen to agree: Pillow decodes a PNG without them."""
    with _opened(path, error, content) as image:
        image.verify()
    with _opened(path, error, content) as image:
        yield image


@contextmanager
def _opened(path: Path, error: type[InputError], content: bytes | None = None) -> Iterator[Image.Image]:
    """An image that was checked and not decoded yet, from ``content`` if the file was read already."""
    if content is None:
        _check_file(path, error)
    source = path if content is None else io.BytesIO(content)
    with _refusing(path, error), _unwarned(), Image.open(source, formats=_FORMATS) as image:
        _check(image, path, error)
        yield image


_filters, _filtered = threading.Lock(), ExitStack()
_opened_now = 0


@contextmanager
def _unwarned() -> Iterator[None]:
    """A block in which what Pillow warns of is not told: a file can be used, or is refused in a sentence.

    Filters are the process's own, so that of blocks of several threads the first one sets and the last one ends them.
    """
    global _opened_now
    with _filters:
        if not _opened_now:
            _filtered.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _opened_now += 1
    try:
        yield
    finally:
        with _filters:
            _opened_now -= 1
            if not _opened_now:
                _filtered.close()


def _check_file(path: Path, error: type[InputError]) -> None:
    if not path.is_file():
        raise error(f"`{path}` is missing or not a file: check the path")
    if path.stat().st_size > MAX_BYTES:
        raise error(f"`{path}` is larger than {MAX_BYTES // 2**20} MiB: save it smaller")


@contextmanager
def _refusing(path: Path, error: type[InputError]) -> Iterator[None]:
    """A block in which whatever a file's bytes provoke becomes one sentence about that file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as bomb:
        raise _too_many_pixels(path, error) from bomb
    except UnidentifiedImageError as unknown:
        raise error(f"`{path}` is not a PNG, JPEG, BMP or TIFF image: convert it to one") from unknown
    except PermissionError as denied:
        raise error(f"`{path}` may not be read: give yourself read permission") from denied
    except Exception as broken:  # Pillow's decoders raise nearly anything on hostile bytes
        raise error(f"`{path}` is truncated or damaged: save it again") from broken


def _check(image: Image.Image, path: Path, error: type[InputError]) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(path, error)
    # Not how many: Pillow walks all pages of a TIFF to count them, in the square of their number.
    # A camera's MPO is a JPEG with previews behind the photograph: only there the first frame is the one.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise error(f"`{path}` holds several pages: save the one to use as a file of its own")
    if image.mode not in _GREY + _COLOUR:
        raise error(f"`{path}` has pixels of kind {image.mode}: save it as 8-bit RGB or grey")


def _too_many_pixels(path: Path, error: type[InputError]) -> InputError:
    return error(f"`{path}` has more than {MAX_PIXELS // 1_000_000} million pixels: save it smaller")


def _orientation(image: Image.Image) -> int:
    # Pillow turns a TIFF itself; asking a PNG for EXIF that does not precede its pixels would decode them.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    orientation: Any = image.getexif().get(_ORIENTATION, 1)
    return orientation if isinstance(orientation, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image, path: Path, error: type[InputError]) -> Image.Image:
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise error(f"`{path}` has grey values beyond 16 bits: save it as 8-bit or 16-bit grey")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _opaque(image: Image.Image, path: Path, error: type[InputError]) -> Image.Image:
    if not image.has_transparency_data:
        return image
    flat = image.convert("RGBA")
    if flat.getchannel("A").getextrema() != (255, 255):
        raise error(f"`{path}` has transparent pixels: flatten it onto its background")
    return flat
