"""A baseline as a network: the same inputs, outputs and files as the network of IEF-VAD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from iefvad.model.baselines.config import BaselineConfig
from iefvad.model.baselines.method import Found, Method, Mil
from iefvad.model.baselines.mgfn import MGFN
from iefvad.model.baselines.plain_fusion import Concat, CrossAttended
from iefvad.model.baselines.rtfm import RTFM
from iefvad.model.baselines.sultani import Sultani
from iefvad.model.baselines.ur_dmu import URDMU
from iefvad.model.baselines.vadclip import VadCLIP
from iefvad.model.config import MODALITIES
from iefvad.model.encoder import SelfAttention
from iefvad.model.inputs import check_inputs
from iefvad.model.losses import WHOLE, Loss, Share
from iefvad.model.network import Output, State
from iefvad.model.standardize import Standardize

_METHODS: dict[str, Callable[[BaselineConfig], Method]] = {
    "concat": Concat,
    "cross-attention": CrossAttended,
    "sultani": lambda config: Sultani(config.width),
    "rtfm": lambda config: RTFM(config.width),
    "ur-dmu": lambda config: URDMU(config.width),
    "mgfn": lambda config: MGFN(config.width),
    "vadclip": lambda config: VadCLIP(config.width),
}


@dataclass
class BaselineOutput(Output):
    """What a baseline returns. It has no weights, gain, terms and state.

    Attributes:
        parts: Further tensors that the loss needs, by name.
    """

    parts: dict[str, Tensor] = field(default_factory=dict)


class BaselineNetwork(nn.Module):
    """Scores each segment of a video from its image and event features, by one of the baselines.

    Args:
        config: Method, sizes and choices.
        backend: Ignored; the baselines have no operators of `ief_kernels`.
    """

    def __init__(self, config: BaselineConfig, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.streams = MODALITIES if config.modality == "fusion" else (config.modality,)
        self.statistics = nn.ModuleDict(
            {name: Standardize(config.dim, config.projection) for name in self.streams} if config.standardize else {}
        )
        self.method = _METHODS[config.model](config)

    def forward(
        self,
        image: Tensor | None,
        event: Tensor | None,
        lengths: Tensor | None = None,
        *,
        state: State | None = None,
        context: int = 0,
    ) -> BaselineOutput:
        """Score a batch of videos. Args and errors as `Network.forward`; no baseline carries a state on."""
        x, valid = self._input(image, event, lengths, context)
        found = self.method(x, valid)
        logits = found.logits.float()[:, context:]
        return BaselineOutput(
            logits=logits,
            scores=torch.sigmoid(logits),
            fused=found.features[:, context:],
            image_mu=None,
            event_mu=None,
            image_logvar=None,
            event_logvar=None,
            w_img=None,
            w_evt=None,
            gain=None,
            terms=None,
            state=None,
            parts={name: value[:, context:] for name, value in found.parts.items()},
        )

    def loss(self, output: Output, labels: Tensor, lengths: Tensor, mil: Mil = "topk", share: Share = WHOLE) -> Loss:
        """Return the loss of the method.

        Args:
            output: What `forward` returned.
            labels: (B,), 1 for abnormal.
            lengths: (B,) integers.
            mil: As in `iefvad.model.losses.video_log_probs`, for methods whose paper does not state it.
            share: Factors of the parts, where several processes share a batch.
        """
        assert isinstance(output, BaselineOutput)
        valid = _valid(lengths, output.logits.shape[1], output.logits.device)
        found = Found(output.logits, output.fused, output.parts)
        parts = self.method.loss(found, labels.float(), valid, mil)
        cls, kl, reg = (share.videos * part for part in parts) if share != WHOLE else parts
        return Loss(total=cls + kl + reg, cls=cls, kl=kl, reg=reg)

    def set_statistics(self, modality: str, features: Tensor) -> None:
        """Take the centre and scale of a modality from training features (N, D); for `standardize` networks."""
        statistics = self.statistics[modality]
        assert isinstance(statistics, Standardize)
        statistics.fit(features)

    def learned(self) -> dict[str, float]:
        """Return the learned settings for the log, as `Network` does: a baseline has none."""
        return {}

    def start_as_identity(self) -> None:
        """Zero the output projections of the self-attention that is shared with IEF-VAD; see `Network`."""
        for module in self.modules():
            if isinstance(module, SelfAttention):
                nn.init.zeros_(module.out_proj.weight)

    def _input(
        self, image: Tensor | None, event: Tensor | None, lengths: Tensor | None, context: int
    ) -> tuple[Tensor, Tensor]:
        """Return the features that the method sees, (B, T, W) with zeros in the padding, and which are valid."""
        given = check_inputs({"image": image, "event": event}, self.streams, self.config.dim, lengths, context)
        inputs = [self.statistics[name](x) if name in self.statistics else x for name, x in given.items()]
        batch, segments, _ = inputs[0].shape
        if lengths is None:
            lengths = torch.full((batch,), segments)
        x = torch.cat(inputs, -1)
        valid = _valid(lengths, segments, x.device)
        # NaN in the padding would survive a product with 0, so it is replaced.
        return x.masked_fill(~valid.unsqueeze(-1), 0), valid


def _valid(lengths: Tensor, segments: int, device: torch.device) -> Tensor:
    positions = torch.arange(segments, device=device)
    return positions < lengths.to(device, non_blocking=True).unsqueeze(1)
