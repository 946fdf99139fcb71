"""A Ray cluster of machines that are groups of processes on this one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

OBJECT_STORE = 100 * 1024 * 1024


@contextmanager
def ray_machines(count: int, *, cpus: int) -> Iterator[Any]:
    """Start the cluster and set RAY_ADDRESS; at the end its processes and those of its workers are gone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy machine is no fault of a proxy
        from ray.cluster_utils import Cluster

        machine = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=machine)
        try:
            for _ in range(count - 1):
                cluster.add_node(**machine)
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
        finally:
            cluster.shutdown()


def workers_of(cluster: Any, title: str) -> list[int]:
    """Return the process ids of the workers of a cluster's machines whose title contains a text."""
    raylets = {info.process.pid for node in cluster.list_all_nodes() for info in node.all_processes.get("raylet", [])}
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets and title in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
            except OSError:  # it ended
                continue
    return found


def wait_for(condition: Callable[[], Any], *, seconds: float = 300) -> Any:
    """Return the first result of a condition that is true. Fail after some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.1)
    pytest.fail(f"not so after {seconds:g} s")


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    """Kill one process at once."""
    os.kill(pid, 9)
