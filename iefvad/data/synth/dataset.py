"""Renders the folder of the benchmark: videos, the field's lists and annotations. It can be interrupted and resumed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iefvad.data.synth.anomalies import CLASSES
from iefvad.data.synth.render import NORMAL, VideoPlan, plan_video, write_video
from iefvad.data.synth.scene import HEIGHT, WIDTH
from iefvad.utils.csv_text import csv_text
from iefvad.utils.errors import UserError
from iefvad.utils.files import storage_error, write_json, write_text
from iefvad.utils.progress import Progress

VERSION = 2  # of the rendered pictures; raise it with every change of them, so that no old set counts as a new one
MARKER = "synth.json"
TRAIN = (88, 11)  # number of normal videos, and of abnormal videos per class
TEST = (32, 5)
SEGMENTS = (16, 24)  # minimum and maximum number of segments of 16 frames


@dataclass(frozen=True)
class SynthSpec:
    """A rendered set.

    Attributes:
        root: Its folder.
        train: Training videos.
        test: Test videos.
        settings: Everything that decides what is rendered.
        rendered: Number of videos that this call rendered, 0 if the set was complete.
        seconds: Duration of the call.
    """

    root: Path
    train: tuple[VideoPlan, ...]
    test: tuple[VideoPlan, ...]
    settings: dict[str, Any]
    rendered: int
    seconds: float

    @property
    def train_list(self) -> Path:
        """CSV `path,label` of the training videos. It has labels of whole videos and no frame truth."""
        return self.root / "train.csv"

    @property
    def test_list(self) -> Path:
        """CSV `path,label` of the test videos."""
        return self.root / "test.csv"

    @property
    def annotations(self) -> Path:
        """Frame truth of the test videos, in the format of UCF-Crime."""
        return self.root / "annotations.txt"

    @property
    def videos(self) -> Path:
        """Folder of the video files."""
        return self.root / "videos"


def settings_of(seed: int, train: tuple[int, int] = TRAIN, test: tuple[int, int] = TEST) -> dict[str, Any]:
    """Return everything that decides what is rendered. `hash` identifies it with 12 hexadecimal digits.

    Args:
        seed: Seed of the set.
        train: Number of normal training videos, and of abnormal ones per class.
        test: The same for test videos.
    """
    settings: dict[str, Any] = {
        "version": VERSION,
        "seed": seed,
        "train": list(train),
        "test": list(test),
        "segments": list(SEGMENTS),
        "size": [WIDTH, HEIGHT],
        "classes": list(CLASSES),
    }
    settings["hash"] = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return settings


def plan(
    seed: int, train: tuple[int, int] = TRAIN, test: tuple[int, int] = TEST
) -> tuple[tuple[VideoPlan, ...], tuple[VideoPlan, ...]]:
    """Plan the training and the test videos of a seed. Names are unique across both.

    Args:
        seed: Seed of the set.
        train: Number of normal training videos, and of abnormal ones per class.
        test: The same for test videos.

    Returns:
        Plans of the training and of the test videos.
    """
    splits = []
    number = dict.fromkeys((NORMAL, *CLASSES), 0)
    for split, (normal, abnormal) in enumerate((train, test)):
        plans: list[VideoPlan] = []
        for label in number:
            for _ in range(normal if label == NORMAL else abnormal):
                number[label] += 1
                kind = list(number).index(label)
                # The seed identifies the video itself, so that a larger set contains the videos of a smaller one.
                words = (seed, split, kind, len([p for p in plans if p.label == label]))
                plans.append(plan_video(f"{label}_{number[label]:03d}", label, words, SEGMENTS))
        splits.append(tuple(plans))
    return splits[0], splits[1]


def generate(
    root: str | Path,
    *,
    seed: int = 0,
    train: tuple[int, int] = TRAIN,
    test: tuple[int, int] = TEST,
    workers: int = 2,
    progress: bool = True,
) -> SynthSpec:
    """Render the benchmark, complete it, or find it complete (`docs/specification.md#embedded-benchmark`).

    Writes videos/NAME.mp4 (H.264), train.csv and test.csv (`path,label`), annotations.txt (only of test videos, because
    training uses only labels of whole videos) and the marker synth.json. Each file is written completely or not at all,
    so an interrupted call continues where it stopped. A file that was deleted or changed is rendered again, with the
    same bytes.

    Args:
        root: The folder.
        seed: Seed of the set.
        train: Number of normal training videos, and of abnormal ones for each of the eight classes.
        test: The same for test videos.
        workers: Number of processes.
        progress: Show a progress bar.

    Raises:
        UserError: The folder cannot be written or contains a set with other settings, or a worker process died.
    """
    if seed < 0 or min(*train, *test) < 0:
        raise UserError("the seed and the numbers of videos of a synthetic set must be at least 0.")
    root = Path(root)
    begin = time.perf_counter()
    settings = settings_of(seed, train, test)
    try:
        (root / "videos").mkdir(parents=True, exist_ok=True)
        marker = _read_marker(root, settings)
        digests: dict[str, str] = dict(marker.get("videos", {}))
        plans = plan(seed, train, test)
        everything = [*plans[0], *plans[1]]
        missing = [p for p in everything if not _is_intact(root, p, digests if marker.get("complete") else {}, marker)]
        if missing or not marker.get("complete"):
            write_json(root / MARKER, {"settings": settings, "complete": False, "videos": {}})
            digests |= _render(root, missing, workers, progress)
            digests = {p.name: digests.get(p.name) or _digest(_path(root, p)) for p in everything}
            _write_lists(root, *plans)
            write_json(root / MARKER, {"settings": settings, "complete": True, "videos": digests})
    except OSError as error:
        raise storage_error(error, root) from error
    return SynthSpec(root, *plans, settings, len(missing), time.perf_counter() - begin)


def _path(root: Path, video: VideoPlan) -> Path:
    return root / "videos" / f"{video.name}.mp4"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_intact(root: Path, video: VideoPlan, digests: dict[str, str], marker: dict[str, Any]) -> bool:
    """Return whether a file can stay. In a complete set its bytes must be as recorded, else it must exist.

    The marker is written first, and files appear by renaming. So every file of an interrupted set is complete.
    """
    path = _path(root, video)
    if not marker or not path.is_file():
        return False
    return video.name not in digests or _digest(path) == digests[video.name]


def _read_marker(root: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The marker of this set, or {} if there is none or it cannot be read."""
    try:
        marker: dict[str, Any] = json.loads((root / MARKER).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    found = marker.get("settings", {}) if isinstance(marker, dict) else {}
    if not found:
        return {}
    differing = sorted(k for k in settings if k != "hash" and found.get(k) != settings[k])
    if differing:
        raise UserError(
            f"{root} contains a synthetic set with another {', '.join(differing)}: "
            "choose another folder, or delete this one."
        )
    return marker


def _render(root: Path, plans: list[VideoPlan], workers: int, progress: bool) -> dict[str, str]:
    """Render the plans and return {name: SHA-256}."""
    digests: dict[str, str] = {}
    bar = Progress(sum(p.frames for p in plans), "render", "frame", shown=progress and bool(plans))
    with bar:
        if workers <= 1 or len(plans) < 3:
            for p in plans:
                digests[p.name] = write_video(p, _path(root, p))
                bar.update(p.frames)
            return digests
        pool = ProcessPoolExecutor(min(workers, len(plans)), mp_context=multiprocessing.get_context("spawn"))
        try:
            jobs = {pool.submit(write_video, p, str(_path(root, p))): p for p in plans}
            for job in as_completed(jobs):
                digests[jobs[job].name] = job.result()
                bar.update(jobs[job].frames)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that renders videos died (out of memory, or started from a script without "
                '`if __name__ == "__main__":`): run it again, it continues where it stopped.'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return digests


def _write_lists(root: Path, train: tuple[VideoPlan, ...], test: tuple[VideoPlan, ...]) -> None:
    for name, plans in (("train.csv", train), ("test.csv", test)):
        write_text(root / name, csv_text([("path", "label"), *((f"videos/{p.name}.mp4", p.label) for p in plans)]))
    lines = []
    for p in test:
        numbers = [n for interval in p.intervals for n in interval]
        numbers += [-1] * (4 - len(numbers))
        lines.append("  ".join([f"{p.name}.mp4", p.label, *map(str, numbers)]))
    write_text(root / "annotations.txt", "\n".join(lines) + "\n")
