"""`python -m iefvad`: the same as `iefvad`."""

from iefvad.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
