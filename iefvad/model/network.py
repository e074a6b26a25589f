"""The IEF-VAD network: encoders, uncertainty-weighted fusion, recursion over time, refinement.

Source: sections 3.1 to 3.5 of the paper; `docs/specification.md#network`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import ief_kernels
from ief_kernels import Fusion, Terms
from ief_kernels.modules import one_dimension
from ief_kernels.precision_fusion.reference import LOGVAR_LIMIT, student_scale
from iefvad.model.config import MODALITIES, ModelConfig
from iefvad.model.encoder import ModalityEncoder, SelfAttention
from iefvad.model.exchange import CrossAttention, Gates
from iefvad.model.inputs import check_inputs
from iefvad.model.padding import Layout, ValidRows, lay_out
from iefvad.model.standardize import Standardize

TERMS = ("cls", "kl", "cos", "norm")
"""Terms of the loss in the order of `Network.log_weights`."""


class State(NamedTuple):
    """State of the recursion after the last valid segment of each sequence.

    Attributes:
        mean: (B, D) float.
        var: (B, D) float.
    """

    mean: Tensor
    var: Tensor


@dataclass
class Output:
    """What one forward pass returns, for B videos of T segments and a network of width D.

    With several members, logits and terms are means over them, and D is the sum of their widths.

    Attributes:
        logits: (B, T) float32.
        scores: (B, T) float32, probabilities.
        fused: (B, T, D), the refined state that is classified.
        image_mu: (B, T, D); None, like the next three, for a modality that the network does not have.
        event_mu: (B, T, D).
        image_logvar: (B, T, D).
        event_logvar: (B, T, D).
        w_img: (B, T, D), normalised fusion weight of the image; None, like the next, for one modality.
        w_evt: (B, T, D).
        gain: (B, T, D), gain of the recursion; None without one.
        terms: Regularisation terms of the loss; None without gradients.
        state: What the next chunk of the videos starts from; None without a recursion.
        members: The outputs of the members; empty for a network without several.
        log_weights: (4,) or for one modality (2,), parameters behind learned weights of the loss terms; None for fixed
            weights.
    """

    logits: Tensor
    scores: Tensor
    fused: Tensor
    image_mu: Tensor | None
    event_mu: Tensor | None
    image_logvar: Tensor | None
    event_logvar: Tensor | None
    w_img: Tensor | None
    w_evt: Tensor | None
    gain: Tensor | None
    terms: Terms | None
    state: State | None
    members: Sequence[Output] = ()
    log_weights: Tensor | None = None


class Network(nn.Module):
    """Scores each segment of a video from its image and event features.

    Args:
        config: Sizes and choices.
        backend: Goes to every operator of `ief_kernels`: "reference" is plain eager PyTorch, "auto" the fastest that
            serves.
    """

    def __init__(self, config: ModelConfig, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        width = config.width
        modalities = MODALITIES if config.modality == "fusion" else (config.modality,)
        self.encoders = nn.ModuleDict({name: ModalityEncoder(config) for name in modalities})
        self.statistics = nn.ModuleDict(
            {name: Standardize(config.dim, config.projection, repair=config.repair) for name in modalities}
            if config.standardize
            else {}
        )
        nu = None if config.noise == "gaussian" else config.nu
        self.fusion = _fusion(config, nu, backend)
        self.scan: ief_kernels.KalmanScan | None = None
        if config.temporal != "none":
            # Variance of the fused state at the start, where log-variances are about 0: half the effective variance.
            start = 8.0 if config.nu == "learned" else config.nu
            scale = 1.0 if nu is None else start / (start + 1)
            self.scan = ief_kernels.KalmanScan(
                width,
                process_noise=config.process_noise,
                nu=start if config.temporal == "robust-kalman" else None,
                eps=config.eps,
                unit_variance=scale / len(modalities),
                backend=backend,
            )
        self.refinement = ief_kernels.Refinement(
            width,
            hidden=config.hidden,
            steps=config.refine_steps,
            attenuation=config.attenuation,
            shared=config.refinement == "shared",
            backend=backend,
        )
        self.gates = Gates(width) if config.fusion == "gated" else None
        self.cross = nn.ModuleDict()
        if config.fusion == "cross-attention":
            self.cross.update({name: CrossAttention(width, config.heads, config.window) for name in modalities})
        self.classifier = nn.Linear(width, 1)
        self.log_weights: nn.Parameter | None = None
        if config.loss_weights == "learned":
            # With one modality there is no cosine and no norm term, and nothing would hold their weights.
            self.log_weights = nn.Parameter(torch.zeros(len(TERMS) if config.modality == "fusion" else 2))
        alone = dataclasses.replace(config, members=1)
        self.others = nn.ModuleList(Network(alone, backend=backend) for _ in range(config.members - 1))

    def forward(
        self,
        image: Tensor | None,
        event: Tensor | None,
        lengths: Tensor | None = None,
        *,
        state: State | None = None,
        context: int = 0,
    ) -> Output:
        """Score a batch of videos.

        Args:
            image: (B, T, D) floating-point features. A single-modality network ignores the other stream, which may be
                None.
            event: (B, T, D), likewise.
            lengths: (B,) integers, valid segments of each video; what lies behind them never matters. Where they are
                on the CPU, padding is left out of all layers but attention, on any device.
            state: The state after the previous chunk of the same videos.
            context: Number of first segments that `state` has seen already. They serve the attention alone; all
                outputs begin behind them and are T − context segments long.

        Raises:
            ValueError: shapes do not fit each other or the network.
        """
        if not self.others:
            return self._forward(image, event, lengths, state, context)
        members = [self, *self.others]
        states = [None] * len(members) if state is None else _parts_of(state, len(members))
        return _combined(
            [
                member._forward(image, event, lengths, part, context)
                for member, part in zip(members, states, strict=True)
            ]
        )

    def _forward(
        self, image: Tensor | None, event: Tensor | None, lengths: Tensor | None, state: State | None, context: int
    ) -> Output:
        """The forward pass of this network without the other members; arguments and errors as `forward`."""
        inputs = check_inputs({"image": image, "event": event}, self.encoders, self.config.dim, lengths, context)
        valid, layout = self._layout(inputs, lengths)
        mus, logvars = self._encode(inputs, valid, layout)
        if self.cross:
            mus = self._cross(mus, logvars, valid)
        mus = {name: mu[:, context:] for name, mu in mus.items()}
        logvars = {name: logvar[:, context:] for name, logvar in logvars.items()}
        if self.gates is not None:
            gated = self.gates(mus["image"], logvars["image"], mus["event"], logvars["event"])
            logvars = dict(zip(MODALITIES, gated, strict=True))
        lengths, rows = self._behind_context(lengths, layout.rows, context)
        fused, terms = self._fuse(mus, logvars, lengths)
        sequence, var, gain, end = self._filter(fused, lengths, state)
        if rows is not None:
            sequence, var = rows.take(sequence), rows.take(var)
        refined = (
            self._refine_guided(sequence, var) if self.config.refinement == "guided" else self.refinement(sequence)
        )
        logits = self.classifier(refined).squeeze(-1).float()
        if rows is not None:
            refined, logits = rows.place(refined), rows.place(logits)
        if self.config.density_prior and "event" in inputs:
            logits = logits + self.config.density_prior * self._density(inputs["event"])[:, context:]
        weighted = self.config.modality == "fusion"
        return Output(
            logits=logits,
            scores=torch.sigmoid(logits),
            fused=refined,
            image_mu=mus.get("image"),
            event_mu=mus.get("event"),
            image_logvar=logvars.get("image"),
            event_logvar=logvars.get("event"),
            w_img=fused.w_img if weighted else None,
            w_evt=fused.w_evt if weighted else None,
            gain=gain,
            terms=terms,
            state=end,
            log_weights=self.log_weights,
        )

    def set_statistics(self, modality: str, features: Tensor) -> None:
        """Take from training features (N, D) of a modality what `standardize` and `surprise` networks need of them."""
        statistics, encoder = self.statistics[modality], self.encoders[modality]
        assert isinstance(statistics, Standardize) and isinstance(encoder, ModalityEncoder)
        statistics.fit(features)
        if encoder.surprise is not None:
            encoder.surprise.fit(statistics(features))
        for member in self.others:
            assert isinstance(member, Network)
            member.statistics[modality].load_state_dict(statistics.state_dict())
            other = member.encoders[modality]
            assert isinstance(other, ModalityEncoder)
            if encoder.surprise is not None and other.surprise is not None:
                other.surprise.load_state_dict(encoder.surprise.state_dict())

    def learned(self) -> dict[str, float]:
        """Return learned values by name.

        Those of q are `q_mean`, `q_min`, `q_max` over the dimensions, those of ν `nu_image` and `nu_event`. Those of
        the loss terms are `weight_cls`, `weight_kl`, `weight_cos` and `weight_norm`.
        """
        values: dict[str, float] = {}
        if self.scan is not None and isinstance(noise := self.scan.process_noise(), Tensor):
            values |= {"q_mean": noise.mean().item(), "q_min": noise.min().item(), "q_max": noise.max().item()}
        both = dict(zip(MODALITIES, self.fusion.nu(), strict=True))
        values |= {f"nu_{name}": nu.item() for name in self.encoders if isinstance(nu := both[name], Tensor)}
        if self.log_weights is not None:
            found = learned_weights(self.log_weights.detach()).tolist()
            values |= {f"weight_{name}": weight for name, weight in zip(TERMS, found, strict=False)}
        return values

    def start_weights(self, kl: float, cos: float, norm: float) -> None:
        """Let learned weights of the loss terms start at these values, and that of the classification at 1."""
        for module in self.modules():
            if isinstance(module, Network) and module.log_weights is not None:
                start = [0.0] + [-math.log(2 * weight) for weight in (kl, cos, norm)]
                with torch.no_grad():
                    module.log_weights.copy_(torch.tensor(start[: len(module.log_weights)]))

    def start_as_identity(self) -> None:
        """Zero the attention layers' output projections, so that each starts as x ← LayerNorm(x)."""
        for module in self.modules():
            if isinstance(module, SelfAttention):
                nn.init.zeros_(module.out_proj.weight)

    def start_at_zero(self) -> None:
        """Zero the classifier and what refinement subtracts: scores start at 1/2, and training as of a linear model."""
        for module in self.modules():
            if isinstance(module, Network):
                nn.init.zeros_(module.classifier.weight)
                nn.init.zeros_(module.classifier.bias)
                nn.init.zeros_(module.refinement.w2)
                nn.init.zeros_(module.refinement.b2)

    def start_divided(self, image_part: float) -> None:
        """Let the image carry the first part of the dimensions at the start, and the event stream the rest.

        Args:
            image_part: The image's fraction of the dimensions. Where a stream does not carry, its log-variance starts
                at 4, so that its weight is about 0.02.
        """
        for module in self.modules():
            if isinstance(module, Network) and module.config.modality == "fusion":
                parts = round(image_part * module.config.width)
                for name, where in (("image", slice(parts, None)), ("event", slice(0, parts))):
                    encoder = module.encoders[name]
                    assert isinstance(encoder, ModalityEncoder)
                    with torch.no_grad():
                        encoder.logvar.bias.zero_()
                        encoder.logvar.bias[where] = 4.0

    def _layout(self, inputs: dict[str, Tensor], lengths: Tensor | None) -> tuple[Tensor | None, Layout]:
        """Return which segments are valid, (B, T) bool or None for all, and the layout of the batch."""
        batch, segments, _ = next(iter(inputs.values())).shape
        return lay_out(
            (batch, segments),
            lengths,
            self.classifier.weight.device,
            window=self.config.window,
            padding=self.config.released,
            dropout=self.config.dropout if self.training else 0.0,
        )

    def _encode(
        self, inputs: dict[str, Tensor], valid: Tensor | None, layout: Layout
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features → mean and log-variance per modality, (B, T, D) each."""
        mus: dict[str, Tensor] = {}
        logvars: dict[str, Tensor] = {}
        for name, encoder in self.encoders.items():
            features, doubt = inputs[name], None
            if name in self.statistics:
                statistics = self.statistics[name]
                assert isinstance(statistics, Standardize)
                features, doubt = statistics.with_doubt(features)
            if valid is not None and layout.rows is None:
                # NaN in the padding would survive attention as 0·NaN, so it is replaced rather than multiplied away.
                features = features.masked_fill(~valid.unsqueeze(-1), 0)
                doubt = None if doubt is None else doubt.masked_fill(~valid.unsqueeze(-1), 0)
            mu, logvar = encoder(features, layout, doubt)
            mus[name], logvars[name] = mu, logvar
        return mus, logvars

    def _density(self, event: Tensor) -> Tensor:
        """Return the standardised event density of each segment, (B, T) float32, from the event features."""
        statistics = self.statistics["event"]
        assert isinstance(statistics, Standardize)
        return (event[..., -1].float() - statistics.centre[-1]) / statistics.scale[-1]

    def _cross(self, mus: dict[str, Tensor], logvars: dict[str, Tensor], valid: Tensor | None) -> dict[str, Tensor]:
        """Let each modality attend to the other; padding stays zero."""
        found = {}
        for name, other in zip(MODALITIES, reversed(MODALITIES), strict=True):
            mu = self.cross[name](mus[name], mus[other], logvars[other], valid)
            found[name] = mu if valid is None else mu.masked_fill(~valid.unsqueeze(-1), 0)
        return found

    def _behind_context(
        self, lengths: Tensor | None, rows: ValidRows | None, context: int
    ) -> tuple[Tensor | None, ValidRows | None]:
        """Lengths, on the network's device, and valid rows of what is left when the context is cut off."""
        if lengths is None:
            return None, rows
        lengths = (lengths - context).clamp(min=0)
        if rows is not None and context:
            rows = ValidRows.of(lengths, rows.segments - context, rows.index.device)
        return lengths.to(self.classifier.weight.device, non_blocking=True), rows

    def _fuse(
        self, mus: dict[str, Tensor], logvars: dict[str, Tensor], lengths: Tensor | None
    ) -> tuple[Fusion, Terms | None]:
        """Fused mean, variance and weights, and with gradients the loss terms over valid segments (paper 3.2, 3.3)."""
        if self.config.released:
            lengths = None  # the released code averages its loss terms over padding too
        if self.config.modality != "fusion":
            return self._single(mus[self.config.modality], logvars[self.config.modality], lengths)
        arguments = (mus["image"], logvars["image"], mus["event"], logvars["event"])
        terms: Terms | None = None
        # Scoring needs no loss; without it the fusion alone is less work.
        if torch.is_grad_enabled():
            fused, terms = self.fusion.with_terms(*arguments, lengths=lengths)
        else:
            fused = self.fusion(*arguments)
        if self.config.released:
            fused = self._released_weights(*arguments)
        return fused, terms

    def _single(self, mu: Tensor, logvar: Tensor, lengths: Tensor | None) -> tuple[Fusion, Terms | None]:
        """One stream is its own fusion: its mean and effective variance. The loss keeps the KL term alone."""
        image = self.config.modality == "image"
        nu = one_dimension(self.fusion.nu()[0 if image else 1])
        scale = student_scale(nu, logvar)
        var = scale * logvar.to(scale.dtype).clamp(max=LOGVAR_LIMIT[scale.dtype]).exp()
        if logvar.dtype == torch.float16:  # it ends at 65504
            var = var.clamp(max=torch.finfo(torch.float16).max)
        var = var.to(logvar.dtype)
        ones = torch.ones_like(mu)
        fused = Fusion(mu, var, ones, ones)
        if not torch.is_grad_enabled():
            return fused, None
        kl = ief_kernels.fusion_terms(mu, logvar, mu, logvar, nu=nu, lengths=lengths, backend=self.backend).kl_img
        zero = torch.zeros_like(kl)
        return fused, Terms(kl, zero, zero, zero) if image else Terms(zero, kl, zero, zero)

    def _released_weights(self, mu_img: Tensor, logvar_img: Tensor, mu_evt: Tensor, logvar_evt: Tensor) -> Fusion:
        """The released code's fusion: weights (ν+1)/ν·exp(−logvar), divided by their sum + eps."""
        nu_img, nu_evt = self.fusion.nu()
        scale_img, scale_evt = student_scale(nu_img, logvar_img), student_scale(nu_evt, logvar_evt)
        dtype = scale_img.dtype
        log_img, log_evt = -(logvar_img.to(dtype) + scale_img.log()), -(logvar_evt.to(dtype) + scale_evt.log())
        # Both are divided by exp(shift), which is 1 up to where the larger one would overflow.
        shift = (torch.maximum(log_img, log_evt).detach() - LOGVAR_LIMIT[dtype]).clamp(min=0)
        w_img, w_evt, eps = torch.exp(log_img - shift), torch.exp(log_evt - shift), self.config.eps * torch.exp(-shift)
        total = w_img + w_evt + eps
        var = torch.exp(-shift) / total
        if logvar_img.dtype == torch.float16:  # it ends at 65504
            var = var.clamp(max=torch.finfo(torch.float16).max)
        w_img, w_evt = w_img / total, w_evt / total
        fused = Fusion(w_img * mu_img + w_evt * mu_evt, var, w_img, w_evt)
        return Fusion(*(tensor.to(logvar_img.dtype) for tensor in fused))

    def _filter(
        self, fused: Fusion, lengths: Tensor | None, state: State | None
    ) -> tuple[Tensor, Tensor, Tensor | None, State | None]:
        """Recursion over the segments (paper 3.4): filtered mean, variance, gain (B, T, D), and the state after it."""
        if self.scan is None:
            return fused.mean, fused.var, None, None
        scan = self.scan(fused.mean, fused.var, lengths=lengths, initial_state=state, nu=self._learned_nu())
        return scan.mean, scan.var, scan.gain, State(*scan.state)

    def _refine_guided(self, z: Tensor, var: Tensor) -> Tensor:
        """Refinement whose attenuation is scaled per element by 2·p/(1 + p), with p the variance of the state.

        That is 1 at p = 1, the variance of the prior, and falls to 0 where the state is certain.
        """
        var = var.to(torch.promote_types(var.dtype, torch.float32))  # 2·p may leave float16
        guide = (2 * var / (1 + var)).to(z.dtype)
        blocks = self.refinement
        for step in range(blocks.steps):
            one = slice(step, step + 1)
            weights = (blocks.w1[one], blocks.b1[one], blocks.w2[one], blocks.b2[one])
            refined = ief_kernels.refine(z, *weights, attenuation=blocks.attenuation, backend=self.backend)
            z = z + guide * (refined - z)
        return z

    def _learned_nu(self) -> Tensor | None:
        """The robust update's ν where it is learned: that of the stream, or the mean of both streams' ν."""
        if self.config.temporal != "robust-kalman" or self.fusion.raw_nu is None:
            return None
        both = dict(zip(MODALITIES, self.fusion.nu(), strict=True))
        return torch.stack([nu for name in self.encoders if isinstance(nu := both[name], Tensor)]).mean().reshape(1)


def learned_weights(log_weights: Tensor) -> Tensor:
    """Return the weights of the loss terms, (4,) or (2,): exp(−s) of the classification, ½·exp(−s) of the others."""
    half = torch.full_like(log_weights, 0.5)
    half[0] = 1.0
    return half * (-log_weights).exp()


def chosen_clips(output: Output, clips: Tensor) -> Output:
    """Return the output of some of the videos: logits and beliefs, which are all that `losses.damage_loss` needs.

    Args:
        output: Output of B videos.
        clips: Their positions, int64 on the device of the output.
    """
    beliefs = ("image_mu", "event_mu", "image_logvar", "event_logvar")
    found: dict[str, Any] = {}
    for name in beliefs:
        values = getattr(output, name)
        found[name] = None if values is None else values[clips]
    members = tuple(chosen_clips(member, clips) for member in output.members)
    return dataclasses.replace(output, logits=output.logits[clips], **found, members=members)


def _fusion(config: ModelConfig, nu: float | str | None, backend: str) -> ief_kernels.PrecisionFusion:
    """The fusion of a network; the other weights start the same whatever the rank of the covariances."""
    if not config.covariance_rank:
        return ief_kernels.PrecisionFusion(nu=nu, eps=config.eps, backend=backend)
    with torch.random.fork_rng(devices=()):
        return ief_kernels.LowRankFusion(config.width, config.covariance_rank, nu=nu, eps=config.eps, backend=backend)


def _parts_of(state: State, members: int) -> list[State | None]:
    """Return each member's part of a joint state."""
    return [State(*part) for part in zip(state.mean.chunk(members, -1), state.var.chunk(members, -1), strict=True)]


def _combined(outputs: Sequence[Output]) -> Output:
    """Return the output of several members: mean logits, and everything else side by side."""
    logits = torch.stack([output.logits for output in outputs]).mean(0)
    side_by_side: dict[str, Any] = {}
    for name in ("fused", "image_mu", "event_mu", "image_logvar", "event_logvar", "w_img", "w_evt", "gain"):
        values = [getattr(output, name) for output in outputs]
        side_by_side[name] = None if values[0] is None else torch.cat(values, -1)
    terms = [output.terms for output in outputs if output.terms is not None]
    states = [output.state for output in outputs if output.state is not None]
    return Output(
        logits=logits,
        scores=torch.sigmoid(logits),
        **side_by_side,
        terms=Terms(*(torch.stack(values).mean() for values in zip(*terms, strict=True))) if terms else None,
        state=State(*(torch.cat(values, -1) for values in zip(*states, strict=True))) if states else None,
        members=outputs,
    )
