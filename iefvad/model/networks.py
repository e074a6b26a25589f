"""Every network that scores segments: that of IEF-VAD and the baselines. They have the same inputs and outputs."""

from __future__ import annotations

from typing import TypeAlias

from iefvad.model.baselines.config import BaselineConfig
from iefvad.model.baselines.network import BaselineNetwork
from iefvad.model.config import ModelConfig
from iefvad.model.network import Network

AnyConfig: TypeAlias = ModelConfig | BaselineConfig
AnyNetwork: TypeAlias = Network | BaselineNetwork


def make_network(config: AnyConfig, *, backend: str = "auto") -> AnyNetwork:
    """Make the network of a configuration. `backend` goes to every operator of `ief_kernels`."""
    if isinstance(config, BaselineConfig):
        return BaselineNetwork(config)
    return Network(config, backend=backend)
