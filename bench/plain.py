"""Straight PyTorch code without this package: the 'plain' provider of the benchmarks.

Straight translations of the formulas, one elementwise operation after the other, correct on ordinary inputs, with
neither ragged lengths in the scan nor saturation. Arguments and results are those of `ief_kernels`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def luma(frame: Tensor) -> Tensor:
    """(H, W, 3) uint8 → (H, W) int32 in 1e-4 grey levels; 2989·R + 5870·G + 1140·B."""
    rgb = frame.to(torch.int32)
    return rgb[..., 0] * 2989 + rgb[..., 1] * 5870 + rgb[..., 2] * 1140


def segment_events(frames: Tensor, threshold: int = 10, clamp: int = 10) -> Tensor:
    """One map (H, W) in [0, 1] of one segment (S, H, W, 3), frame after frame."""
    before = luma(frames[0])
    count = torch.zeros_like(before)
    for frame in frames[1:]:
        now = luma(frame)
        count += ((now - before).abs() > threshold * 10_000).to(torch.int32)
        before = now
    return count.clamp(max=clamp).float() / clamp


def event_synthesis(frames: Tensor) -> Tensor:
    """(N, S, H, W, 3) uint8 → (N, H, W) float32, segment after segment."""
    return torch.stack([segment_events(segment) for segment in frames])


def soft_event_synthesis(frames: Tensor, surrogate: float = 1.0) -> Tensor:
    """The same for floating-point frames, with the gradient of a sigmoid in place of the step's."""
    y = (frames * torch.tensor([2989.0, 5870.0, 1140.0], device=frames.device)).sum(-1)
    excess = ((y[:, 1:] - y[:, :-1]).abs() - 100_000) / (surrogate * 10_000)
    soft = torch.sigmoid(excess)
    events = (excess > 0).float() + soft - soft.detach()
    count = events.sum(1)
    return torch.where(count > 10, 10.0, count) / 10


def ten_crop_events(frames: Tensor, segment: int = 16) -> Tensor:
    """(n, H, W, 3) uint8 → (n // segment, 10, 224, 224): every crop resized, cut and differenced on its own."""
    import cv2  # here, because a machine that measures kernels alone need not decode videos

    from iefvad.video import CROP, HEIGHT, WIDTH, crop_boxes

    images = frames.numpy()
    maps = []
    for start in range(0, len(images) - segment + 1, segment):
        for top, left, mirrored in crop_boxes():
            views = []
            for image in images[start : start + segment]:
                view = cv2.resize(image, (WIDTH, HEIGHT))[top : top + CROP, left : left + CROP]
                views.append(np.ascontiguousarray(view[:, ::-1] if mirrored else view))
            maps.append(segment_events(torch.from_numpy(np.stack(views))))
    return torch.stack(maps).view(-1, 10, CROP, CROP)


def precision_fusion(
    mu_img: Tensor, logvar_img: Tensor, mu_evt: Tensor, logvar_evt: Tensor, nu: float = 8.0, eps: float = 1e-8
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, and the normalised weights of two Student-t beliefs."""
    var_img = nu / (nu + 1) * torch.exp(logvar_img)
    var_evt = nu / (nu + 1) * torch.exp(logvar_evt)
    w_img, w_evt = 1 / (var_img + eps), 1 / (var_evt + eps)
    total = w_img + w_evt
    mean = (w_img * mu_img + w_evt * mu_evt) / total
    return mean, 1 / total, w_img / total, w_evt / total


def fusion_and_terms(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    lengths: Tensor,
    nu: float = 8.0,
    eps: float = 1e-8,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Fusion (zero at padding) and the four loss terms over valid positions."""
    mask = torch.arange(mu_img.shape[1], device=mu_img.device) < lengths[:, None]
    fields = precision_fusion(mu_img, logvar_img, mu_evt, logvar_evt, nu, eps)
    fusion = tuple(field * mask[..., None] for field in fields)
    count = mask.sum()

    def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
        var = nu / (nu + 1) * torch.exp(logvar)
        kl = -0.5 * (1 + torch.log(var) - mu.pow(2) - var)
        return (kl * mask[..., None]).sum() / (count * mu.shape[-1])

    cosine = ((1 - nn.functional.cosine_similarity(mu_img, mu_evt, dim=-1)) * mask).sum() / count
    norm = ((mu_img.norm(dim=-1) - mu_evt.norm(dim=-1)).abs() * mask).sum() / count
    return fusion, (divergence(mu_img, logvar_img), divergence(mu_evt, logvar_evt), cosine, norm)


def kalman_scan(
    x: Tensor, var: Tensor, process_noise: Tensor, nu: float | None = None, eps: float = 1e-8
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and gain, (B, T, D) each.

    Reading `x[:, t]` and writing `mean[:, t]` is what one writes first; autograd then touches whole (B, T, D) tensors
    at every step, so the backward pass is quadratic in T.
    """
    mean, variance, gain = torch.zeros_like(x), torch.zeros_like(x), torch.ones_like(x)
    s, p = x[:, 0], var[:, 0]
    mean[:, 0], variance[:, 0] = s, p
    for t in range(1, x.shape[1]):
        residual = x[:, t] - s
        spread = var[:, t] + eps
        if nu is not None:
            spread = spread + residual * residual / (nu + 1)
        w_s, w_x = 1 / (p + process_noise + eps), 1 / spread
        p = 1 / (w_s + w_x)
        k = w_x * p
        s = s + k * residual
        mean[:, t], variance[:, t], gain[:, t] = s, p, k
    return mean, variance, gain


class Refinement(nn.Module):
    """N residual blocks of Linear, ReLU, Linear, with the weights of `ief_kernels.refine` copied in."""

    def __init__(self, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, attenuation: float = 0.5) -> None:
        super().__init__()
        self.attenuation = attenuation
        steps, hidden, dim = w1.shape
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)) for _ in range(steps)
        ).to(w1.device, w1.dtype)
        with torch.no_grad():
            for k, block in enumerate(self.blocks):
                for parameter, value in zip(block.parameters(), (w1[k], b1[k], w2[k], b2[k]), strict=True):
                    parameter.copy_(value)

    def forward(self, z: Tensor) -> Tensor:
        for block in self.blocks:
            z = z - self.attenuation * block(z)
        return z
