"""The encoder of one modality: self-attention over the segments, then a mean and a log-variance per segment.

Source: section 3.1 of the paper; `docs/specification.md#network`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iefvad.model.attention import attention_with_dropout
from iefvad.model.config import ModelConfig
from iefvad.model.linear import Linear
from iefvad.model.padding import Layout, split
from iefvad.model.surprise import Surprise


class SelfAttention(nn.Module):
    """x ← LayerNorm(x + MultiHeadAttention(x)) on (B, T, D), without feed-forward or positional encoding."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj = Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(B, T, D) → (B, T, D); with `layout.rows` (R, D) → (R, D), and padding exists within the attention only."""
        qkv = self.in_proj(x).unflatten(-1, (3, self.heads, -1))
        if layout.spans is not None:
            merged = attention_with_dropout(qkv.view(-1, *qkv.shape[-3:]), layout.spans, self.dropout).view(x.shape)
            return self._add(x, merged)
        query, key, value = split(qkv, layout.rows)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=layout.mask, dropout_p=dropout)
        merged = attended.transpose(1, 2).flatten(2)
        if layout.rows is not None:
            merged = layout.rows.take(merged)
        return self._add(x, merged)

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        result: Tensor = self.norm(x + self.out_proj(attended))
        return result


class ModalityEncoder(nn.Module):
    """Self-attention layers, a whitening LayerNorm, then one Linear each for mean and log-variance (paper 3.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SelfAttention(config.width, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.whiten = nn.LayerNorm(config.width)
        self.mu = Linear(config.width, config.width)
        self.logvar = Linear(config.width, config.width)
        self.surprise = Surprise(config.width) if config.surprise else None
        # softplus gives 0.3: the classification decides by its gradient whether more is better.
        self.raw_doubt = nn.Parameter(torch.full((config.width,), -1.0)) if config.repair else None

    def forward(self, x: Tensor, layout: Layout, doubt: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode one modality.

        Args:
            x: (B, T, P), standardised features.
            layout: How the batch is computed.
            doubt: (B, T, 1), that of `Repair`.

        Returns:
            Mean and log-variance, (B, T, P) each; zeros in the padding where it is left out.
        """
        rows = layout.rows
        if rows is not None:
            x = rows.take(x)
            doubt = None if doubt is None else rows.take(doubt)
        more = None if self.surprise is None else self.surprise(x)
        for layer in self.layers:
            x = layer(x, layout)
        x = self.whiten(x)
        mu, logvar = self.mu(x), self.logvar(x)
        if more is not None:
            logvar = logvar + more
        if self.raw_doubt is not None and doubt is not None:
            # Variances add up. The smallest number keeps the gradient of the logarithm finite where there is no doubt.
            more = (F.softplus(self.raw_doubt) * doubt).clamp(min=1e-12).log()
            logvar = torch.logaddexp(logvar, more.to(logvar.dtype))
        return (mu, logvar) if rows is None else (rows.place(mu), rows.place(logvar))
