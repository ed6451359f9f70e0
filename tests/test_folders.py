"""Described folders: what is wrong with one is named before anything in it is used."""

import json
import os
import pwd
from pathlib import Path

import pytest

from stage_rt import files
from stage_rt.backends import kept
from stage_rt.errors import EngineError, GraphsError, InputError
from stage_rt.files import cache_folder, digests, staged_folder, write_atomic
from stage_rt.folders import (
    check_replaceable,
    read_contexts,
    read_description,
    read_engine,
    up_to_date,
    verify,
    verify_again,
    verify_engine,
)
from stage_rt.recipe import Recipe
from stage_rt.run.half_done import HalfDone
from stage_rt.spec import ENGINE_FILE, EngineSpec, ModelSpec


def engine_spec(**changes: object) -> EngineSpec:
    model = ModelSpec(
        image_size=32,
        latent_size=8,
        latent_scale=1.0,
        tokens=1,
        context_dim=1,
        recipe=Recipe.authors(),
        prompts={"tile+hole": None},
    )
    fields = {
        "model": model,
        "backend": "onnxruntime",
        "library": "onnxruntime",
        "library_version": "1.0",
        "devices": ["cpu"],
        "dtype": "fp32",
        "batch": [1],
        "graphs_fingerprint": "a" * 64,
        "files": {},
    }
    return EngineSpec.model_validate(fields | changes)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    (folder / "adapters").mkdir(parents=True)
    (folder / "unet.onnx").write_bytes(b"unet")
    (folder / "adapters/a.onnx").write_bytes(b"adapter")
    (folder / ENGINE_FILE).write_text(engine_spec(files=digests(folder)).sealed())
    return folder


def read(path: Path) -> EngineSpec:
    return read_description(path, EngineSpec, GraphsError, absent="is none", remedy="mend it")


def test_a_file_that_went_while_the_engine_was_open_is_not_said_to_have_changed(engine: Path) -> None:
    spec = read_engine(engine)
    (engine / "unet.onnx").write_bytes(b"other")
    with pytest.raises(EngineError, match=r"unet.onnx` was replaced or changed while the engine was in use"):
        verify_again(engine, spec, ["unet.onnx"])
    (engine / "unet.onnx").unlink()
    with pytest.raises(
        EngineError, match=r"unet.onnx` was removed while the engine was in use: run the same"
    ):
        verify_again(engine, spec, ["unet.onnx"])


def test_a_folder_without_its_description_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(GraphsError, match=f"^`{folder}` is none$"):
            read(folder / ENGINE_FILE)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', "\x00"])
def test_a_description_that_is_none_is_named_with_the_remedy(tmp_path: Path, content: str) -> None:
    path = tmp_path / ENGINE_FILE
    path.write_text(content)
    with pytest.raises(GraphsError, match=rf"^`{path}` is not valid at .*: mend it$") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [ENGINE_FILE, "unet.onnx"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(engine: Path, monkeypatch, name: str) -> None:
    opened = Path.open

    def denied(path: Path, *arguments, **options):
        if path.name == name:
            raise PermissionError(13, os.strerror(13), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(EngineError) as error:
        verify_engine(engine, read_engine(engine))
    assert str(error.value) == (
        f"`{engine / name}` may not be read: give yourself permission and run the same command again"
    )


@pytest.mark.parametrize(("dtype", "size"), [("F16", 2), ("BF16", 2), ("F8_E4M3", 1)])
def test_contexts_of_another_type_are_named_even_where_numpy_has_none_like_it(
    tmp_path: Path, dtype: str, size: int
) -> None:
    path = tmp_path / "prompts.safetensors"
    held = {"tile+hole": {"dtype": dtype, "shape": [1, 1], "data_offsets": [0, size]}}
    header = json.dumps(held).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(
        EngineError, match=r"holds no float32 context of shape \(1, 1\) for prompt 'tile\+hole'"
    ):
        read_contexts(path, engine_spec().model)


def test_an_engine_of_the_first_format_is_told_apart_and_to_be_built_again(engine: Path) -> None:
    path = engine / ENGINE_FILE
    wanted = read_engine(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    message = r"not valid at format \(it is of an earlier release, .*\): build the engine again with `stage-rt build`"
    with pytest.raises(EngineError, match=message):
        read_engine(engine)
    assert not up_to_date(engine, wanted)


@pytest.mark.parametrize("inner", [None, "model"])
def test_what_a_later_release_made_is_told_apart(engine: Path, inner: str | None) -> None:
    path = engine / ENGINE_FILE
    content = json.loads(path.read_text()) | {"later": 1}
    (content if inner is None else content[inner])["format"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(EngineError) as refused:
        read_engine(engine)
    assert str(refused.value) == f"`{path}` was made by a newer stage-rt: update this one"


def _link(folder: Path) -> None:
    (folder / "unet.onnx").unlink()
    (folder / "unet.onnx").symlink_to(folder / "adapters/a.onnx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "more.onnx").write_bytes(b""),
            "more.onnx` is not listed in engine.json: remove it",
        ),
        (lambda folder: (folder / "unet.onnx").unlink(), "unet.onnx` is missing: mend it"),
        (
            lambda folder: (folder / "adapters/a.onnx").write_bytes(b"x"),
            "a.onnx` is not the file that engine.json lists",
        ),
        (_link, "unet.onnx` is a link, which is not allowed here"),
    ],
    ids=["unlisted", "missing", "changed", "link"],
)
def test_a_file_that_is_not_as_listed_is_named_and_the_engine_not_up_to_date(
    engine: Path, damage, message
) -> None:
    spec = read(engine / ENGINE_FILE)
    verify(engine, spec.files, ENGINE_FILE, EngineError, "mend it")
    assert up_to_date(engine, spec)
    damage(engine)
    with pytest.raises(EngineError, match=message):
        verify(engine, spec.files, ENGINE_FILE, EngineError, "mend it")
    assert not up_to_date(engine, spec)


def test_another_fingerprint_or_no_engine_is_not_up_to_date(engine: Path, tmp_path: Path) -> None:
    assert not up_to_date(engine, engine_spec(batch=[1, 8]))
    assert not up_to_date(tmp_path, engine_spec())


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("run/test/crack/000.png", "run"),
        ("notes.txt", "notes.txt"),
        ("adapters/old/a.onnx", "adapters/old/a.onnx"),
    ],
)
@pytest.mark.parametrize("damaged", [False, True])
def test_an_engine_is_not_replaced_with_what_else_is_in_its_folder(
    engine: Path, place: str, named: str, damaged: bool
) -> None:
    (engine / place).parent.mkdir(parents=True, exist_ok=True)
    (engine / place).touch()
    if damaged:
        (engine / ENGINE_FILE).write_text("{")
    with pytest.raises(InputError) as refused:
        check_replaceable(engine, "onnxruntime", force=True)
    assert str(refused.value) == (
        f"`{engine / named}` is no part of an engine and would be removed with the one beside it: move it elsewhere "
        "or choose another `-o`"
    )


def test_what_builds_leave_may_be_replaced(engine: Path) -> None:
    names = ("unet.xml", "unet.bin", "unet.onnx.data", "adapters/a.aware.engine", "unet.b8.pt2")
    for name in (*names, "prompts.safetensors", ".engine.json.01234567.tmp"):
        (engine / name).touch()
    check_replaceable(engine, "onnxruntime", force=False)
    (engine / ENGINE_FILE).write_text("{")
    check_replaceable(engine, "openvino", force=False)


def test_of_a_file_that_is_waited_for_the_folders_that_were_made_are_too(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "_sync", lambda path: synced.append(Path(path)))
    for name in ("a/b/one", "a/b/two"):
        write_atomic(tmp_path / name, b"")
    assert synced == [tmp_path / "a/b", tmp_path / "a", tmp_path, tmp_path / "a/b"]
    write_atomic(tmp_path / "c/d/three", b"", synced=False)
    assert len(synced) == 4


@pytest.mark.parametrize(("umask", "given"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_that_a_library_hid_are_for_whom_the_umask_says(tmp_path: Path, umask: int, given: int) -> None:
    photo = tmp_path / "photo.png"
    before = os.umask(umask)
    try:
        photo.touch(0o600)
        with staged_folder(tmp_path / "folder") as staged:
            (staged / "adapters").mkdir()
            for name in ("weights.safetensors", "adapters/a.safetensors"):
                (staged / name).touch(0o600)
            (staged / "linked.png").hardlink_to(photo)
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "folder").rglob("*.*")}
    assert found == {"weights.safetensors": given, "a.safetensors": given, "linked.png": 0o600}


def test_without_a_home_nothing_is_kept_and_nothing_fails(monkeypatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    half = HalfDone("measured", "this")
    assert half.of("what", lambda: 1) == 1
    half.end()
    assert HalfDone("measured", "this").of("what", lambda: 2) == 2
    kept.write(cache_folder() / "compiled", b"code")
    assert kept.read(cache_folder() / "compiled") == b""
