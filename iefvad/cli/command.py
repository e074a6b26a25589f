"""What every command shares: how errors reach the person, and the exit status."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from iefvad.errors import UserError
from iefvad.files import storage_error

Main = Callable[[Sequence[str] | None], int]


def command(name: str) -> Callable[[Main], Main]:
    """Wrap a `main(argv)`: UserError and storage errors become one line on stderr and status 2, Ctrl-C becomes 130."""

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv)
            except UserError as error:
                print(f"iefvad {name}: error: {error}", file=sys.stderr)
                return 2
            except OSError as error:
                explained = storage_error(error, Path(str(error.filename or ".")).parent)
                if explained is error:
                    raise
                print(f"iefvad {name}: error: {explained}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(f"\niefvad {name}: interrupted; what was complete is kept.", file=sys.stderr)
                return 130

        return run

    return decorate
