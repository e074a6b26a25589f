"""`python -m iefvad.extract`: the same as `iefvad extract`."""

from iefvad.cli.extract import main

if __name__ == "__main__":
    raise SystemExit(main())
