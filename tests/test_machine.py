"""What of a machine a process may use."""

import pytest

from stage_rt import machine

GIB = 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """``groups(own, limits)`` is a system in whose groups the process is; limits by their files."""

    def made(own, limits=None):
        (tmp_path / "cgroup").write_text(own)
        for name, content in (limits or {}).items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")

    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": GIB}[name])
    return made


@pytest.mark.parametrize(
    ("own", "limits", "memory"),
    [
        ("", {}, 4096 * GIB),
        ("0::/\n", {"memory.max": 8 * GIB}, 8 * GIB),
        ("0::/a/b.service\n", {"a/b.service/memory.max": 8 * GIB}, 8 * GIB),
        ("0::/a/b\n", {"a/memory.max": 6 * GIB, "a/b/memory.max": "max"}, 6 * GIB),
        ("0::/a/b\n", {"a/memory.max": 6 * GIB, "a/b/memory.max": 7 * GIB}, 6 * GIB),
        ("0::/\n", {"memory.max": "max"}, 4096 * GIB),
        ("0::/\n", {"memory.max": 2**63}, 4096 * GIB),
        ("0::/c\n", {"other/memory.max": GIB}, 4096 * GIB),
        ("9:cpu,cpuacct:/x\n4:memory:/x\n", {"memory/x/memory.limit_in_bytes": 5 * GIB}, 5 * GIB),
        # As a container of version 1 sees it, whose own group is mounted as the root.
        ("4:memory:/docker/1f\n0::/\n", {"memory/memory.limit_in_bytes": 3 * GIB}, 3 * GIB),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": 2**63 - 4096}, 4096 * GIB),
    ],
)
def test_the_limit_of_a_container_is_that_of_its_memory(groups, own, limits, memory):
    groups(own, limits)
    assert machine.memory() == memory


def test_a_system_without_control_groups_has_what_the_machine_has(groups):
    assert machine.memory() == 4096 * GIB
