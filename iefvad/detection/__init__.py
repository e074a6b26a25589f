"""Detection: the detector, live input, alarms, the files it writes, the overlay video."""

from __future__ import annotations

from iefvad.detection.api import detect
from iefvad.detection.config import DetectConfig
from iefvad.detection.detector import Detector
from iefvad.detection.result import Detection

__all__ = ["DetectConfig", "Detection", "Detector", "detect"]
