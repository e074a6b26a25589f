"""What the autograd Functions of all operators share: registration with torch, and the call of a backward operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._tensors import refuse_double_backward


def register_operator(name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Make ``torch.ops.ief_kernels.<name>`` known to torch.

    Args:
        name: of the operator, without the namespace.
        schema: arguments and results, as `torch.library.define` takes them.
        implementation: computes the results on any device.
        fake: gives empty results of the right shapes and dtypes, for `torch.compile`.
    """
    library: Any = torch.library  # its functions have no annotations in some versions of torch
    full = f"ief_kernels::{name}"
    library.define(full, schema)
    library.impl(full, "default")(implementation)
    library.register_fake(full)(fake)


class Gradient(torch.autograd.Function):
    """A registered backward operator as a Function of its own, so that a second derivative is refused, not wrong.

    ``Gradient.apply("refine", *arguments)`` calls ``torch.ops.ief_kernels.refine_backward(*arguments)``.
    """

    @staticmethod
    def forward(ctx: Any, op: str, *arguments: Any) -> Any:
        """Call the backward operator of ``op``."""
        ctx.op = op
        return getattr(torch.ops.ief_kernels, f"{op}_backward")(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuse the second derivative with a RuntimeError."""
        refuse_double_backward(ctx.op)


def only_wanted(gradients: tuple[Tensor | None, ...], ctx: Any) -> tuple[Tensor | None, ...]:
    """Return gradients in the order of a Function's arguments, None where the argument asks for none."""
    return tuple(grad if want else None for grad, want in zip(gradients, ctx.needs_input_grad, strict=True))
