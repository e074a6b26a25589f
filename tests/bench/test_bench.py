"""The benchmark: its arithmetic, its tables, its checks on providers, and one small run through the command line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bench import (
    associative,
    environment,
    measure,
    memory,
    plots,
    providers,
    quiet,
    revisions,
    tables,
    targets,
    timing,
    trial,
)
from bench.__main__ import commands, main
from bench.ceilings import Ceilings, gemm_rate
from bench.command import file_stem, parse
from bench.operators import CALLS, OPERATORS, Case, Work, cases, tensors_of
from bench.timing import Budget
from ief_kernels import _products, reference

CPU = torch.device("cpu")
TINY = Budget(rounds=3, least_rounds=1, provider_seconds=0.2)
TINY_CASES = [
    Case("event_synthesis", "odd", (2, 5, 9, 11, 3), torch.uint8, trains=False),
    Case("event_synthesis", "surrogate", (2, 5, 9, 11, 3)),
    Case("precision_fusion", "odd", (2, 3, 5)),
    Case("fusion_and_terms", "odd", (2, 3, 5)),
    Case("kalman_scan", "odd", (2, 4, 5)),
    Case("kalman_scan", "robust", (2, 4, 5), nu=8.0),
    Case("refine", "odd", (2, 3, 5)),
]


def row(provider: str, milliseconds: float, **changes: object) -> measure.Row:
    made = measure.Row("precision_fusion", "training", [16, 256, 768], "float32", "both", provider)
    made.median_ms = made.q1_ms = made.q3_ms = milliseconds
    made.repeats = 5
    for name, value in changes.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


def test_quartiles() -> None:
    assert timing.quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert timing.quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)
    with pytest.raises(ValueError, match="no samples"):
        timing.quartiles([])


def test_ratio() -> None:
    assert timing.ratio(6.0, 2.0) == 3.0
    assert math.isnan(timing.ratio(6.0, 0.0))
    assert math.isnan(timing.ratio(math.inf, 1.0))


def test_interleaving_takes_out_what_fails_and_counts_no_first_run() -> None:
    order: list[tuple[str, int]] = []

    def run(name: str) -> timing.Run:
        def timed(index: int) -> timing.Laps:
            order.append((name, index))
            return {"forward": 1.0 + index}

        return timed

    def broken(index: int) -> timing.Laps:
        raise RuntimeError("no such kernel\nsecond line")

    timings, failures = timing.interleave(
        {"a": run("a"), "b": run("b"), "c": broken}, Budget(rounds=2, provider_seconds=9), compiled=frozenset("b")
    )
    assert order[:3] == [("a", 0), ("b", 0), ("b", 0)]
    assert order[3:] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)], "turned by one and reversed"
    assert failures == {"c": "RuntimeError: no such kernel"}
    assert timings["a"].samples == {"forward": [2.0, 3.0]}, "the first run warms up and is no sample"


def test_interleaving_puts_every_provider_after_every_other() -> None:
    order: list[str] = []

    def run(name: str) -> timing.Run:
        def timed(index: int) -> timing.Laps:
            order.append(name)
            return {"forward": 1.0}

        return timed

    timing.interleave({name: run(name) for name in "abc"}, Budget(rounds=6, provider_seconds=9))
    rounds = order[3:]
    assert ["".join(rounds[i : i + 3]) for i in range(0, 18, 3)] == ["abc", "acb", "cab", "cba", "bca", "bac"]


def test_a_very_slow_provider_runs_once() -> None:
    counts = dict.fromkeys("ab", 0)

    def run(name: str, seconds: float) -> timing.Run:
        def timed(index: int) -> timing.Laps:
            counts[name] += 1
            return {"both": seconds}

        return timed

    timings, _ = timing.interleave({"a": run("a", 60.0), "b": run("b", 0.1)}, Budget(rounds=4))
    assert counts == {"a": 1, "b": 5}
    assert timings["a"].samples == {"both": [60.0]}


def test_a_provider_that_fails_later_is_taken_out_too() -> None:
    def failing(index: int) -> timing.Laps:
        if index == 2:
            raise MemoryError("out of memory")
        return {"forward": 1.0}

    timings, failures = timing.interleave({"a": failing, "b": lambda index: {"forward": 1.0}}, Budget(rounds=4))
    assert failures == {"a": "MemoryError: out of memory"}
    assert {name: len(found.samples["forward"]) for name, found in timings.items()} == {"b": 4}


def test_a_case_that_cannot_be_set_up_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Case, device: torch.device) -> dict[str, object]:
        raise MemoryError("no room")

    monkeypatch.setitem(OPERATORS, "refine", dataclasses.replace(OPERATORS["refine"], inputs=broken))
    found = [Case("refine", "odd", (1, 2, 4)), Case("precision_fusion", "odd", (1, 2, 4))]
    monkeypatch.setattr(Ceilings, "measure", lambda self: self.samples.update({"copy": [1e9, 2e9, 1e9]}))
    rows = measure.measure(found, CPU, Ceilings(CPU), TINY, ("reference",))
    assert [row.reason for row in rows if row.op == "refine"] == ["MemoryError: no room"]
    for made in (row for row in rows if row.op == "precision_fusion"):
        assert made.fraction_of_ceiling == pytest.approx(made.gigabytes_per_s / 2.0), "of the best copy"


def test_no_case_begins_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ceilings, "measure", lambda self: None)
    monkeypatch.setattr("bench.measure.time.perf_counter", itertools.count(0.0, 6.0).__next__)
    order: list[str] = []
    found = [Case("refine", size, (1, 2, 4)) for size in ("odd", "small", "training")]
    rows = measure.measure(found, CPU, Ceilings(CPU), TINY, ("cuda",), seconds=12, progress=order.append)
    assert [text.split()[2] for text in order] == ["training", "odd"]
    reasons = {row.size: row.reason for row in rows}
    assert list(reasons) == ["odd", "small", "training"], "in the order of the cases"
    assert reasons == {"odd": "needs a CUDA device", "small": "no time was left", "training": "needs a CUDA device"}


def test_relative_error() -> None:
    a = torch.tensor([3.0, 4.0])
    assert trial.relative_error([a], [a]) == 0
    assert trial.relative_error([a + torch.tensor([0.0, 0.5])], [a]) == pytest.approx(0.1)
    assert trial.relative_error([torch.tensor([math.nan, 4.0])], [a]) == math.inf
    assert trial.relative_error([a[:1]], [a]) == math.inf
    assert trial.relative_error([a, a * 0 + 2], [a, a * 0]) == pytest.approx(math.sqrt(8))


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda case: f"{case.op}-{case.size}")
def test_plain_and_native_agree_with_the_reference_and_are_timed(case: Case) -> None:
    rows = measure.measure_case(case, CPU, TINY, ("reference", "plain", "native"))
    unavailable = {row.provider: row.reason for row in rows if row.reason}
    assert unavailable.keys() <= {"native"}, unavailable
    assert "differs" not in unavailable.get("native", "")
    directions = ["forward", "backward", "both"] if case.trains else ["forward"]
    measured = [row for row in rows if row.median_ms is not None]
    assert sorted({row.direction for row in measured}) == sorted(directions)
    for found in measured:
        assert found.q1_ms <= found.median_ms <= found.q3_ms
        assert found.repeats >= 1
        assert (found.peak_mb is not None) == (found.direction == directions[-1])
        if found.provider != "reference":
            base = next(r for r in measured if r.provider == "reference" and r.direction == found.direction)
            assert found.times_reference == pytest.approx(base.median_ms / found.median_ms)


def test_a_wrong_provider_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = providers.plain.precision_fusion
    monkeypatch.setattr(providers.plain, "precision_fusion", lambda *a, **k: tuple(1.001 * f for f in right(*a, **k)))
    case = Case("precision_fusion", "odd", (2, 3, 5))
    rows = measure.measure_case(case, CPU, TINY, ("reference", "plain"))
    (wrong,) = (row for row in rows if row.provider == "plain")
    assert wrong.median_ms is None
    assert "differs from reference by 1.0e-03" in wrong.reason


def test_work_counts_each_tensor_once() -> None:
    case = Case("precision_fusion", "training", (16, 256, 768))
    tensor = 16 * 256 * 768 * 4
    forward, backward = OPERATORS["precision_fusion"].work(case)
    assert (forward.bytes, backward.bytes) == (8 * tensor, 10 * tensor)
    assert forward + backward == Work(18 * tensor, forward.operations + backward.operations)
    forward, backward = OPERATORS["refine"].work(Case("refine", "training", (128, 256, 768)))
    assert forward.operations == pytest.approx(773e9, rel=1e-3)
    assert backward.operations == 2 * forward.operations
    ragged, _ = OPERATORS["fusion_and_terms"].work(Case("fusion_and_terms", "odd", (3, 10, 2)))
    assert ragged.bytes == 4 * (4 * 2 * (10 + 8 + 5) + 4 * 2 * 30), "padding is written but not read"
    event, _ = OPERATORS["event_synthesis"].work(Case("event_synthesis", "x", (1, 16, 4, 4, 3), torch.uint8, False))
    assert event.bytes == 16 * 16 * 3 + 16 * 4


@pytest.mark.parametrize(("device", "quick"), list(itertools.product(("cpu", "cuda"), (False, True))))
def test_cases_are_distinct_and_cover_every_operator(device: str, quick: bool) -> None:
    found = cases(torch.device(device), quick=quick)
    assert len(set(found)) == len(found)
    cpu_alone = {"ten_crop_events", "fusion_terms"}
    assert {case.op for case in found} >= set(OPERATORS) - (cpu_alone if device == "cuda" else set())
    if not quick:
        sizes = {case.size for case in found if case.op == "kalman_scan"}
        assert sizes - set(CALLS) == {"training", "inference", "small", "long", "odd", "robust"}
        assert sizes >= set(CALLS) or device == "cuda"
        assert {case.dtype for case in found if case.op == "kalman_scan"} >= {torch.float32, torch.bfloat16}


def test_a_provider_that_cannot_serve_says_why() -> None:
    case = Case("kalman_scan", "training", (16, 256, 768))
    assert "CUDA" in (providers.refusal("cuda", case, CPU) or "")
    assert "256 steps" in (providers.refusal("compile", case, CPU) or "")
    assert providers.refusal("plain", case, CPU) is None
    rows = measure.measure_case(Case("refine", "odd", (1, 2, 4)), CPU, TINY, ("triton",))
    assert [(row.provider, row.median_ms) for row in rows] == [("triton", None)]
    assert rows[0].reason


def test_ten_crop_maps_are_those_of_the_plain_way() -> None:
    pytest.importorskip("cv2")
    case = Case("ten_crop_events", "training", (20, 24, 32, 3), torch.uint8, trains=False)
    rows = measure.measure_case(case, CPU, Budget(rounds=1, least_rounds=1), ("reference", "plain", "native"))
    reasons = {row.provider: row.reason for row in rows if row.reason}
    assert reasons.keys() <= {"native"}
    assert "differs" not in reasons.get("native", "")


def test_tensors_of_a_scan_leave_its_state_out() -> None:
    from ief_kernels import kalman_scan

    x = torch.rand(1, 2, 3)
    assert len(tensors_of(kalman_scan(x, x + 0.1, backend="reference"))) == 3
    assert len(tensors_of(((x, x), (x,)))) == 3


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.00123, "1.23 µs"), (0.9996, "1.00 ms"), (12.345, "12.3 ms"), (999.4, "999 ms"), (51234.0, "51.2 s")],
)
def test_durations(milliseconds: float, text: str) -> None:
    assert tables.duration(milliseconds) == text


def test_result_table() -> None:
    rows = [
        row("reference", 50.0, gigabytes_per_s=4.53, fraction_of_ceiling=0.167, ceiling="copy"),
        row("native", 10.0, q1_ms=9.0, q3_ms=12.0, gigabytes_per_s=22.6, ceiling="copy", times_reference=5.0),
        row("cuda", 0.0, median_ms=None, reason="needs a CUDA device"),
        row("plain", 90.0, repeats=1, gigabytes_per_s=2.5, ceiling="copy"),
    ]
    text = tables.result_table(rows)
    lines = text.splitlines()
    first = "precision_fusion training (16×256×768) float32 both reference 50.0 ms −0% +0% 5 4.53 GB/s 0.17"
    assert " ".join(lines[2].split()) == first
    assert " ".join(lines[3].split()) == "native 10.0 ms −10% +20% 5 22.6 GB/s 5.00"
    assert "one run" in lines[4]
    assert lines[-1] == "  cuda: needs a CUDA device: precision_fusion"
    assert len({len(line) for line in tables.text_table(("a", "b"), [("x", "yy"), ("zzz", "w")]).splitlines()}) == 1


def test_a_sample_of_the_call_overhead_is_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("precision_fusion", "call-overhead-training", (1, 4, 8), calls=5)
    runner = trial.Trial(case, CPU, ("reference",)).runners["reference"]
    runner.bound, calls = runner.bound[:1], itertools.count()
    call = runner.bound[0].call
    monkeypatch.setattr(runner.bound[0], "call", lambda: (next(calls), call())[1])
    began = time.perf_counter()
    laps = runner(0)
    assert 5 * laps["both"] <= time.perf_counter() - began
    assert next(calls) == 5 and laps["both"] == pytest.approx(laps["forward"] + laps["backward"])
    assert "package's own functions" in (providers.refusal("plain", case, CPU) or "")


def test_targets() -> None:
    rows = [row("plain", 55.0), row("reference", 70.0), row("compile", 19.0), row("native", 11.0)]
    rows.append(row("native", 0.0705, size="call-overhead-training"))
    peaks = [{"provider": "native", "peak_mb": 60.0}, {"provider": "reference", "peak_mb": 100.0}]
    found = {target.name: target for target in targets.targets("cpu", rows, peaks)}
    fusion = found["precision_fusion (16, 256, 768), forward + backward: times plain"]
    assert (fusion.measured, fusion.met, fusion.note) == (5.0, True, "6.36× reference")
    compiled = found["precision_fusion, forward + backward: times torch.compile"]
    assert compiled.measured == pytest.approx(19 / 11)
    peak = found["peak memory of fusion + scan + refine training: share of reference's"]
    assert (peak.measured, peak.met) == (0.6, False)
    call = found["call overhead of precision_fusion, forward + backward [µs]"]
    assert (call.measured, call.met) == (70.5, False)
    assert sum(target.met is None for target in found.values()) == 4 + 10
    text = targets.target_table(list(found.values()))
    assert "NOT met" in text
    assert text.count("not measured") == 4 + 10
    rows = [row("triton", 1.0, op="kalman_scan", size="long", direction="forward", fraction_of_ceiling=0.7)]
    met = [target for target in targets.targets("cuda", rows, []) if target.met is not None]
    assert [(target.name, target.met) for target in met] == [
        ("kalman_scan (1, 131072, 768) forward: share of copy", True)
    ]


def test_memory_of_a_step() -> None:
    (native, cuda) = memory.measure(("reference", "cuda"), (2, 3, 8), CPU)
    assert native["reason"] is None
    assert 0 <= native["step_mb"] <= native["peak_mb"] < 1000
    assert cuda["peak_mb"] is None
    assert cuda["reason"] == "needs a CUDA device"


def test_the_ceiling_is_the_faster_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two products one of which takes no time, that one counts; alone it is torch's."""
    monkeypatch.setattr(_products, "product", lambda a, b: a)
    monkeypatch.setattr(_products, "served", lambda a, b: False)
    slow = gemm_rate(CPU, torch.float32, size=256, repeats=4)
    monkeypatch.setattr(_products, "served", lambda a, b: True)
    assert gemm_rate(CPU, torch.float32, size=256, repeats=4) > 10 * slow


def test_key_names_device_and_versions_only() -> None:
    about = environment.describe(CPU)
    key = environment.key(about)
    assert torch.__version__.split("+")[0] in key
    assert key == key.lower()
    assert not set(key) & set(" /\\()")
    assert file_stem(about, parse(["--op", "refine", "--quick"])) == f"{key}_refine_quick"
    compared = file_stem({**about, "base": {"commit": "0123456"}}, parse(["--base", "HEAD", "--size", "odd"]))
    assert compared == f"{key}_compared_0123456_odd"


@pytest.fixture
def tiny_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few runs of small cases, and ceilings that need no measuring."""
    small = [Case(op, "odd", (2, 3, 5)) for op in ("precision_fusion", "kalman_scan")]
    small.append(Case("precision_fusion", "training", (4, 3, 5)))
    monkeypatch.setattr("bench.command.cases", lambda device, quick: small)
    monkeypatch.setattr("bench.command.QUICK", TINY)
    known = {"copy": [1e10], "gemm_float32": [1e11]}
    monkeypatch.setattr(Ceilings, "measure", lambda self: self.samples.update(known))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_runs: None) -> None:
    command = ["--quick", "--op", "precision_fusion", "--out", str(tmp_path)]
    assert main([*command, "--provider", "reference", "plain", "native", "cuda"]) == 0
    printed = capsys.readouterr().out
    assert "Ceilings: copy 10.0 GB/s" in printed
    assert "Targets are set for larger shapes" in printed
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert set(result) == {
        "format",
        "device",
        "versions",
        "native",
        "commit",
        "date",
        "load",
        "quick",
        "seconds",
        "quiet",
        "ceilings",
        "ceiling_samples",
        "results",
        "memory",
        "targets",
    }
    fields = {"op", "size", "shape", "dtype", "direction", "provider", "median_ms", "q1_ms", "q3_ms", "reason"}
    assert all(fields <= set(record) for record in result["results"])
    assert {record["provider"] for record in result["results"]} == {"reference", "plain", "native", "cuda"}
    for name in ("times", "ceilings"):
        picture = path.with_name(f"{path.stem}_{name}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert str(picture) in printed

    assert main(["operators", *command, "--size", "odd", "--provider", "reference", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == 2


def test_an_interrupted_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--quick", "--out", str(tmp_path), "--no-memory", "--provider", "reference"]
    measured: list[str] = []

    def measure_case(case: Case, *rest: Any) -> list[measure.Row]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(measure_of(case))
        return original(case, *rest)

    def measure_of(case: Case) -> str:
        return f"{case.op} {case.size}"

    original = measure.measure_case
    monkeypatch.setattr("bench.measure.measure_case", measure_case)
    assert main(command) == 130
    shown = capsys.readouterr()
    assert "precision_fusion training" in shown.out and shown.out.count("reference") >= 2, "what was measured is shown"
    assert f"interrupted after 2 of 3 cases; they are kept in {tmp_path}" in shown.err and "--resume" in shown.err
    (kept,) = tmp_path.glob("*.json")
    assert kept.name.endswith(".partial.json") and len(json.loads(kept.read_text())["cases"]) == 2

    monkeypatch.setattr("bench.command.environment.name", lambda about: "here")
    first, measured[:] = list(measured), ["", "", ""]
    assert main([*command, "--resume"]) == 0
    assert "2 cases were measured before" in capsys.readouterr().err
    assert len(measured) == 4 and measured[-1] not in first
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["results"]
    assert {(row["op"], row["size"]) for row in rows} == {tuple(name.split()) for name in (*first, measured[-1])}
    assert all(row["fraction_of_ceiling"] for row in rows)

    kept.write_text(json.dumps({"about": {"commit": "another"}, "cases": {}, "samples": {}}))
    assert main([*command, "--resume"]) == 0
    assert "commit" in capsys.readouterr().err and len(measured) == 7, "of another commit: nothing is taken over"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--base", "HEAD"], "leave out --base"),
        (["trane"], "there is no benchmark 'trane'; there are operators, static, matrix, plot"),
        (["--quick", "--size", "long"], "no case is left"),
        (["--static", "--base", "HEAD"], "leave out one"),
        (["plot", "nowhere.json"], "cannot read nowhere.json"),
        pytest.param(
            ["--device", "cuda"],
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there"),
        ),
    ],
)
def test_mistakes_are_one_line_on_stderr(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--op", "kalman_scam"],
            "--op 'kalman_scam' does not exist. Did you mean kalman_scan? One of: event_synthesis",
        ),
        (["--op", "refine", "nonsense"], "--op 'nonsense' does not exist. One of"),
        (["--size", "trainin"], "Did you mean training?"),
        (["--dtype", "bfloat"], "Did you mean bfloat16? One of: bfloat16, float32, float64, uint8."),
        (["--provider", "natif"], "Did you mean native?"),
        (["--quick", "--dtype", "float64"], "no case is left; name other operators, sizes or dtypes"),
    ],
)
def test_unknown_names_have_the_nearest_one(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_only_what_is_named_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither another case, nor the memory of a training step, nor a ceiling that no case has, nor another target."""
    monkeypatch.setattr("bench.command.memory.measure", lambda *rest: pytest.fail("memory was measured"))
    few = [Case("kalman_scan", "odd", (2, 3, 5), dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
    monkeypatch.setattr("bench.command.cases", lambda device, quick: few)
    seen: list[set[str] | None] = []
    monkeypatch.setattr(Ceilings, "measure", lambda self: seen.append(self.needed))
    assert main(["--quick", "--out", str(tmp_path), "--provider", "native", "--dtype", "float64", "bfloat16"]) == 0
    (path,) = tmp_path.glob("*.json")
    assert path.stem.endswith("_float64_bfloat16_native_quick")
    assert {row["dtype"] for row in json.loads(path.read_text())["results"]} == {"float64", "bfloat16"}
    assert seen and seen[0] == {"copy"} and "Targets" not in capsys.readouterr().out
    measured: list[str] = []
    monkeypatch.undo()
    monkeypatch.setattr("bench.ceilings.copy_rate", lambda *rest, **more: measured.append("copy") or 1.0)
    monkeypatch.setattr("bench.ceilings.gemm_rate", lambda device, dtype, **more: measured.append(str(dtype)) or 1.0)
    Ceilings(torch.device("cpu"), needed={"gemm_float32"}).measure()
    assert measured == ["torch.float32"]


def test_a_busy_machine_gives_figures_and_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.command.Quiet.reasons", lambda self: ["other processes used 1.3 of 2 CPUs"])
    few = [Case("kalman_scan", CALLS[0], (1, 4, 8), trains=False, steps=1)]
    monkeypatch.setattr("bench.command.cases", lambda device, quick: few)
    command = ["--quick", "--op", "kalman_scan", "--provider", "reference", "native", "--out", str(tmp_path)]
    assert main(command) == 3
    printed = capsys.readouterr().out
    assert "busy: no verdict. Other processes used 1.3 of 2 CPUs. Measure again" in printed
    assert "no verdict" in printed.partition("Targets")[2].partition("busy:")[0] and " met" not in printed
    (path,) = tmp_path.glob("*.json")
    assert path.stem.endswith("_busy"), "it does not replace the results of a quiet machine"
    found = json.loads(path.read_text())
    assert found["quiet"]["busy"] and all(target["met"] is None for target in found["targets"])
    assert any(row["median_ms"] for row in found["results"])


def _spin(seconds: float) -> str:
    return f"import time; t = time.perf_counter()\nwhile time.perf_counter() - t < {seconds}: pass"


def test_others_are_seen_and_the_own_children_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clocks: the CPU time of everybody, and that of this process with its children that still run."""
    clock = iter(
        [(0.0, 100.0, 50.0), (10.0, 113.0, 60.0), (10.0, 113.0, 60.0), (20.0, 133.0, 80.0), (20.0, None, 80.0)]
    )
    monkeypatch.setattr(quiet, "_now", lambda: next(clock))
    monkeypatch.setattr(quiet, "stall", lambda: 1.0)
    monkeypatch.setattr(quiet, "cpus", lambda: 2)
    watch = quiet.Quiet()
    watch.lap()
    assert watch.laps == [(10.0, pytest.approx(0.3))]
    assert watch.reasons() == ["other processes used 0.3 of 2 CPUs on average, and more than 0.25 in 100% of the time"]
    watch.lap()
    assert watch.laps[1] == (10.0, 0.0) and "50% of the time" in watch.reasons()[0]
    monkeypatch.undo()
    own = quiet._own_seconds()
    child = subprocess.Popen([sys.executable, "-c", _spin(0.5)])
    time.sleep(0.45)
    assert quiet._own_seconds() - own > 0.1, "a child that still runs counts"
    child.wait()


def test_a_stalled_loop_and_scattered_rows_are_busy() -> None:
    watch = quiet.Quiet()
    assert watch.reasons() == [] and watch.record()["busy"] == []
    watch.stalls = [1.0, 1.4, 1.5]
    assert "1.4 times its CPU time" in watch.reasons()[0]
    watch.stalls = [1.0, 1.0, 1.5]
    watch.judge([(40, 0.1), (40, 0.5), (2, 9.0), (40, 0.6)])
    assert watch.scatter == 0.5 and "scatter" in watch.reasons()[0]
    watch.judge([(2, 9.0)])
    assert watch.scatter is None and watch.reasons() == []
    assert quiet.stall(0.005) > 0.9 and quiet._all_seconds(Path("/nowhere")) is None


def test_a_module_of_end_to_end_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleep.py").write_text("def main(argv):\n    return 40 + len(argv)\n")
    (tmp_path / "_shared.py").write_text("")
    monkeypatch.setattr("bench.end_to_end.__path__", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "bench.end_to_end.sleep", ModuleType("placeholder"))
    del sys.modules["bench.end_to_end.sleep"]
    assert list(commands())[-1] == "sleep"
    assert main(["sleep", "--long", "8"]) == 42


@pytest.mark.slow
def test_quick_run_of_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cases and providers, with few runs of each and one measurement of the ceilings."""
    few = dataclasses.replace(timing.QUICK, rounds=2, least_rounds=1, provider_seconds=0.02, single_seconds=0.05)
    measure_ceilings = Ceilings.measure
    monkeypatch.setattr("bench.command.QUICK", few)
    monkeypatch.setattr(Ceilings, "measure", lambda self: None if self.samples else measure_ceilings(self))
    assert main(["--quick", "--no-memory", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    measured = {record["op"] for record in result["results"] if record["median_ms"] is not None}
    assert measured == set(OPERATORS)
    faults = [r for r in result["results"] if r["reason"] and re.match("differs|[A-Z][A-Za-z]*Error", r["reason"])]
    assert not faults
    assert len(list(tmp_path.glob("*.png"))) == 2


# ------------------------------------------------------------------------------------------------------- providers


def test_associative_scan_is_the_scan() -> None:
    """Uncompiled, as compiling takes a minute; float32 sums in another order, hence 1e-5."""
    x, var = torch.randn(2, 37, 3, requires_grad=True), (torch.rand(2, 37, 3) + 0.1).requires_grad_()
    noise = (torch.rand(3) + 0.1).requires_grad_()
    found = associative.kalman_scan(x, var, noise)
    expected = reference.kalman_scan(x, var, process_noise=noise)
    for a, b in zip(found, expected[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    incoming = torch.randn_like(x)
    gradients = (torch.autograd.grad(mean, (x, var, noise), incoming) for mean in (found[0], expected.mean))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_associative_scan_stays_finite_over_long_sequences() -> None:
    x, var = torch.randn(1, 5000, 2), torch.rand(1, 5000, 2) * 100 + 1e-3
    noise = torch.tensor([1e-3, 50.0])
    mean, variance, _ = associative.kalman_scan(x, var, noise)
    expected = reference.kalman_scan(x, var, process_noise=noise)
    torch.testing.assert_close(mean, expected.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(variance, expected.var, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("refine", "training", (16, 256, 768)), "the scan alone"),
        (Case("kalman_scan", "robust", (16, 256, 768), nu=8.0), "not associative"),
        (Case("kalman_scan", "odd", (3, 63, 500)), "about a minute"),
        (Case("kalman_scan", "training", (16, 256, 768), torch.bfloat16), "about a minute"),
    ],
)
def test_associative_scan_says_where_it_does_not_apply(case: Case, reason: str) -> None:
    assert reason in (providers.refusal("associative", case, CPU) or "")
    assert providers.refusal("associative", Case("kalman_scan", "training", (16, 256, 768)), CPU) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_with_float32(dtype: torch.dtype) -> None:
    """Ten steps rounded one by one are farther from the truth than a kernel that rounds once; that is no fault."""
    rows = measure.measure_case(Case("refine", "odd", (3, 63, 200), dtype), CPU, TINY, ("reference", "native"))
    errors = {row.provider: row.error for row in rows if row.median_ms is not None}
    assert errors["native"] < errors["reference"] < 0.1


def test_peak_memory_of_a_call() -> None:
    size = 64 << 20
    assert memory.peak_of(lambda: None, CPU) < 4
    kept: list[torch.Tensor] = []
    found = memory.peak_of(lambda: kept.append(torch.ones(size, dtype=torch.uint8)), CPU)
    if memory._STATUS.exists():  # elsewhere the peak of an earlier moment may hide this one
        assert found == pytest.approx(size / 1e6, rel=0.1)
    assert memory.peak_of(lambda: torch.ones(size, dtype=torch.uint8), CPU) >= 0


# --------------------------------------------------------------------------------------------------- plots and notes


def test_every_provider_has_a_style() -> None:
    assert list(plots.STYLES) == list(plots.NAMES) == list(providers.PROVIDERS)


def test_plots_leave_out_what_was_not_measured(tmp_path: Path) -> None:
    about = {**environment.describe(CPU), "ceilings": {}}
    assert plots.draw({**about, "results": []}, tmp_path / "none") == []
    one = row("native", 5.0, direction="forward").record()
    assert plots.draw({**about, "results": [one]}, tmp_path / "one") == [], "one size and no ceiling show nothing"
    two = row("native", 9.0, direction="forward", size="long", shape=[1, 8192, 768]).record()
    drawn = plots.draw({**about, "results": [one, two]}, tmp_path / "two")
    assert [path.name for path in drawn] == ["two_times.png"]


def test_plot_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (committed,) = (revisions.ROOT / "bench" / "results").glob("*cores_torch-2.15.0.json")
    assert main(["plot", str(committed), "--out", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.split()) == len(list(tmp_path.glob("*.png"))) == 2
    (tmp_path / "other.json").write_text("[1]")
    assert main(["plot", str(tmp_path / "other.json")]) == 2
    assert "is not a result" in capsys.readouterr().err


NOTED = {
    "`event_synthesis`": Case("event_synthesis", "training", (8, 16, 256, 340, 3), torch.uint8, trains=False),
    "`event_synthesis`, surrogate": Case("event_synthesis", "surrogate", (2, 16, 256, 340, 3)),
    "`ten_crop_events`": Case("ten_crop_events", "training", (64, 240, 320, 3), torch.uint8, trains=False),
    "`precision_fusion`": Case("precision_fusion", "training", (16, 256, 768)),
    "`fusion_and_terms`": Case("fusion_and_terms", "long", (1, 8192, 768)),
    "`kalman_scan`": Case("kalman_scan", "training", (16, 256, 768)),
    "`refine`": Case("refine", "training", (128, 256, 768), torch.bfloat16),
}


def test_notes_state_the_work_that_the_benchmark_counts() -> None:
    lines = (revisions.ROOT / "bench" / "NOTES.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    table = {row[0]: [float(cell) for cell in row[2:] if cell] for row in rows if len(row) == 6}
    assert table.keys() == NOTED.keys()
    for name, case in NOTED.items():
        elements = math.prod(case.shape[:-1] if case.op in ("event_synthesis", "ten_crop_events") else case.shape)
        passes = OPERATORS[case.op].work(case)[: 2 if case.trains else 1]
        counted = [number / elements for work in passes for number in (work.operations, work.bytes)]
        assert table[name] == pytest.approx(counted, rel=5e-3), "three digits"
