"""Ray: the connection to a cluster, or a cluster of this machine alone."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from iefvad.utils.errors import UserError

_LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine. An existing connection is used and stays open.

    What is started on this machine listens on loopback alone: other machines cannot reach it.

    Args:
        ray: The module.
        address: Address of the cluster; None for this machine.

    Raises:
        UserError: the cluster does not start or answer.
    """
    mine = not ray.is_initialized()
    if mine:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            if address is None:
                _start_alone(ray)
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the Ray cluster {address or 'on this machine'} does not start or answer ({error}): check"
                " --ray-address, or use --engine local."
            ) from error
    levels = {name: logging.getLogger(name).level for name in ("ray", "ray.data")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if mine:
            ray.shutdown()


def _start_alone(ray: Any) -> None:
    """Start Ray on this machine. Who reaches its ports can run code, so all its processes listen on loopback alone."""
    from ray._private import ray_constants as constants

    # Ray replaces loopback by the address of the machine, unless it is told that there will be no cluster.
    before = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            _node_ip_address=_LOOPBACK,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    finally:
        constants.ENABLE_RAY_CLUSTER = before
    if ray.util.get_node_ip_address() != _LOOPBACK:
        ray.shutdown()
        raise UserError(
            f"Ray {ray.__version__} cannot be kept to this machine: use --engine local, or start a cluster by `ray"
            " start --head` in a network that you trust and name it by --ray-address."
        )
