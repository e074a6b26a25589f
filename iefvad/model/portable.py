"""The network as a function of features and state, without loops: the form that `iefvad export` writes.

Programs that run an exported network know neither `ief_kernels` nor Python. So the operators are the reference ones,
and the recursion over time is written as products over the whole sequence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ief_kernels
from ief_kernels.kalman_scan.reference import DIFFUSE, Scan
from iefvad.model.network import Network, State
from iefvad.utils.devices import meta_device

START = (0.0, DIFFUSE)
"""Mean and variance of the state before the first segment of a video: it knows nothing."""


class PortableScan(nn.Module):
    """`ief_kernels.KalmanScan` from a given state, in a number of steps that grows with the logarithm of the length.

    With c = q + eps and b_t = var_t + eps, the variance p_t = b_t·(p_{t−1} + c)/(p_{t−1} + c + b_t) is a fraction of
    two linear functions of p_{t−1}. Such fractions are composed by products of 2×2 matrices, and the means by products
    of affine functions. Each doubling composes every step with the one that ends 1, 2, 4, ... steps before it.

    Args:
        scan: The scan whose process noise is taken.
        longest: Maximum number of segments. Behind it everything is NaN.

    Raises:
        ValueError: it is the robust update, in which the variances depend on the means.
    """

    noise: Tensor

    def __init__(self, scan: ief_kernels.KalmanScan, longest: int) -> None:
        super().__init__()
        if scan.nu is not None:
            raise ValueError("the robust recursion (--temporal robust-kalman) has no form without a loop")
        noise = scan.process_noise()
        self.register_buffer("noise", torch.as_tensor(noise, dtype=torch.float32).detach().reshape(-1).clone())
        self.eps, self.longest = scan.eps, longest

    def forward(
        self,
        x: Tensor,
        var: Tensor,
        lengths: Tensor | None = None,
        initial_state: State | None = None,
        *,
        nu: Tensor | None = None,
    ) -> Scan:
        """Filter x over time. Arguments and result as `ief_kernels.kalman_scan`; `lengths` and `nu` must be None."""
        assert initial_state is not None and lengths is None and nu is None
        s, p = (part.unsqueeze(1) for part in initial_state)
        c, b = self.noise + self.eps, var + self.eps
        behind = torch.arange(x.shape[1], device=x.device).unsqueeze(1) >= self.longest
        b = torch.where(behind, torch.nan, b)
        matrix = _scaled((b, b * c, torch.ones_like(b), b + c))
        for step in self._steps():
            before = tuple(_earlier(part, step, one) for part, one in zip(matrix, (1, 0, 0, 1), strict=True))
            matrix = _scaled(_product(matrix, before))
        upper, upper_one, lower, lower_one = matrix
        variances = (upper * p + upper_one) / (lower * p + lower_one)
        a = torch.cat((p, variances), 1)[:, : x.shape[1]] + c
        gain, carry = a / (a + b), b / (a + b)
        mean = gain * x
        for step in self._steps():
            mean, carry = mean + carry * _earlier(mean, step, 0), carry * _earlier(carry, step, 1)
        mean, variances = mean + carry * s, b * gain
        return Scan(mean, variances, gain, (mean[:, -1], variances[:, -1]))

    def _steps(self) -> list[int]:
        return [1 << power for power in range((self.longest - 1).bit_length())]


Matrix = tuple[Tensor, Tensor, Tensor, Tensor]


def _earlier(values: Tensor, steps: int, neutral: float) -> Tensor:
    """Values of some steps before, (B, T, D); what does not change anything where there is no such step."""
    return F.pad(values, (0, 0, steps, 0), value=neutral)[:, : values.shape[1]]


def _product(later: Matrix, earlier: tuple[Tensor, ...]) -> Matrix:
    a, b, c, d = later
    e, f, g, h = earlier
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h


def _scaled(matrix: Matrix) -> Matrix:
    """The same fraction with coefficients up to 1, so that long products neither overflow nor vanish."""
    largest = torch.maximum(torch.maximum(matrix[0], matrix[1]), torch.maximum(matrix[2], matrix[3]))
    a, b, c, d = (part / largest for part in matrix)
    return a, b, c, d


class PortableNetwork(nn.Module):
    """A network whose inputs and outputs are tensors alone; `inputs` and `outputs` name them in their order.

    Inputs are the features of its streams, (B, T, D) each, and the state. Outputs are the scores, (B, T), the mean
    weight of the image stream, (B, T), and the state after the last segment. The state is `state_mean` and
    `state_var`, (B, S) each. A network without a recursion has no state, one of a single modality no weight.

    Args:
        network: The network; its weights are shared.
        longest: Maximum of T.

    Raises:
        ValueError: the network has a part that cannot be written this way; the message names it.
    """

    def __init__(self, network: Network, longest: int) -> None:
        super().__init__()
        config = network.config
        self.streams = tuple(network.encoders)
        self.recursive = config.temporal != "none"
        self.width = config.width * config.members if self.recursive else 0
        self.inputs = (*self.streams, *(("state_mean", "state_var") if self.recursive else ()))
        weight = ("image_weight",) if config.modality == "fusion" else ()
        self.outputs = ("scores", *weight, *(("next_mean", "next_var") if self.recursive else ()))
        with meta_device():
            self.network = Network(config, backend="reference")
        self.network.load_state_dict(
            {name: value.detach() for name, value in network.state_dict().items()}, assign=True
        )
        for member in self.network.modules():
            if isinstance(member, Network) and member.scan is not None:
                member.scan = PortableScan(member.scan, longest)  # type: ignore[assignment]  # same arguments and result
        self.requires_grad_(False).eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Score the next segments of B videos; arguments and results as `inputs` and `outputs` say."""
        given = dict(zip(self.inputs, tensors, strict=True))
        state = State(given["state_mean"], given["state_var"]) if self.recursive else None
        found = self.network(given.get("image"), given.get("event"), state=state)
        results = [found.scores]
        if found.w_img is not None:
            results.append(found.w_img.mean(-1))
        if found.state is not None:
            results += found.state
        return tuple(results)
