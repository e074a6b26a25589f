"""Every network that scores segments: that of IEF-VAD, the baselines, and the detector made from normal footage.

They have the same inputs and outputs.
"""

from __future__ import annotations

import itertools
from typing import TypeAlias

import torch

from iefvad.model.baselines.config import BaselineConfig
from iefvad.model.baselines.network import BaselineNetwork
from iefvad.model.config import ModelConfig
from iefvad.model.network import Network
from iefvad.model.normality.config import NormalityConfig
from iefvad.model.normality.network import NormalityNetwork

LearnedConfig: TypeAlias = ModelConfig | BaselineConfig
LearnedNetwork: TypeAlias = Network | BaselineNetwork
"""Networks that are trained by gradients."""

AnyConfig: TypeAlias = LearnedConfig | NormalityConfig
AnyNetwork: TypeAlias = LearnedNetwork | NormalityNetwork


def device_of(network: AnyNetwork) -> torch.device:
    """Return where a network is, by its first parameter or buffer."""
    return next(itertools.chain(network.parameters(), network.buffers())).device


def make_network(config: LearnedConfig, *, backend: str = "auto") -> LearnedNetwork:
    """Make the network of a configuration. `backend` goes to every operator of `ief_kernels`."""
    if isinstance(config, BaselineConfig):
        return BaselineNetwork(config)
    return Network(config, backend=backend)
