"""`iefvad COMMAND`: the console command that runs all commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from iefvad.cli.command import dispatch

COMMANDS = {
    "train": ("iefvad.cli.train:main", "train a model and evaluate it; without data, on the embedded benchmark"),
    "sweep": ("iefvad.cli.sweep:main", "train many networks and compare them: settings, seeds, tables"),
    "extract": ("iefvad.cli.extract:main", "turn videos into a feature store"),
    "evaluate": ("iefvad.cli.evaluate:main", "metrics, robustness and plots of a run or of a released model"),
    "report": ("iefvad.cli.report:main", "make the page of a run again, or a page that compares several runs"),
    "compare": ("iefvad.cli.compare:main", "print how runs differ, and write the page that compares them"),
    "reproduce": ("iefvad.cli.reproduce:main", "the paper's tables and figures on your data"),
    "detect": ("iefvad.cli.detect:main", "anomaly scores for your own videos, cameras and streams"),
    "calibrate": ("iefvad.cli.calibrate:main", "find the threshold for a maximum number of false alarms per hour"),
    "label": ("iefvad.cli.label:main", "mark what is abnormal in your videos on a local page; writes the lists"),
    "data": ("iefvad.cli.data:main", "check, split and cut a data set; make gt.npy"),
    "features": ("iefvad.cli.features:main", "import, export and describe stored features"),
    "encoders": ("iefvad.cli.encoders:main", "list the encoders that can be named, their width and their speed here"),
    "doctor": ("iefvad.cli.doctor:main", "print what a bug report needs: versions, codecs, devices, backends, disk"),
    "export": ("iefvad.cli.export:main", "write a trained network as ONNX, torch.export or AOTInductor"),
    "convert": ("iefvad.cli.convert:main", "convert released encoder or model checkpoints to safetensors"),
}
"""Name → where its main is, and one line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad COMMAND ...` and return the exit status. Only the module of this command is imported."""
    description = "Video anomaly detection by uncertainty-weighted fusion of image and event features."
    return dispatch("iefvad", description, COMMANDS, argv, more=_add_completion)


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from iefvad.cli.completion import script

        print(script(values, COMMANDS))
        parser.exit(0)


def _add_completion(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        metavar="SHELL",
        default=argparse.SUPPRESS,
        help="print a script that completes commands and options in bash, zsh or tcsh (docs/start.md)",
    )
