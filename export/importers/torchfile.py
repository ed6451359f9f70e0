"""Files of ``torch.save``, zip and legacy, read without torch's loader: names, shapes, and tensors on demand.

Sizes are checked against the file before anything of it is read, and tensors are mapped, not copied, so a file
costs memory only where its tensors are used.
"""

import io
import math
import mmap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from stage_rt.errors import CheckpointError

from .unpickle import Name, Pickle, read_pickle

GIB = 2**30
MAX_BYTES = 8 * GIB
"""The public text2img-large checkpoint has 5.7 GiB."""
MAX_DIMENSIONS = 64
"""Of a tensor, as PyTorch has it."""
MAX_PICKLE_BYTES = 16 * 2**20
"""The object without its tensors; that of text2img-large has 0.3 MiB."""

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# How a file of torch before 1.6 begins: its magic number as a pickle of protocol 2.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = 30


@dataclass(eq=False, slots=True)
class Storage:
    """Numbers in a row: ``count`` of ``dtype`` from byte ``start`` of the file, once that is known."""

    dtype: torch.dtype
    count: int
    key: str
    start: int = -1

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class StoredTensor:
    """A tensor in a file; ``load`` maps it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    file: Path

    @property
    def dtype(self) -> torch.dtype:
        """Element type in the file."""
        return self.storage.dtype

    def load(self) -> torch.Tensor:
        """The tensor, on the CPU wherever it was saved, contiguous; changes do not reach the file."""
        row = _mapped(self.file, self.storage)
        return row.as_strided(self.shape, self.stride, self.offset).contiguous()


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The object of a file, with `StoredTensor` for tensors and stubs for objects; see `Pickle`."""

    path: Path
    value: Any
    calls: tuple[str, ...]


def read_torch_file(path: Path, *, max_bytes: int = MAX_BYTES) -> TorchFile:
    """Read the object that ``torch.save`` wrote to ``path``; nothing it names is imported or called.

    Raises:
        CheckpointError: the file is missing, larger than ``max_bytes``, damaged, compressed, lies about its
            sizes, or would do harm if it were unpickled.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read ({error.strerror})") from None
    if not path.is_file():
        raise CheckpointError(f"`{path}` is a folder, a file written by `torch.save` was wanted")
    if size > max_bytes:
        raise CheckpointError(
            f"`{path}` has {size / GIB:.1f} GiB, more than the {max_bytes / GIB:.3g} allowed: raise `--max-gib` "
            "if you trust it"
        )
    with path.open("rb") as file:
        head = file.read(len(_LEGACY))
        file.seek(0)
        if head == _LEGACY:
            read = _read_legacy(path, file)
        elif head[:4] == b"PK\x03\x04":
            read = _read_zip(path, file, size)
        else:
            raise CheckpointError(f"`{path}` is no file of `torch.save`{_guess(path, head)}")
    return TorchFile(path, read.value, read.calls)


def _guess(path: Path, head: bytes) -> str:
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return " but a safetensors file"
    if head.startswith(b"version https"):
        return " but a Git LFS pointer: fetch it with `git lfs pull`"
    return "" if head.strip(b"\0") else ", it is empty"


def _read_zip(path: Path, file: IO[bytes], size: int) -> Pickle:
    try:
        with zipfile.ZipFile(file) as archive:
            entries, prefix = _entries(path, archive, size)
            content = archive.read(entries[f"{prefix}/data.pkl"])
            order = entries.get(f"{prefix}/byteorder")
            if order and archive.read(order) != b"little":
                raise CheckpointError(f"`{path}` was written on a big-endian machine, which is not supported")
    # An `OSError` is a place before the file's beginning, or a disk that failed.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"`{path}` is a damaged checkpoint ({error})") from None

    def place(storage: Storage) -> None:
        entry = entries.get(f"{prefix}/data/{storage.key}")
        if entry is None:
            raise CheckpointError(f"`{path}` lacks the tensor data {storage.key!r} that it names")
        if entry.file_size != storage.nbytes:
            raise CheckpointError(
                f"`{path}` lies about its sizes: tensor data {storage.key!r} has {entry.file_size} bytes and is "
                f"said to have {storage.nbytes}"
            )
        storage.start = _data_offset(path, file, entry, size)

    return _read_object(path, io.BytesIO(content), place)


def _entries(path: Path, archive: zipfile.ZipFile, size: int) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """The entries by name and the folder they lie in, once their sizes were found to fit the file."""
    infos = archive.infolist()
    entries = {info.filename: info for info in infos}
    if len(entries) < len(infos):
        raise CheckpointError(f"`{path}` holds two entries of one name, `torch.save` writes none like it")
    for name, info in entries.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name:
            raise CheckpointError(f"`{path}` holds an entry with the path {name!r}, which leads out of it")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointError(
                f"`{path}` holds compressed data ({name!r}, {info.file_size} bytes once unpacked), which "
                "`torch.save` never writes: nothing was unpacked"
            )
    if sum(info.file_size for info in infos) > size:
        raise CheckpointError(f"`{path}` lies about its sizes: its entries are larger than the file")
    folders = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(folders) != 1 or "/" in folders[0]:
        raise CheckpointError(f"`{path}` is a zip archive but no file of `torch.save`")
    if entries[f"{folders[0]}/data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"`{path}` holds a pickle of more than {MAX_PICKLE_BYTES} bytes")
    return entries, folders[0]


def _data_offset(path: Path, file: IO[bytes], entry: zipfile.ZipInfo, size: int) -> int:
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"`{path}` is damaged: no data where entry {entry.filename!r} is said to lie")
    start = file.tell() + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if start + entry.file_size > size:
        raise CheckpointError(f"`{path}` lies about its sizes: entry {entry.filename!r} ends beyond the file")
    return start


def _read_legacy(path: Path, file: IO[bytes]) -> Pickle:
    """Pickles of magic number, protocol, system, object and storage names, then the storages' bytes."""
    storages: dict[str, Storage] = {}
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        content = io.BytesIO(mapped[:MAX_PICKLE_BYTES])
    _, protocol, system = (_plain_object(path, content) for _ in range(3))
    if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict) or not system.get("little_endian"):
        raise CheckpointError(f"`{path}` is of a version of `torch.save` that is not supported")
    read = _read_object(path, content, lambda storage: None, storages)
    keys = _plain_object(path, content)
    named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not named or set(keys) != set(storages):
        raise CheckpointError(f"`{path}` is damaged: its list of tensor data is not that of its tensors")
    position, size = content.tell(), path.stat().st_size
    for storage in (storages[key] for key in keys):
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        storage.start = position + 8
        position = storage.start + storage.nbytes
        if count != storage.count or position > size:
            raise CheckpointError(
                f"`{path}` lies about its sizes: tensor data {storage.key!r} is not as long"
            )
    return read


def _plain_object(path: Path, content: IO[bytes]) -> Any:
    def nothing(*_: Any) -> Any:
        return NotImplemented

    return read_pickle(content, where=f"`{path}`", storage=nothing, rebuild=nothing).value


def _read_object(
    path: Path,
    content: IO[bytes],
    place: Callable[[Storage], None],
    storages: dict[str, Storage] | None = None,
) -> Pickle:
    """The object in ``content``; ``place`` says where a new storage lies."""
    known = {} if storages is None else storages

    def storage(reference: Any) -> Any:
        if reference[0] == "module":  # The legacy format has a class with its source for every module.
            return reference[1]
        kind, of, key, _, count = reference[:5]
        if kind != "storage" or not isinstance(of, Name) or not isinstance(key, str):
            raise ValueError("an unknown reference")
        found = known.get(key)
        if found is None:
            dtype = _DTYPES.get(of.path.removeprefix("torch.").removeprefix("storage."))
            if dtype is None:
                raise CheckpointError(f"`{path}` holds tensors of type `{of}`, which are not supported")
            if not isinstance(count, int) or count < 0:
                raise ValueError("a storage of no size")
            found = known[key] = Storage(dtype, count, key)
            place(found)
        return found

    def rebuild(name: str, arguments: tuple[Any, ...]) -> Any:
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return _stored(path, *arguments[:4])
        if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return arguments[0]
        return NotImplemented

    return read_pickle(content, where=f"`{path}`", storage=storage, rebuild=rebuild)


def _stored(path: Path, storage: Any, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    valid = isinstance(storage, Storage) and len(shape) == len(stride) <= MAX_DIMENSIONS
    numbers = (offset, *shape, *stride) if valid else ()
    if not valid or any(not isinstance(number, int) or not 0 <= number < 2**63 for number in numbers):
        raise ValueError("a tensor of no shape")
    elements = math.prod(shape)
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    # A stride of 0 would make a tensor of any size out of one number.
    if elements and (last >= storage.count or elements > storage.count):
        raise CheckpointError(
            f"`{path}` lies about its sizes: a tensor of shape {list(shape)} in data of {storage.count} numbers"
        )
    return StoredTensor(storage, offset, tuple(shape), tuple(stride), path)


def _mapped(path: Path, storage: Storage) -> torch.Tensor:
    if not storage.count:
        return torch.empty(0, dtype=storage.dtype)
    # Copy on write: torch knows no read-only tensors.
    whole: NDArray[np.uint8] = np.memmap(
        path, dtype=np.uint8, mode="c", offset=storage.start, shape=(storage.nbytes,)
    )
    aligned = whole if storage.start % storage.dtype.itemsize == 0 else whole.copy()
    return torch.from_numpy(aligned).view(storage.dtype)
