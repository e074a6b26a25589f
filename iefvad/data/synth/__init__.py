"""`synth`, the embedded benchmark: small surveillance-like videos with anomalies, rendered and compressed (SPEC §6).

Every video is one fixed camera's view of walkers, cyclists and traffic. Half of the training videos hold one kind of
anomaly: seen in motion only (`MOTION`), in appearance only (`APPEARANCE`), or in both (explosion).
"""

from __future__ import annotations

from iefvad.data.synth.anomalies import APPEARANCE, CLASSES, MOTION
from iefvad.data.synth.dataset import SynthSpec, generate, plan, settings_of
from iefvad.data.synth.render import NORMAL, VideoPlan, render, write_video

__all__ = [
    "APPEARANCE",
    "CLASSES",
    "MOTION",
    "NORMAL",
    "SynthSpec",
    "VideoPlan",
    "generate",
    "plan",
    "render",
    "settings_of",
    "write_video",
]
