"""`python -m bench`: times every operator with every provider, and says which targets are met.

Exit status 0 whenever the measurement ran to its end; whether a target is met does not change it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import ceilings, environment, memory
from bench.measure import measure
from bench.operators import OPERATORS, SIZES, cases
from bench.providers import PROVIDERS
from bench.tables import ceiling_line, memory_table, result_table
from bench.targets import target_table, targets
from bench.timing import QUICK, Budget

FORMAT = 1
RESULTS = Path(__file__).parent / "results"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    parser.add_argument("--op", nargs="+", choices=sorted(OPERATORS), metavar="NAME", help="only these operators")
    parser.add_argument("--size", nargs="+", metavar="NAME", help=f"only these sizes: {', '.join(SIZES)}, ...")
    parser.add_argument("--provider", nargs="+", choices=PROVIDERS, metavar="NAME", help="only these providers")
    parser.add_argument("--quick", action="store_true", help="small shapes, few runs: under a minute on two cores")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory of a training step")
    parser.add_argument(
        "--static", action="store_true", help="registers, shared memory and instructions of the Triton kernels; no GPU"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the JSON file (default: bench/results)")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the tables")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    options = parse(arguments)
    if options.static:
        from bench import static

        chosen = ["--json", str(_prepared(options.out) / "static.json")] if options.out else []
        return static.main(chosen)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench: error: no CUDA device is available; measure with --device cpu", file=sys.stderr)
        return 2
    torch.manual_seed(torch.seed() % 2**63)
    result = run(options)
    text = json.dumps(result, indent=1, allow_nan=False)
    path = _prepared(options.out or RESULTS) / f"{file_stem(result, options)}.json"
    path.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(text)
    else:
        print(f"\nWritten to {path}")
    return 0


def file_stem(result: dict[str, Any], options: argparse.Namespace) -> str:
    """Device and versions; a run of a part says so, so that it does not replace a whole one."""
    parts = [environment.key(result)]
    for flag in ("op", "size", "provider"):
        parts += getattr(options, flag) or []
    return "_".join([*parts, *(["quick"] if options.quick else [])])


def _prepared(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures what the options ask for; returns the content of the JSON file, and prints unless it goes to stdout."""
    began = time.perf_counter()
    device = torch.device(options.device)
    shown = not options.json

    def say(text: str) -> None:
        if shown:
            print(text, flush=True)

    def progress(text: str) -> None:
        print(f"[{time.perf_counter() - began:5.0f} s] {text}", file=sys.stderr, flush=True)

    about = environment.describe(device)
    say(_heading(about))
    chosen = [
        case
        for case in cases(device, quick=options.quick)
        if (not options.op or case.op in options.op) and (not options.size or case.size in options.size)
    ]
    providers = options.provider or list(PROVIDERS)
    limits = ceilings.measure(device, quick=options.quick)
    say(ceiling_line(limits) + "\n")
    rows = measure(chosen, device, limits, QUICK if options.quick else Budget(), providers, progress=progress)
    say(result_table(rows) + "\n")
    peaks: list[dict[str, Any]] = []
    if not options.no_memory and not options.op:
        shape = (128, 256, 768) if device.type == "cuda" else (16, 256, 768)
        progress("peak memory of a training step")
        peaks = memory.measure(providers, shape, device)
        say(f"Peak memory of fusion + scan + refine, forward and backward, {shape}, float32:")
        say(memory_table(peaks) + "\n")
    found = targets(device.type, rows, peaks)
    say("Targets:\n" + target_table(found))
    return {
        "format": FORMAT,
        **about,
        "quick": options.quick,
        "seconds": round(time.perf_counter() - began, 1),
        "ceilings": limits,
        "results": [row.record() for row in rows],
        "memory": peaks,
        "targets": [target.record() for target in found],
    }


def _heading(about: dict[str, Any]) -> str:
    device, versions = about["device"], about["versions"]
    name = device.get("gpu") or f"{device['cpu']}, {device['cores']} cores, {device['threads']} threads"
    listed = ", ".join(f"{package} {number}" for package, number in versions.items() if number)
    lines = [f"{name}; {listed}; native kernels: {about['native']}; {about['date']}"]
    load = about["load"]
    if device["type"] == "cpu" and load is not None and load > 0.5:
        lines.append(f"The machine is not quiet (load {load}): times are provisional, ratios less so.")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
