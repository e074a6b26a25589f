"""The `iefvad` console command: one name for all subcommands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train on features and evaluate; without data, on the embedded benchmark",
    "extract": "videos → feature store",
    "evaluate": "metrics, robustness and plots of a finished run or of a released checkpoint",
    "detect": "anomaly scores for your own videos, cameras and streams",
    "calibrate": "the threshold that keeps false alarms on normal footage to a rate an hour",
    "data": "check annotations and lists of the field's data sets; make gt.npy",
    "features": "released or extracted features → one packed store that training reads at memory speed",
    "convert": "published encoder or model checkpoints → safetensors",
}
_PACKAGES = {"data": "iefvad.data.command"}
"""Where `main` is not in the module of the command's name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad COMMAND ...`; returns the exit status. Only the chosen command's module is imported."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"iefvad: error: there is no command {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(_PACKAGES.get(name, f"iefvad.{name}")).main(rest)
    return status


def _usage() -> str:
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: iefvad COMMAND [options]",
            "",
            "Video anomaly detection by uncertainty-weighted fusion of image and event streams.",
            "",
            "commands:",
            *lines,
            "",
            "`iefvad COMMAND --help` explains a command.",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
