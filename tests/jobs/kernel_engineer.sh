#!/usr/bin/env bash
# What a kernel engineer does on the first day: the operators in a model of one's own, checked, compiled and timed.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$work"
cat > model.py <<'PY'
import sys

import torch
from torch import nn

from ief_kernels import KalmanScan, PrecisionFusion, explain, kalman_scan

assert "iefvad" not in sys.modules, "the operators must not need the pipeline"


class TwoSensors(nn.Module):
    """Two sensors of the same signal, each with a variance that it states itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.sensors = nn.ModuleList(nn.Linear(dim, 2 * dim) for _ in range(2))
        self.fuse, self.filter = PrecisionFusion(nu=8.0), KalmanScan(dim, process_noise=0.1)

    def forward(self, first: torch.Tensor, second: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        beliefs = [part for sensor, x in zip(self.sensors, (first, second)) for part in sensor(x).chunk(2, -1)]
        fused = self.fuse(*beliefs)
        return self.filter(fused.mean, fused.var, lengths=lengths).mean


torch.manual_seed(0)
signal = torch.randn(8, 40, 16).cumsum(1) / 6
first, second = signal + 0.2 * torch.randn_like(signal), signal + 1.0 * torch.randn_like(signal)
lengths = torch.randint(20, 41, (8,))
valid = (torch.arange(40) < lengths[:, None])[..., None]


def trained(model: nn.Module) -> tuple[float, float]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = ((model(first, second, lengths) - signal) * valid).square().sum() / valid.sum() / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


model = TwoSensors(16)
start, end = trained(model)
noise = (((first + second) / 2 - signal) * valid).square().sum().item() / valid.sum().item() / 16
print(f"mean squared error: {start:.3f} before, {end:.3f} after training; {noise:.3f} for the mean of both sensors")
assert end < noise < start

compiled = torch.compile(model, fullgraph=True)
difference = (compiled(first, second, lengths) - model(first, second, lengths)).abs().max().item()
print(f"compiled without a graph break; largest difference {difference:.1e}")
assert difference < 1e-5

x, var = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True), torch.rand(2, 5, 3, dtype=torch.float64) + 0.1
assert torch.autograd.gradcheck(lambda x: kalman_scan(x, var, process_noise=0.1, nu=8.0).mean, (x,))
print(explain("kalman_scan", first))
PY
python model.py

cd "$root"
# Status 3: the machine was busy, so the figures decide nothing.
python -m bench --quick --op kalman_scan --size small --seconds 20 --out "$work/bench" || [[ $? == 3 ]]
ls "$work"/bench/*.json > /dev/null
