"""Derivatives that no fused kernel has: refused by the operator's name with the remedy, and right with the reference.

A derivative that is left out silently would be the worst: `vmap` hides from an operator that a gradient is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import ief_kernels
from ief_kernels import dispatch
from tests.helpers.kernel_checks import needs_native
from tests.kernels.test_calls import ALL

pytestmark = [
    needs_native,
    pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.*out= overload", "ignore:.*vmap.*"),
]

Loss = Callable[..., Tensor]


def loss_of(name: str, backend: str) -> Loss:
    """All outputs of a call as one number."""

    def loss(*tensors: Tensor) -> Tensor:
        return torch.stack([out.double().square().sum() for out in ALL[name].run(list(tensors), backend)]).sum()

    return loss


def values(name: str) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return tuple(tensor.detach().double() for tensor in ALL[name].make())


def two(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.stack([tensor, 1.01 * tensor]) for tensor in tensors)


def tangents(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).view_as(tensor) for tensor in tensors)


def plain_gradient(loss: Loss, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(loss(*leaves), leaves)


def _dual(loss: Loss, tensors: tuple[Tensor, ...]) -> Any:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(tensors, tangents(tensors), strict=True)]
        return forward_ad.unpack_dual(loss(*duals)).tangent


def _grad_of_vmap(loss: Loss, tensors: tuple[Tensor, ...]) -> Any:
    return torch.func.grad(lambda *t: torch.func.vmap(loss)(*t).sum(), tuple(range(len(tensors))))(*two(tensors))


def _leaves_in_vmap(loss: Loss, tensors: tuple[Tensor, ...]) -> Any:
    leaves = [tensor.requires_grad_() for tensor in two(tensors)]
    return torch.autograd.grad(torch.func.vmap(loss)(*leaves).sum(), leaves)


def _double_backward(loss: Loss, tensors: tuple[Tensor, ...]) -> Any:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(torch.stack([grad.sum() for grad in first]).sum(), leaves, allow_unused=True)


def _batched_gradients(loss: Loss, tensors: tuple[Tensor, ...]) -> Any:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    ones = torch.ones(3, dtype=torch.float64)
    return torch.autograd.grad(loss(*leaves), leaves, ones, is_grads_batched=True)


DERIVATIVES: dict[str, Callable[[Loss, tuple[Tensor, ...]], Any]] = {
    "grad": lambda loss, tensors: torch.func.grad(loss, tuple(range(len(tensors))))(*tensors),
    "vjp": lambda loss, tensors: torch.func.vjp(loss, *tensors)[1](torch.ones((), dtype=torch.float64)),
    "jvp": lambda loss, tensors: torch.func.jvp(loss, tensors, tangents(tensors)),
    "jacrev": lambda loss, tensors: torch.func.jacrev(loss)(*tensors),
    "hessian": lambda loss, tensors: torch.func.hessian(loss)(*tensors),
    "vmap of grad": lambda loss, tensors: torch.func.vmap(torch.func.grad(loss))(*two(tensors)),
    "grad of vmap": _grad_of_vmap,
    "vmap of leaves": _leaves_in_vmap,
    "forward mode": _dual,
    "double backward": _double_backward,
    "batched gradients": _batched_gradients,
}


@pytest.mark.parametrize("name", ALL)
def test_a_fused_kernel_names_itself_and_the_remedy(name: str) -> None:
    op, tensors = ALL[name].op, values(name)
    for kind, derive in DERIVATIVES.items():
        with pytest.raises((RuntimeError, NotImplementedError)) as caught:
            derive(loss_of(name, "native"), tensors)
        message = str(caught.value)
        assert message.startswith(f"{op}: ") and "backend='reference'" in message, f"{kind}: {message}"


@pytest.mark.parametrize("name", ALL)
def test_the_reference_has_the_derivatives(name: str) -> None:
    loss, tensors = loss_of(name, "reference"), values(name)
    want = plain_gradient(loss, tensors)
    close: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}  # float64 in another order of summation
    for got, grad in zip(DERIVATIVES["grad"](loss, tensors), want, strict=True):
        torch.testing.assert_close(got, grad, **close)
    slope = sum((grad * t).sum() for grad, t in zip(want, tangents(tensors), strict=True))
    torch.testing.assert_close(DERIVATIVES["jvp"](loss, tensors)[1], slope, **close)
    torch.testing.assert_close(_dual(loss, tensors), slope, **close)
    second = plain_gradient(loss, tuple(1.01 * tensor for tensor in tensors))
    for kind in ("grad of vmap", "vmap of leaves"):
        for got, *both in zip(DERIVATIVES[kind](loss, tensors), want, second, strict=True):
            torch.testing.assert_close(got, torch.stack(both), **close)
    for kind in ("vjp", "jacrev", "hessian", "vmap of grad", "double backward", "batched gradients"):
        DERIVATIVES[kind](loss, tensors)


@pytest.mark.parametrize("name", ALL)
def test_vmap_without_gradients_works(name: str) -> None:
    loss, tensors = loss_of(name, "native"), values(name)
    want = torch.stack([loss(*(tensor[at] for tensor in two(tensors))) for at in (0, 1)])
    torch.testing.assert_close(torch.func.vmap(loss)(*two(tensors)), want, rtol=1e-12, atol=0)
    leaves = [tensor.requires_grad_() for tensor in two(tensors)]
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(loss)(*leaves), want, rtol=1e-12, atol=0)


def test_every_operator_is_tested_here() -> None:
    assert {call.op for call in ALL.values()} == set(dispatch.operators())


def test_the_divergence_of_low_rank_beliefs_has_all_derivatives() -> None:
    """It is eager PyTorch on every device."""
    torch.manual_seed(0)
    tensors = (torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64))
    for derive in DERIVATIVES.values():
        derive(ief_kernels.low_rank_kl, tensors)


def test_functional_call_works_on_modules() -> None:
    module = ief_kernels.KalmanScan(5, process_noise="learned")
    x, var = torch.randn(2, 3, 5), torch.rand(2, 3, 5) + 0.1
    parameters = {name: value.detach() + 0.5 for name, value in module.named_parameters()}
    got = torch.func.functional_call(module, parameters, (x, var)).mean
    assert parameters and not torch.equal(got, module(x, var).mean)
    for name, value in module.named_parameters():
        value.data.copy_(parameters[name])
    assert torch.equal(got, module(x, var).mean)
