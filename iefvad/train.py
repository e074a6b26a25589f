"""`python -m iefvad.train`: the same as `iefvad train`."""

from iefvad.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
