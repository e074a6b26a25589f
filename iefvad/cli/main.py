"""`iefvad COMMAND`: the console command that runs all commands."""

from __future__ import annotations

from collections.abc import Sequence

from iefvad.cli.command import dispatch

COMMANDS = {
    "train": ("iefvad.cli.train:main", "train a model and evaluate it; without data, on the embedded benchmark"),
    "sweep": ("iefvad.cli.sweep:main", "train many networks and compare them: settings, seeds, tables"),
    "extract": ("iefvad.cli.extract:main", "turn videos into a feature store"),
    "evaluate": ("iefvad.cli.evaluate:main", "metrics, robustness and plots of a run or of a released model"),
    "report": ("iefvad.cli.report:main", "make the page of a run again, or a page that compares several runs"),
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
    return dispatch("iefvad", description, COMMANDS, argv)
