"""The detector as a network: the same inputs, outputs and files as the network of IEF-VAD."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iefvad.model.inputs import check_inputs
from iefvad.model.network import Output, State
from iefvad.model.normality.config import NormalityConfig
from iefvad.model.normality.densities import make_density
from iefvad.model.normality.tail import Tail


class NormalityNetwork(nn.Module):
    """Scores each segment by how rarely normal footage is as unusual. It has buffers and no parameters.

    Each stream has a density of normal features. Its deviation from what is usual has a precision, and the deviations
    are fused by their precisions: u = Σ pᵢ(dᵢ − mᵢ)/Σ pᵢ.

    Args:
        config: Density, streams and sizes.
        backend: Ignored; there are no operators of `ief_kernels`.
    """

    means: Tensor
    precisions: Tensor

    def __init__(self, config: NormalityConfig, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.densities = nn.ModuleDict({name: make_density(config) for name in config.streams})
        self.register_buffer("means", torch.zeros(len(config.streams)))
        self.register_buffer("precisions", torch.ones(len(config.streams)))
        self.tail = Tail(config.knots)

    def forward(
        self,
        image: Tensor | None,
        event: Tensor | None,
        lengths: Tensor | None = None,
        *,
        state: State | None = None,
        context: int = 0,
    ) -> Output:
        """Score a batch of videos. Args and errors as `Network.forward`.

        Every segment is scored alone, so there is no state, and padding is scored like a segment. In the output,
        `fused` is the fused deviation and the weights are the same for all segments, (B, T, 1) each.
        """
        given = check_inputs({"image": image, "event": event}, self.config.streams, self.config.dim, lengths, context)
        distances = torch.stack([self.densities[name](x[:, context:]) for name, x in given.items()], -1)
        deviation = self.fuse(distances)
        logits = self.tail(deviation)
        weights = (self.precisions / self.precisions.sum()).expand(distances.shape)
        fusion = self.config.modality == "fusion"
        return Output(
            logits=logits.float(),
            scores=torch.sigmoid(logits).float(),
            fused=deviation.float().unsqueeze(-1),
            image_mu=None,
            event_mu=None,
            image_logvar=None,
            event_logvar=None,
            w_img=weights[..., :1] if fusion else None,
            w_evt=weights[..., 1:] if fusion else None,
            gain=None,
            terms=None,
            state=None,
        )

    def fuse(self, distances: Tensor) -> Tensor:
        """Distances of the streams (..., S) → deviation u (...), float64."""
        precisions = self.precisions.double()
        return (distances - self.means.double()) @ (precisions / precisions.sum())
