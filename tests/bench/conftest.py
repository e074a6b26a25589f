"""Fixtures of the tests of benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bench.quiet import Quiet


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tests share the cores; torch's threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class _Judged(Quiet):
    """Watches, and finds every machine quiet: tests share the cores with others."""

    def reasons(self) -> list[str]:
        return []


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command judges no machine busy."""
    monkeypatch.setattr("bench.command.Quiet", _Judged)
