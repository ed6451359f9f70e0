"""A server in a process of its own, and what it serves."""

import socket

import pytest
from closed_engine import Site, furnish


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Nothing is reached but this machine itself, where the servers of these tests are."""
    connect = socket.socket.connect

    def allowed(self, address):
        assert not isinstance(address, tuple) or address[0] == "127.0.0.1", f"a test reached for {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", allowed)


@pytest.fixture
def here(tmp_path):
    return furnish(tmp_path)


@pytest.fixture
def open_site(here):
    """``open_site(*options, delay=0)`` starts a server over ``here``; what is still open is closed in the end."""
    sites = []

    def opened(*options, delay=0.0):
        sites.append(Site(here, *options, delay=delay))
        return sites[-1]

    yield opened
    for site in sites:
        site.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """One server for all tests of a file."""
    made = Site(furnish(tmp_path_factory.mktemp("site")))
    yield made
    assert made.close() == 128 + 15
