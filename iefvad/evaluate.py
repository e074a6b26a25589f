"""`python -m iefvad.evaluate`: the same as `iefvad evaluate`."""

from iefvad.cli.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
