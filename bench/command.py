"""`python -m bench operators`, also without a name: times every operator with every provider, against its targets.

Exit status 0 whenever the measurement ran to its end; whether a target is met does not change it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import environment, memory, plots
from bench.ceilings import Ceilings
from bench.compare import compare, comparison_table
from bench.measure import measure
from bench.operators import OPERATORS, SIZES, Case, cases
from bench.partial import Partial
from bench.providers import PROVIDERS
from bench.tables import ceiling_line, memory_table, result_table
from bench.targets import FUSED, target_table, targets
from bench.timing import QUICK, Budget
from iefvad.utils.errors import UserError

FORMAT = 2
RESULTS = Path(__file__).parent / "results"
COMPARED = {"cpu": ("native",), "cuda": ("triton", "cuda")}
"""Providers that `--base` compares unless others are named."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; UserError where two contradict each other."""
    from bench.__main__ import commands

    others = ", ".join(name for name in commands() if name != "operators")
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Times every operator with every provider.",
        epilog=f"Other benchmarks, by name as first argument: {others}. All take --threads N, for the CPU.",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    parser.add_argument("--op", nargs="+", choices=sorted(OPERATORS), metavar="NAME", help="only these operators")
    parser.add_argument("--size", nargs="+", metavar="NAME", help=f"only these sizes: {', '.join(SIZES)}, ...")
    parser.add_argument(
        "--provider",
        nargs="+",
        choices=PROVIDERS,
        metavar="NAME",
        help=f"only these providers: {', '.join(PROVIDERS)}",
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, few runs: under a minute on two cores")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, metavar="N", help="begin no case after so long; training comes first"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a run of the same command, commit, machine and versions that was interrupted",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory of a training step")
    parser.add_argument(
        "--static", action="store_true", help="registers, shared memory and instructions of the Triton kernels; no GPU"
    )
    parser.add_argument("--base", metavar="REV", help="compare this tree with a commit instead, in turn")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the JSON file and the plots (default: bench/results)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the tables")
    options = parser.parse_args(arguments)
    if options.base is not None and options.static:
        raise UserError("--base compares times and --static measures none; leave out one of them")
    if options.resume and (options.base is not None or options.static):
        raise UserError("--resume goes on with a measurement of all operators; leave out --base and --static")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    options = parse(argv)
    if options.static:
        from bench import static

        chosen = ["--json", str(_prepared(options.out) / "static.json")] if options.out else []
        return static.main(chosen)
    environment.device(options.device)
    torch.manual_seed(torch.seed() % 2**63)
    result = run_comparison(options) if options.base is not None else run(options)
    text = json.dumps(result, indent=1, allow_nan=False)
    if options.json:
        print(text)
    # A comparison is between two moments of one tree's history: kept where asked for, not among the results.
    if options.base is None or options.out is not None:
        path = _prepared(options.out or RESULTS) / f"{file_stem(result, options)}.json"
        path.write_text(text + "\n", encoding="utf-8")
        _partial_path(options, path.stem).unlink(missing_ok=True)
        written = [path] if options.base is not None else [path, *plots.draw(result, path.with_suffix(""))]
        if not options.json:
            print("\nWritten to " + ", ".join(map(str, written)))
    return 0


def file_stem(result: dict[str, Any], options: argparse.Namespace) -> str:
    """Device and versions; a run of a part says so, so that it does not replace a whole one."""
    parts = [environment.key(result)]
    if options.base is not None:
        parts += ["compared", result["base"]["commit"]]
    for flag in ("op", "size", "provider"):
        parts += getattr(options, flag) or []
    return "_".join([*parts, *(["quick"] if options.quick else [])])


def _partial_path(options: argparse.Namespace, stem: str) -> Path:
    return _prepared(options.out or RESULTS) / f"{stem}.partial.json"


def _prepared(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Teller:
    """What the person sees: results on stdout unless the JSON goes there, progress on stderr."""

    def __init__(self, shown: bool) -> None:
        self.began = time.perf_counter()
        self.shown = shown

    def say(self, text: str) -> None:
        if self.shown:
            print(text, flush=True)

    def progress(self, text: str) -> None:
        print(f"[{self.seconds():5.0f} s] {text}", file=sys.stderr, flush=True)

    def seconds(self) -> float:
        return time.perf_counter() - self.began


def _chosen_cases(options: argparse.Namespace, device: torch.device) -> list[Case]:
    found = [
        case
        for case in cases(device, quick=options.quick)
        if (not options.op or case.op in options.op) and (not options.size or case.size in options.size)
    ]
    if not found:
        raise UserError("no case is left; name other operators or sizes, or leave out --quick")
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures what the options ask for; returns the content of the JSON file, and prints unless it goes to stdout."""
    device = torch.device(options.device)
    teller = Teller(not options.json)
    about = environment.describe(device)
    teller.say(_heading(about))
    chosen = _chosen_cases(options, device)
    providers = options.provider or list(PROVIDERS)
    ceilings = Ceilings(device, quick=options.quick)
    budget = QUICK if options.quick else Budget()
    partial = Partial(
        _partial_path(options, file_stem(about, options)),
        {**about, "quick": options.quick, "providers": list(providers)},
    )
    if options.resume:
        teller.progress(partial.resume())
        ceilings.samples = partial.samples
    rows = measure(
        chosen,
        device,
        ceilings,
        budget,
        providers,
        seconds=options.seconds,
        progress=teller.progress,
        known=partial.rows,
        keep=lambda case, rows: partial.keep(case, rows, ceilings.samples),
    )
    teller.say(ceiling_line(ceilings.best()) + "\n")
    teller.say(result_table(rows) + "\n")
    peaks: list[dict[str, Any]] = []
    if not options.no_memory and not options.op:
        shape = (128 if device.type == "cuda" else 16, 64 if options.quick else 256, 768)
        teller.progress("peak memory of a training step")
        weighed = [name for name in providers if name in ("reference", *FUSED)] if options.quick else providers
        peaks = memory.measure(weighed, shape, device)
        teller.say(f"Peak memory of fusion + scan + refine, forward and backward, {shape}, float32:")
        teller.say(memory_table(peaks) + "\n")
    found = targets(device.type, rows, peaks)
    smaller = " are set for larger shapes and more runs than --quick has, so this decides nothing"
    teller.say(f"Targets{smaller if options.quick else ''}:\n" + target_table(found))
    return {
        "format": FORMAT,
        **about,
        "quick": options.quick,
        "seconds": round(teller.seconds(), 1),
        "ceilings": ceilings.best(),
        "ceiling_samples": ceilings.samples,
        "results": [row.record() for row in rows],
        "memory": peaks,
        "targets": [target.record() for target in found],
    }


def run_comparison(options: argparse.Namespace) -> dict[str, Any]:
    """Compares this tree with the commit that `--base` names; returns the content of the JSON file."""
    device = torch.device(options.device)
    teller = Teller(not options.json)
    about = environment.describe(device)
    teller.say(_heading(about))
    chosen = _chosen_cases(options, device)
    providers = options.provider or list(COMPARED[device.type])
    budget = QUICK if options.quick else Budget()
    found = compare(options.base, chosen, device.type, budget, providers, progress=teller.progress)
    teller.say(f"\nbase: {found['base']['commit']} ({options.base}); here: {found['here']['commit']}")
    teller.say(comparison_table(found["comparisons"]))
    return {"format": FORMAT, **about, "quick": options.quick, "seconds": round(teller.seconds(), 1), **found}


def _heading(about: dict[str, Any]) -> str:
    device = about["device"]
    lines = [f"{environment.name(about)}; native kernels: {about['native']}; {about['date']}"]
    load = about["load"]
    if device["type"] == "cpu" and load is not None and load > 0.5:
        lines.append(f"The machine is not quiet (load {load}): times are provisional, ratios less so.")
    return "\n".join(lines)
