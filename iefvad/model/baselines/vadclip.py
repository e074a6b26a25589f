"""VadCLIP's visual branch. Its text branch needs names of classes and the text tower of CLIP; it is left out.

Source: Wu et al., "VadCLIP: Adapting Vision-Language Models for Weakly Supervised Video Anomaly Detection", AAAI 2024.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iefvad.model.baselines.method import Found, Method, Mil, Parts, attention_mask, masked_softmax
from iefvad.model.losses import mil_loss

WINDOW = 8
"""Length of the local windows, in segments: that of UCF-Crime."""


class LocalLayer(nn.Module):
    """One layer of a transformer encoder whose attention stays within windows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.before_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, W) and who may attend to whom, (B, T, T) → (B, T, W)."""
        query, key, value = self.projections(self.before_attention(x)).chunk(3, -1)
        x = x + self.merge(masked_softmax(query @ key.transpose(1, 2) * x.shape[-1] ** -0.5, mask) @ value)
        result: Tensor = x + self.feed_forward(self.before_feed_forward(x))
        return result


class VadCLIP(Method):
    """A local transformer layer, then a graph convolution over all segments, then a binary head.

    Graph: gelu([softmax(cosine similarity); softmax(−|i − j|)]·X·W), where W is the one weight. Head: a feed-forward
    layer with a residual, and a linear one.

    Loss: cross-entropy of the mean of the highest segments.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local = LocalLayer(width)
        self.graph = nn.Linear(2 * width, width, bias=False)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.classifier = nn.Linear(width, 1)

    def forward(self, x: Tensor, valid: Tensor) -> Found:
        """Score segments; see `Method.forward`."""
        x = self.local(x, attention_mask(valid, WINDOW))
        mask = attention_mask(valid)
        unit = F.normalize(x, dim=-1)
        similar = masked_softmax(unit @ unit.transpose(1, 2), mask)
        position = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        near = masked_softmax(-(position - position.unsqueeze(1)).abs().expand(mask.shape), mask)
        x = F.gelu(self.graph(torch.cat([similar @ x, near @ x], -1)))
        features = x + self.feed_forward(x)
        return Found(self.classifier(features).squeeze(-1), features, {})

    def loss(self, found: Found, labels: Tensor, valid: Tensor, mil: Mil = "topk") -> Parts:
        """Return the loss; see `Method.loss`."""
        cls = mil_loss(found.logits.float(), labels, valid.sum(1))
        return Parts(cls, torch.zeros_like(cls), torch.zeros_like(cls))
