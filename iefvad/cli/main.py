"""The `iefvad` console command: one name for all commands."""

from __future__ import annotations

from collections.abc import Sequence

from iefvad.cli.command import dispatch

COMMANDS = {
    "train": ("iefvad.cli.train:main", "train on features and evaluate; without data, on the embedded benchmark"),
    "extract": ("iefvad.cli.extract:main", "videos → feature store"),
    "evaluate": ("iefvad.cli.evaluate:main", "metrics, robustness and plots of a run or of a released checkpoint"),
    "detect": ("iefvad.cli.detect:main", "anomaly scores for your own videos, cameras and streams"),
    "calibrate": ("iefvad.cli.calibrate:main", "find the threshold for a maximum of false alarms per hour"),
    "data": ("iefvad.cli.data:main", "check annotations and lists of the field's data sets; make gt.npy"),
    "features": ("iefvad.cli.features:main", "features → one packed store that training reads at memory speed"),
    "convert": ("iefvad.cli.convert:main", "published encoder or model checkpoints → safetensors"),
}
"""Name → where its main is, and one line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad COMMAND ...`; returns the exit status. Only the chosen command's module is imported."""
    description = "Video anomaly detection by uncertainty-weighted fusion of image and event streams."
    return dispatch("iefvad", description, COMMANDS, argv)
