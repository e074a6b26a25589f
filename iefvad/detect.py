"""`python -m iefvad.detect`: the same as `iefvad detect`."""

from iefvad.cli.detect import main

if __name__ == "__main__":
    raise SystemExit(main())
