"""Draw the pictures of docs/gallery.md: what the streams see, and the pages that the commands write.

`python -m tools.gallery RUN`, from a checkout. RUN is a finished run of the embedded benchmark, whose videos are in the
cache (`python -m iefvad.train`). Pages are photographed by a headless Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ief_kernels import event_synthesis
from iefvad.data.annotations import read_annotations
from iefvad.data.synth.dataset import settings_of
from iefvad.detection.detect import detect
from iefvad.report.drawing import new_figure
from iefvad.utils.cache import cache_folder
from iefvad.video.limits import SEGMENT
from iefvad.video.segments import Segments
from tests.helpers.browser import Browser, browser

CLASSES = ("Scuffle", "Fall", "ThrownObject", "Smoke")
"""Kinds of anomalies whose event maps are drawn."""

MARK = """
(() => {
  const video = document.querySelector("video");
  const press = text => [...document.querySelectorAll("button")].find(b => b.textContent.startsWith(text)).click();
  video.currentTime = 1.1;
  setTimeout(() => { press("Start"); video.currentTime = 3.4; }, 600);
  setTimeout(() => press("End"), 1200);
})()
"""
"""Marks an interval on the page of `iefvad label`."""

WIDE = (1400, 1000)
"""Width and height of the photographs of pages."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of the embedded benchmark")
    parser.add_argument("--out", type=Path, default=Path("docs/assets/gallery"), help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    dataset = cache_folder(None) / f"synth-{settings_of(0)['hash']}" / "dataset"
    event_maps(dataset, out / "events.png")
    with tempfile.TemporaryDirectory() as name, browser(Path(name) / "profile") as page:
        folder = Path(name)
        tested = list(read_annotations(dataset / "annotations.txt"))
        shown = [next(name for name in tested if name.startswith(kind)) for kind in (*CLASSES, "Normal")]
        videos = [dataset / "videos" / f"{name}.mp4" for name in shown]
        shutil.copytree(arguments.run, folder / "runs" / "synth")  # pages show the names of folders
        os.chdir(folder)
        detect("runs/synth", videos, out="detections")
        for file, picture in (("index", "index.png"), (videos[0].stem, "video.png")):
            photograph(page, (folder / "detections" / f"{file}.html").as_uri(), out / picture)
        with labelling(videos, Path("labels")) as address:
            photograph(page, address, out / "label.png", MARK)


def event_maps(dataset: Path, picture: Path) -> None:
    """Draw a frame and the event map of an abnormal segment, for each class."""
    annotations = read_annotations(dataset / "annotations.txt")
    figure, axes = new_figure(4.1, rows=2, columns=len(CLASSES))
    for column, kind in enumerate(CLASSES):
        name = next(name for name in annotations if name.startswith(kind))
        frames = busiest(dataset / "videos" / f"{name}.mp4", annotations[name].intervals)
        for row, shown in enumerate((frames[len(frames) // 2], event_synthesis(torch.from_numpy(frames)).numpy())):
            ax = axes[row * len(CLASSES) + column]
            ax.imshow(shown, cmap="magma")
            ax.set_axis_off()
        axes[column].set_title(kind, fontsize=10)
    figure.savefig(picture, dpi=110)
    shrink(picture)


def busiest(video: Path, intervals: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the frames of the abnormal segment in which most changes, (16, H, W, 3)."""
    abnormal = [
        frames
        for number, frames in enumerate(Segments(video))
        if any(start <= SEGMENT * number + SEGMENT // 2 < end for start, end in intervals)
    ]
    return max(abnormal, key=lambda frames: float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean()))


@contextlib.contextmanager
def labelling(videos: Sequence[Path], out: Path) -> Iterator[str]:
    """Run `iefvad label`, and return the address of its page."""
    command = [sys.executable, "-u", "-m", "iefvad", "label", *map(str, videos), "--out", str(out), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r"http://\S+", line):
                    yield found[0]
                    break
        finally:
            process.send_signal(signal.SIGINT)


def photograph(page: Browser, address: str, picture: Path, script: str = "") -> None:
    """Write the top of a page as a browser shows it, after a script has run there."""
    page.open(address, width=WIDE[0], height=WIDE[1])
    time.sleep(2)  # for its videos and pictures
    if script:
        page.evaluate(script)
        time.sleep(2)
    page.screenshot(picture)
    shrink(picture)


def shrink(picture: Path) -> None:
    """Write a PNG again with 256 colours."""
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    main()
