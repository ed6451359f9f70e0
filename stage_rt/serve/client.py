"""A server's API for programs in Python; what ``stage-rt client`` calls."""

import base64
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import httpx

from stage_rt.errors import InputError, StageError, amount
from stage_rt.files import LONGEST_NAME, disk_failures, locked, try_out, write_atomic
from stage_rt.run.writer import defect_type, write_pair
from stage_rt.spec import CLIENT_FILE

TRIES = 20
"""Times that a busy server is asked again."""
PAUSE, BUSY = 1.0, 10.0
"""Seconds between two streams of one job, and until a busy server is asked again that does not say when."""
_MARK = b'{"painted_by": "stage-rt client"}\n'


class ServerError(StageError):
    """The server did not answer, or something of its broke."""


class AddressError(InputError):
    """A URL that no server can have."""


class Client:
    """A server at ``url``, with or without its ``/v1``; ``token`` is what it asks for, if it does.

    Close it, or use it in a ``with`` block.

    Raises:
        InputError: the address is none, or the token has characters that no token has.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InputError("the token has characters that no token has", "copy it again")
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        # A pair may take minutes; a server that is gone is told by the connection.
        timeout = httpx.Timeout(30.0, read=900.0)
        try:
            address = httpx.URL(url.rstrip("/").removesuffix("/v1"))
        except httpx.InvalidURL:
            raise _no_address(url) from None
        if address.scheme not in ("http", "https") or not address.host:
            raise _no_address(url)
        self._http = httpx.Client(base_url=address, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def engines(self) -> list[dict[str, Any]]:
        """What can be painted: `stage_rt.serve.api.EngineState` of every engine."""
        found: list[dict[str, Any]] = self._told("GET", "/v1/engines")
        return found

    def pair(
        self, image: bytes, mask: bytes, prompt: str, **options: Any
    ) -> tuple[dict[str, Any], bytes, bytes]:
        """Paint a pair; its state, its image and its label, both PNG files.

        ``options`` are the fields of `stage_rt.serve.api.PairOrder`. A busy server is asked again when it says.

        Raises:
            InputError: the server refuses it.
            ServerError: it cannot be reached or failed, or somebody cancelled the pair.
        """
        order = {"prompt": prompt, "image": _text(image), "mask": _text(mask), **options}
        state = self._told("POST", "/v1/pairs", order)
        if state["state"] != "done":
            raise ServerError(f"the pair was {state['state']}", "send it again")
        return state, *(self._ask("GET", state[name]).content for name in ("image", "mask"))

    def order(self, masks: list[bytes], prompt: str, count: int, **options: Any) -> dict[str, Any]:
        """Order a run over the server's photographs; its state. ``options`` are the fields of `JobOrder`."""
        order = {"prompt": prompt, "count": count, "masks": [_text(mask) for mask in masks], **options}
        state: dict[str, Any] = self._told("POST", "/v1/jobs", order)
        return state

    def follow(self, job: str) -> Iterator[dict[str, Any]]:
        """The states of a job until it is over; a connection that breaks is made again.

        Raises:
            InputError: there is no such job.
            ServerError: the server failed.
        """
        over = False
        while not over:
            with (
                suppress(httpx.TransportError),
                self._http.stream("GET", f"/v1/jobs/{job}/events") as answer,
            ):
                if answer.is_error:
                    answer.read()
                    _check(answer)
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    raise self._stranger()
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        state = json.loads(line.removeprefix("data: "))
                        over = state["state"] not in ("waiting", "painting")
                        yield state
            if not over:
                # A server that is going down ends every stream at once.
                time.sleep(PAUSE)

    def _told(self, method: str, path: str, body: object = None) -> Any:
        try:
            return self._ask(method, path, body).json()
        except ValueError:
            raise self._stranger() from None

    def _stranger(self) -> ServerError:
        problem = f"`{self._http.base_url}` does not answer as `stage-rt serve` does"
        return ServerError(problem, "check the address")

    def _ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        for _ in range(TRIES):
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                raise ServerError(
                    f"`{self._http.base_url}` cannot be reached ({error})", "see that the server runs"
                ) from None
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                break
            # A proxy on the way may give a date instead of seconds.
            seconds = answer.headers.get("retry-after", "")
            time.sleep(float(seconds) if re.fullmatch(r"[0-9]{1,4}", seconds) else BUSY)
        _check(answer)
        return answer


def paint_file(
    client: Client, image: Path, mask: Path, output: Path, prompt: str, **options: Any
) -> dict[str, Any]:
    """Paint a pair of files and write it in the MVTec layout under ``output``, by the name of its image; its state.

    Another pair of that name, as of another seed, is left as it is: this one's name ends in ``_2``, ``_3``, ...
    ``output`` is marked by a `CLIENT_FILE`, as a run is by its description.

    Raises:
        InputError, ServerError: as `Client.pair`, a file cannot be read, ``output`` holds other files, or the image's
            name is too long.
        InputError, StageError: ``output`` cannot be written, as `stage_rt.files.disk_failures`.
    """
    kind = defect_type(prompt)
    with disk_failures(output):
        _check_own(output)
    _check_name(image)
    for path in (CLIENT_FILE, *_paths(kind, image.stem)):
        try_out(output / path)
    try:
        contents = image.read_bytes(), mask.read_bytes()
    except OSError as error:
        raise InputError(f"`{error.filename}` cannot be read ({error.strerror})", "check the path") from None
    state, painted, label = client.pair(*contents, prompt, **options)
    # Another process may be putting a pair of this name there.
    with locked(output / CLIENT_FILE, lambda: None):
        paths = _put(output, kind, image.stem, painted, label)
    return state | {"image": str(output / paths[0]), "mask": str(output / paths[1])}


def _put(folder: Path, kind: str, stem: str, painted: bytes, label: bytes) -> tuple[str, str]:
    """Write a pair under its first name that is free or has it already; where image and label are in ``folder``."""
    for name in chain([stem], (f"{stem}_{number}" for number in count(2))):
        paths = _paths(kind, name)
        there = tuple(_content(folder / path) for path in paths)
        if there[0] in (None, painted) and there[1] in (None, label):
            break
    write_atomic(folder / CLIENT_FILE, _MARK)
    if None in there:
        write_pair(folder, paths, painted, label)
    return paths


def _paths(kind: str, name: str) -> tuple[str, str]:
    return f"test/{kind}/{name}.png", f"ground_truth/{kind}/{name}_mask.png"


def _no_address(url: str) -> AddressError:
    return AddressError(
        f"`{url}` is no address of a server", "begin with `http://`, as `http://127.0.0.1:8080`"
    )


def _check_own(folder: Path) -> None:
    """A painted pair among real ones, or in a run, would pass for one of them."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"`{folder}` is a file", "give a folder as `-o`")
    others = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if others and not (folder / CLIENT_FILE).is_file():
        raise InputError(
            f"`{folder}` holds files that `stage-rt client` did not put there", "give an empty folder as `-o`"
        )


def _check_name(image: Path) -> None:
    """The number is that of the last pair of a photograph that any folder will have."""
    over = len(os.fsencode(f"{image.stem}_99999_mask.png")) - LONGEST_NAME
    if over > 0:
        raise InputError(
            f"the name of `{image}` is too long for its pair's files",
            f"make it {amount(over, 'byte')} shorter",
        )


def _content(path: Path) -> bytes | None:
    """None where there is no such file."""
    return path.read_bytes() if path.exists() else None


def _check(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        fault = answer.json()["error"]
        problem, remedy = str(fault["problem"]), fault["remedy"]
    except (ValueError, KeyError, TypeError):
        problem, remedy = f"the server answered {answer.status_code}", None
    kind = InputError if answer.is_client_error else ServerError
    raise kind(problem, remedy)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
