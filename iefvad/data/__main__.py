"""`python -m iefvad.data`: the same as `iefvad data`."""

from iefvad.cli.data import main

if __name__ == "__main__":
    raise SystemExit(main())
