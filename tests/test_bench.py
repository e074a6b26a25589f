"""The benchmark: its arithmetic, its tables, its checks on providers, and one small run through the command line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from bench import environment, measure, memory, providers, tables, targets, timing
from bench.__main__ import file_stem, main, parse
from bench.operators import OPERATORS, Case, Work, cases, tensors_of
from bench.timing import Budget

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


def test_interleaving_turns_the_order_and_takes_out_what_fails() -> None:
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
    assert order == [("a", 0), ("b", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert failures == {"c": "RuntimeError: no such kernel"}
    assert timings["a"].samples == {"forward": [2.0, 3.0]}, "the first run warms up and is no sample"


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
    rows = measure.measure(found, CPU, {}, TINY, ("reference",))
    assert [row.reason for row in rows if row.op == "refine"] == ["MemoryError: no room"]
    assert all(row.median_ms for row in rows if row.op == "precision_fusion")


def test_relative_error() -> None:
    a = torch.tensor([3.0, 4.0])
    assert measure.relative_error([a], [a]) == 0
    assert measure.relative_error([a + torch.tensor([0.0, 0.5])], [a]) == pytest.approx(0.1)
    assert measure.relative_error([torch.tensor([math.nan, 4.0])], [a]) == math.inf
    assert measure.relative_error([a[:1]], [a]) == math.inf
    assert measure.relative_error([a, a * 0 + 2], [a, a * 0]) == pytest.approx(math.sqrt(8))


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda case: f"{case.op}-{case.size}")
def test_plain_and_native_agree_with_the_reference_and_are_timed(case: Case) -> None:
    rows = measure.measure_case(case, CPU, {"copy": 1e10, "gemm_float32": 1e11}, TINY, ("reference", "plain", "native"))
    unavailable = {row.provider: row.reason for row in rows if row.reason}
    assert unavailable.keys() <= {"native"}, unavailable
    assert "differs" not in unavailable.get("native", "")
    directions = ["forward", "backward", "both"] if case.trains else ["forward"]
    measured = [row for row in rows if row.median_ms is not None]
    assert sorted({row.direction for row in measured}) == sorted(directions)
    for found in measured:
        assert found.q1_ms <= found.median_ms <= found.q3_ms
        assert found.repeats >= 1
        if found.provider != "reference":
            base = next(r for r in measured if r.provider == "reference" and r.direction == found.direction)
            assert found.times_reference == pytest.approx(base.median_ms / found.median_ms)


def test_a_wrong_provider_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = providers.plain.precision_fusion
    monkeypatch.setattr(providers.plain, "precision_fusion", lambda *a, **k: tuple(1.001 * f for f in right(*a, **k)))
    case = Case("precision_fusion", "odd", (2, 3, 5))
    rows = measure.measure_case(case, CPU, {}, TINY, ("reference", "plain"))
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
    event, _ = OPERATORS["event_synthesis"].work(Case("event_synthesis", "x", (1, 16, 4, 4, 3), torch.uint8, False))
    assert event.bytes == 16 * 16 * 3 + 16 * 4


@pytest.mark.parametrize(("device", "quick"), list(itertools.product(("cpu", "cuda"), (False, True))))
def test_cases_are_distinct_and_cover_every_operator(device: str, quick: bool) -> None:
    found = cases(torch.device(device), quick=quick)
    assert len(set(found)) == len(found)
    assert {case.op for case in found} >= set(OPERATORS) - ({"ten_crop_events"} if device == "cuda" else set())
    if not quick:
        sizes = {case.size for case in found if case.op == "kalman_scan"}
        assert sizes == {"training", "inference", "long", "odd", "robust"}


def test_a_provider_that_cannot_serve_says_why() -> None:
    case = Case("kalman_scan", "training", (16, 256, 768))
    assert "CUDA" in (providers.refusal("cuda", case, CPU) or "")
    assert "256 steps" in (providers.refusal("compile", case, CPU) or "")
    assert providers.refusal("plain", case, CPU) is None
    rows = measure.measure_case(Case("refine", "odd", (1, 2, 4)), CPU, {}, TINY, ("triton",))
    assert [(row.provider, row.median_ms) for row in rows] == [("triton", None)]
    assert rows[0].reason


def test_ten_crop_maps_are_those_of_the_plain_way() -> None:
    pytest.importorskip("cv2")
    case = Case("ten_crop_events", "training", (20, 24, 32, 3), torch.uint8, trains=False)
    rows = measure.measure_case(case, CPU, {}, Budget(rounds=1, least_rounds=1), ("reference", "plain", "native"))
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


def test_targets() -> None:
    rows = [row("plain", 55.0), row("reference", 70.0), row("compile", 19.0), row("native", 11.0)]
    peaks = [{"provider": "native", "peak_mb": 60.0}, {"provider": "reference", "peak_mb": 100.0}]
    found = {target.name: target for target in targets.targets("cpu", rows, peaks)}
    fusion = found["precision_fusion (16, 256, 768), forward + backward: times plain"]
    assert (fusion.measured, fusion.met, fusion.note) == (5.0, True, "6.36× reference")
    compiled = found["precision_fusion, forward + backward: times torch.compile"]
    assert compiled.measured == pytest.approx(19 / 11)
    peak = found["peak memory of fusion + scan + refine training: share of reference's"]
    assert (peak.measured, peak.met) == (0.6, False)
    assert sum(target.met is None for target in found.values()) == 4
    text = targets.target_table(list(found.values()))
    assert "NOT met" in text
    assert text.count("not measured") == 4
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


def test_key_names_device_and_versions_only() -> None:
    about = environment.describe(CPU)
    key = environment.key(about)
    assert torch.__version__.split("+")[0] in key
    assert key == key.lower()
    assert not set(key) & set(" /\\()")
    assert file_stem(about, parse(["--op", "refine", "--quick"])) == f"{key}_refine_quick"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.__main__.QUICK", TINY)
    monkeypatch.setattr("bench.__main__.ceilings.measure", lambda device, quick: {"copy": 1e10, "gemm_float32": 1e11})
    command = ["--quick", "--op", "precision_fusion", "--size", "odd", "--out", str(tmp_path)]
    assert main([*command, "--provider", "reference", "plain", "native", "cuda"]) == 0
    printed = capsys.readouterr().out
    assert "Ceilings: copy 10.0 GB/s" in printed
    assert "Targets:" in printed
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert set(result) == {
        "format",
        "device",
        "versions",
        "native",
        "date",
        "load",
        "quick",
        "seconds",
        "ceilings",
        "results",
        "memory",
        "targets",
    }
    fields = {"op", "size", "shape", "dtype", "direction", "provider", "median_ms", "q1_ms", "q3_ms", "reason"}
    assert all(fields <= set(record) for record in result["results"])
    assert {record["provider"] for record in result["results"]} == {"reference", "plain", "native", "cuda"}
    assert all(record["measured"] is None for record in result["targets"])

    assert main([*command, "--provider", "reference", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == 1


def test_command_line_refuses_what_it_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    if not torch.cuda.is_available():
        assert main(["--device", "cuda"]) == 2
        assert "no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["--op", "nonsense"])
