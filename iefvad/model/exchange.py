"""What modalities tell each other before the precision fusion: gates, and cross-attention weighted by precision.

Source: `docs/specification.md#gated-fusion`. Each starts as the identity, so that training begins as without it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iefvad.model.linear import Linear

LIMIT = 3.0
"""Maximum change of a log-precision by a gate: a factor of 20 in the weight."""


class Gates(nn.Module):
    """One gate per modality and dimension, which adds to the log-precision.

    Args:
        width: P.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = Linear(3 * width, width)
        self.event = Linear(3 * width, width)
        for gate in (self.image, self.event):
            nn.init.zeros_(gate.weight)
            nn.init.zeros_(gate.bias)

    def forward(self, mu_img: Tensor, logvar_img: Tensor, mu_evt: Tensor, logvar_evt: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances (..., P) → the gated log-variances of image and event, (..., P) each."""
        # Squared distance in units of its own variance, log1p of it: how much the streams contradict each other.
        dtype = torch.promote_types(mu_img.dtype, torch.float32)  # exp(30) is beyond float16
        spread = torch.logaddexp(logvar_img, logvar_evt).to(dtype).clamp(-30, 30)
        distance = (mu_img.to(dtype) - mu_evt.to(dtype)).square()
        disagreement = (distance * (-spread).exp()).log1p().to(mu_img.dtype)
        gates = []
        for gate, mu, logvar in ((self.image, mu_img, logvar_img), (self.event, mu_evt, logvar_evt)):
            raw = gate(torch.cat([mu, logvar, disagreement], -1))
            gates.append(LIMIT * torch.tanh(raw / LIMIT))
        return logvar_img - gates[0], logvar_evt - gates[1]


class CrossAttention(nn.Module):
    """mu ← mu + attention of one stream to the means of the other, whose uncertain segments count less.

    Args:
        width: P.
        heads: Number of heads; they divide the width.
        window: Attention stays within consecutive windows of this number of segments; None: no windows.
    """

    def __init__(self, width: int, heads: int, window: int | None) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.out = Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, mu: Tensor, other_mu: Tensor, other_logvar: Tensor, valid: Tensor | None) -> Tensor:
        """Let one stream attend to the other.

        Args:
            mu: (B, T, P), means of the stream.
            other_mu: (B, T, P), means of the other stream: keys and values.
            other_logvar: (B, T, P), its log-variances. Each head's logits lose their mean over the head's dimensions.
            valid: (B, T) bool; None: all segments are valid.

        Returns:
            The new means, (B, T, P).
        """
        query = self.query(mu).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.key_value(other_mu).chunk(2, -1)
        )
        precision = -other_logvar.unflatten(-1, (self.heads, -1)).mean(-1).transpose(1, 2).unsqueeze(2)
        position = torch.arange(mu.shape[1], device=mu.device)
        seen = position == position.unsqueeze(1)  # padding sees itself: a softmax over nothing would be NaN
        near = torch.ones_like(seen)
        if self.window is not None:
            near = position // self.window == (position // self.window).unsqueeze(1)
        seen = seen | near if valid is None else seen | (near & valid[:, None, None, :])
        mask = torch.where(seen, precision, -torch.inf).to(query.dtype)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        result: Tensor = mu + self.out(attended.transpose(1, 2).flatten(2))
        return result
