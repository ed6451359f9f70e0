"""Finished pairs on disk: compositing, atomic writing, and the manifest a run resumes from.

A run's folder has the MVTec layout, ``test/<type>/000000.png`` and ``ground_truth/<type>/000000_mask.png``.
A pair is in place before its line is appended to ``manifest.jsonl``; the line is what makes it done.
"""

import fcntl
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from pydantic import ValidationError

from stage_rt.errors import PromptError, RunError, StageError
from stage_rt.files import sha256, write_atomic
from stage_rt.spec import MANIFEST_FILE, RUN_FILE, PairRecord, RunSpec

_LOCK_FILE = ".lock"
_DIGESTS = ("engine", "normals", "masks")

FEATHER = 2
"""Half the width of the ramp around a label in which photo and paint are mixed, in pixels of the photo."""


def pixels(painted: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The decoder's float32 ``[c, S, S]`` in [-1, 1] as uint8 ``[S, S, 3]``; one channel is repeated."""
    levels = np.rint(np.clip((painted + 1) / 2, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels.transpose(1, 2, 0), (*levels.shape[1:], 3)))


def composite(
    photo: NDArray[np.uint8], painted: NDArray[np.uint8], label: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """``photo`` uint8 ``[H, W, 3]`` with ``painted`` uint8 ``[S, S, 3]`` in place of its labelled pixels.

    All paint on ``label`` bool ``[H, W]``, a linear ramp around it, and beyond ``2 * FEATHER`` pixels the
    bytes of the photograph.
    """
    result = photo.copy()
    if not label.any():
        return result
    near = _surroundings(label, 2 * FEATHER)
    enlarged = np.asarray(Image.fromarray(painted).resize(label.shape[::-1], Image.Resampling.BICUBIC))
    mask = Image.fromarray(label[near].astype(np.uint8) * 255)
    # Blurring the label grown by the blur's own radius leaves the label itself at full strength.
    grown = mask.filter(ImageFilter.MaxFilter(2 * FEATHER + 1))
    alpha = np.asarray(grown.filter(ImageFilter.BoxBlur(FEATHER)), dtype=np.float32)[..., None] / 255
    result[near] = np.rint((1 - alpha) * photo[near] + alpha * enlarged[near])
    return result


def _surroundings(label: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(label.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )


def defect_type(prompt: str) -> str:
    """The folder name of a prompt's pairs: what follows its last ``+``.

    Raises:
        PromptError: that is not a plain folder name.
    """
    name = prompt.rpartition("+")[2]
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise PromptError(
            f"prompt {prompt!r} does not end in a name a folder can have: rename it in the model"
        )
    return name


def pair_paths(prompt: str, index: int) -> tuple[str, str]:
    """Paths of sample ``index``'s image and mask, relative to the run's folder."""
    kind = defect_type(prompt)
    return f"test/{kind}/{index:06d}.png", f"ground_truth/{kind}/{index:06d}_mask.png"


def write_pair(
    folder: Path, paths: tuple[str, str], image: Image.Image, label: NDArray[np.bool_]
) -> tuple[str, str]:
    """Write image and mask (0 and 255) as PNG, each atomically, the mask first; returns their sha256.

    When either cannot be written neither stays.
    """
    image_path, mask_path = (folder / path for path in paths)
    image_bytes, mask_bytes = _png(image), _png(Image.fromarray(label.astype(np.uint8) * 255))
    try:
        write_atomic(mask_path, mask_bytes)
        write_atomic(image_path, image_bytes)
    except BaseException:
        # A file can be in place all the same, when the sync of its folder was what failed.
        for path in (image_path, mask_path):
            with suppress(OSError):
                path.unlink()
        raise
    return hashlib.sha256(image_bytes).hexdigest(), hashlib.sha256(mask_bytes).hexdigest()


class Manifest:
    """``manifest.jsonl``: one line a pair, synced to disk one by one; the last line of an index counts.

    ``records`` maps index to record. Opening drops a last line that has no end, as a crash leaves it.

    Raises:
        RunError: any other line is damaged.
    """

    def __init__(self, path: Path, prompt: str) -> None:
        self._path = path
        self.records: dict[int, PairRecord] = {}
        path.touch()
        content = path.read_bytes()
        whole = content.rpartition(b"\n")[0] + b"\n" if b"\n" in content else b""
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            record = self._parse(line, number, prompt)
            self.records[record.index] = record

    def append(self, record: PairRecord) -> None:
        """Add a line and sync it."""
        with self._path.open("ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.records[record.index] = record

    def tidy(self) -> None:
        """One line an index, in order, so that a resumed run leaves the bytes of an uninterrupted one."""
        content = b"".join(_line(self.records[index]) for index in sorted(self.records))
        if content != self._path.read_bytes():
            write_atomic(self._path, content)

    def done(self, index: int, folder: Path) -> bool:
        """Whether the pair was written and both of its files still have the bytes that were."""
        record = self.records.get(index)
        if record is None or record.image is None or record.mask is None:
            return False
        files = ((folder / record.image, record.image_sha256), (folder / record.mask, record.mask_sha256))
        return all(path.is_file() and sha256(path) == digest for path, digest in files)

    def _parse(self, line: bytes, number: int, prompt: str) -> PairRecord:
        try:
            record = PairRecord.model_validate_json(line)
            if record.image is not None and (record.image, record.mask) != pair_paths(prompt, record.index):
                raise ValueError("not the paths of this pair")
        except (ValidationError, ValueError) as damage:
            raise RunError(
                f"`{self._path}` is damaged in line {number}: delete that line and run the same command again"
            ) from damage
        return record


@contextmanager
def open_run(folder: Path, spec: RunSpec) -> Iterator[Manifest]:
    """Start the run in ``folder``, or go on with it, and keep other processes out of it meanwhile.

    Raises:
        RunError: ``folder`` cannot be written, holds other files or another run, is damaged or in use.
        StageError: the disk is full or failed while the run was open.
    """
    _claim(folder)
    try:
        with _locked(folder):
            _same_job(folder / RUN_FILE, spec)
            for staged in folder.rglob(".*.tmp"):
                staged.unlink()
            yield Manifest(folder / MANIFEST_FILE, spec.prompt)
    except OSError as failure:
        raise StageError(
            f"writing to `{folder}` failed ({failure.strerror}): mend that and run the same command again"
        ) from failure


def _claim(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as refusal:
        raise RunError(f"`{folder}` cannot be made a folder: give another `-o`") from refusal
    others = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if others and not (folder / RUN_FILE).is_file():
        raise RunError(f"`{folder}` holds files that are no run of stage-rt: give an empty folder as `-o`")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        lock = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError as refusal:
        raise RunError(
            f"`{folder}` may not be written: give yourself permission or another `-o`"
        ) from refusal
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise RunError(f"`{folder}` is being filled by another process: wait for it to end") from taken
        yield
    finally:
        os.close(lock)


def _same_job(path: Path, spec: RunSpec) -> None:
    if not path.exists():
        write_atomic(path, spec.model_dump_json(indent=2).encode() + b"\n")
        return
    try:
        held = RunSpec.model_validate_json(path.read_bytes())
    except ValidationError as damage:
        raise RunError(f"`{path}` is damaged: start again in an empty folder") from damage
    there, here = _flat(held), _flat(spec)
    for field, value in here.items():
        if there[field] != value:
            raise RunError(
                f"`{path.parent}` holds another run, whose {field} is {_shown(field, there[field])} and not "
                f"{_shown(field, value)}: give the job it was started with or another `-o`"
            )


def _flat(spec: RunSpec) -> dict[str, object]:
    recipe = {f"recipe.{name}": value for name, value in spec.recipe.model_dump().items()}
    return spec.model_dump(exclude={"recipe"}) | recipe


def _shown(field: str, value: object) -> str:
    return f"{str(value)[:12]}..." if field in _DIGESTS else repr(value)


def _line(record: PairRecord) -> bytes:
    return record.model_dump_json(exclude_none=True).encode() + b"\n"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
