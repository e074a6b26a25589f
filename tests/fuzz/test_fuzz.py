"""A few cases of every group of the harness. `python -m tests.fuzz --minutes N` runs more."""

from __future__ import annotations

import pytest

from tests.fuzz.runner import GROUPS, Bench

CASES = 12


@pytest.mark.parametrize("group", GROUPS)
def test_no_case_of_a_group_is_a_fault(group: str) -> None:
    with Bench(group) as bench:
        tried = [bench.run(number) for number in range(CASES)]
    assert [f"{one.outcome}: {group}:{one.number} {one.name}\n{one.ended.err}" for one in tried if one.fault] == []
