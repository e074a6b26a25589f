"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest

from iefvad.utils.threads import prepare

prepare()  # before torch is loaded: threads of several test processes must not wait for each other awake
import torch  # noqa: E402

if importlib.util.find_spec("hypothesis") is not None:  # the tests on a GPU do without it
    from hypothesis import settings

    settings.register_profile("repeatable", derandomize=True)
    settings.load_profile("repeatable")

os.environ.setdefault("MPLBACKEND", "Agg")


# A job in the background of a shell ignores SIGINT, and one under `nohup` SIGHUP; commands then keep that.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

_THREADS = torch.get_num_threads()
_WITH_THREADS = {"kernels", "gpu", "utils"}
"""Folders whose tests keep their threads, because they are about them.

The others take one thread in each test process: threads of several processes would wait for each other.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Set the number of threads before the fixtures of a file train something."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    torch.set_num_threads(_THREADS if alone or not _WITH_THREADS.isdisjoint(item.path.parts) else 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real videos, annotations and features; the test is skipped where it is absent."""
    root = Path(os.environ.get("IEFVAD_TEST_DATA", _DATA))
    if not root.is_dir():
        pytest.skip("real test data are absent (set IEFVAD_TEST_DATA to their folder)")
    return root
