"""`python -m bench [NAME] [--threads N] ...`: the benchmark of that name; without one, the operators.

`--threads` goes before or after the other options of any benchmark.

A module of `bench.end_to_end` with a `main(argv) -> int` is a benchmark by its own name; nothing else registers it.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from bench import end_to_end
from iefvad.utils.errors import UserError
from iefvad.utils.threads import prepare, use_threads

COMMANDS = {
    "operators": "bench.command",
    "static": "bench.static",
    "matrix": "bench.matrix",
    "plot": "bench.plots",
}
"""Subcommands besides the modules of `bench.end_to_end`, and the modules whose `main(argv)` they are."""


def commands() -> dict[str, str]:
    """Module by subcommand."""
    found = {name: f"{end_to_end.__name__}.{name}" for _, name, _ in pkgutil.iter_modules(end_to_end.__path__)}
    return {**COMMANDS, **{name: module for name, module in sorted(found.items()) if not name.startswith("_")}}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a benchmark; returns the exit status: 0 when it ran to its end, 2 for a mistake that the user can mend.

    The operators end with 3 on a busy machine, where their figures decide nothing.
    """
    common = argparse.ArgumentParser(prog="python -m bench", add_help=False, allow_abbrev=False)
    common.add_argument("--threads", type=int)
    options, arguments = common.parse_known_args(argv)
    known = commands()
    if arguments[:1] == ["--matrix"]:
        arguments[0] = "matrix"
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "operators"
    try:
        if options.threads is not None:
            use_threads(options.threads)
        if name not in known:
            raise UserError(f"there is no benchmark {name!r}; there are {', '.join(known)}")
        prepare()  # as the commands of iefvad do, before torch is loaded: all providers' threads wait in the same way
        status: int = importlib.import_module(known[name]).main(arguments)
        return status
    except UserError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbench: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
