"""The detector: a model and its encoder, which score one video after another in constant memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from iefvad.checkpoints.hub import Trained, load_trained
from iefvad.detection.advice import Flagged, familiar_advice, flagged_advice, model_advice, rule_advice
from iefvad.detection.config import DetectConfig
from iefvad.detection.result import Collector, Detection, Timing
from iefvad.detection.threshold import Rule, choose_rule
from iefvad.encoders.encoder import Encoder, build_encoder
from iefvad.extraction.stream import DEFAULTS, FeatureStream, SegmentFeatures, grouped
from iefvad.features.density import with_density
from iefvad.scoring.scorer import Scorer, check_encoder, choose_crops
from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.advice import Advice
from iefvad.utils.devices import resolve_device
from iefvad.utils.errors import UserError
from iefvad.utils.text import few, file_name, readable
from iefvad.video import SEGMENT

Item = TypeVar("Item")


class Detector:
    """Scores videos with a model and the encoder that it was trained with.

    Attributes:
        model: The network, in evaluation mode.
        provenance: What is known of its training.
        folder: Folder of the model, where it has one.
        settings: How features are made: encoders, crops, event settings.
        chunk: Number of segments that the model sees at once.
        hop: Number of segments scored at a time.
        context: Number of earlier segments that the attention also sees.
        rule: How scores become flagged intervals.
        encoder: The encoder.
    """

    def __init__(self, model: str | Path | Trained, config: DetectConfig | None = None, *, live: bool = False) -> None:
        """Load the model and its encoder.

        Args:
            model: A run folder, anything else that `load_pretrained` takes, or the model itself.
            config: The settings; the defaults where None.
            live: Score segment by segment, unless the settings say something else.

        Raises:
            UserError: the model cannot be read, has no record of its encoder, or was trained with other weights than
                the encoder's; or a setting is out of range.
        """
        self.config = (config or DetectConfig()).check()
        device = resolve_device(self.config.device)
        self.model, self.provenance, self.folder = _open(model, device)
        self.name = "a model in memory" if isinstance(model, Trained) else str(model)
        self.settings: dict[str, Any] = dict(self.provenance.get("encoder") or {})
        if not self.settings:
            raise UserError(
                f"{self.name} was trained on features without a record of their encoder (.npy lists): train from a"
                " store made by `iefvad extract` to score videos."
            )
        if missing := [name for name in ("image_encoder", "event_encoder", "crops") if not self.settings.get(name)]:
            raise UserError(f"{self.name} has an incomplete record of its encoder: {few(missing)} is missing.")
        self.settings = {
            **DEFAULTS,
            **self.settings,
            "crops": choose_crops(self.settings["crops"], self.provenance.get("test_crops", "5")),
            "tail": self.config.tail,
            "on_truncated": self.config.on_truncated,
            "fps": self.config.fps,
            "max_pixels": self.config.max_pixels,
            "max_frames": self.config.max_frames,
            "corrupt": None,  # videos are scored as they are, even by a model that was trained on damaged ones
        }
        self.chunk = int(self.provenance.get("chunk", 256))
        self.hop = self.config.hop if self.config.hop is not None else 1 if live else self.chunk
        self.context = self.scorer().context
        self.rule: Rule = self.rule_of(self.config)
        self.encoder: Encoder = build_encoder(
            image_model=self.settings["image_encoder"],
            image_weights=self.config.image_weights or self.settings.get("image_weights"),
            event_model=self.settings["event_encoder"],
            event_weights=self.config.event_weights or self.settings.get("event_weights"),
            recorded=True,
            device=str(device),
            # On a CPU, one segment at a time is as fast as more, and needs less memory.
            batch=SEGMENT if device.type == "cpu" else 64,
        )
        check_encoder(self.settings, self.encoder.settings, "the features of these videos")

    def rule_of(self, config: DetectConfig) -> Rule:
        """Choose how scores become flagged intervals with these settings, which may be those of one camera.

        Raises:
            UserError: the calibration cannot be read or is of other weights, or `low` exceeds the threshold.
        """
        return choose_rule(
            config,
            folder=self.folder,
            model=self.model,
            provenance=self.provenance,
            hop=self.hop,
            context=self.context,
        )

    def scorer(self) -> Scorer:
        """Make a scorer for a new video."""
        return Scorer(self.model, chunk=self.chunk, hop=self.hop, context=self.config.context)

    def __call__(self, video: str | Path, *, told: Callable[[int, int | None], None] | None = None) -> Detection:
        """Score one video: a file or a folder of frames.

        Args:
            video: The video.
            told: Gets the number of frames read so far, and that of all frames as the file states it, or None.

        Raises:
            UserError: the video cannot be read.
        """
        video = Path(video)
        begin = time.perf_counter()
        timing, scorer, collector = Timing(), self.scorer(), Collector(self.config.thumbnails)
        timed = TimedEncoder(self.encoder)
        stream = FeatureStream(video, cast(Encoder, timed), self.settings)
        for segments in grouped(_telling(stream, told), self.hop):
            collector.add(segments, score_segments(scorer, segments, timing))
        timing.segments, timing.total = len(collector), time.perf_counter() - begin
        timing.decode, timing.encode = stream.segments.seconds, timed.seconds
        scores = collector.scores(stem_of(video), stream.fps, readable(video.name))
        intervals = self.rule.intervals(scores)
        return Detection(
            video,
            scores,
            intervals,
            collector.pictures(intervals),
            self.rule,
            timing,
            clock=stream.segments.clock,
            warnings=self.advice(scores, collector),
        )

    def advice(self, scores: VideoScores, collector: Collector, rule: Rule | None = None) -> list[Advice]:
        """Return what makes the scores of a video doubtful, by the rule that flags it (the detector's unless given)."""
        rule = rule or self.rule
        return [
            *self.standing_advice(rule),
            *familiar_advice(self.provenance, getattr(self.model, "statistics", {}), collector.means()),
            *flagged_advice(Flagged().add(scores, rule.intervals(scores))),
        ]

    def standing_advice(self, rule: Rule | None = None) -> list[Advice]:
        """Return what is doubtful about the model and the rule, whatever the video is."""
        return [*model_advice(self.provenance), *rule_advice(rule or self.rule)]


def _telling(stream: FeatureStream, told: Callable[[int, int | None], None] | None) -> Iterator[SegmentFeatures]:
    for segment in stream:
        if told is not None:
            told(SEGMENT * (segment.index + 1), stream.segments.info.frames)
        yield segment


def stem_of(video: Path) -> str:
    """Return the name of a video: that of the file without its suffix, or of the folder of frames."""
    return file_name(video.name if os.path.isdir(video) else video.stem)


def score_segments(scorer: Scorer, segments: list[SegmentFeatures], timing: Timing) -> np.ndarray:
    """Score the next t segments and add the time spent to `timing`. Returns rows as in `Scorer.feed`, (t, 4)."""
    begin = time.perf_counter()
    image = torch.stack([segment.image for segment in segments], 1)
    event = torch.stack([segment.event for segment in segments], 1)
    if getattr(scorer.model.config, "density_prior", 0):
        image, event = with_density(image, event, [segment.density for segment in segments])
    rows = scorer.feed(image, event)
    timing.score += time.perf_counter() - begin
    return rows


class TimedEncoder:
    """An encoder with a clock.

    Attributes:
        seconds: Time spent in its `encode_*` methods so far.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Start the clock at 0."""
        self._encoder = encoder
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the encoder; methods that encode are timed."""
        value = getattr(self._encoder, name)
        if not name.startswith("encode"):
            return value

        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                result = value(*arguments, **named)
                if self._encoder.device.type == "cuda":
                    torch.cuda.synchronize(self._encoder.device)
                return result
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def _open(source: str | Path | Trained, device: torch.device) -> tuple[Trained, dict[str, Any], Path | None]:
    """Return the model in evaluation mode, what is known of its training, and its folder if it has one."""
    if isinstance(source, Trained):
        return source.to(device).eval(), source.provenance, source.folder
    model = load_trained(source, device=device)
    return model, model.provenance, model.folder
