"""`python -m iefvad.data`: the same as `iefvad data`."""

from __future__ import annotations

from iefvad.data.command import main

if __name__ == "__main__":
    raise SystemExit(main(None))
