"""The IEF-VAD network (SPEC §3): encoders, uncertainty-weighted fusion, recursion over time, refinement."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

import ief_kernels
from ief_kernels import Fusion, Terms
from iefvad.attention import attention_with_dropout
from iefvad.card import MODEL_CARD, facts
from iefvad.layout import Layout, ValidRows, lay_out
from iefvad.linear import Linear

MODALITIES = ("image", "event")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of one network. `hidden` is the refinement's inner width, `dim` where it is None.

    `window`: self-attention stays within consecutive windows of so many segments; None lets it see all it is given.
    `standardize`: features are centred and scaled per dimension by buffers that `set_statistics` fills.
    `released=True` is the published code's variant: padding takes part in attention, and the fusion weights are
    (nu+1)/nu·exp(-logvar) divided by their sum + eps.
    """

    dim: int = 768
    hidden: int | None = None
    layers: int = 2
    heads: int = 8
    dropout: float = 0.1
    window: int | None = None
    standardize: bool = False
    modality: Literal["fusion", "image", "event"] = "fusion"
    noise: Literal["student-t", "gaussian"] = "student-t"
    nu: float | Literal["learned"] = 8.0
    temporal: Literal["kalman", "robust-kalman", "none"] = "kalman"
    process_noise: float | Literal["learned"] = "learned"
    refine_steps: int = 10
    attenuation: float = 0.5
    eps: float = 1e-8
    released: bool = False

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide the feature width {self.dim}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, not {self.window}")


class State(NamedTuple):
    """State of the recursion after a sequence's last valid segment: mean and variance, each (B, D) float."""

    mean: Tensor
    var: Tensor


@dataclass
class Output:
    """What one forward pass yields; B videos, T segments, D dimensions.

    `logits`, `scores` are (B, T); `fused` (B, T, D) is the refined state that is classified; the `*_mu`, `*_logvar`,
    `w_*` and `gain` are (B, T, D), or None for a modality or step that the network does not have. `terms` holds the
    regularisation terms of the loss (None without gradients), `state` what the next chunk of the video starts from.
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


class _Standardize(nn.Module):
    """(x − centre) / scale per dimension, both taken from training data."""

    centre: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, features: Tensor) -> None:
        """`features` (N, D). A constant dimension is centred and hardly scaled."""
        self.centre.copy_(features.mean(0))
        self.scale.copy_(features.std(0, correction=0) + 0.05)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.centre) / self.scale


class SelfAttention(nn.Module):
    """x ← LayerNorm(x + MultiHeadAttention(x)) on (B, T, D), without feed-forward or positional encoding."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj = Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(B, T, D), or with rows (R, D): then padding is there within the attention only."""
        qkv = self.in_proj(x).unflatten(-1, (3, self.heads, -1))
        if layout.spans is not None:
            merged = attention_with_dropout(qkv.view(-1, *qkv.shape[-3:]), layout.spans, self.dropout).view(x.shape)
            return self.norm(x + self.out_proj(merged))
        if layout.rows is not None:
            qkv = layout.rows.place(qkv)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=layout.mask, dropout_p=dropout)
        merged = attended.transpose(1, 2).flatten(2)
        if layout.rows is not None:
            merged = layout.rows.take(merged)
        return self.norm(x + self.out_proj(merged))


class ModalityEncoder(nn.Module):
    """Self-attention layers, a whitening LayerNorm, then one Linear each for mean and log-variance (paper §3.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SelfAttention(config.dim, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.whiten = nn.LayerNorm(config.dim)
        self.mu = Linear(config.dim, config.dim)
        self.logvar = Linear(config.dim, config.dim)

    def forward(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """(B, T, D) features → mean and log-variance, (B, T, D) each; with rows zeros in the padding."""
        rows = layout.rows
        if rows is not None:
            x = rows.take(x)
        for layer in self.layers:
            x = layer(x, layout)
        x = self.whiten(x)
        mu, logvar = self.mu(x), self.logvar(x)
        return (mu, logvar) if rows is None else (rows.place(mu), rows.place(logvar))


class IEFVAD(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="iefvad",
    tags=["arxiv:2505.02393", "video-anomaly-detection"],
    paper_url="https://arxiv.org/abs/2505.02393",
    model_card_template=MODEL_CARD,
):
    """Scores each segment of a video from its image and event features (paper §3; SPEC §3).

    `backend` goes to every operator of `ief_kernels`: "reference" is plain eager PyTorch, "auto" the fastest that
    serves. `provenance` is what is known of a trained model, JSON values, empty for a fresh one: "encoder" (settings
    of the features it was trained on), "threshold", "epoch", "seed", "chunk", "test_crops", "method"; it is saved and
    loaded with the weights. `folder` is where `from_pretrained` found it, None elsewhere. `push_to_hub` is the mixin's.
    Raises ValueError for inputs whose shapes do not fit.
    """

    def __init__(self, config: ModelConfig, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.provenance: dict[str, Any] = {}
        self.folder: Path | None = None
        dim = config.dim
        modalities = MODALITIES if config.modality == "fusion" else (config.modality,)
        self.encoders = nn.ModuleDict({name: ModalityEncoder(config) for name in modalities})
        self.statistics = nn.ModuleDict({name: _Standardize(dim) for name in modalities} if config.standardize else {})
        nu = None if config.noise == "gaussian" else config.nu
        self.fusion = ief_kernels.PrecisionFusion(nu=nu, eps=config.eps, backend=backend)
        self.scan: ief_kernels.KalmanScan | None = None
        if config.temporal != "none":
            # Variance of the fused state at the start, where log-variances are about 0: half the effective variance.
            start = 8.0 if config.nu == "learned" else config.nu
            scale = 1.0 if nu is None else start / (start + 1)
            self.scan = ief_kernels.KalmanScan(
                dim,
                process_noise=config.process_noise,
                nu=start if config.temporal == "robust-kalman" else None,
                eps=config.eps,
                unit_variance=scale / len(modalities),
                backend=backend,
            )
        self.refinement = ief_kernels.Refinement(
            dim, hidden=config.hidden, steps=config.refine_steps, attenuation=config.attenuation, backend=backend
        )
        self.classifier = nn.Linear(dim, 1)

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

        `image`, `event`: (B, T, D) floating-point features; a single-modality network ignores the other, which may be
        None. `lengths`: (B,) integers, valid segments of each video; what lies behind them never matters. Where they
        are on the CPU, padding is left out of all layers but attention, on any device. `state`: from the previous chunk
        of the same videos. `context`: the first so many segments, which `state` has seen already, are there for the
        attention alone; all outputs begin behind them, T - context segments long.
        """
        inputs = {"image": image, "event": event}
        valid, layout = self._layout(inputs, lengths, context)
        rows = layout.rows
        mus: dict[str, Tensor] = {}
        logvars: dict[str, Tensor] = {}
        for name, encoder in self.encoders.items():
            features = inputs[name]
            assert features is not None
            if name in self.statistics:
                features = self.statistics[name](features)
            if valid is not None and rows is None:
                # NaN in the padding would survive attention as 0·NaN, so it is replaced rather than multiplied away.
                features = features.masked_fill(~valid.unsqueeze(-1), 0)
            mu, logvar = encoder(features, layout)
            mus[name], logvars[name] = mu[:, context:], logvar[:, context:]
        if lengths is not None:
            lengths = (lengths - context).clamp(min=0)
            if rows is not None and context:
                rows = ValidRows.of(lengths, rows.segments - context, rows.index.device)
            lengths = lengths.to(self.classifier.weight.device, non_blocking=True)
        counted = None if self.config.released else lengths
        fused, terms = self._fuse(mus, logvars, counted)
        gain, end = None, None
        sequence = fused.mean
        if self.scan is not None:
            scan = self.scan(fused.mean, fused.var, lengths=lengths, initial_state=state)
            sequence, gain, end = scan.mean, scan.gain, State(*scan.state)
        refined = self.refinement(sequence if rows is None else rows.take(sequence))
        logits = self.classifier(refined).squeeze(-1).float()
        if rows is not None:
            refined, logits = rows.place(refined), rows.place(logits)
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
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        backend: str = "auto",
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> IEFVAD:
        """A trained model from a run folder, a saved folder, a .safetensors file or the Hugging Face hub.

        All options and errors: `iefvad.pretrained.load_pretrained`, which this is.
        """
        from iefvad.pretrained import load_pretrained

        return load_pretrained(pretrained_model_name_or_path, backend=backend, device=device, **options)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> str | None:
        """Write config.json, model.safetensors and a model card (README.md, unless there is one) into a folder.

        The calibration of these weights, where the folder they were loaded from has one, goes with them. Two calls
        write the same bytes. `options` are the mixin's, such as `push_to_hub=True, repo_id="owner/name"`.
        Raises UserError where the folder cannot be written.
        """
        from iefvad.files import storage_error

        try:
            return super().save_pretrained(Path(save_directory), **options)
        except OSError as error:
            raise storage_error(error, Path(save_directory)) from error

    def _save_pretrained(self, save_directory: Path) -> None:
        from iefvad.checkpoint import save_folder
        from iefvad.detection.threshold import copy_calibration

        save_folder(save_directory, self)
        copy_calibration(self, save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The model card: what the network is, how to load it, the paper."""
        return super().generate_model_card(*args, **{"facts": facts(self.config, self.provenance), **kwargs})

    def set_statistics(self, modality: str, features: Tensor) -> None:
        """Take the centre and scale of a modality from training features (N, D); for `standardize` networks."""
        statistics = self.statistics[modality]
        assert isinstance(statistics, _Standardize)
        statistics.fit(features)

    def start_as_identity(self) -> None:
        """Zero the attention layers' output projections, so that each starts as x ← LayerNorm(x)."""
        for module in self.modules():
            if isinstance(module, SelfAttention):
                nn.init.zeros_(module.out_proj.weight)

    def _layout(
        self, inputs: dict[str, Tensor | None], lengths: Tensor | None, context: int
    ) -> tuple[Tensor | None, Layout]:
        shapes = set()
        for name in self.encoders:
            features = inputs[name]
            if features is None or features.dim() != 3 or features.shape[-1] != self.config.dim:
                got = "nothing" if features is None else tuple(features.shape)
                raise ValueError(f"{name} features must be (B, T, {self.config.dim}), not {got}")
            shapes.add(tuple(features.shape))
        if len(shapes) > 1:
            raise ValueError(f"image and event features differ in shape: {sorted(shapes)}")
        batch, segments, _ = shapes.pop()
        if not 0 <= context <= segments:
            raise ValueError(f"context must be between 0 and the {segments} segments given, not {context}")
        if lengths is not None and lengths.shape != (batch,):
            raise ValueError(f"lengths must be ({batch},), not {tuple(lengths.shape)}")
        return lay_out(
            (batch, segments),
            lengths,
            self.classifier.weight.device,
            window=self.config.window,
            padding=self.config.released,
            dropout=self.config.dropout if self.training else 0.0,
        )

    def _fuse(
        self, mus: dict[str, Tensor], logvars: dict[str, Tensor], lengths: Tensor | None
    ) -> tuple[Fusion, Terms | None]:
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

    def _single(self, mu: Tensor, logvar: Tensor, lengths: Tensor | None) -> tuple[Fusion, Terms]:
        """One stream is its own fusion: its mean and effective variance; the loss keeps the KL term alone."""
        nu = self.fusion.nu()[0 if self.config.modality == "image" else 1]
        logvar = logvar if nu is None else logvar + _log_shrink(nu)
        var = logvar.exp()
        kl_elements = -0.5 * (1 + logvar - mu.square() - var)
        if lengths is not None:
            valid = (torch.arange(mu.shape[1], device=mu.device) < lengths.unsqueeze(1)).unsqueeze(-1)
            kl = torch.where(valid, kl_elements, 0.0).sum() / (lengths.sum().clamp(min=1) * mu.shape[2])
        else:
            kl = kl_elements.mean()
        zero = torch.zeros_like(kl)
        kl_img, kl_evt = (kl, zero) if self.config.modality == "image" else (zero, kl)
        ones = torch.ones_like(mu)
        return Fusion(mu, var, ones, ones), Terms(kl_img, kl_evt, zero, zero)

    def _released_weights(self, mu_img: Tensor, logvar_img: Tensor, mu_evt: Tensor, logvar_evt: Tensor) -> Fusion:
        nu = self.fusion.nu()
        w_img = torch.exp(-logvar_img if nu[0] is None else -(logvar_img + _log_shrink(nu[0])))
        w_evt = torch.exp(-logvar_evt if nu[1] is None else -(logvar_evt + _log_shrink(nu[1])))
        total = w_img + w_evt + self.config.eps
        w_img, w_evt = w_img / total, w_evt / total
        return Fusion(w_img * mu_img + w_evt * mu_evt, 1 / total, w_img, w_evt)


def _log_shrink(nu: float | Tensor) -> Tensor:
    """log(ν/(ν+1)), the Laplace correction of a Student-t's scale (paper Eq. 3)."""
    nu = torch.as_tensor(nu)
    return torch.log(nu / (nu + 1))
