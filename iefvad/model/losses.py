"""Training loss of IEF-VAD: multiple-instance classification and the regularisation terms.

Source: section 3.6 of the paper; `docs/specification.md#training`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ief_kernels.precision_fusion.reference import LOGVAR_LIMIT
from iefvad.model.network import Output, learned_weights

RUN = 16  # segments whose mean is one instance of `mil="segment"`; also the divisor in the top-k rule


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms: λ_kl and λ_reg of the total, λ_cos and λ_norm within the regularisation."""

    kl: float = 1.0
    reg: float = 1.0
    cos: float = 0.5
    norm: float = 0.5


@dataclass(frozen=True)
class Share:
    """Weight of a part of a batch, where several processes share the batch.

    With these factors, the mean of the processes' losses, and of their gradients, is that of the whole batch.

    Attributes:
        videos: Factor of means over videos.
        positions: Factor of means over valid positions.
    """

    videos: float = 1.0
    positions: float = 1.0


WHOLE = Share()


@dataclass
class Loss:
    """The total loss and its parts before weighting: classification, KL and regularisation. Scalar tensors."""

    total: Tensor
    cls: Tensor
    kl: Tensor
    reg: Tensor


def video_log_probs(logits: Tensor, lengths: Tensor, mil: Literal["topk", "segment"] = "topk") -> tuple[Tensor, Tensor]:
    """Return log p and log(1 − p) per video, where p is the mean probability of the video's chosen segments.

    Both logarithms come from log-sigmoids, so that neither overflows where p rounds to 0 or 1.

    Args:
        logits: (B, T) floating point.
        lengths: (B,) integers. A video of length 0 has p = 1/2.
        mil: "topk" chooses the min(⌊length/16⌋ + 1, length) highest valid segments, "segment" the run of about 16
            segments with the highest mean.

    Returns:
        Two (B,) tensors.
    """
    lengths = lengths.to(logits.device, non_blocking=True)
    positions = torch.arange(logits.shape[1], device=logits.device)
    valid = positions < lengths.unsqueeze(1)
    if mil == "topk":
        count = torch.minimum(lengths // RUN + 1, lengths)
        ordered, order = torch.where(valid, logits.detach(), -torch.inf).sort(dim=1, descending=True)
        chosen_logits = torch.where(valid, logits, 0.0).gather(1, order)
        chosen = (positions < count.unsqueeze(1)) & torch.isfinite(ordered)
    else:
        chosen_logits = torch.where(valid, logits, 0.0)
        chosen = _best_run(chosen_logits.detach(), valid)
    number = chosen.sum(1).clamp(min=1).to(logits.dtype).log()
    log_p = torch.where(chosen, F.logsigmoid(chosen_logits), -torch.inf)
    log_q = torch.where(chosen, F.logsigmoid(-chosen_logits), -torch.inf)
    empty = ~chosen.any(1)
    half = logits.new_full((), -math.log(2.0))  # a fill; copying the number would wait for the device
    # logsumexp of nothing but −inf has a NaN gradient, so empty videos are given a constant instead.
    log_p = torch.where(empty.unsqueeze(1), half, log_p).logsumexp(1) - number
    log_q = torch.where(empty.unsqueeze(1), half, log_q).logsumexp(1) - number
    return torch.where(empty, half, log_p), torch.where(empty, half, log_q)


def _best_run(logits: Tensor, valid: Tensor) -> Tensor:
    """Mask (B, T) of the run whose mean probability is highest.

    A video has n = max(1, ⌊length/16⌋) runs. Run i has the segments from ⌊i·length/n⌋ to ⌊(i + 1)·length/n⌋ − 1, so the
    runs of a video differ by at most one segment, and a short rest has no run of its own, which chance would favour.
    """
    segments = logits.shape[1]
    lengths = valid.sum(1, keepdim=True)
    runs = (lengths // RUN).clamp(min=1)
    positions = torch.arange(segments, device=logits.device)
    run = ((positions + 1) * runs - 1) // lengths.clamp(min=1)
    numbers = torch.arange(max(segments // RUN, 1), device=logits.device)
    members = (run.unsqueeze(1) == numbers[:, None]) & valid.unsqueeze(1)
    counts = members.sum(-1)
    sums = torch.where(members, logits.sigmoid().unsqueeze(1), 0.0).sum(-1)
    means = torch.where(counts > 0, sums / counts.clamp(min=1), -torch.inf)
    return valid & (run == means.argmax(1, keepdim=True))


def mil_loss(logits: Tensor, labels: Tensor, lengths: Tensor, mil: Literal["topk", "segment"] = "topk") -> Tensor:
    """Return the binary cross-entropy of the videos' probabilities with their labels, a scalar, mean over B.

    Args:
        logits: (B, T).
        labels: (B,), 1 for abnormal.
        lengths: (B,) integers.
        mil: As in `video_log_probs`.
    """
    log_p, log_q = video_log_probs(logits, lengths, mil)
    labels = labels.to(log_p.dtype)
    return -(labels * log_p + (1 - labels) * log_q).mean()


def total_loss(
    output: Output,
    labels: Tensor,
    lengths: Tensor,
    weights: LossWeights,
    mil: Literal["topk", "segment"] = "topk",
    share: Share = WHOLE,
) -> Loss:
    """Return classification + λ_kl·(KL_img + KL_evt) + λ_reg·(λ_cos·cosine + λ_norm·norm), equation 6 of the paper.

    With several members it is the mean of their losses, so that each learns as it would alone. Learned weights take the
    place of the λ; then each term also adds half of its parameter s (`docs/specification.md#learned-loss-weights`).

    Args:
        output: What the network returned, with loss terms.
        labels: (B,), 1 for abnormal.
        lengths: (B,) integers.
        weights: The λ.
        mil: As in `video_log_probs`.
        share: Factors of the parts, where several processes share a batch.

    Raises:
        ValueError: the output has no loss terms, because it was computed without gradients.
    """
    if output.members:
        each = [total_loss(member, labels, lengths, weights, mil, share) for member in output.members]
        return Loss(
            *(torch.stack(values).mean() for values in zip(*((x.total, x.cls, x.kl, x.reg) for x in each), strict=True))
        )
    cls = mil_loss(output.logits, labels, lengths, mil)
    terms = output.terms
    if terms is None:
        raise ValueError("the output has no loss terms: compute it with gradients enabled")
    kl = terms.kl_img + terms.kl_evt
    reg = weights.cos * terms.cosine + weights.norm * terms.norm
    if share != WHOLE:
        cls, kl, reg = share.videos * cls, share.positions * kl, share.positions * reg
    if output.log_weights is None:
        return Loss(total=cls + weights.kl * kl + weights.reg * reg, cls=cls, kl=kl, reg=reg)
    parts = torch.stack([cls, kl, share.positions * terms.cosine, share.positions * terms.norm])
    found = learned_weights(output.log_weights)
    total = (found * parts[: len(found)]).sum() + output.log_weights.sum() / 2
    return Loss(total=total, cls=cls, kl=kl, reg=reg)


def damage_loss(clean: Output, damaged: Output, lengths: Tensor) -> Tensor:
    """Return how much the beliefs on damaged features miss of those on the clean features, a scalar.

    It is the KL divergence from N(μ, σ²) of the clean to that of the damaged features, mean over valid positions and
    dimensions, sum over modalities; with several members their mean. Its minimum over the damaged variance is the clean
    variance plus the squared error of the mean that the damage causes (`docs/specification.md#masking`).

    Args:
        clean: Output on the clean features, without gradients.
        damaged: Output on the damaged features of the same B videos.
        lengths: (B,) integers.
    """
    if damaged.members:
        pairs = zip(clean.members, damaged.members, strict=True)
        return torch.stack([damage_loss(before, after, lengths) for before, after in pairs]).mean()
    valid = torch.arange(damaged.logits.shape[1], device=damaged.logits.device)
    valid = valid < lengths.to(valid.device, non_blocking=True).unsqueeze(1)
    streams = (
        (clean.image_mu, clean.image_logvar, damaged.image_mu, damaged.image_logvar),
        (clean.event_mu, clean.event_logvar, damaged.event_mu, damaged.event_logvar),
    )
    total = torch.zeros((), device=valid.device)
    for mu, logvar, damaged_mu, damaged_logvar in streams:
        if mu is None or logvar is None or damaged_mu is None or damaged_logvar is None:
            continue
        dtype = torch.promote_types(damaged_logvar.dtype, torch.float32)
        limit = LOGVAR_LIMIT[dtype] / 2  # the exponential of a difference stays within the range
        before, after = (values.to(dtype).clamp(-limit, limit) for values in (logvar, damaged_logvar))
        error = (damaged_mu.to(dtype) - mu.to(dtype)).square()
        each = (after - before + (before - after).exp() + error * (-after).exp() - 1) / 2
        each = torch.where(valid.unsqueeze(-1), each, 0.0)
        total = total + each.sum() / (valid.sum() * each.shape[-1]).clamp(min=1)
    return total
