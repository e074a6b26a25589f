"""`python -m bench operators`, also without a name: times every operator with every provider, against its targets.

Exit status 0 when the measurement ran to its end; whether a target is met does not change it. 3 when it ran to its end
on a busy machine: the figures are shown, but they decide nothing (`bench.quiet`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench import environment, memory, plots
from bench.ceilings import Ceilings, dtype_name
from bench.compare import compare, comparison_table
from bench.measure import Row, measure, rate
from bench.operators import OPERATORS, SIZES, Case, cases
from bench.partial import Partial
from bench.providers import PROVIDERS
from bench.quiet import STATUS, Quiet
from bench.tables import ceiling_line, memory_table, result_table
from bench.targets import FUSED, target_table, targets
from bench.timing import QUICK, Budget
from iefvad.utils.errors import UserError
from iefvad.utils.interrupts import interruptible
from iefvad.utils.option_errors import did_you_mean

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
    parser.add_argument("--op", nargs="+", metavar="NAME", help="only these operators")
    parser.add_argument("--size", nargs="+", metavar="NAME", help=f"only these sizes: {', '.join(SIZES)}, ...")
    parser.add_argument("--dtype", nargs="+", metavar="NAME", help="only these dtypes: float32, bfloat16, ...")
    parser.add_argument(
        "--provider",
        nargs="+",
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
    every = [case for quick in (False, True) for case in cases(torch.device(options.device), quick=quick)]
    _require("--op", options.op, sorted(OPERATORS))
    _require("--size", options.size, list(dict.fromkeys(case.size for case in every)))
    _require("--dtype", options.dtype, sorted({dtype_name(case.dtype) for case in every}))
    _require("--provider", options.provider, PROVIDERS)
    if options.base is not None and options.static:
        raise UserError("--base compares times and --static measures none; leave out one of them")
    if options.resume and (options.base is not None or options.static):
        raise UserError("--resume goes on with a measurement of all operators; leave out --base and --static")
    return options


def _require(flag: str, names: Sequence[str] | None, known: Collection[str]) -> None:
    """Raise a UserError for a name that does not exist, with the nearest one that does."""
    for name in names or ():
        if name not in known:
            raise UserError(f"{flag} {name!r} does not exist.{did_you_mean(name, known)} One of: {', '.join(known)}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmarks; returns the exit status."""
    options = parse(argv)
    if options.static:
        from bench import static

        chosen = ["--json", str(_prepared(options.out) / "static.json")] if options.out else []
        return static.main(chosen)
    environment.device(options.device)
    torch.manual_seed(torch.seed() % 2**63)
    with interruptible(ending=False):  # SIGTERM, such as of `timeout`, is Ctrl-C here
        result = run_comparison(options) if options.base is not None else run(options)
    text = json.dumps(result, indent=1, allow_nan=False)
    if options.json:
        print(text)
    # A comparison is between two moments of one tree's history: kept where asked for, not among the results.
    if options.base is None or options.out is not None:
        path = _prepared(options.out or RESULTS) / f"{file_stem(result, options)}.json"
        path.write_text(text + "\n", encoding="utf-8")
        _partial_path(options, path.stem.removesuffix("_busy")).unlink(missing_ok=True)
        written = [path] if options.base is not None else [path, *plots.draw(result, path.with_suffix(""))]
        if not options.json:
            print("\nWritten to " + ", ".join(map(str, written)))
    return STATUS if _busy(result) else 0


def _busy(result: dict[str, Any]) -> list[str]:
    found: list[str] = (result.get("quiet") or {}).get("busy", [])
    return found


def file_stem(result: dict[str, Any], options: argparse.Namespace) -> str:
    """Device and versions; a run of a part or on a busy machine says so: it does not replace a whole or a quiet one."""
    parts = [environment.key(result)]
    if options.base is not None:
        parts += ["compared", result["base"]["commit"]]
    for flag in ("op", "size", "dtype", "provider"):
        parts += getattr(options, flag) or []
    return "_".join([*parts, *(["quick"] if options.quick else []), *(["busy"] if _busy(result) else [])])


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
        if (not options.op or case.op in options.op)
        and (not options.size or case.size in options.size)
        and (not options.dtype or dtype_name(case.dtype) in options.dtype)
    ]
    if not found:
        raise UserError("no case is left; name other operators, sizes or dtypes, or leave out --quick")
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures what the options ask for; returns the content of the JSON file, and prints unless it goes to stdout."""
    device = torch.device(options.device)
    teller = Teller(not options.json)
    about = environment.describe(device)
    teller.say(_heading(about))
    chosen = _chosen_cases(options, device)
    providers = options.provider or list(PROVIDERS)
    some = bool(options.op or options.size or options.dtype)
    ceilings = Ceilings(device, quick=options.quick, needed=_needed(chosen) if some else None)
    budget = QUICK if options.quick else Budget()
    partial = Partial(
        _partial_path(options, file_stem(about, options)),
        {**about, "quick": options.quick, "providers": list(providers)},
    )
    if options.resume:
        teller.progress(partial.resume())
        ceilings.samples = partial.samples
    quiet = Quiet() if device.type == "cpu" else None

    def keep(case: Case, rows: list[Row]) -> None:
        partial.keep(case, rows, ceilings.samples)
        if quiet is not None:
            quiet.lap()

    with _told(partial, len(chosen), ceilings, teller):
        rows = measure(
            chosen,
            device,
            ceilings,
            budget,
            providers,
            seconds=options.seconds,
            progress=teller.progress,
            known=partial.rows,
            keep=keep,
        )
    teller.say(ceiling_line(ceilings.best()) + "\n")
    teller.say(result_table(rows) + "\n")
    peaks: list[dict[str, Any]] = []
    if not options.no_memory and not some:
        shape = (128 if device.type == "cuda" else 16, 64 if options.quick else 256, 768)
        teller.progress("peak memory of a training step")
        weighed = [name for name in providers if name in ("reference", *FUSED)] if options.quick else providers
        peaks = memory.measure(weighed, shape, device)
        teller.say(f"Peak memory of fusion + scan + refine, forward and backward, {shape}, float32:")
        teller.say(memory_table(peaks) + "\n")
    found = targets(device.type, rows, peaks)
    if some:
        found = [target for target in found if target.measured is not None]
    busy: list[str] = []
    if quiet is not None:
        quiet.judge([(row.repeats, spread) for row in rows if (spread := _scatter(row)) is not None])
        busy = quiet.reasons()
    for target in found:
        target.decides = not busy
    smaller = " are set for larger shapes and more runs than --quick has, so this decides nothing"
    if found:
        teller.say(f"Targets{smaller if options.quick else ''}:\n" + target_table(found))
    teller.say(_verdict(busy))
    return {
        "format": FORMAT,
        **about,
        "quick": options.quick,
        "seconds": round(teller.seconds(), 1),
        "quiet": None if quiet is None else quiet.record(),
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
    quiet = Quiet() if device.type == "cpu" else None
    found = compare(options.base, chosen, device.type, budget, providers, progress=teller.progress)
    busy: list[str] = []
    if quiet is not None:
        quiet.lap()
        busy = quiet.reasons()
        found["quiet"] = quiet.record()
    teller.say(f"\nbase: {found['base']['commit']} ({options.base}); here: {found['here']['commit']}")
    teller.say(comparison_table(found["comparisons"], decides=not busy))
    teller.say(_verdict(busy))
    return {"format": FORMAT, **about, "quick": options.quick, "seconds": round(teller.seconds(), 1), **found}


def _needed(chosen: Sequence[Case]) -> set[str]:
    """Names of the ceilings of some cases."""
    kinds = {case: OPERATORS[case.op].ceiling for case in chosen}
    return {"copy" if kind == "copy" else f"gemm_{dtype_name(case.dtype)}" for case, kind in kinds.items()}


def _scatter(row: Row) -> float | None:
    if row.median_ms is None or row.q1_ms is None or row.q3_ms is None:
        return None
    return (row.q3_ms - row.q1_ms) / row.median_ms


def _verdict(busy: Sequence[str]) -> str:
    if not busy:
        return ""
    return f"busy: no verdict. {'; '.join(busy)[:1].upper()}{'; '.join(busy)[1:]}. Measure again on a quiet machine."


@contextmanager
def _told(partial: Partial, total: int, ceilings: Ceilings, teller: Teller) -> Iterator[None]:
    """Where the measurement is interrupted, show what it has, and say where it lies and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        rows = [Row(**record) for records in partial.cases.values() for record in records]
        rate(rows, ceilings.best())
        if rows:
            teller.say(result_table(rows) + "\n")
            teller.progress(
                f"interrupted after {len(partial.cases)} of {total} cases; they are kept in {partial.path}, and the"
                " same command with --resume goes on"
            )
        raise


def _heading(about: dict[str, Any]) -> str:
    device = about["device"]
    lines = [f"{environment.name(about)}; native kernels: {about['native']}; {about['date']}"]
    if device["type"] == "cpu":
        lines.append(f"Every provider computes with {device['threads']} thread(s) on {device['cores']} CPU(s).")
    load = about["load"]
    if device["type"] == "cpu" and load is not None and load > 0.5:
        lines.append(f"The machine is not quiet (load {load}): times are provisional, ratios less so.")
    return "\n".join(lines)
