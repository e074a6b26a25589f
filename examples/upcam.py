"""Train on one hour of real surveillance footage with clip-level labels, and compare with plain event density."""

from __future__ import annotations

import argparse
from pathlib import Path

from iefvad.cli.main import main as iefvad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path, help="the recording")
    parser.add_argument("labels", type=Path, help="one 0 or 1 a frame, one a line")
    parser.add_argument("--out", type=Path, default=Path("runs/upcam"), help="run folder (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=10, choices=(1, 5, 10), help="crops to train on")
    arguments, more = parser.parse_known_args()
    whole, clips = str(arguments.out / "features"), str(arguments.out / "clips")
    run("extract", str(arguments.video), "--out", whole, "--crops", str(arguments.crops))
    # Clips of 30 segments. The first 60% are for training, with one label per clip.
    cut = ["--labels", str(arguments.labels), "--segments", "30", "--train-fraction", "0.6", "--overwrite"]
    run("data", "cut", whole, "--out", clips, *cut)
    # The published settings; with 23 clips there is none to spare for choosing an epoch, and batches are small.
    flags = ["--preset", "ucf-crime", "--batch", "8", "--validation", "0", "--select", "last", "--fused"]
    flags += ["--features", clips, "--modality", "all", "--compare", "true", "--seeds", "0", "1", "2"]
    run("train", *flags, "--out", str(arguments.out), *more)


def run(*arguments: str) -> None:
    """Run a command of `iefvad`, and end where it fails."""
    if status := iefvad(arguments):
        raise SystemExit(status)


if __name__ == "__main__":
    main()
