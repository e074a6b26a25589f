"""Sultani et al.: the highest score of an abnormal video ranks above that of a normal one.

Source: Sultani, Chen, Shah, "Real-world Anomaly Detection in Surveillance Videos", CVPR 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iefvad.model.baselines.method import Found, Method, Mil, Parts, mean_of, ranking, smoothness, sparsity

WEIGHT = 8e-5
"""λ of smoothness and of sparsity."""


class Sultani(Method):
    """Three fully connected layers, 512, 32 and 1, with dropout of 60%. Each segment is scored alone.

    Loss: max(0, 1 − max f(abnormal) + max f(normal)) + λ·Σ(f_t − f_{t+1})² + λ·Σ f_t, the sums over the abnormal video.
    The mean is over all pairs of an abnormal and a normal video of the batch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 512), nn.ReLU(), nn.Dropout(0.6), nn.Linear(512, 32), nn.Dropout(0.6)
        )
        self.classifier = nn.Linear(32, 1)

    def forward(self, x: Tensor, valid: Tensor) -> Found:
        """Score segments; see `Method.forward`."""
        features = self.layers(x)
        return Found(self.classifier(features).squeeze(-1), features, {})

    def loss(self, found: Found, labels: Tensor, valid: Tensor, mil: Mil = "topk") -> Parts:
        """Return the loss; see `Method.loss`."""
        scores = found.logits.float().sigmoid()
        highest = (scores * valid).amax(1)  # scores are positive, so padding never wins
        penalty = WEIGHT * (smoothness(scores, valid) + sparsity(scores, valid))
        cls = ranking(highest, highest, labels, 1.0)
        return Parts(cls, torch.zeros_like(cls), mean_of(penalty, labels > 0.5))
