"""One optimiser step: the optimiser and its rates, the part of a batch that a process takes, the step itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iefvad.data.batches import Batch
from iefvad.model.losses import WHOLE, Loss, LossWeights, Share, damage_loss, total_loss
from iefvad.model.network import Output, chosen_clips
from iefvad.training.settings import Settings

SCALARS = (
    "raw_noise", "raw_nu", "raw_surprise", "raw_doubt", "log_weights", "raw_factor_img", "raw_factor_evt",
)  # fmt: skip
"""Names of the parameters behind learned q, ν, surprise, doubt, weights of the loss and factors of covariances."""


def make_optimizer(model: nn.Module, config: Settings, *, capturable: bool) -> torch.optim.Optimizer:
    """Return AdamW with a group for the weights and one for the parameters of `SCALARS`.

    A step of Adam moves a parameter by about its learning rate. So scalars that start at 0.4 or 8 need a rate of their
    own, and weight decay would pull them to an arbitrary value.

    Args:
        model: The network, or a part of one.
        config: Learning rates and weight decay.
        capturable: The learning rates are tensors on the GPU, which a CUDA graph reads.
    """
    weights: dict[str, Any] = {"params": [], "base_lr": config.lr, "weight_decay": config.weight_decay}
    scalars: dict[str, Any] = {"params": [], "base_lr": config.scalar_lr, "weight_decay": 0.0}
    for name, parameter in model.named_parameters():
        group = scalars if name.rpartition(".")[2] in SCALARS else weights
        group["params"].append(parameter)
    groups = [group for group in (weights, scalars) if group["params"]]
    for group in groups:
        rate = group["base_lr"]
        group["lr"] = torch.tensor(rate, device=group["params"][0].device) if capturable else rate
    return torch.optim.AdamW(groups, fused=True, capturable=capturable)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to `factor` times its first; where it is a tensor, in its memory."""
    for group in optimizer.param_groups:
        rate = group["base_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


LossFunction = Callable[[Output, Tensor, Tensor, Share], Loss]
"""From an output, labels, lengths and the weight of a part of a batch to the losses."""


def training_step(
    model: Callable[..., Output],
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    weights: LossWeights,
    mil: Literal["topk", "segment"] = "topk",
    *,
    autocast: contextlib.AbstractContextManager[Any] | None = None,
    share: Share = WHOLE,
    loss: LossFunction | None = None,
    more: Callable[[Output], Tensor] | None = None,
) -> Tensor:
    """Run forward, backward and one step of the optimiser on a batch that is on the model's device.

    Args:
        model: The network, or what wraps it for several processes.
        batch: The batch.
        optimizer: The optimiser of the network's parameters.
        weights: λ of the loss terms.
        mil: How segment scores make a video's score.
        autocast: Context of the forward pass, for lower precision.
        share: What this part of the batch weighs.
        loss: The loss, where it is not that of IEF-VAD; then `weights` and `mil` do not count.
        more: What is added to the loss.

    Returns:
        The losses (total, cls, kl, reg), (4,) float32 on that device. Never waits for the device.
    """
    with autocast or contextlib.nullcontext():
        output = model(batch.image, batch.event, batch.lengths)
        if loss is None:
            found = total_loss(output, batch.labels, batch.lengths, weights, mil, share)
        else:
            found = loss(output, batch.labels, batch.lengths, share)
        if more is not None:
            found.total = found.total + more(output)
    optimizer.zero_grad(set_to_none=True)
    found.total.backward()
    optimizer.step()
    return torch.stack([found.total, found.cls, found.kl, found.reg]).detach().float()


def masked_step_loss(model: nn.Module, clean: Batch, clips: Tensor, weight: float) -> Callable[[Output], Tensor] | None:
    """Return what damaged clips add to the loss of a step: from the output on the damaged batch to a scalar.

    Args:
        model: The network itself, without what wraps it for several processes.
        clean: The batch without damage.
        clips: Positions of the damaged clips in it, int64 on the CPU.
        weight: λ of the term, with the factor of this part of a batch.

    Returns:
        The function; None where nothing is damaged.
    """
    if len(clips) == 0:
        return None
    where = clips.to(clean.image.device, non_blocking=True)
    lengths = clean.lengths[clips]
    training = model.training
    with torch.no_grad():
        target: Output = model.eval()(clean.image[where], clean.event[where], lengths)
    model.train(training)
    return lambda output: weight * damage_loss(target, chosen_clips(output, where), lengths)


def batch_part(
    lengths: Tensor, batch: Sequence[int], rank: int, world: int, *, padded: bool = False
) -> tuple[list[int], Share]:
    """Return the clips of a batch that belong to process `rank` of `world`, and what its loss weighs.

    Args:
        lengths: (N,) lengths of all clips.
        batch: Positions of the batch's clips.
        rank: Number of this process.
        world: Number of processes.
        padded: The loss terms are means over padding too, as in the released variant.
    """
    part = list(batch[rank::world])
    if world == 1:
        return part, WHOLE
    videos = world * len(part) / len(batch)
    if padded:
        return part, Share(videos, videos)
    valid = int(lengths[list(batch)].sum())
    return part, Share(videos, world * int(lengths[part].sum()) / max(valid, 1))
