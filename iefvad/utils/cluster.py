"""Ray: the connection to a cluster, or a cluster of this machine alone."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from iefvad.utils.errors import UserError


@contextlib.contextmanager
def cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine. An existing connection is used and stays open.

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
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
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
