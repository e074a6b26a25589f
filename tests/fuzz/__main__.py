"""`python -m tests.fuzz --minutes N`: run many cases of all groups and print the table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.case import FAULTS, OUTCOMES
from tests.fuzz.runner import GROUPS, Bench, Tried, rounds


def main() -> int:
    """Run the cases and return 1 if one is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long cases are started")
    parser.add_argument("--cases", type=int, help="largest number of cases per group")
    parser.add_argument("--group", action="append", choices=GROUPS, help="only this group; may be given several times")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", metavar="GROUP:NUMBER", help="run this case alone and show its output")
    parser.add_argument("--keep", type=Path, help="with --case: keep the folder of the case here")
    parser.add_argument("--json", type=Path, help="write all cases to this file, one JSON object per line")
    options = parser.parse_args()
    if options.case:
        return _one(options)
    tried: list[Tried] = []
    until = time.monotonic() + 60 * options.minutes
    try:
        for bench, number in rounds(tuple(options.group or GROUPS), options.seed, options.first):
            if time.monotonic() > until or (options.cases and number >= options.first + options.cases):
                break
            tried.append(bench.run(number))
            if tried[-1].fault:
                print(f"{tried[-1].outcome:9} {bench.name}:{number} {tried[-1].name}", flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    if options.json:
        options.json.write_text("".join(json.dumps(_row(one)) + "\n" for one in tried))
    print(table(tried))
    return int(any(one.fault for one in tried))


def _row(one: Tried) -> dict[str, object]:
    return {"group": one.group, "number": one.number, "name": one.name, "outcome": one.outcome,
            "seconds": round(one.ended.seconds, 3), "err": one.ended.err[-2000:]}  # fmt: skip


def table(tried: list[Tried]) -> str:
    """Return the outcomes per group as a table in Markdown."""
    counts = Counter((one.group, one.outcome) for one in tried)
    lines = ["| group | cases | " + " | ".join(OUTCOMES) + " |", "| --- |" + " ---: |" * (len(OUTCOMES) + 1)]
    for group in [*sorted({one.group for one in tried}), "all"]:
        own = [
            sum(count for (name, what), count in counts.items() if what == outcome and group in (name, "all"))
            for outcome in OUTCOMES
        ]
        lines.append(f"| {group} | {sum(own)} | " + " | ".join(map(str, own)) + " |")
    return "\n".join(lines)


def _one(options: argparse.Namespace) -> int:
    group, _, number = options.case.partition(":")
    with Bench(group, options.seed) as bench:
        one = bench.run(int(number), options.keep)
    print(f"{one.name}\n{one.outcome}, {one.ended}")
    print(one.ended.out, end="")
    print(one.ended.err, end="", file=sys.stderr)
    return int(one.outcome in FAULTS)


if __name__ == "__main__":
    sys.exit(main())
