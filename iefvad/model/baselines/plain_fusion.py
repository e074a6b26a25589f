"""The two plain fusions: the encoders of IEF-VAD, with concatenation or cross-attention in place of its fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iefvad.model.baselines.config import BaselineConfig
from iefvad.model.baselines.method import Found, Method, Mil, Parts, attention_mask
from iefvad.model.encoder import SelfAttention
from iefvad.model.linear import Linear
from iefvad.model.losses import mil_loss
from iefvad.model.padding import Layout


class CrossAttention(nn.Module):
    """x ← LayerNorm(x + MultiHeadAttention(query x, keys and values y)) on (B, T, D)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) twice and who may attend to whom, (B, T, T) bool → (B, T, D)."""
        excluded = (~mask).repeat_interleave(self.attention.num_heads, 0)
        attended, _ = self.attention(x, y, y, attn_mask=excluded, need_weights=False)
        result: Tensor = self.norm(x + attended)
        return result


class Encoded(Method):
    """Self-attention layers per stream as in IEF-VAD, then a fusion, Linear(2D, D), ReLU, Linear(D, 1).

    Loss: that of IEF-VAD without its regularisation, the cross-entropy of a video's probability.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        dim = config.stream_width
        self.window = config.window
        self.image, self.event = (
            nn.ModuleList(SelfAttention(dim, config.heads, config.dropout) for _ in range(config.layers))
            for _ in range(2)
        )
        self.merge = Linear(2 * dim, dim)
        self.classifier = nn.Linear(dim, 1)

    def fuse(self, image: Tensor, event: Tensor, mask: Tensor) -> Tensor:
        """Two encoded streams (B, T, D) and who may attend to whom, (B, T, T) → (B, T, 2D)."""
        raise NotImplementedError

    def forward(self, x: Tensor, valid: Tensor) -> Found:
        """Score segments; see `Method.forward`."""
        # Products with strided rows are slow on some processors.
        image, event = (stream.contiguous() for stream in x.chunk(2, -1))
        mask = attention_mask(valid, self.window)
        layout = Layout(mask=mask.unsqueeze(1))
        for layer in self.image:
            image = layer(image, layout)
        for layer in self.event:
            event = layer(event, layout)
        features = self.merge(self.fuse(image, event, mask)).relu()
        return Found(self.classifier(features).squeeze(-1), features, {})

    def loss(self, found: Found, labels: Tensor, valid: Tensor, mil: Mil = "topk") -> Parts:
        """Return the loss; see `Method.loss`."""
        cls = mil_loss(found.logits.float(), labels, valid.sum(1), mil)
        return Parts(cls, torch.zeros_like(cls), torch.zeros_like(cls))


class Concat(Encoded):
    """Concatenation of the two encoded streams."""

    def fuse(self, image: Tensor, event: Tensor, mask: Tensor) -> Tensor:
        """Concatenate; see `Encoded.fuse`."""
        return torch.cat([image, event], -1)


class CrossAttended(Encoded):
    """Each encoded stream attends to the other, once; then concatenation."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.image_to_event, self.event_to_image = (
            CrossAttention(config.stream_width, config.heads, config.dropout) for _ in range(2)
        )

    def fuse(self, image: Tensor, event: Tensor, mask: Tensor) -> Tensor:
        """Attend and concatenate; see `Encoded.fuse`."""
        return torch.cat([self.image_to_event(image, event, mask), self.event_to_image(event, image, mask)], -1)
