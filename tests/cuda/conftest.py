"""A GPU of NumPy for every test of this folder that asks for ``machine``."""

import ctypes
from collections.abc import Callable, Iterator

import pytest
from mock_cuda import Machine, installed


@pytest.fixture
def machine(emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with installed(Machine(emulated), monkeypatch) as gpu:
        yield gpu


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def notify(notices: list[str]) -> Callable[[str], None]:
    return notices.append
