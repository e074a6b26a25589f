"""Benchmarks of whole commands: every module here with a `main(argv)` is a subcommand of `python -m bench`."""
