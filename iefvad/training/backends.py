"""Which backend of `ief_kernels` serves each operator of a run."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ief_kernels.dispatch import choose
from iefvad.model.config import ModelConfig
from iefvad.model.networks import AnyConfig
from iefvad.training.networks import model_config
from iefvad.training.run import Run
from iefvad.utils.devices import resolve_device


def operators(config: AnyConfig) -> dict[str, dict[str, int]]:
    """Return the operators that a training step of a network calls, and what their choice depends on."""
    if not isinstance(config, ModelConfig):
        return {}  # the baselines are plain PyTorch
    found: dict[str, dict[str, int]] = {}
    if config.modality != "fusion":
        found["fusion_terms"] = {}
    elif config.covariance_rank:
        found |= {"low_rank_fusion": {"rank": config.covariance_rank}, "fusion_terms": {}}
    else:
        found["fusion_and_terms"] = {}
    if config.temporal != "none":
        found["kalman_scan"] = {}
    if config.refine_steps:
        found["refine"] = {}
    return found


def serving(
    configs: Iterable[AnyConfig], device: torch.device, dtype: torch.dtype = torch.float32, *, fused: bool = True
) -> dict[str, str]:
    """Return the backend that serves each operator of some networks in training.

    Args:
        configs: The networks.
        device: Where they train.
        dtype: Type of what the networks compute.
        fused: They use the fused kernels where these serve.

    Returns:
        Operator → "triton", "native" or "reference".
    """
    wanted = {name: facts for config in configs for name, facts in operators(config).items()}
    return {
        name: choose(name, "auto" if fused else "reference", device, dtype, **facts).backend
        for name, facts in wanted.items()
    }


def operators_of(run: Run, dim: int) -> str:
    """Say on one line which backend serves each operator in the training of a run, on features of width `dim`."""
    config = run.config
    device = resolve_device(config.device)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    networks = [model_config(variant.apply(config), dim, variant.modality) for variant in run.variants]
    found = serving(networks, device, dtype, fused=config.fused)
    if not found:
        return "plain PyTorch"
    place = f"{device.type}, {str(dtype).removeprefix('torch.')}"
    return f"{', '.join(f'{name} {backend}' for name, backend in found.items())} ({place})"
