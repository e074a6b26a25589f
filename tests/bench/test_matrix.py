"""The matrix of triton versions and cards: the short selection, what counts as a fault, and the files it writes."""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import matrix
from bench.__main__ import main
from bench.fake_gpu import Compilation, Launch, Seen, Usage
from bench.launches import LAUNCHES, Count
from bench.matrix_cases import OPERATORS, Case, cases
from ief_kernels import _spills, dispatch
from ief_kernels._spills import RECORDED, Spill
from ief_kernels._triton import COOPERATIVE

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def quick() -> list[matrix.Result]:
    """The short selection for sm_90 and the installed triton."""
    return matrix.measure(matrix.INSTALLED, 90, quick=True)


@needs_triton
def test_every_operator_compiles_fits_and_launches_what_is_promised(quick: list[matrix.Result]) -> None:
    assert {result.op for result in quick} == set(OPERATORS)
    if matrix.recorded(_spills.version(), 90) is None:
        warnings.warn(
            f"triton {_spills.version()} has not been recorded: python -m bench --matrix --record", stacklevel=2
        )
    assert [f"{result.where}: {fault}" for result in quick for fault in result.faults] == []
    assert all(result.launches for result in quick) and sum(result.compilations for result in quick) > 10


def test_every_operator_has_calls_of_every_kind() -> None:
    found = cases()
    # Low-rank fusion has no Triton kernels.
    assert {case.op for case in found} == set(OPERATORS) == set(dispatch.operators()) - {"low_rank_fusion"}
    # Without cooperative launches (triton 3.2) few tokens go the way of many.
    absent = set() if COOPERATIVE else {"refine, up to 256 tokens"}
    assert {case.kind for case in found} == set(LAUNCHES) - absent
    keys = [(case.op, case.name, dtype) for case in found for dtype in case.dtypes]
    assert len(keys) == len(set(keys)), "two calls of one name: --resume would leave one out"


def test_notes_say_what_the_code_says() -> None:
    notes = (Path(matrix.__file__).parent / "NOTES.md").read_text(encoding="utf-8")
    section = notes.split("## Launches")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "`" in line[:4]]
    assert {row[0].replace("`", ""): tuple(row[1:]) for row in rows} == {
        name: (str(count.forward), str(count.backward)) for name, count in LAUNCHES.items()
    }


def test_counts_in_words() -> None:
    assert [str(count) for count in (Count(2), Count(0, 1), Count(0, 9), Count(3, 4), Count(-1, 2))] == [
        "2",
        "N",
        "9N",
        "4N + 3",
        "2N − 1",
    ]
    assert Count(3, 4).of(10) == 43


class Stand:
    """A GPU whose calls see what a test says."""

    arch = 90

    def __init__(self, *seen: Seen) -> None:
        self.seen = list(seen)

    def watch(self) -> Any:
        import contextlib

        return contextlib.nullcontext(self.seen.pop(0))


class Spilling(Compilation):
    def usage(self) -> Usage:
        return Usage(255, 16, 6)


def launch(kernel: str = "kernel", grid: int = 4, cooperative: bool = False) -> Launch:
    return Launch(kernel, (grid, 1, 1), 4, 0, cooperative)


def compilation() -> Compilation:
    return Spilling("kernel", {"x": "*fp32"}, {"BLOCK": 128}, 4, 1, 0, 0.1, b"")


def case(forward: Any = lambda dtype: None, config: int | None = None) -> Case:
    return Case("precision_fusion", "a call", "precision_fusion", forward, config=config)


@pytest.fixture
def spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty table of spills, and a triton 3.0 for which RECORDED has one row."""
    path = tmp_path / "spills.json"
    path.write_text("{}", encoding="utf-8")
    monkeypatch.setattr(matrix, "SPILLS", path)
    monkeypatch.setattr(matrix, "version", lambda: "3.0")
    monkeypatch.setitem(RECORDED, "3.0", (Spill("t", "op", "other", "fp32", 90, "BLOCK=1,warps=4,stages=1", 6),))
    matrix._listed.cache_clear()
    yield path
    matrix._listed.cache_clear()


@needs_triton
def test_a_wrong_number_of_launches_is_a_fault(spills: Path) -> None:
    def run(*launches: Launch) -> list[str]:
        gpu: Any = Stand(Seen(list(launches)))
        return matrix.run_case(gpu, case(), "fp32").faults

    assert run(launch()) == []
    assert run(launch("first"), launch("second")) == ["forward: 2 launches instead of 1 (first, second)"]
    assert "132 processors" in run(launch(grid=133, cooperative=True))[0] and run(launch(grid=133)) == []


@needs_triton
def test_an_error_is_a_fault_unless_a_configuration_does_not_fit(spills: Path) -> None:
    from triton.runtime.errors import OutOfResources

    def run(error: Exception, config: int | None = None) -> matrix.Result:
        def forward(dtype: Any) -> None:
            raise error

        gpu: Any = Stand(Seen())
        return matrix.run_case(gpu, case(forward, config), "fp32")

    assert run(ValueError("no such thing")).faults == ["ValueError: no such thing"]
    no_room = OutOfResources(200, 100, "shared memory")
    assert "shared memory" in run(no_room).faults[0]
    assert run(no_room, config=2).faults == [] and run(no_room, config=2).left_out


@needs_triton
def test_a_spill_is_a_fault_until_it_is_recorded(spills: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> matrix.Result:
        gpu: Any = Stand(Seen([launch()], [compilation()]))
        return matrix.run_case(gpu, case(), "fp32")

    name = "kernel fp32 BLOCK=128,warps=4,stages=1"
    result = run()
    assert result.spills == {name: 6}
    assert result.faults == [f"{name}: 6 spill instructions, none recorded for triton 3.0"]
    matrix.record([result], whole=False)
    matrix._listed.cache_clear()
    assert json.loads(spills.read_text(encoding="utf-8")) == {"3.0": {name: {"90": 6}}} and run().faults == []
    matrix.record([matrix.Result("3.0", 90, "op", "case", "fp32")], whole=True)
    assert json.loads(spills.read_text(encoding="utf-8")) == {"3.0": {}}
    # What the tuners leave out is listed there already, and a version without any table has no such faults.
    monkeypatch.setitem(RECORDED, "3.0", (Spill("t", "op", "kernel", "fp32", 90, "BLOCK=128,warps=4,stages=1", 6),))
    assert run().faults == []
    matrix.record([result], whole=False)
    assert json.loads(spills.read_text(encoding="utf-8")) == {"3.0": {}}
    monkeypatch.setattr(matrix, "version", lambda: "2.9")
    assert run().faults == [] and matrix.recorded("2.9", 90) is None


def result(arch: int, op: str, *faults: str) -> matrix.Result:
    return matrix.Result("3.0", arch, op, "a call", "fp32", list(faults), [1, 1], 2, {}, 1.5)


def test_the_table_counts_faults() -> None:
    text = matrix.table([result(80, "refine"), result(80, "kalman_scan", "one", "two"), result(120, "refine")])
    lines = [re.split(r" {2,}", line) for line in text.splitlines()]
    assert lines[0] == ["triton", "arch", "refine", "kalman_scan", "calls", "compiled", "spilling", "seconds"]
    assert lines[1] == ["3.0", "sm_80", "ok", "2 faults", "2", "4", "0", "3"]
    assert lines[2][:4] == ["3.0", "sm_120", "ok", "-"]


def test_results_are_kept_line_by_line(tmp_path: Path) -> None:
    from dataclasses import asdict

    path = tmp_path / "results.jsonl"
    line = json.dumps(asdict(result(80, "refine", "a fault")))
    path.write_text(f"{line}\n{line[:40]}", encoding="utf-8")
    assert matrix.read(path) == [result(80, "refine", "a fault")]
    assert matrix.read(tmp_path / "none.jsonl") == []


def test_what_a_person_can_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--matrix", "--triton", str(tmp_path)]) == 2
    assert "not an unpacked wheel of triton" in capsys.readouterr().err
    (tmp_path / "triton-3.3.1.dist-info").mkdir()
    assert matrix.version_in(str(tmp_path)) == "3.3"
    out = tmp_path / "results.jsonl"
    out.touch()
    assert main(["--matrix", "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err


def test_faults_end_with_status_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(triton: str, arch: int, *rest: Any, **others: Any) -> list[matrix.Result]:
        return [result(arch, "refine", *(["it spills"] if arch == 120 else []))]

    monkeypatch.setattr(matrix, "measure", measure)
    (tmp_path / "triton-3.6.0.dist-info").mkdir()
    assert main(["--matrix", "--triton", str(tmp_path), "--archs", "80"]) == 0
    assert "1 calls, no faults" in capsys.readouterr().out
    assert main(["--matrix", "--triton", str(tmp_path)]) == 1
    assert "sm_120, refine (a call), fp32: it spills" in capsys.readouterr().out
