"""IEF-VAD in its most direct form: the 'plain' way of `bench train`.

Attention by `nn.MultiheadAttention` with its weights materialised, fusion and loss terms one elementwise operation
after the other, the filter as a loop over time, refinement blocks whose hidden layers autograd keeps, and a loop over
the videos in the loss. It takes an IEFVAD's weights and has its loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import plain
from iefvad.data.batches import Batch
from iefvad.model.config import MODALITIES, ModelConfig
from iefvad.model.encoder import ModalityEncoder
from iefvad.model.losses import RUN, LossWeights
from iefvad.model.network import Network


class Encoder(nn.Module):
    """x ← LayerNorm(x + MultiHeadAttention(x)) a layer, a whitening LayerNorm, Linears for mean and log-variance."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(dim, config.heads, config.dropout, batch_first=True) for _ in range(config.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(config.layers))
        self.whiten = nn.LayerNorm(dim)
        self.mu = nn.Linear(dim, dim)
        self.logvar = nn.Linear(dim, dim)

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) features, (B, T) bool True at padding → mean and log-variance, (B, T, D) each."""
        for attention, norm in zip(self.attentions, self.norms, strict=True):
            attended, _ = attention(x, x, x, key_padding_mask=padding, need_weights=True, average_attn_weights=False)
            x = norm(x + attended)
        x = self.whiten(x)
        return self.mu(x), self.logvar(x)

    def copy_from(self, encoder: ModalityEncoder) -> None:
        """Take the weights of an IEFVAD's encoder."""
        for index in range(len(self.attentions)):
            weights = encoder.layers[index].state_dict()
            # nn.MultiheadAttention has in_proj_weight where the network has a Linear named in_proj.
            attention = {name.replace("in_proj.", "in_proj_"): value for name, value in weights.items()}
            norm = {name: attention.pop(f"norm.{name}") for name in ("weight", "bias")}
            self.attentions[index].load_state_dict(attention)
            self.norms[index].load_state_dict(norm)
        for name in ("whiten", "mu", "logvar"):
            getattr(self, name).load_state_dict(getattr(encoder, name).state_dict())


class Fusion(nn.Module):
    """Fused mean and variance, and the four loss terms, of Student-t beliefs with a fixed ν."""

    def __init__(self, nu: float, eps: float) -> None:
        super().__init__()
        self.nu, self.eps = nu, eps

    def forward(self, mus: list[Tensor], logvars: list[Tensor], lengths: Tensor) -> tuple[Tensor, ...]:
        """Mean and variance (B, T, D), and the scalars KL of image and event, cosine, norm."""
        (mu_img, mu_evt), (lv_img, lv_evt) = mus, logvars
        fusion, terms = plain.fusion_and_terms(mu_img, lv_img, mu_evt, lv_evt, lengths, self.nu, self.eps)
        return *fusion[:2], *terms


class Scan(nn.Module):
    """The Kalman filter over time, step by step, its outputs stacked; process noise q = softplus(raw)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.raw_noise = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, var: Tensor) -> Tensor:
        """Filtered mean, (B, T, D). Unlike `bench.plain`'s, its backward pass is linear in T."""
        q = F.softplus(self.raw_noise)
        s, p = x[:, 0], var[:, 0]
        means = [s]
        for t in range(1, x.shape[1]):
            w_s, w_x = 1 / (p + q + self.eps), 1 / (var[:, t] + self.eps)
            p = 1 / (w_s + w_x)
            s = s + w_x * p * (x[:, t] - s)
            means.append(s)
        return torch.stack(means, 1)


class PlainIEFVAD(nn.Module):
    """The network of `--method ief` on both modalities, with the weights of an IEFVAD of the same configuration.

    Videos must have at least one segment. Raises ValueError for other configurations.
    """

    def __init__(self, model: Network) -> None:
        super().__init__()
        config = model.config
        defaults = ModelConfig(dim=config.dim)
        same = ("modality", "noise", "temporal", "process_noise", "released", "window", "standardize")
        if isinstance(config.nu, str) or any(getattr(config, name) != getattr(defaults, name) for name in same):
            raise ValueError("the plain model is that of the method `ief`, without variations")
        self.encoders = nn.ModuleDict({name: Encoder(config) for name in MODALITIES})
        self.fusion = Fusion(config.nu, config.eps)
        self.scan = Scan(config.dim, config.eps)
        blocks = model.refinement
        w1, b1, w2, b2 = (weight.detach() for weight in (blocks.w1, blocks.b1, blocks.w2, blocks.b2))
        self.refinement = plain.Refinement(w1, b1, w2, b2, config.attenuation)
        self.classifier = nn.Linear(config.dim, 1)
        for name, encoder in self.encoders.items():
            source = model.encoders[name]
            assert isinstance(encoder, Encoder) and isinstance(source, ModalityEncoder)
            encoder.copy_from(source)
        assert model.scan is not None
        self.scan.load_state_dict(model.scan.state_dict())
        self.classifier.load_state_dict(model.classifier.state_dict())
        self.to(model.classifier.weight.device)

    def forward(self, batch: Batch, weights: LossWeights) -> Tensor:
        """The total loss of a batch, a scalar."""
        device = batch.image.device
        lengths = batch.lengths.to(device)
        padding = torch.arange(batch.image.shape[1], device=device) >= lengths[:, None]
        beliefs = [
            encoder(features, padding)
            for encoder, features in zip(self.encoders.values(), (batch.image, batch.event), strict=True)
        ]
        mus, logvars = [mu for mu, _ in beliefs], [logvar for _, logvar in beliefs]
        mean, var, kl_img, kl_evt, cosine, norm = self.fusion(mus, logvars, lengths)
        refined = self.refinement(self.scan(mean, var))
        probabilities = torch.sigmoid(self.classifier(refined).squeeze(-1))
        videos = []
        for scores, length in zip(probabilities, batch.lengths.tolist(), strict=True):
            count = min(length // RUN + 1, length)
            videos.append(scores[:length].topk(count).values.mean())
        classification = F.binary_cross_entropy(torch.stack(videos), batch.labels)
        regularisation = weights.cos * cosine + weights.norm * norm
        return classification + weights.kl * (kl_img + kl_evt) + weights.reg * regularisation
