"""The network of a run: its configuration from the settings and the data."""

from __future__ import annotations

import dataclasses

import torch

from iefvad.model.baselines.config import TWO_STREAMS, BaselineConfig
from iefvad.model.baselines.network import BaselineNetwork
from iefvad.model.config import MODALITIES, ModelConfig
from iefvad.model.losses import LossWeights, total_loss
from iefvad.model.networks import LearnedConfig, LearnedNetwork
from iefvad.training.settings import Settings
from iefvad.utils.errors import UserError


def model_config(config: Settings, dim: int, modality: str) -> LearnedConfig:
    """Return the network's configuration for features of width `dim` and a modality.

    Raises:
        UserError: the width does not fit the number of heads, or the baseline.
    """
    projection = min(config.projection, dim - bool(config.density_prior)) or None
    if config.model != "ief-vad":
        return _baseline_config(config, dim, modality, projection)
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    values = {name: value for name, value in dataclasses.asdict(config).items() if name in names}
    if projection is not None and projection % config.heads:
        raise UserError(f"--heads {config.heads} does not divide the projection {projection}: choose another number.")
    if projection is None and dim % config.heads:
        raise UserError(
            f"the features are {dim} wide, which --heads {config.heads} does not divide: choose another number."
        )
    if modality != "fusion" or config.method == "released":  # rows beside a fusion of low rank
        values["covariance_rank"] = 0
    return ModelConfig(
        **values
        | {"dim": dim, "modality": modality, "window": config.window or None, "projection": projection}
        | {"released": config.method == "released"}
        | ({"fusion": "precision"} if modality in MODALITIES else {})
    )


def _baseline_config(config: Settings, dim: int, modality: str, projection: int | None) -> BaselineConfig:
    names = {field.name for field in dataclasses.fields(BaselineConfig)}
    values = {name: value for name, value in dataclasses.asdict(config).items() if name in names}
    window = config.window or None if config.model in TWO_STREAMS else None
    values |= {"dim": dim, "modality": modality, "window": window, "projection": projection}
    try:
        return BaselineConfig(**values)
    except ValueError as error:
        raise UserError(f"--model {config.model}: {error}.") from None


def some_unused(model: LearnedNetwork) -> bool:
    """Whether some parameters take no part in the loss, as those of refinement blocks where there are none."""
    device = next(model.parameters()).device
    features = torch.zeros(1, 2, model.config.dim, device=device)
    was_training = model.training
    model.eval()  # without dropout nothing is drawn
    lengths = torch.tensor([2], device=device)
    output, labels = model(features, features, lengths), torch.zeros(1, device=device)
    if isinstance(model, BaselineNetwork):
        model.loss(output, labels, lengths).total.backward()
    else:
        total_loss(output, labels, lengths, LossWeights()).total.backward()
    unused = any(parameter.grad is None for parameter in model.parameters())
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return unused
