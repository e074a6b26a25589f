"""The operators as `nn.Module`s, with their learned parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from . import _arguments
from .kalman_scan import Scan, kalman_scan
from .low_rank_fusion import low_rank_fusion, low_rank_kl
from .precision_fusion import Fusion, Nu, Terms, fusion_and_terms, fusion_terms, precision_fusion
from .refinement import refine

LEARNED = "learned"


def _inverse_softplus(value: float) -> float:
    # log(exp(value) − 1), without the overflow
    return value + math.log(-math.expm1(-value))


def one_dimension(nu: Nu) -> Nu:
    """Return a tensor without dimensions as (1,), which counts as learned; anything else as it is."""
    return nu.reshape(1) if isinstance(nu, Tensor) else nu


def steady_noise(gain: float, variance: float) -> float:
    """Return the process noise whose steady gain on a constant input variance v is g: q = v·g²/(1 − g).

    In the steady state p = g·v and g = (p + q)/(p + q + v); see ``docs/specification.md#kalman-scan``.

    Args:
        gain: g, in (0, 1).
        variance: v > 0.

    Raises:
        ValueError: `gain` or `variance` lies outside its range.
    """
    gain, variance = _arguments.finite("gain", gain), _arguments.positive("variance", variance)
    if not 0 < gain < 1:
        raise ValueError(f"gain must lie in (0, 1), got {gain}")
    return variance * gain * gain / (1 - gain)


class PrecisionFusion(nn.Module):
    """`precision_fusion` with ν fixed, absent (None) or learned.

    A learned ν is one scalar per modality, ν = 1 + softplus(raw).

    Args:
        nu: degrees of freedom: a float > 0, None for the Gaussian model, or "learned".
        initial_nu: where the learned ν starts, > 1.
        eps: as in `precision_fusion`.
        backend: as in `precision_fusion`.

    Raises:
        ValueError: `nu`, `initial_nu` or `eps` lies outside its range or is not finite.
    """

    def __init__(
        self, *, nu: float | str | None = 8.0, initial_nu: float = 8.0, eps: float = 1e-8, backend: str = "auto"
    ) -> None:
        """Create the module; see the class."""
        super().__init__()
        self.eps, self.backend = _arguments.not_negative("eps", eps), backend
        self.fixed_nu: float | None = None
        self.raw_nu: nn.Parameter | None = None
        if isinstance(nu, str):
            if nu != LEARNED:
                raise ValueError(f"nu must be a number, None or 'learned', got {nu!r}")
            if not _arguments.finite("initial_nu", initial_nu) > 1:
                raise ValueError(f"initial_nu must be above 1, got {initial_nu}")
            self.raw_nu = nn.Parameter(torch.full((2,), _inverse_softplus(initial_nu - 1)))
        elif nu is not None:
            self.fixed_nu = _arguments.positive("nu", nu, infinite=True)

    def nu(self) -> tuple[Nu, Nu]:
        """Return the degrees of freedom of image and event, as the functions take them; with a gradient if learned."""
        if self.raw_nu is None:
            return self.fixed_nu, self.fixed_nu
        nu = 1 + softplus(self.raw_nu)
        return nu[0], nu[1]

    def _nu(self) -> tuple[Nu, Nu]:
        """The same as (1,): a learned ν that became NaN gives NaN, as all learned values do, and no ValueError."""
        nu_img, nu_evt = self.nu()
        return one_dimension(nu_img), one_dimension(nu_evt)

    def forward(self, mu_img: Tensor, logvar_img: Tensor, mu_evt: Tensor, logvar_evt: Tensor) -> Fusion:
        """Fuse two beliefs; arguments and result as in `precision_fusion`."""
        return precision_fusion(
            mu_img, logvar_img, mu_evt, logvar_evt, nu=self._nu(), eps=self.eps, backend=self.backend
        )

    def with_terms(
        self, mu_img: Tensor, logvar_img: Tensor, mu_evt: Tensor, logvar_evt: Tensor, lengths: Tensor | None = None
    ) -> tuple[Fusion, Terms]:
        """Return fusion (zero at padding) and loss terms from one pass; arguments as in `fusion_and_terms`."""
        return fusion_and_terms(
            mu_img, logvar_img, mu_evt, logvar_evt, nu=self._nu(), lengths=lengths, eps=self.eps, backend=self.backend
        )

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return f"nu={LEARNED if self.raw_nu is not None else self.fixed_nu}, eps={self.eps}"


class LowRankFusion(PrecisionFusion):
    """`low_rank_fusion` with a learned factor per modality, and ν fixed, absent (None) or learned.

    A factor is V = raw/√D. So a change of all of raw by δ changes the norm of a column of V by about δ, whatever D is:
    raw may be trained at the rate of other scalars, such as raw_nu.

    Args:
        dim: D.
        rank: r ≥ 0, number of columns of each factor. With 0 it is `PrecisionFusion` with two empty parameters.
        start: about the norm of a column of V at the start. At 0 the fusion has no gradient in V. A small one begins as
            the diagonal model, to about start².
        nu: as in `PrecisionFusion`.
        initial_nu: as in `PrecisionFusion`.
        eps: as in `low_rank_fusion`.
        backend: as in `low_rank_fusion`.

    Raises:
        ValueError: a number lies outside its range or is not finite.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        *,
        start: float = 0.1,
        nu: float | str | None = 8.0,
        initial_nu: float = 8.0,
        eps: float = 1e-8,
        backend: str = "auto",
    ) -> None:
        """Create the module; see the class."""
        super().__init__(nu=nu, initial_nu=initial_nu, eps=eps, backend=backend)
        dim, rank = _arguments.integer("dim", dim, 0), _arguments.integer("rank", rank, 0)
        start = _arguments.finite("start", start)
        self.raw_factor_img = nn.Parameter(start * torch.randn(dim, rank))
        self.raw_factor_evt = nn.Parameter(start * torch.randn(dim, rank))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return V of image and event, (D, r) each."""
        size = 1 / math.sqrt(max(self.raw_factor_img.shape[0], 1))
        return self.raw_factor_img * size, self.raw_factor_evt * size

    def forward(self, mu_img: Tensor, logvar_img: Tensor, mu_evt: Tensor, logvar_evt: Tensor) -> Fusion:
        """Fuse two beliefs; arguments and result as in `low_rank_fusion`."""
        return self._fuse(mu_img, logvar_img, mu_evt, logvar_evt, self.factors(), None)

    def with_terms(
        self, mu_img: Tensor, logvar_img: Tensor, mu_evt: Tensor, logvar_evt: Tensor, lengths: Tensor | None = None
    ) -> tuple[Fusion, Terms]:
        """Return fusion (zero at padding) and loss terms, whose KL terms are exact for the full covariances."""
        nu = nu_img, nu_evt = self._nu()
        factors = factor_img, factor_evt = self.factors()
        terms = fusion_terms(mu_img, logvar_img, mu_evt, logvar_evt, nu=nu, lengths=lengths, backend=self.backend)
        terms = terms._replace(
            kl_img=terms.kl_img + low_rank_kl(logvar_img, factor_img, nu=nu_img, lengths=lengths),
            kl_evt=terms.kl_evt + low_rank_kl(logvar_evt, factor_evt, nu=nu_evt, lengths=lengths),
        )
        return self._fuse(mu_img, logvar_img, mu_evt, logvar_evt, factors, lengths), terms

    def _fuse(
        self,
        mu_img: Tensor,
        logvar_img: Tensor,
        mu_evt: Tensor,
        logvar_evt: Tensor,
        factors: tuple[Tensor, Tensor],
        lengths: Tensor | None,
    ) -> Fusion:
        return low_rank_fusion(
            mu_img,
            logvar_img,
            mu_evt,
            logvar_evt,
            *factors,
            nu=self._nu(),
            lengths=lengths,
            eps=self.eps,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        dim, rank = self.raw_factor_img.shape
        return f"{dim}, rank={rank}, {super().extra_repr()}"


class KalmanScan(nn.Module):
    """`kalman_scan` with fixed or learned process noise.

    Learned noise is one q = softplus(raw) per dimension.

    Args:
        dim: D.
        process_noise: a float ≥ 0, or "learned".
        initial_gain: the learned noise starts where the steady gain is this, in (0, 1).
        unit_variance: the constant input variance > 0 for which that holds.
        nu: degrees of freedom of the robust update; None for the plain update.
        eps: as in `kalman_scan`.
        backend: as in `kalman_scan`.

    Raises:
        ValueError: an argument lies outside its range.
    """

    def __init__(
        self,
        dim: int,
        process_noise: float | str = 0.0,
        *,
        initial_gain: float = 0.6,
        unit_variance: float = 1.0,
        nu: float | None = None,
        eps: float = 1e-8,
        backend: str = "auto",
    ) -> None:
        """Create the module; see the class."""
        super().__init__()
        self.dim, self.backend = _arguments.integer("dim", dim, 0), backend
        self.nu = None if nu is None else _arguments.positive("nu", nu, infinite=True)
        self.eps = _arguments.not_negative("eps", eps)
        self.fixed_noise = 0.0
        self.raw_noise: nn.Parameter | None = None
        if isinstance(process_noise, str):
            if process_noise != LEARNED:
                raise ValueError(f"process_noise must be a number or 'learned', got {process_noise!r}")
            start = _inverse_softplus(steady_noise(initial_gain, unit_variance))
            self.raw_noise = nn.Parameter(torch.full((dim,), start))
        else:
            self.fixed_noise = _arguments.not_negative("process_noise", process_noise)

    def process_noise(self) -> float | Tensor:
        """Return q as the function takes it: the fixed float, or (D,) with a gradient."""
        return self.fixed_noise if self.raw_noise is None else softplus(self.raw_noise)

    def forward(
        self,
        x: Tensor,
        var: Tensor,
        lengths: Tensor | None = None,
        initial_state: tuple[Tensor, Tensor] | None = None,
        *,
        nu: Tensor | None = None,
    ) -> Scan:
        """Filter x over time; arguments and result as in `kalman_scan`. `nu` takes the place of the module's ν."""
        return kalman_scan(
            x,
            var,
            lengths=lengths,
            process_noise=self.process_noise(),
            nu=self.nu if nu is None else nu,
            eps=self.eps,
            initial_state=initial_state,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        noise = LEARNED if self.raw_noise is not None else self.fixed_noise
        return f"{self.dim}, process_noise={noise}, nu={self.nu}, eps={self.eps}"


class Refinement(nn.Module):
    """`refine` with its weights, stacked over the steps and initialised like `nn.Linear`.

    Args:
        dim: D.
        hidden: H; None takes D.
        steps: N ≥ 0.
        attenuation: as in `refine`.
        shared: whether one block serves all steps.
        checkpoint_every: as in `refine`.
        backend: as in `refine`.

    Raises:
        ValueError: a number lies outside its range or is not finite.
    """

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        steps: int = 10,
        *,
        attenuation: float = 0.5,
        shared: bool = False,
        checkpoint_every: int = 1,
        backend: str = "auto",
    ) -> None:
        """Create the module; see the class."""
        super().__init__()
        dim, steps = _arguments.integer("dim", dim, 0), _arguments.integer("steps", steps, 0)
        self.steps, self.attenuation = steps, _arguments.finite("attenuation", attenuation)
        self.checkpoint_every, self.backend = _arguments.integer("checkpoint_every", checkpoint_every, 1), backend
        hidden = dim if hidden is None else _arguments.integer("hidden", hidden, 0)
        blocks = 1 if shared else steps
        self.w1 = nn.Parameter(torch.empty(blocks, hidden, dim))
        self.b1 = nn.Parameter(torch.empty(blocks, hidden))
        self.w2 = nn.Parameter(torch.empty(blocks, dim, hidden))
        self.b2 = nn.Parameter(torch.empty(blocks, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases uniformly from ±1/sqrt(number of the layer's inputs)."""
        for weight, bias in ((self.w1, self.b1), (self.w2, self.b2)):
            bound = 1 / math.sqrt(max(weight.shape[-1], 1))
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, z: Tensor) -> Tensor:
        """Refine z (..., D); result as in `refine`."""
        return refine(
            z,
            self.w1,
            self.b1,
            self.w2,
            self.b2,
            attenuation=self.attenuation,
            steps=self.steps,
            checkpoint_every=self.checkpoint_every,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        blocks, hidden, dim = self.w1.shape
        return f"{dim}, hidden={hidden}, steps={self.steps}, attenuation={self.attenuation}, shared={blocks == 1}"
