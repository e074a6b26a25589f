"""`python -m iefvad.detect RUN VIDEO...`: anomaly scores for one's own videos with a run's model."""

from __future__ import annotations

import csv
import heapq
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from iefvad.command import command
from iefvad.encoders import Encoder, build_encoder
from iefvad.errors import UserError
from iefvad.files import write_with
from iefvad.model import IEFVAD
from iefvad.options import add_options, from_namespace, make_parser, option
from iefvad.run import Run, load_model
from iefvad.scoring import Scorer, check_encoder, test_crops
from iefvad.stream import SegmentFeatures, stream_features
from iefvad.timeline import write_timeline
from iefvad.trainer import choose_device
from iefvad.video import SEGMENT, find_videos, probe
from iefvad.video_scores import VideoScores, intervals_above, write_scores_csv


@dataclass
class DetectConfig:
    """Settings of `python -m iefvad.detect`."""

    threshold: float | None = option(
        None, "score above which a segment is flagged [default: 1% of the run's held-out normal segments exceed it]"
    )
    low: float | None = option(
        None, "a flagged interval goes on until the score falls under this [default: --threshold]"
    )
    merge_gap: float = option(0.0, "flagged intervals closer than this many seconds become one")
    thumbnails: int = option(8, "pictures of the highest segments in the HTML timeline")
    tail: Literal["drop", "repeat"] = option(
        "repeat", "a last segment of fewer than 16 frames: leave it out, or fill it with its last frame"
    )
    on_truncated: Literal["error", "keep"] = option(
        "error", "a video that breaks off: report an error, or score what there is"
    )
    image_weights: str | None = option(
        None, "image encoder weights, where the path of the run's features does not hold here"
    )
    event_weights: str | None = option(None, "event encoder weights, likewise")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    out: str | None = option(None, "folder for the results [default: RUN/detections]")


@dataclass
class Detection:
    """Result for one video: scores of the segments, flagged intervals (start s, end s, peak score), pictures, files."""

    video: Path
    scores: VideoScores
    intervals: list[tuple[float, float, float]]
    pictures: list[tuple[float, np.ndarray]]
    files: list[Path] = field(default_factory=list)


class Detector:
    """A run's model and encoder, ready to score videos one after another in constant memory."""

    def __init__(self, run: str | Path, config: DetectConfig) -> None:
        self.config = config
        self.run = Run.open(run)
        device = choose_device(config.device)
        backend = "auto" if self.run.config.fused else "reference"
        self.model: IEFVAD
        self.model, self.extra = load_model(self.run.checkpoint(self.run.variants[0]), backend=backend, device=device)
        self.settings: dict[str, Any] = self.extra.get("encoder") or {}
        if not self.settings:
            raise UserError(
                f"the run in {self.run.path} was trained on features without a record of their encoder (.npy lists):"
                " train from a store made by `iefvad extract` to score videos."
            )
        self.encoder: Encoder = build_encoder(
            image_model=self.settings["image_encoder"],
            image_weights=config.image_weights or self.settings.get("image_weights"),
            event_model=self.settings["event_encoder"],
            event_weights=config.event_weights or self.settings.get("event_weights"),
            device=str(device),
        )
        check_encoder(self.settings, self.encoder.settings, "the features of these videos")
        self.threshold = self.extra.get("threshold", 0.5) if config.threshold is None else config.threshold

    def __call__(self, video: Path) -> Detection:
        """Score one video. Raises UserError where it cannot be read."""
        info = probe(video)
        scorer = Scorer(self.model, chunk=self.extra["chunk"])
        rows: list[np.ndarray] = []
        highest: list[tuple[float, float, np.ndarray]] = []
        for chunk in self._chunks(video):
            image = torch.stack([segment.image for segment in chunk], 1)
            event = torch.stack([segment.event for segment in chunk], 1)
            scored = scorer.feed(image, event)
            rows.append(scored)
            for segment, row in zip(chunk, scored, strict=True):
                entry = (float(row[0]), segment.time, segment.thumbnail)
                # Times differ, so the heap never compares two pictures.
                (heapq.heappushpop if len(highest) >= self.config.thumbnails else heapq.heappush)(highest, entry)
        table = np.concatenate(rows)
        columns = [None if np.isnan(column).all() else column for column in table.T[1:]]
        scores = VideoScores(
            name=video.stem,
            classes=(),
            fps=info.fps,
            truth=None,
            scores=table[:, 0],
            w_img=columns[0],
            w_evt=columns[1],
            gain=columns[2],
            source=video.name,
        )
        intervals = intervals_above(
            scores.scores, info.fps, self.threshold, low=self.config.low, merge_gap_s=self.config.merge_gap
        )
        pictures = [(start, picture) for _, start, picture in sorted(highest, key=lambda entry: -entry[0])]
        return Detection(video, scores, intervals, pictures)

    def _chunks(self, video: Path) -> Iterator[list[SegmentFeatures]]:
        crops = test_crops(self.settings["crops"], self.run.config.test_crops)
        settings = self.settings | {
            "crops": crops,
            "tail": self.config.tail,
            "on_truncated": self.config.on_truncated,
        }
        chunk: list[SegmentFeatures] = []
        for segment in stream_features(video, self.encoder, settings):
            chunk.append(segment)
            if len(chunk) == self.extra["chunk"]:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def write(self, detection: Detection, folder: Path) -> None:
        """Write NAME.csv (every segment), NAME_intervals.csv (what is flagged) and NAME.html (the timeline)."""
        name = detection.video.stem
        paths = [folder / f"{name}.csv", folder / f"{name}_intervals.csv", folder / f"{name}.html"]
        write_with(paths[0], lambda path: write_scores_csv(path, [detection.scores]))
        write_with(paths[1], lambda path: _write_intervals(path, detection.intervals))
        notes = [
            f"model {self.run.path}, method {self.run.config.method}",
            f"features: {self.encoder.description}",
            f"a segment is {SEGMENT} frames; flagged where the score exceeds {self.threshold:.3f}",
        ]
        write_with(
            paths[2],
            lambda path: write_timeline(
                path,
                title=detection.video.name,
                video=detection.scores,
                intervals=detection.intervals,
                threshold=self.threshold,
                thumbnails=detection.pictures,
                notes=notes,
            ),
        )
        detection.files = paths


def _write_intervals(path: Path, intervals: Sequence[tuple[float, float, float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["start s", "end s", "peak"])
        writer.writerows([f"{start:.3f}", f"{end:.3f}", f"{peak:.6f}"] for start, end, peak in intervals)


@command("detect")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `iefvad detect`; 0 if every video was scored, 1 if some could not be read."""
    parser = make_parser(
        "detect",
        "Score your own videos with the model of a run. For each video it writes a CSV with the score of every segment,"
        " a CSV with the flagged intervals, and an HTML timeline with pictures of the highest segments.",
        usage="RUN VIDEO [VIDEO ...] [options]",
    )
    parser.add_argument("run", type=str, help="run folder that `iefvad train` wrote", metavar="RUN")
    parser.add_argument("videos", nargs="+", type=str, help="video files, or folders of videos", metavar="VIDEO")
    add_options(parser, DetectConfig)
    arguments = parser.parse_args(argv)
    config = from_namespace(DetectConfig, arguments)
    videos = find_videos(arguments.videos)
    detector = Detector(arguments.run, config)
    folder = Path(config.out) if config.out else detector.run.path / "detections"
    failed = 0
    for video in videos:
        begin = time.perf_counter()
        try:
            detection = detector(video)
        except UserError as error:
            failed += 1
            print(f"iefvad detect: {video}: {error}", file=sys.stderr)
            continue
        detector.write(detection, folder)
        _summary(detection, time.perf_counter() - begin)
    print(f"{len(videos) - failed} of {len(videos)} videos scored; results in {folder}")
    return 1 if failed else 0


def _summary(detection: Detection, seconds: float) -> None:
    scores = detection.scores.scores
    frames = len(scores) * SEGMENT
    print(
        f"{detection.video.name}: {len(scores)} segments, highest score {scores.max():.3f},"
        f" {len(detection.intervals)} flagged interval(s), {frames / seconds:.0f} frames/s"
    )
    for start, end, peak in detection.intervals:
        print(f"  {start:8.1f} s to {end:8.1f} s   peak {peak:.3f}")


if __name__ == "__main__":
    raise SystemExit(main(None))
