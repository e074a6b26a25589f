"""Run many cases of all groups, name every fault, and print the table of outcomes.

python -m tests.fuzz --minutes 20 --markdown docs/reliability.md
python -m tests.fuzz --group data_files --cases 300
python -m tests.fuzz --case data_files:17 --keep /somewhere/new
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tests.fuzz.case import OUTCOMES
from tests.fuzz.runner import GROUPS, Bench, Tried, shared

BEGIN, END = "<!-- harness: begin -->", "<!-- harness: end -->"
"""Lines of a page between which `--markdown` puts the table."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases. Returns 1 if one is a fault, and 130 if the run was interrupted."""
    options = _options(argv)
    if options.case:
        return _one(options.case[0], options.case[1], options.seed, options.keep)
    if options.markdown:
        _parts(options.markdown)  # refuse a page without the marks now, not at the end
    signal.signal(signal.SIGTERM, _interrupt)
    tried: list[Tried] = []
    interrupted = False
    begun: float | None = None  # once the groups are prepared
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(options.json, "w", encoding="utf-8")) if options.json else None
        cases = shared(options.group or GROUPS, options.seed, first=options.first, cases=options.cases)
        try:
            for bench, number in cases:
                begun = begun or time.monotonic()
                if options.minutes is not None and time.monotonic() > begun + 60 * options.minutes:
                    break
                tried.append(bench.run(number))
                _tell(tried[-1], options.seed, log)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            cases.close()
    minutes = (time.monotonic() - (begun or time.monotonic())) / 60
    print(f"{len(tried)} cases in {minutes:.1f} minutes\n\n{table(tried)}")
    if interrupted:
        print("interrupted", file=sys.stderr)
        return 130
    if options.markdown:
        before, after = _parts(options.markdown)
        text = f"{BEGIN}\n{_occasion(tried, options.seed, minutes)}\n\n{table(tried)}\n{END}"
        options.markdown.write_text(before + text + after, encoding="utf-8")
    return int(any(one.fault for one in tried))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="for how long cases are started [default: 1 without --cases]")
    parser.add_argument("--cases", type=int, help="maximum number of cases per group")
    parser.add_argument("--group", action="append", choices=GROUPS, help="only this group; may be given several times")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=_case, metavar="GROUP:NUMBER", help="run this case alone and show its output")
    parser.add_argument("--keep", type=Path, help="with --case: copy the folder of the case to this new folder")
    parser.add_argument("--json", type=Path, help="write each case to this file, one JSON object per line")
    parser.add_argument("--markdown", type=Path, help="put the table into this page, between its two marks")
    options = parser.parse_args(argv)
    if options.minutes is None and options.cases is None:
        options.minutes = 1.0
    return options


def _case(text: str) -> tuple[str, int]:
    group, _, number = text.partition(":")
    if group not in GROUPS or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"expected GROUP:NUMBER, with GROUP one of {', '.join(GROUPS)}")
    return group, int(number)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _tell(one: Tried, seed: int, log: IO[str] | None) -> None:
    if one.fault:
        print(f"{one.outcome:9} {one.group}:{one.number} {one.name!r}", flush=True)
        print(f"          again: python -m tests.fuzz --seed {seed} --case {one.group}:{one.number}", flush=True)
    if log is not None:
        row = {
            "group": one.group, "number": one.number, "name": one.name, "outcome": one.outcome,
            "status": one.ended.status, "signal": one.ended.signal, "seconds": round(one.seconds, 3),
            "peak": one.ended.peak, "out": one.ended.out, "err": one.ended.err,
        }  # fmt: skip
        log.write(json.dumps(row) + "\n")
        log.flush()


def table(tried: Sequence[Tried]) -> str:
    """Return the number of cases per group and outcome, and the median time of a case, as a table in Markdown."""
    lines = [
        "| group | cases | " + " | ".join(OUTCOMES) + " | median |",
        "| --- |" + " ---: |" * (len(OUTCOMES) + 2),
    ]
    for group in [*sorted({one.group for one in tried}), "all"]:
        own = [one for one in tried if group in (one.group, "all")]
        counts = [sum(one.outcome == outcome for one in own) for outcome in OUTCOMES]
        median = statistics.median([one.seconds for one in own] or [0.0])
        cells = [group, f"{len(own):,}", *(f"{count:,}" for count in counts), f"{median:.2f} s"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _occasion(tried: Sequence[Tried], seed: int, minutes: float) -> str:
    cores = len(os.sched_getaffinity(0))
    return (
        f"{len(tried):,} cases with seed {seed}, in {minutes:.0f} minutes, on {datetime.date.today()}:"
        f" {platform.system()}, {platform.machine()}, {cores} cores, Python {platform.python_version()}."
    )


def _parts(page: Path) -> tuple[str, str]:
    """Return what a page has before and after the table."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise SystemExit(f"{page} must have the line {BEGIN} and, after it, the line {END}")
    return text[: text.index(BEGIN)], text[text.index(END) + len(END) :]


def _one(group: str, number: int, seed: int, keep: Path | None) -> int:
    with Bench(group, seed) as bench:
        one = bench.run(number, keep)
    print(one.ended.out, end="")
    print(one.ended.err, end="", file=sys.stderr)
    end = f"signal {one.ended.signal}" if one.ended.signal else f"status {one.ended.status}"
    memory = f"{one.ended.peak / 1e6:.0f} MB"
    print(f"\n{one.name!r}\n{one.outcome} ({OUTCOMES[one.outcome]}): {end}, {one.ended.seconds:.2f} s, {memory}")
    return int(one.fault)


if __name__ == "__main__":
    sys.exit(main())
