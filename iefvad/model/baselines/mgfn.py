"""MGFN: a glance over the whole video, then a focus on neighbours; videos are told apart by feature magnitudes.

Source: Chen et al., "MGFN: Magnitude-Contrastive Glance-and-Focus Network for Weakly-Supervised Video Anomaly
Detection", AAAI 2023.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iefvad.model.baselines.method import (
    Found,
    Method,
    Mil,
    Parts,
    TemporalConv,
    attention_mask,
    entropies,
    highest,
    mean_of,
    over,
    smoothness,
    sparsity,
)

STAGES = ((64, "glance", 3), (128, "focus", 3), (1024, "focus", 2))
"""Width, kind and number of the blocks of each stage."""
HEAD = 64
"""Channels of one attention head, and of one group of the self-attentional convolution."""
REACH = 5
"""Segments under the kernel of the self-attentional convolution."""
AMPLIFICATION = 0.1
"""α of the feature amplification."""
TOP, MARGIN = 3, 200.0
"""Segments that stand for a video, and the margin between the magnitudes of both kinds of videos."""
CONTRAST, SMOOTH, SPARSE = 1e-3, 8e-4, 8e-3
"""Weights of the magnitude contrastive, smoothness and sparsity terms."""


class Glance(nn.Module):
    """Self-attention among all segments of a video, softmax(QKᵀ/√d)·V per head, on normalised features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // HEAD
        self.norm = nn.LayerNorm(dim)
        self.projections = nn.Linear(dim, 3 * dim, bias=False)
        self.merge = nn.Linear(dim, dim)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        query, key, value = self.projections(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = attention_mask(valid).unsqueeze(1)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        result: Tensor = self.merge(attended.transpose(1, 2).flatten(2))
        return result


class Focus(nn.Module):
    """Self-attentional convolution: values are mixed over neighbours with weights that depend on the distance alone.

    The channels of a head share their 5 weights.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        heads = dim // HEAD
        self.norm = nn.LayerNorm(dim)
        self.value = nn.Linear(dim, dim, bias=False)
        self.near = nn.Conv1d(heads, heads, REACH, padding=REACH // 2, groups=heads)
        self.merge = nn.Linear(dim, dim)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        value = _cleared(self.value(self.norm(x)), valid).unflatten(-1, (-1, HEAD)).permute(0, 3, 2, 1)
        mixed = self.near(value.flatten(0, 1)).view(value.shape)
        result: Tensor = self.merge(mixed.permute(0, 3, 2, 1).flatten(2))
        return result


class Block(nn.Module):
    """A convolution over 3 segments, then glance or focus, then a feed-forward layer; each is added to its input."""

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        self.shortcut = TemporalConv(dim, dim)
        self.attention = Glance(dim) if kind == "glance" else Focus(dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        x = x + self.shortcut(_cleared(x, valid))
        x = x + self.attention(x, valid)
        result: Tensor = x + self.feed_forward(x)
        return result


class MGFN(Method):
    """Amplified features, one stage of glance blocks, two stages of focus blocks, a normalisation and one linear layer.

    Amplification: Conv(x) + 0.1·Conv(‖x‖), both over 3 segments. Between stages features are normalised and widened.

    Loss: the cross-entropy of the mean score of the 3 segments with the largest magnitude; the magnitude contrastive
    loss; smoothness and sparsity of the scores of abnormal videos. The magnitude of a segment is the norm of what the
    last block returns.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        first = STAGES[0][0]
        self.embed = TemporalConv(width, first)
        self.amplify = TemporalConv(1, first)
        self.stages = nn.ModuleList(nn.ModuleList(Block(dim, kind) for _ in range(n)) for dim, kind, n in STAGES)
        self.widen = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(before), nn.Linear(before, after))
            for (before, *_), (after, *_) in pairwise(STAGES)
        )
        self.norm = nn.LayerNorm(STAGES[-1][0])
        self.classifier = nn.Linear(STAGES[-1][0], 1)

    def forward(self, x: Tensor, valid: Tensor) -> Found:
        """Score segments; see `Method.forward`."""
        magnitude = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        x = self.embed(x) + AMPLIFICATION * self.amplify(magnitude)
        for number, blocks in enumerate(self.stages):
            if number:
                x = self.widen[number - 1](x)
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                x = block(x, valid)
        magnitudes = torch.linalg.vector_norm(x.float(), dim=-1)
        features = self.norm(x)
        return Found(self.classifier(features).squeeze(-1), features, {"magnitudes": magnitudes})

    def loss(self, found: Found, labels: Tensor, valid: Tensor, mil: Mil = "topk") -> Parts:
        """Return the loss; see `Method.loss`."""
        magnitudes, scores = found.parts["magnitudes"], found.logits.float().sigmoid()
        chosen = highest(magnitudes, valid, TOP)
        cls = entropies(over(scores, chosen).clamp(1e-6, 1 - 1e-6), labels).mean()
        penalty = SMOOTH * smoothness(scores, valid) + SPARSE * sparsity(scores, valid)
        reg = CONTRAST * contrastive_loss(over(magnitudes, chosen), labels) + mean_of(penalty, labels > 0.5)
        return Parts(cls, torch.zeros_like(cls), reg)


def contrastive_loss(magnitudes: Tensor, labels: Tensor) -> Tensor:
    """Draw the magnitudes of videos of one kind together, and push those of both kinds apart.

    With D = |M_i − M_j|: the mean of D over pairs of normal videos, plus that over pairs of abnormal videos, plus the
    mean of max(0, 200 − D) over the pairs of an abnormal and a normal video.

    Args:
        magnitudes: (B,), the magnitude of each video.
        labels: (B,), 1 for abnormal.
    """
    abnormal = labels > 0.5
    distance = (magnitudes.unsqueeze(1) - magnitudes).abs()
    other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    within = (
        mean_of(distance, kind.unsqueeze(1) & kind & other)  # each pair counts twice, which changes no mean
        for kind in (abnormal, ~abnormal)
    )
    return sum(within, mean_of(F.relu(MARGIN - distance), abnormal.unsqueeze(1) & ~abnormal))


def _cleared(x: Tensor, valid: Tensor) -> Tensor:
    """Zero the padding, so that a convolution sees nothing behind the end of a video."""
    return x.masked_fill(~valid.unsqueeze(-1), 0)
