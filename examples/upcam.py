"""Train on one hour of real surveillance footage with clip-level labels, and compare with plain event density."""

from __future__ import annotations

import argparse
from pathlib import Path

from iefvad.cli.train import parse_train
from iefvad.data.cut import cut_recording, read_frame_labels
from iefvad.extraction.config import ExtractConfig
from iefvad.extraction.extract import extract
from iefvad.features.store import FeatureStore
from iefvad.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path, help="the recording")
    parser.add_argument("labels", type=Path, help="one 0 or 1 a frame, one a line")
    parser.add_argument("--out", type=Path, default=Path("runs/upcam"), help="run folder (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=10, choices=(1, 5, 10), help="crops to train on")
    arguments, more = parser.parse_known_args()
    whole, clips = arguments.out / "features", arguments.out / "clips"
    report = extract([arguments.video], whole, ExtractConfig(crops=arguments.crops))
    if report.failed:
        raise SystemExit(f"{arguments.video}: {report.failed}")
    cut_recording(FeatureStore(whole), arguments.video.stem, read_frame_labels(arguments.labels), clips)
    # The published settings; with 23 clips there is none to spare for choosing an epoch, and batches are small.
    flags = ["--preset", "ucf-crime", "--batch", "8", "--validation", "0", "--select", "last", "--fused"]
    flags += ["--features", str(clips), "--modality", "all", "--compare", "true", "--seeds", "0", "1", "2"]
    train(parse_train([*flags, "--out", str(arguments.out), *more]))


if __name__ == "__main__":
    main()
