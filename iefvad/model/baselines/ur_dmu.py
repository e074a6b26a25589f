"""UR-DMU: a memory of the normal, a memory of the abnormal, and an uncertain normality.

Source: Zhou, Yu, Yang, "Dual Memory Units with Uncertainty Regulation for Weakly Supervised Video Anomaly Detection",
AAAI 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ief_kernels.precision_fusion.reference import LOGVAR_LIMIT
from iefvad.model.baselines.method import (
    Found,
    Method,
    Mil,
    Parts,
    TemporalConv,
    attention_mask,
    entropies,
    highest,
    masked_softmax,
    mean_of,
    over,
    ranking,
    topk_count,
)
from iefvad.model.losses import mil_loss

HIDDEN, SLOTS, HEADS, LAYERS = 512, 60, 4, 2
MEMORY, TRIPLET, KL, MAGNITUDE = 0.1, 0.1, 1e-3, 1e-4
"""Weights of the loss terms beside the classification."""
MARGIN = 100.0
"""Margin of the magnitudes."""


class GlobalLocalAttention(nn.Module):
    """Self-attention with two branches, and a feed-forward layer, both with residuals.

    Global: softmax(QKᵀ/√d). Local: the softmax of −|i − j|/e over time, which depends on no feature. Both branches have
    values of their own. Their concatenation is projected.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.projections = nn.Linear(dim, 4 * dim, bias=False)
        self.merge = nn.Linear(2 * dim, dim)
        self.feed_forward = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        mask = attention_mask(valid).unsqueeze(1)
        projected = self.projections(self.norm(x)).unflatten(-1, (4, self.heads, -1))
        query, key, value, near_value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        similar = masked_softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, mask)
        position = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        distance = (position - position.unsqueeze(1)).abs() / torch.e
        near = masked_softmax(-distance.expand(mask.shape), mask)
        attended = torch.cat([similar @ value, near @ near_value], -1)
        x = x + self.merge(attended.transpose(1, 2).flatten(2))
        result: Tensor = x + self.feed_forward(x)
        return result


class Memory(nn.Module):
    """A bank of prototypes. It is read with sigmoid(x·mᵀ/√D), so that a segment may match many slots or none."""

    def __init__(self, slots: int, dim: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.empty(slots, dim).uniform_(-(dim**-0.5), dim**-0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) → how well a segment matches, the mean of its best slots, (B, T), and what is read, (B, T, D)."""
        match = (x @ self.slots.t() * x.shape[-1] ** -0.5).sigmoid()
        best = match.topk(match.shape[-1] // 16 + 1, dim=-1).values.mean(-1)
        return best, match @ self.slots


class URDMU(Method):
    """Global and local attention, a memory of normal and one of abnormal prototypes, a Gaussian latent of the normal.

    What is read from the normal memory becomes a mean and a variance. In training normal videos are sampled from them;
    everything else takes the mean. The segment, beside the sum of both readings, is classified.

    Loss: cross-entropy of the mean of the highest segments, and with small weights: each memory must match the
    segments of its kind (an abnormal video contains both); a triplet loss between the pooled readings; the KL
    divergence of the latents of normal videos from N(0, 1); a margin between the magnitudes of pooled readings.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = TemporalConv(width, HIDDEN)
        self.attention = nn.ModuleList(GlobalLocalAttention(HIDDEN, HEADS) for _ in range(LAYERS))
        self.normal, self.abnormal = Memory(SLOTS, HIDDEN), Memory(SLOTS, HIDDEN)
        self.mean, self.logvar = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.layers = nn.Sequential(nn.Linear(2 * HIDDEN, 128), nn.ReLU())
        self.classifier = nn.Linear(128, 1)

    def forward(self, x: Tensor, valid: Tensor) -> Found:
        """Score segments; see `Method.forward`."""
        x = self.embed(x).relu()
        for layer in self.attention:
            x = layer(x, valid)
        normal_match, normal = self.normal(x)
        abnormal_match, abnormal = self.abnormal(x)
        mean, logvar = self.mean(normal), self.logvar(normal)
        # Which videos are normal is known to the loss alone, so it is noise for all in training.
        latent = mean
        if self.training:
            latent = mean + (torch.randn_like(mean) * (0.5 * saturated(logvar)).exp()).to(mean.dtype)
        features = self.layers(torch.cat([x, latent + abnormal], -1))
        parts = {
            "normal_match": normal_match,
            "abnormal_match": abnormal_match,
            "normal": normal,
            "abnormal": abnormal,
            "mean": mean,
            "logvar": logvar,
        }
        return Found(self.classifier(features).squeeze(-1), features, parts)

    def loss(self, found: Found, labels: Tensor, valid: Tensor, mil: Mil = "topk") -> Parts:
        """Return the loss; see `Method.loss`."""
        parts = {name: value.float() for name, value in found.parts.items()}
        cls = mil_loss(found.logits.float(), labels, valid.sum(1))
        reg = (
            MEMORY * memory_loss(parts["normal_match"], parts["abnormal_match"], labels, valid)
            + TRIPLET * triplet_loss(parts, labels, valid)
            + MAGNITUDE * magnitude_loss(parts, labels, valid)
        )
        return Parts(cls, KL * latent_kl(parts["mean"], parts["logvar"], labels, valid), reg)


def memory_loss(normal_match: Tensor, abnormal_match: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropies of how well a video's best segments match each memory, four terms for the two kinds of videos.

    A normal video matches the normal memory and not the abnormal one. An abnormal video matches both.
    """
    count = topk_count(valid)
    abnormal = labels > 0.5
    total = labels.new_zeros(())
    for match, target in ((normal_match, torch.ones_like(labels)), (abnormal_match, labels)):
        video = over(match, highest(match, valid, count)).clamp(1e-6, 1 - 1e-6)
        entropy = entropies(video, target)
        total = total + mean_of(entropy, abnormal) + mean_of(entropy, ~abnormal)
    return total


def triplet_loss(parts: dict[str, Tensor], labels: Tensor, valid: Tensor) -> Tensor:
    """Triplet loss with margin 1 on unit vectors.

    Anchor: the normal reading of a normal video. Positive: the normal reading of an abnormal video. Negative: the
    abnormal reading of that abnormal video. Each is pooled over the segments that match its memory best. Mean
    over pairs.
    """
    count = topk_count(valid)
    normal, abnormal = (
        F.normalize(over(parts[name], highest(parts[f"{name}_match"], valid, count)), dim=-1)
        for name in ("normal", "abnormal")
    )
    near = torch.linalg.vector_norm(normal.unsqueeze(0) - normal.unsqueeze(1) + 1e-6, dim=-1)
    far = torch.linalg.vector_norm(normal.unsqueeze(0) - abnormal.unsqueeze(1) + 1e-6, dim=-1)
    is_abnormal = labels > 0.5
    return mean_of(F.relu(near - far + 1.0), is_abnormal.unsqueeze(1) & ~is_abnormal)


def saturated(logvar: Tensor) -> Tensor:
    """Return a log-variance whose exponential and the sums of it are finite, as `precision_fusion` cuts it."""
    dtype = torch.promote_types(logvar.dtype, torch.float32)
    return logvar.to(dtype).clamp(max=LOGVAR_LIMIT[dtype])


def latent_kl(mean: Tensor, logvar: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(logvar)) from N(0, 1), summed over dimensions, mean over normal videos' segments."""
    divergence = 0.5 * (mean.square() + saturated(logvar).exp() - 1 - logvar).sum(-1)
    return mean_of(divergence, valid & (labels < 0.5).unsqueeze(1))


def magnitude_loss(parts: dict[str, Tensor], labels: Tensor, valid: Tensor) -> Tensor:
    """max(0, 100 − ‖abnormal reading‖ + ‖normal latent‖) of pooled vectors, mean over pairs of videos."""
    count = topk_count(valid)
    abnormal = over(parts["abnormal"], highest(parts["abnormal_match"], valid, count))
    latent = over(parts["mean"], highest(parts["normal_match"], valid, count))
    high, low = (torch.linalg.vector_norm(value, dim=-1) for value in (abnormal, latent))
    return ranking(high, low, labels, MARGIN)
