"""RTFM: segments are told apart by the magnitude of their features.

Source: Tian et al., "Weakly-supervised Video Anomaly Detection with Robust Temporal Feature Magnitude Learning", ICCV
2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iefvad.model.baselines.method import (
    Found,
    Method,
    Mil,
    Parts,
    TemporalConv,
    highest,
    mean_of,
    over,
    ranking,
    smoothness,
    sparsity,
)

TOP, MARGIN = 3, 100.0
MAGNITUDE, SMOOTH, SPARSE = 1e-4, 8e-4, 8e-3
"""Weights of the magnitude, smoothness and sparsity terms."""


class RTFM(Method):
    """A multi-scale temporal network, then three fully connected layers, 512, 128 and 1, with dropout of 70%.

    The temporal network concatenates four parts, each a quarter as wide as the features: convolutions over 3 segments
    with dilation 1, 2 and 4, and a self-attention over all segments. Their sum with the features is X.

    Loss: the cross-entropy of the 3 segments with the largest ‖x_t‖, their mean;
    max(0, 100 − ‖abnormal‖ + ‖normal‖), where the magnitude of a video is the mean ‖x_t‖ of these segments;
    smoothness and sparsity of the scores of abnormal videos.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        part = width // 4
        self.pyramid = nn.ModuleList(TemporalConv(width, part, dilation) for dilation in (1, 2, 4))
        self.reduce = nn.Linear(width, part)
        self.query, self.key, self.value = (nn.Linear(part, part) for _ in range(3))
        self.attended = nn.Linear(part, part)
        self.layers = nn.Sequential(
            nn.Linear(width, 512), nn.ReLU(), nn.Dropout(0.7), nn.Linear(512, 128), nn.ReLU(), nn.Dropout(0.7)
        )
        self.classifier = nn.Linear(128, 1)

    def forward(self, x: Tensor, valid: Tensor) -> Found:
        """Score segments; see `Method.forward`."""
        near = [conv(x) for conv in self.pyramid]
        reduced = self.reduce(x)
        # The paper's similarities have no softmax. Their sum is divided by the number of segments, so that a video's
        # length does not scale it.
        similarity = self.query(reduced) @ self.key(reduced).transpose(1, 2) * valid.unsqueeze(1)
        similarity = similarity / valid.sum(1).clamp(min=1)[:, None, None]
        far = self.attended(similarity @ self.value(reduced)) + reduced
        temporal = torch.cat([*near, far], -1) + x
        features = self.layers(temporal)
        magnitudes = torch.linalg.vector_norm(temporal.float(), dim=-1)
        return Found(self.classifier(features).squeeze(-1), features, {"magnitudes": magnitudes})

    def loss(self, found: Found, labels: Tensor, valid: Tensor, mil: Mil = "topk") -> Parts:
        """Return the loss; see `Method.loss`."""
        magnitudes, logits = found.parts["magnitudes"], found.logits.float()
        chosen = highest(magnitudes, valid, TOP)
        entropy = F.binary_cross_entropy_with_logits(logits, labels.unsqueeze(1).expand_as(logits), reduction="none")
        video = over(magnitudes, chosen)
        scores = logits.sigmoid()
        penalty = SMOOTH * smoothness(scores, valid) + SPARSE * sparsity(scores, valid)
        cls = over(entropy, chosen).mean()
        reg = MAGNITUDE * ranking(video, video, labels, MARGIN) + mean_of(penalty, labels > 0.5)
        return Parts(cls, torch.zeros_like(cls), reg)
