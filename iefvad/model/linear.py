"""A Linear layer whose matrix products, also those of the backward pass, use the faster library of this processor."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ief_kernels._products import product, served


class Linear(nn.Linear):
    """`torch.nn.Linear`, with the same parameters and, to rounding, the same results."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(input.device.type):
            return F.linear(input, self.weight, self.bias)
        # The library takes a hundred times as long for rows that do not lie one after another.
        rows = input.reshape(-1, self.in_features).contiguous()
        if not served(rows, self.weight.t()):
            return F.linear(input, self.weight, self.bias)
        found: Tensor = _Linear.apply(rows, self.weight, self.bias)
        return found.view(*input.shape[:-1], self.out_features)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight.t(), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        grad = grad.contiguous()
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        grad_rows = product(grad, weight) if wants_rows else None
        grad_weight = product(grad.t(), rows) if wants_weight else None
        grad_bias = grad.sum(0) if wants_bias else None
        return grad_rows, grad_weight, grad_bias
