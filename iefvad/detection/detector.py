"""A model and its encoder, ready to score videos one after another in constant memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from iefvad.checkpoints.hub import IEFVAD, load_pretrained
from iefvad.detection.config import DetectConfig
from iefvad.detection.result import Collector, Detection, Timing
from iefvad.detection.threshold import Rule, choose_rule
from iefvad.encoders.encoder import Encoder, build_encoder
from iefvad.extraction.stream import FeatureStream, SegmentFeatures
from iefvad.scoring.scorer import Scorer, check_encoder, choose_crops
from iefvad.utils.devices import resolve_device
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT

Item = TypeVar("Item")


class Detector:
    """Scores videos with a model and the encoder it was trained on.

    `model`: what `load_pretrained` takes (a run folder, a file ...), or the model itself. `live`: score segment by
    segment unless the settings say otherwise. Raises UserError for a model that cannot be read or tells no encoder,
    for weights other than those of its training, and for settings that do not fit.
    """

    def __init__(self, model: str | Path | IEFVAD, config: DetectConfig | None = None, *, live: bool = False) -> None:
        self.config = (config or DetectConfig()).check()
        device = resolve_device(self.config.device)
        self.model, self.provenance, self.folder = _open(model, device)
        self.name = "a model in memory" if isinstance(model, IEFVAD) else str(model)
        self.settings: dict[str, Any] = dict(self.provenance.get("encoder") or {})
        if not self.settings:
            raise UserError(
                f"{self.name} was trained on features without a record of their encoder (.npy lists): train from a"
                " store made by `iefvad extract` to score videos."
            )
        self.settings |= {
            "crops": choose_crops(self.settings["crops"], self.provenance.get("test_crops", "5")),
            "tail": self.config.tail,
            "on_truncated": self.config.on_truncated,
        }
        self.chunk = int(self.provenance.get("chunk", 256))
        self.hop = self.config.hop if self.config.hop is not None else 1 if live else self.chunk
        self.context = self.scorer().context
        self.rule: Rule = choose_rule(
            self.config,
            folder=self.folder,
            model=self.model,
            provenance=self.provenance,
            hop=self.hop,
            context=self.context,
        )
        self.encoder: Encoder = build_encoder(
            image_model=self.settings["image_encoder"],
            image_weights=self.config.image_weights or self.settings.get("image_weights"),
            event_model=self.settings["event_encoder"],
            event_weights=self.config.event_weights or self.settings.get("event_weights"),
            device=str(device),
            # A segment's frames at a time are as fast as more on a CPU, and keep its memory small.
            batch=SEGMENT if device.type == "cpu" else 64,
        )
        check_encoder(self.settings, self.encoder.settings, "the features of these videos")

    def scorer(self) -> Scorer:
        """A fresh scorer, for one video."""
        return Scorer(self.model, chunk=self.chunk, hop=self.hop, context=self.config.context)

    def __call__(self, video: str | Path) -> Detection:
        """Score one video. Raises UserError where it cannot be read."""
        video = Path(video)
        begin = time.perf_counter()
        timing, scorer, collector = Timing(), self.scorer(), Collector(self.config.thumbnails)
        timed = TimedEncoder(self.encoder)
        stream = FeatureStream(video, cast(Encoder, timed), self.settings)
        for segments in _groups(stream, self.hop):
            collector.add(segments, score_segments(scorer, segments, timing))
        timing.segments, timing.total = len(collector), time.perf_counter() - begin
        timing.decode, timing.encode = stream.segments.seconds, timed.seconds
        scores = collector.scores(video.stem, stream.fps, video.name)
        return Detection(video, scores, self.rule.intervals(scores), collector.pictures(), self.rule, timing)


def score_segments(scorer: Scorer, segments: list[SegmentFeatures], timing: Timing) -> Any:
    """(t, 4) float32 rows of the next segments, as of `Scorer.feed`; adds the time it took to `timing`."""
    begin = time.perf_counter()
    rows = scorer.feed(
        torch.stack([segment.image for segment in segments], 1), torch.stack([segment.event for segment in segments], 1)
    )
    timing.score += time.perf_counter() - begin
    return rows


class TimedEncoder:
    """An encoder whose `encode_*` calls are timed: `seconds` is their sum."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
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


def _open(source: str | Path | IEFVAD, device: torch.device) -> tuple[IEFVAD, dict[str, Any], Path | None]:
    """The model in evaluation mode, what is known of its training, and its folder where it has one."""
    if isinstance(source, IEFVAD):
        return source.to(device).eval(), source.provenance, source.folder
    model = load_pretrained(source, device=device)
    return model, model.provenance, model.folder


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
