"""Ray on one machine: nobody else reaches it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from iefvad.utils.cluster import cluster
from iefvad.utils.errors import UserError

LISTENING = "0A"


def family_of(leader: int) -> set[int]:
    """Return the processes that Ray has started: those of our session, without ourselves and pytest."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    family = {leader}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def listeners(processes: set[int]) -> dict[str, str]:
    """Return {inode: address} of the sockets on which these processes listen, as the kernel writes addresses."""
    own = set()
    for process in processes:
        with contextlib.suppress(OSError):
            own |= {os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir()}
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == LISTENING and f"socket:[{inode}]" in own:
                found[inode] = local.partition(":")[0]
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are read from Linux's /proc")
def test_what_is_started_here_listens_on_loopback_alone():
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        pytest.skip("Ray runs already")
    before = listeners({os.getpid()})
    with cluster(ray, None):
        ray.get(ray.remote(lambda: 1).remote())
        found = {inode: address for inode, address in listeners(family_of(os.getpid())).items() if inode not in before}
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert len(found) >= 4 and set(found.values()) <= loopback
    from ray._private import ray_constants

    assert ray_constants.ENABLE_RAY_CLUSTER


def test_an_address_is_a_cluster():
    calls = []
    ray = SimpleNamespace(
        is_initialized=lambda: False, init=lambda **options: calls.append(options), shutdown=lambda: 0
    )
    with cluster(ray, "ray://host:10001"):
        pass
    assert calls[0]["address"] == "ray://host:10001" and "_node_ip_address" not in calls[0]


def test_a_version_of_ray_that_listens_elsewhere_is_ended():
    pytest.importorskip("ray")
    ended = []
    ray = SimpleNamespace(
        __version__="9",
        is_initialized=lambda: False,
        init=lambda **options: None,
        shutdown=lambda: ended.append(True),
        util=SimpleNamespace(get_node_ip_address=lambda: "192.0.2.1"),
    )
    with pytest.raises(UserError, match="Ray 9 cannot be kept to this machine: use --engine local"), cluster(ray, None):
        pass
    assert ended
