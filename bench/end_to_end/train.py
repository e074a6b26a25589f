"""`python -m bench train`: one optimiser step and a whole run at UCF-Crime size, for several ways to compute them.

The ways, all on the same weights and the same batches of a packed store of random features:

    plain           eager PyTorch as one writes it first (`_plain_model.py`)
    reference       the eager reference operators, `iefvad train` without --fused
    compile         torch.compile of the reference, but for its loop over time
    associative     the same, the loop made torch's `associative_scan`
    fused           `iefvad train --fused`
    fused-bfloat16  `iefvad train --fused --precision bfloat16`

The step is the trainer's (the plain way's its own); its loss and gradients are compared with the reference's first. The
whole run is the trainer itself, from opening the store to the state saved after the last epoch. On the CPU all is
smaller, and the time at full size is an extrapolation that the output calls so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import environment
from bench.ceilings import Ceilings
from bench.command import FORMAT, RESULTS, Teller
from bench.end_to_end import _train_memory as memory
from bench.end_to_end._random_store import write_store
from bench.end_to_end._train_measure import (
    UCF_BATCH,
    UCF_CLIPS,
    UCF_EPOCHS,
    Size,
    check,
    endless,
    prepare,
    rows,
    time_sections,
    time_steps,
    whole_run,
)
from bench.end_to_end._train_tables import memory_table, run_table, section_table, step_table, targets
from bench.end_to_end._ways import COMPILED, FUSED, WAYS
from bench.tables import ceiling_line
from bench.targets import target_table
from bench.timing import Budget
from iefvad.data.batches import Clips, steps_per_epoch
from iefvad.data.datasets import load_packed
from iefvad.utils.errors import UserError

CPU_CLIPS, CPU_BATCH = 40, 8
QUICK_SIZE = Size(clips=8, segments=12, dim=32, batch=2, epochs=2)
BUDGETS = {"cpu": Budget(rounds=6, provider_seconds=45, single_seconds=60), "cuda": Budget(rounds=20)}
QUICK = Budget(rounds=2, least_rounds=2, provider_seconds=1, single_seconds=5, quick=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench train",
        description="One optimiser step and a whole training run at UCF-Crime size, for several ways to compute them.",
        epilog="Ways: " + "; ".join(f"{name}: {way.about}" for name, way in WAYS.items()) + ".",
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    add("--quick", action="store_true", help="tiny sizes, nothing compiled, no peak memory: that it runs, not how fast")
    add("--ways", nargs="+", choices=WAYS, metavar="NAME", help=f"only these of {', '.join(WAYS)}")
    add("--clips", type=int, help=f"training clips (default: {UCF_CLIPS}; on the CPU {CPU_CLIPS})")
    add("--batch", type=int, help=f"normal, and as many abnormal, clips a step (default: {UCF_BATCH}; CPU {CPU_BATCH})")
    add("--segments", type=int, help="segments of the longest clips (default: 256)")
    add(
        "--fill",
        type=float,
        help="share of the segments that are no padding (default: 1, all clips of full length; UCF-Crime's test videos"
        " have 0.52, XD-Violence's 0.56)",
    )
    add("--dim", type=int, help="width of the features (default: 768)")
    add("--epochs", type=int, help=f"of the whole run; 0 leaves it out (default: {UCF_EPOCHS})")
    add("--no-memory", action="store_true", help="leave out the peak memory of a step")
    add("--out", type=Path, metavar="DIR", help="folder of the JSON file (default: bench/results)")
    add("--json", action="store_true", help="print the JSON instead of the tables")
    return parser.parse_args(arguments)


def chosen_size(options: argparse.Namespace) -> Size:
    """The size that the options ask for. Raises UserError for one that cannot be."""
    size = Size()
    if options.device == "cpu":
        size = replace(size, clips=CPU_CLIPS, batch=CPU_BATCH)
    if options.quick:
        size = QUICK_SIZE
    given = {name: getattr(options, name) for name in ("clips", "segments", "dim", "batch", "epochs", "fill")}
    size = replace(size, **{name: value for name, value in given.items() if value is not None})
    for name in ("segments", "dim", "batch"):
        if getattr(size, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(size, name)}")
    if size.epochs < 0:
        raise UserError(f"--epochs must not be negative, not {size.epochs}")
    if not 0 < size.fill <= 1:
        raise UserError(f"--fill must be above 0 and at most 1, not {size.fill:g}")
    if size.clips < 2:
        raise UserError(f"--clips must be at least 2, a normal and an abnormal one, not {size.clips}")
    return size


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status, which does not depend on the targets."""
    options = parse(argv)
    size = chosen_size(options)
    result = run(options, size)
    text = json.dumps(result, indent=1, allow_nan=False)
    if options.json:
        print(text)
    folder = options.out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    stem = [environment.key(result), "train", *(options.ways or []), *(["quick"] if options.quick else [])]
    stem += [f"fill-{size.fill:g}"] if size.fill < 1 else []
    path = folder / f"{'_'.join(stem)}.json"
    path.write_text(text + "\n", encoding="utf-8")
    if not options.json:
        print(f"\nWritten to {path}")
    return 0


def run(options: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Measures; returns the content of the JSON file, and prints tables unless the JSON goes to stdout."""
    device = environment.device(options.device)
    teller = Teller(shown=not options.json)
    say, progress = teller.say, teller.progress
    about = environment.describe(device)
    say(f"{environment.name(about)}; {about['date']}; load {about['load']}")
    say(describe(size))
    names = [name for name in WAYS if not options.ways or name in options.ways]
    skipped = {name: "compiling takes too long for --quick" for name in names if options.quick and name in COMPILED}
    ceilings = Ceilings(device, quick=options.quick)
    ceilings.measure()
    with tempfile.TemporaryDirectory(prefix="iefvad-bench-") as folder:
        root = Path(folder)
        progress(f"writing {4e-9 * size.fill * size.clips * size.segments * size.dim:.1f} GB of random features")
        write_store(root / "store", clips=size.clips, segments=size.segments, dim=size.dim, fill=size.fill)
        clips = Clips(load_packed(root / "store").train, max_segments=size.segments).to(device)
        epoch_steps = steps_per_epoch(clips.labels, size.batch, mixed=False)
        batches = endless(clips, size.batch)
        trainings, failures = prepare([name for name in names if name not in skipped], size, device)
        progress("comparing losses and gradients")
        errors = check(trainings, next(batches), size)
        progress("steps, all ways in turn")
        budget = QUICK if options.quick else BUDGETS[device.type]
        timings, failed = time_steps(trainings, batches, device, budget)
        ceilings.measure()
        waits = {name: timing.quartiles("data")[1] for name, timing in timings.items()}
        found = rows(size, timings, {**skipped, **failures, **failed}, errors, ceilings.best(), names)
        progress("where the time goes")
        served = {name: training for name, training in trainings.items() if name in timings}
        sections = time_sections(served, batches, device, 2 if options.quick else 4)
        batches.close()
        # The trainer looks at a device's free memory to decide where the clips go.
        del trainings, served, batches, clips
        peaks = []
        if not (options.no_memory or options.quick):
            progress("peak memory, a process each")
            kept = [name for name in names if name in timings]
            peaks = [memory.measure(name, size.shape, size.heads, device, 600) for name in kept]
        runs = []
        for name in [name for name in FUSED if name in timings and size.epochs]:
            progress(f"whole run, {name}")
            runs.append(whole_run(root / "store", root / "runs", size, name, device))
    about_run = {"steps_an_epoch": epoch_steps, "share_of_ucf_step": size.share, "is_ucf": size.is_ucf}
    result = {
        "format": FORMAT,
        "benchmark": "train",
        **about,
        "quick": options.quick,
        "seconds": round(teller.seconds(), 1),
        "size": {**asdict(size), **about_run},
        "ceilings": ceilings.best(),
        "results": [row.record() for row in found],
        "waits_for_data_ms": {name: 1e3 * seconds for name, seconds in waits.items()},
        "sections_ms": {
            name: {part: 1e3 * seconds for part, seconds in parts.items()} for name, parts in sections.items()
        },
        "memory": peaks,
        "runs": runs,
    }
    met = targets(device.type, result) if size.fill == 1 else []  # they are set for clips of full length
    result["targets"] = [target.record() for target in met]
    say(ceiling_line(ceilings.best()) + "\n")
    for table in (step_table(result), section_table(result), memory_table(result), run_table(result)):
        say(table + "\n")
    if met:
        say("Targets:\n" + target_table(met))
    return result


def describe(size: Size) -> str:
    """What is trained, and how much smaller than UCF-Crime it is."""
    text = (
        f"{size.clips} clips × {size.segments} segments × {size.dim}, two streams; {size.batch} + {size.batch} clips a"
        f" step; {size.epochs} epochs."
    )
    if size.fill < 1:
        text += f" {1 - size.fill:.0%} of the segments are padding; no target is set for that."
    if size.is_ucf:
        return text
    full = Size()
    return (
        f"{text} Smaller than UCF-Crime's {full.clips} × {full.segments} × {full.dim} in batches of {full.batch} +"
        f" {full.batch}: times at that size are extrapolations."
    )
