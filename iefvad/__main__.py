"""`python -m iefvad`: the same as `iefvad`."""

from __future__ import annotations

from iefvad.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
