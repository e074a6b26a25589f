"""`python -m iefvad.features`: the same as `iefvad features`."""

from iefvad.cli.features import main

if __name__ == "__main__":
    raise SystemExit(main())
