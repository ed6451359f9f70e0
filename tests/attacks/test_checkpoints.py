"""Checkpoints made to do harm: nothing they ask for happens, and the user is told."""

import io
import os
import pickle
import resource
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from stage_rt.errors import CheckpointError
from stage_rt.export.importers import torchfile, unpickle
from stage_rt.export.importers.checks import describe
from stage_rt.export.importers.torchfile import read_torch_file


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def archive(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A file laid out as ``torch.save`` does."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def pickled(path: Path, content: bytes, **data: bytes) -> Path:
    return archive(
        path, {"m/data.pkl": content, **{f"m/data/{key[1:]}": value for key, value in data.items()}}
    )


def tensor(shape: list[int], stride: list[int], numbers: int, key: str = "0", offset: int = 0) -> bytes:
    """A pickle of one float tensor in a storage of ``numbers``."""

    def integers(values: list[int]) -> bytes:
        return b"(" + b"".join(b"\x8a\x09" + value.to_bytes(9, "little") for value in values) + b"t"

    name = b"X" + struct.pack("<I", len(key)) + key.encode()
    reference = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + name + b"X\x03\x00\x00\x00cpu"
    reference += b"\x8a\x09" + numbers.to_bytes(9, "little") + b"tQ"
    place = b"\x8a\x09" + offset.to_bytes(9, "little")
    arguments = b"(" + reference + place + integers(shape) + integers(stride) + b"\x89N" + b"t"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R."


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (sys.exit, "sys.exit"),
        (io.open, "io.open"),
    ],
)
def test_a_command_is_not_run_and_is_reported(tmp_path: Path, function: Any, name: str, legacy: bool) -> None:
    path, touched = tmp_path / "fine_mask-10.pt", tmp_path / "touched"
    argument = f"touch {touched}" if function is os.system else f"open({str(touched)!r}, 'w')"
    attack = {"state_dict": {}, "x": Runs(function, str(touched) if function is io.open else argument)}
    torch.save(attack, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=f"would run `{name.replace('builtins', '(builtins|__builtin__)')}`"
    ):
        read_torch_file(path)
    assert not touched.exists()
    assert list(tmp_path.iterdir()) == [path]


def test_every_way_a_pickle_has_to_call_is_inert(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    command = f"touch {touched}"
    text = b"X" + struct.pack("<I", len(command)) + command.encode()
    for content in (
        b"cposix\nsystem\n(" + text + b"tR.",  # REDUCE
        b"(" + text + b"iposix\nsystem\n.",  # INST
        b"(cposix\nsystem\n" + text + b"o.",  # OBJ
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93(" + text + b"tR.",  # STACK_GLOBAL
        b"}cposix\nsystem\n(" + text + b"tRb.",  # BUILD with what a call gives
    ):
        with pytest.raises(CheckpointError, match=r"would run `posix\.system`"):
            read_torch_file(pickled(tmp_path / "x.pt", content))
    for content in (
        b"cposix\nsystem\n.",  # named alone
        b"csubprocess\nPopen\n(" + text + b"t\x81.",  # NEWOBJ
    ):
        assert read_torch_file(pickled(tmp_path / "x.pt", content)).calls == ()
    assert not touched.exists()


def test_nothing_is_imported_by_name(tmp_path: Path) -> None:
    content = b"cantigravity\nfly\n(tR."
    with pytest.raises(CheckpointError, match="antigravity"):
        read_torch_file(pickled(tmp_path / "x.pt", content))
    read = read_torch_file(pickled(tmp_path / "y.pt", b"cno_such_package.deep\nMaker\n(tR."))
    assert read.calls == ("no_such_package.deep.Maker",)
    assert "antigravity" not in sys.modules


def test_state_cannot_reach_real_objects(tmp_path: Path) -> None:
    """BUILD sets attributes of whatever lies on the stack, in Python's own machine."""
    before = dict(vars(unpickle.Stub))
    state = b"}X\x08\x00\x00\x00__call__K\x01s"
    read_torch_file(pickled(tmp_path / "x.pt", b"c__main__\nThing\n)\x81" + state + b"b."))
    for victim in (b"]", b"}", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n"):
        read_torch_file(pickled(tmp_path / "x.pt", victim + state + b"b."))
    assert dict(vars(unpickle.Stub)) == before


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    zeros = bytes(50 * 2**20)
    path = archive(
        tmp_path / "embeddings_gs-10.pt",
        {"m/data.pkl": b"\x80\x02}.", "m/data/0": zeros},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"compressed data .* nothing was unpacked"):
        read_torch_file(path)


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A bomb without compression: many entries of the directory point at one piece of data."""
    path = archive(tmp_path / "x.pt", {"m/data.pkl": b"\x80\x02}.", "m/data/0": bytes(1000)})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    entry = content.index(b"PK\x01\x02", start + 4)
    end = content.index(b"PK\x05\x06")
    copies = [content[entry:end].replace(b"m/data/0", b"m/data/%d" % n) for n in range(9)]
    directory = content[start:entry] + b"".join(copies)
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 10, 10, len(directory), start, 0)
    path.write_bytes(content[:start] + directory + tail)
    with pytest.raises(CheckpointError, match="entries are larger than the file"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensor([10**9, 10**9], [1, 1], 4), r"a tensor of shape \[1000000000, 1000000000\] in data of 4"),
        (tensor([10**12], [0], 4), "in data of 4 numbers"),
        (tensor([2], [10], 4), "in data of 4 numbers"),
        (tensor([4], [1], 4, offset=1), "in data of 4 numbers"),
        (tensor([4], [1], 10**15), "has 16 bytes and is said to have 4000000000000000"),
        (tensor([4], [1], 3), "has 16 bytes and is said to have 12"),
        (tensor([4, 1], [1], 4), "is damaged"),
        (tensor([4], [1], 4, key="7"), "lacks the tensor data '7'"),
    ],
)
def test_a_header_that_lies_about_sizes_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(pickled(tmp_path / "model.ckpt", content, _0=bytes(16)))


def test_an_honest_header_is_read(tmp_path: Path) -> None:
    content = struct.pack("<4f", 1, 2, 3, 4)
    read = read_torch_file(pickled(tmp_path / "model.ckpt", tensor([2, 2], [1, 2], 4), _0=content))
    assert read.value.load().tolist() == [[1, 3], [2, 4]]


def test_a_directory_that_points_beyond_the_file_is_refused(tmp_path: Path) -> None:
    path = pickled(tmp_path / "model.ckpt", tensor([4], [1], 4), _0=bytes(16))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    content[entry + 42 : entry + 46] = struct.pack("<I", len(content) - 8)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_torch_file(path)


def test_entries_that_begin_before_the_file_are_refused(tmp_path: Path) -> None:
    path = pickled(tmp_path / "a.pt", tensor([4], [1], 4), _0=bytes(16))
    content = bytearray(path.read_bytes())
    # Where the directory is said to begin, in the last 22 bytes: all that it lists moves with it.
    content[-6:-2] = struct.pack("<I", 2 * len(content))
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is a damaged checkpoint"):
        read_torch_file(path)


def test_a_legacy_file_that_lies_about_sizes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.ones(4)}}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    place = content.rindex((4).to_bytes(8, "little"))
    for lie in (content[:place] + (10**12).to_bytes(8, "little") + content[place + 8 :], content[:-1]):
        path.write_bytes(lie)
        with pytest.raises(CheckpointError, match="lies about its sizes"):
            read_torch_file(path)


@pytest.mark.parametrize("key", ["../../../etc/passwd", "/etc/passwd", "0/../../x", "..\\x"])
def test_tricks_in_names_lead_nowhere(tmp_path: Path, key: str) -> None:
    (tmp_path / "x").write_bytes(bytes(16))
    with pytest.raises(CheckpointError, match="lacks the tensor data"):
        read_torch_file(pickled(tmp_path / "model.ckpt", tensor([4], [1], 4, key=key), _0=bytes(16)))
    entries = {"m/data.pkl": tensor([4], [1], 4, key=key), f"m/data/{key}": bytes(16)}
    if key != "/etc/passwd":
        with pytest.raises(CheckpointError, match="which leads out of it"):
            read_torch_file(archive(tmp_path / "model.ckpt", entries))
    with pytest.raises(CheckpointError, match="which leads out of it"):
        read_torch_file(archive(tmp_path / "model.ckpt", {"/m/data.pkl": b"\x80\x02}."}))


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", b"\x80\x02}.")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("m/data.pkl", b"\x80\x02N.")
    with pytest.raises(CheckpointError, match="two entries of one name"):
        read_torch_file(path)


def test_a_pickle_nested_deeper_than_any_stack_is_read(tmp_path: Path) -> None:
    deep = 200_000
    read = read_torch_file(pickled(tmp_path / "x.pt", b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b"."))
    assert isinstance(read.value, list)


def test_a_pickle_that_holds_itself_is_read(tmp_path: Path) -> None:
    read = read_torch_file(pickled(tmp_path / "x.pt", b"\x80\x02]q\x00h\x00a."))
    assert read.value[0] is read.value


def test_a_pickle_that_grows_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MAX_STEPS", 10_000)
    pairs = b"]q\x00(" + b"K\x01K\x01\x86" * 2000 + b"e0"
    many = b"ccollections\nOrderedDict\nq\x01h\x00\x85R0" + b"h\x01h\x00\x85R0" * 500
    for content in (b"N0" * 20_000 + b"N.", b"\x80\x02" + pairs + many + b"N."):
        with pytest.raises(CheckpointError, match="asks for more than 10000 steps"):
            read_torch_file(pickled(tmp_path / "x.pt", content))


def test_keys_that_take_for_ever_to_hash_are_left_out(tmp_path: Path) -> None:
    doubled = b")" + b"q\x00h\x00\x86" * 200  # a pair of a pair of a pair ..., twice each
    read = read_torch_file(pickled(tmp_path / "x.pt", b"\x80\x02}" + doubled + b"K\x01s."))
    assert read.value == {}
    as_set = b"\x80\x02cbuiltins\nset\n]" + doubled + b"a\x85R."
    assert len(read_torch_file(pickled(tmp_path / "x.pt", as_set)).value) == 1


HUGE = b"\x8b" + struct.pack("<i", 8 << 20) + b"\x7f" * (8 << 20)
"""An integer of 8 MiB."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"}" + HUGE + b"\x94" + b"h\x00Ns" * 200_000 + b".", "an integer of 67108863 bits has no place"),
        (
            tensor([1], [1], 1).replace(
                b"(\x8a\x09" + (1).to_bytes(9, "little") + b"t", b"(" + HUGE + b"t", 1
            ),
            "an integer of 67108863 bits",
        ),
        (
            b"("
            + b"K\x01" * 800_000
            + b"tq\x00"
            + b"0ctorch._utils\n_rebuild_tensor_v2\nq\x01(h\x00h\x00h\x00h\x00tR.",
            "a tensor of no shape",
        ),
        (
            b"X"
            + struct.pack("<I", 900)
            + b"m" * 900
            + b"q\x00"
            + b"h\x00X\x01\x00\x00\x00n\x93" * 400_000
            + b".",
            "more than",
        ),
        (
            b"X" + struct.pack("<I", 8 << 20) + b"m" * (8 << 20) + b"X\x01\x00\x00\x00n\x93.",
            "a class has a short name",
        ),
        (b"N" * 3_000_000 + b".", "asks for more than 1000000 steps"),
    ],
    ids=["key", "shape of integers", "shape of ones", "joined names", "long name", "steps"],
)
def test_a_small_file_cannot_ask_for_hours(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(
            pickled(tmp_path / "x", b"\x80\x02" + content.removeprefix(b"\x80\x02"), _0=b"\0" * 4)
        )


def test_legacy_names_of_tensor_data_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for other in (b"\x80\x02](K\x01e.", b"\x80\x02](]e.", b"\x80\x02K\x01."):
        begin = content.rindex(b"\x80\x02]")
        end = content.index(b".", begin + 2) + 1
        path.write_bytes(content[:begin] + other + content[end:])
        with pytest.raises(CheckpointError, match="its list of tensor data is not that of its tensors"):
            read_torch_file(path)


def test_a_memo_index_of_two_billion_costs_no_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = read_torch_file(pickled(tmp_path / "x.pt", b"\x80\x02]r\xff\xff\xff\x7f."))
    assert read.value == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_pickle_inside_a_pickle_stays_text(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    inner = pickle.dumps(Runs(os.system, f"touch {touched}"))
    torch.save({"state_dict": {}, "more": inner}, tmp_path / "x.pt")
    assert read_torch_file(tmp_path / "x.pt").value["more"] is not None
    assert not touched.exists()


@pytest.mark.parametrize("cut", [3, 40, 200, -200, -30, -1])
def test_every_truncation_is_an_error(tmp_path: Path, cut: int) -> None:
    path = pickled(tmp_path / "x.pt", tensor([4], [1], 4), _0=bytes(16))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError):
        read_torch_file(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02.",
        b"\x80\x02((.",
        b"\x80\x02R.",
        b"\x80\x02h\x05.",
        b"\x80\x02\x82\x01.",
        b"\x80\x09N.",
        b"NN.",
    ],
)
def test_a_pickle_of_nonsense_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"`.*x\.pt` is damaged"):
        read_torch_file(pickled(tmp_path / "x.pt", content))


def test_a_file_over_the_limit_is_refused_unless_allowed(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}}, path)
    with path.open("ab") as file:
        file.truncate(torchfile.MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match="more than the 8 allowed: raise `--max-gib`"):
        read_torch_file(path)
    with pytest.raises(CheckpointError, match="damaged"):
        read_torch_file(path, max_bytes=2 * torchfile.MAX_BYTES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no file of `torch.save`, it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\x10\0\0\0\0\0\0\0{}", "a safetensors file"),
        (b"GIF89a" * 20, "is no file of `torch.save`$"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(tmp_path / "model.ckpt")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_torch_file(tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_torch_file(tmp_path)


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    for content in (b"cos\nsys\x1b[2Jtem\n(tR.", b"\x80\x02cos\nsystem\x07" + b"x" * 100_000 + b"\n(tR."):
        with pytest.raises(CheckpointError) as error:
            read_torch_file(pickled(tmp_path / "x.pt", content))
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 600
    assert describe({"\x1b[31m": None}) == "a dictionary with `\\x1b[31m`"
