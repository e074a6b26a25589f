"""`python -m bench frames DIR`: what it costs and what it loses to encode fewer frames of each segment.

DIR holds short labelled clips and `clips.csv` (video, label, source, fold), such as the Surveillance Camera Fight data
set. Every frame of every clip is encoded once. The features of each choice of frames are means over some of these
rows: what `iefvad extract` stores, except for the rounding to float16. A logistic regression on the mean features of
a clip, trained on the other folds, says how well each choice tells the labels apart. Times are those of
`iefvad extract`, over every eighth clip.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from bench.end_to_end import _records as records
from bench.end_to_end import real
from bench.tables import significant, text_table
from bench.targets import Target
from bench.timing import Budget
from iefvad.encoders.encoder import Encoder
from iefvad.extraction.config import ExtractConfig, encoder_of
from iefvad.extraction.extract import extract
from iefvad.extraction.frame_choice import choose_frames
from iefvad.extraction.stream import DEFAULTS, event_maps
from iefvad.scoring.metrics import roc_auc
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT, Segments, crops

STREAMS = ("image", "event", "both")
EVERY = 8
"""One of so many clips is extracted for the times."""
BUDGET = Budget(rounds=3, least_rounds=2, provider_seconds=40.0, single_seconds=60.0)
QUICK = Budget(rounds=1, least_rounds=1, provider_seconds=0.0, single_seconds=60.0, quick=True)


@dataclass(frozen=True)
class Variant:
    """A choice of frames and events: the options of `iefvad extract`."""

    frames_per_segment: int = SEGMENT
    keyframes: float | None = None
    carry: bool = True

    @property
    def name(self) -> str:
        """The options that differ from the defaults."""
        parts = [f"{self.frames_per_segment} frame{'s' * (self.frames_per_segment > 1)}"]
        parts += [] if self.keyframes is None else [f"key frames {self.keyframes:g}"]
        return ", ".join(parts) + ("" if self.carry else ", no carry")


VARIANTS = (
    Variant(),
    *(Variant(count) for count in (8, 4, 2, 1)),
    *(Variant(keyframes=fraction) for fraction in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)),
    Variant(4, 0.05),
    Variant(carry=False),
)
"""The first one encodes all frames; the others are compared with it."""


@dataclass
class Clip:
    """Features of one clip.

    Attributes:
        name: Its file.
        label: 1 for an abnormal clip.
        fold: Number of its fold.
        image: Mean features (T, D) per variant, float32.
        event: Event features (T, D) per value of `carry`, float32.
        encoded: Number of encoded frames per variant.
    """

    name: str
    label: int
    fold: int
    image: dict[Variant, Tensor] = field(default_factory=dict)
    event: dict[bool, Tensor] = field(default_factory=dict)
    encoded: dict[Variant, int] = field(default_factory=dict)


@dataclass
class Result:
    """What one variant costs and loses.

    Attributes:
        name: Name of the variant.
        encoded_per_segment: Mean number of encoded frames per segment.
        cosine_mean: Mean cosine of its image features to those of all frames.
        cosine_p5: The cosine that 5% of the segments fall below.
        auc: Mean and standard deviation over the folds, per stream.
        difference: Mean and standard error over the folds of the difference to the first variant, per stream.
        seconds: Median time of `iefvad extract` over some clips.
        speed: How many times as fast as the first variant.
    """

    name: str
    encoded_per_segment: float
    cosine_mean: float
    cosine_p5: float
    auc: dict[str, tuple[float, float]]
    difference: dict[str, tuple[float, float]]
    seconds: float | None = None
    speed: float | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = records.make_parser("frames", "What it costs and what it loses to encode fewer frames of each segment.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the clips and of clips.csv")
    parser.add_argument(
        "--encoder", default="efficientnet-lite0", metavar="NAME", help="as --image-model of `iefvad extract`"
    )
    options = parser.parse_args(argv)
    began = time.perf_counter()
    device, about = records.begin(options)
    encoder = encoder_of(ExtractConfig(image_model=options.encoder, device=device.type))
    clips = [features(options.folder, clip, encoder) for clip in read_clips(options.folder, quick=options.quick)]
    found = results(clips)
    rows = times(options.folder, clips, encoder, device, quick=options.quick)
    for result, row in zip(found, rows, strict=True):
        if row.median_ms is not None and rows[0].median_ms is not None:
            result.seconds, result.speed = row.median_ms / 1e3, rows[0].median_ms / row.median_ms
    targets = targets_of(found)
    more = {"encoder": options.encoder, "clips": len(clips), "variants": [asdict(result) for result in found]}
    seconds = time.perf_counter() - began
    content = records.document(
        "frames", about, quick=options.quick, seconds=seconds, rows=rows, targets=targets, **more
    )
    records.publish(content, options, [table(found)], targets)
    return 0


def read_clips(folder: Path, *, quick: bool = False) -> list[Clip]:
    """The clips of clips.csv, only two of each fold and label with `quick`. Raises UserError for another file."""
    clips = [Clip(clip.file.name, int(clip.label != "Normal"), clip.fold) for clip in real.read_clips(folder)]
    if not quick:
        return clips
    groups = sorted({(clip.fold, clip.label) for clip in clips})
    return [clip for group in groups for clip in [c for c in clips if (c.fold, c.label) == group][:2]]


def features(folder: Path, clip: Clip, encoder: Encoder) -> Clip:
    """Fills in a clip's features, from one pass over the file and over its frames."""
    segments = [torch.from_numpy(segment.copy()) for segment in Segments(folder / clip.name)]
    cut = [torch.from_numpy(crops(segment.numpy(), [0])[:, 0]) for segment in segments]
    rows = encoder.encode_image(torch.cat(cut)).cpu().view(len(segments), SEGMENT, -1)
    for variant in VARIANTS:
        settings = {**DEFAULTS, "frames_per_segment": variant.frames_per_segment, "keyframes": variant.keyframes}
        choices = [choose_frames(segment, settings) for segment in segments]
        means = [choice.mean(choice.of(row)[:, None])[0] for choice, row in zip(choices, rows, strict=True)]
        clip.image[variant] = torch.stack(means)
        clip.encoded[variant] = sum(len(choice.indices) for choice in choices)
    for carry in (False, True):
        before = [None, *(segment[-1] for segment in segments[:-1])]
        settings = {**DEFAULTS, "carry": carry}
        maps = [event_maps(segment, settings, last) for segment, last in zip(segments, before, strict=True)]
        cut = [torch.from_numpy(crops(np.asarray(events)[None], [0])[0]) for events in maps]
        clip.event[carry] = encoder.encode_event(torch.cat(cut)).cpu()
    return clip


def results(clips: Sequence[Clip]) -> list[Result]:
    """One result per variant, without times."""
    first = VARIANTS[0]
    whole = torch.cat([clip.image[first] for clip in clips])
    every: dict[Variant, dict[str, np.ndarray]] = {}
    found = []
    for variant in VARIANTS:
        image = np.stack([clip.image[variant].mean(0).numpy() for clip in clips])
        event = np.stack([clip.event[variant.carry].mean(0).numpy() for clip in clips])
        tables = {"image": image, "event": event, "both": np.concatenate([image, event], 1)}
        every[variant] = {stream: fold_aucs(tables[stream], clips) for stream in STREAMS}
        cosine = torch.cosine_similarity(torch.cat([clip.image[variant] for clip in clips]), whole)
        differences = {stream: every[variant][stream] - every[first][stream] for stream in STREAMS}
        found.append(
            Result(
                name=variant.name,
                encoded_per_segment=sum(clip.encoded[variant] for clip in clips) / len(whole),
                cosine_mean=float(cosine.mean()),
                cosine_p5=float(cosine.quantile(0.05)),
                auc={stream: (float(aucs.mean()), float(aucs.std(ddof=1))) for stream, aucs in every[variant].items()},
                difference={
                    stream: (float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))
                    for stream, values in differences.items()
                },
            )
        )
    return found


def fold_aucs(table: np.ndarray, clips: Sequence[Clip]) -> np.ndarray:
    """AUC per fold of a logistic regression on (clips, features) that was trained on the other folds."""
    labels, folds = np.array([clip.label for clip in clips]), np.array([clip.fold for clip in clips])
    aucs = []
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=2000))
        model.fit(table[train], labels[train])
        aucs.append(roc_auc(model.decision_function(table[test]), labels[test]))
    return np.array(aucs, np.float64)


def times(
    folder: Path, clips: Sequence[Clip], encoder: Encoder, device: torch.device, *, quick: bool
) -> list[records.Row]:
    """Times of `iefvad extract` per variant, over some of the clips, one after another and in turn."""
    videos = [folder / clip.name for clip in clips[::EVERY]]
    frames = sum(len(clip.event[True]) * SEGMENT for clip in clips[::EVERY])

    def call(variant: Variant) -> Callable[[], object]:
        config = ExtractConfig(**asdict(variant), quiet=True)

        def run() -> None:
            with tempfile.TemporaryDirectory() as out:
                report = extract(videos, Path(out) / "store", config, encoder=encoder)
            if report.failed:
                raise UserError(next(iter(report.failed.values())))

        return run

    calls = {variant.name: call(variant) for variant in VARIANTS}
    return records.time_ways("extract", calls, frames, QUICK if quick else BUDGET, device)


def table(found: Sequence[Result]) -> str:
    """One line per variant; differences of AUC are to the first."""
    lines = []
    for result in found:
        cells = [result.name, f"{result.encoded_per_segment:.2f}"]
        cells += (
            ["", ""]
            if result.seconds is None or result.speed is None
            else [f"{significant(result.seconds)} s", f"{result.speed:.2f}"]
        )
        cells += [f"{result.cosine_mean:.4f}", f"{result.cosine_p5:.4f}"]
        for stream in STREAMS:
            cells += [f"{result.auc[stream][0]:.4f}", f"{result.difference[stream][0]:+.4f}"]
        lines.append(tuple(cells))
    head = ("choice", "encoded per segment", "extract", "× faster", "cosine", "5% below")
    heads = [part for stream in STREAMS for part in (f"AUC {stream}", "differs by")]
    return text_table((*head, *heads), lines)


def targets_of(found: Sequence[Result]) -> list[Target]:
    """The project's figure: at least 4 times fewer encoded frames at an AUC that is at most 0.005 lower."""
    kept = [result for result in found if min(result.difference[key][0] for key in ("image", "both")) >= -0.005]
    best = min(kept, key=lambda result: result.encoded_per_segment)
    return [
        Target(
            "times fewer encoded frames at an AUC (image, both) at most 0.005 lower",
            4,
            found[0].encoded_per_segment / best.encoded_per_segment,
            note=best.name,
        )
    ]
