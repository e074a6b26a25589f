"""The figures the project set itself, each against what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from bench.measure import Row
from bench.operators import CALLS
from bench.tables import significant, text_table
from bench.timing import ratio

FUSED = ("native", "triton", "cuda")
BELIEF_OPS = ("precision_fusion", "fusion_and_terms", "kalman_scan", "refine")


@dataclass
class Target:
    """One figure: at least (or, for memory, at most) `wanted`; `measured` is None where its case was not run."""

    name: str
    wanted: float
    measured: float | None
    at_most: bool = False
    note: str = ""
    decides: bool = True

    @property
    def met(self) -> bool | None:
        """Whether it is met; None where it was not measured, or on a busy machine."""
        if self.measured is None or not self.decides:
            return None
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


class _Place(NamedTuple):
    op: str
    size: str
    direction: str
    dtype: str | None = None


class _Results:
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = [row for row in rows if row.median_ms is not None]

    def find(self, place: _Place, providers: Iterable[str]) -> Row | None:
        """The fastest measured provider among `providers`."""
        wanted = set(providers)
        found = [
            row
            for row in self.rows
            if (row.op, row.size, row.direction) == place[:3]
            and row.provider in wanted
            and place.dtype in (None, row.dtype)
        ]
        return min(found, key=lambda row: row.median_ms or 0.0, default=None)

    def times(self, other: str, place: _Place) -> float | None:
        fused, base = self.find(place, FUSED), self.find(place, (other,))
        if fused is None or base is None or not fused.median_ms or not base.median_ms:
            return None
        return ratio(base.median_ms, fused.median_ms)

    def fraction(self, place: _Place) -> float | None:
        row = self.find(place, FUSED)
        return None if row is None else row.fraction_of_ceiling


def targets(device: str, rows: Sequence[Row], memory: Sequence[dict[str, Any]]) -> list[Target]:
    """All targets for a kind of device ("cpu" or "cuda")."""
    results = _Results(rows)
    return _cuda(results) if device == "cuda" else _cpu(results, memory)


def _cpu(results: _Results, memory: Sequence[dict[str, Any]]) -> list[Target]:
    found = []
    fusion = _Place("precision_fusion", "training", "both", "float32")
    for name, wanted, place in (
        ("event_synthesis, 256×340 frames", 25, _Place("event_synthesis", "training", "forward")),
        ("ten-crop event maps, 320×240 video", 40, _Place("ten_crop_events", "training", "forward")),
        ("precision_fusion (16, 256, 768), forward + backward", 4, fusion),
        ("kalman_scan (16, 256, 768), forward + backward", 25, _Place("kalman_scan", "training", "both", "float32")),
        ("kalman_scan (1, 8192, 768), forward + backward", 500, _Place("kalman_scan", "long", "both", "float32")),
    ):
        eager = results.times("reference", place)
        note = "" if eager is None else f"{significant(eager)}× reference"
        found.append(Target(f"{name}: times plain", wanted, results.times("plain", place), note=note))
    compiled = results.times("compile", fusion)
    found.insert(3, Target("precision_fusion, forward + backward: times torch.compile", 1.3, compiled))
    peaks = {record["provider"]: record["peak_mb"] for record in memory}
    native, reference = peaks.get("native"), peaks.get("reference")
    share = native / reference if native and reference else None
    name = "peak memory of fusion + scan + refine training: share of reference's"
    found.append(Target(name, 0.5, share, at_most=True))
    without, training = CALLS
    for op in ("event_synthesis", "precision_fusion", "fusion_terms", "fusion_and_terms", "kalman_scan", "refine"):
        places = [("forward", 25, _Place(op, without, "forward"))]
        if op != "event_synthesis":
            places.append(("forward + backward", 60, _Place(op, training, "both")))
        for name, wanted, place in places:
            row = results.find(place, FUSED)
            measured = None if row is None or row.median_ms is None else row.median_ms * 1e3
            found.append(Target(f"call overhead of {op}, {name} [µs]", wanted, measured, at_most=True))
    return found


def _cuda(results: _Results) -> list[Target]:
    event = _Place("event_synthesis", "training", "forward")
    found = [Target("event_synthesis: share of copy", 0.90, results.fraction(event))]
    for dtype in ("float32", "bfloat16"):
        for op, direction, wanted in (
            ("fusion_and_terms", "forward", 0.90),
            ("fusion_and_terms", "backward", 0.85),
            ("kalman_scan", "forward", 0.85),
            ("kalman_scan", "backward", 0.85),
        ):
            share = results.fraction(_Place(op, "training", direction, dtype))
            found.append(Target(f"{op} {dtype} {direction}: share of copy", wanted, share))
    for direction in ("forward", "backward"):
        share = results.fraction(_Place("kalman_scan", "long", direction, "float32"))
        found.append(Target(f"kalman_scan (1, 131072, 768) {direction}: share of copy", 0.60, share))
    for direction, wanted in (("forward", 0.80), ("both", 0.70)):
        share = results.fraction(_Place("refine", "training", direction, "bfloat16"))
        found.append(Target(f"refine, 32,768 tokens, {direction}: share of matrix product", wanted, share))
    latency = results.times("reference", _Place("refine", "inference", "forward", "bfloat16"))
    found.append(Target("refine, 256 tokens, forward: times eager", 3, latency))
    compared = [event, *(_Place(op, "training", "both", "bfloat16") for op in BELIEF_OPS)]
    for place in compared:
        found.append(Target(f"{place.op} training: times torch.compile", 1.3, results.times("compile", place)))
    return found


def target_table(found: Sequence[Target]) -> str:
    """Target, wanted, measured, met or not."""
    lines = []
    for target in found:
        sign = "≤" if target.at_most else "≥"
        measured = "" if target.measured is None else significant(target.measured)
        verdict = {None: "not measured", True: "met", False: "NOT met"}[target.met]
        verdict = verdict if target.decides or target.measured is None else "no verdict"
        lines.append((target.name, f"{sign} {target.wanted:g}", measured, verdict, target.note))
    return text_table(("target", "wanted", "measured", "", ""), lines)
