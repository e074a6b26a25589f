"""What a call leaves out where it has no effect: the autograd Function, and torch's dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ief_kernels import _autograd, event_synthesis, kalman_scan, precision_fusion
from tests.helpers.kernel_checks import gradients, leaf, needs_native
from tests.kernels.mixed_calls import CALLS, Call

pytestmark = needs_native


def _events(tensors: list[Tensor], backend: str) -> list[Tensor]:
    return [event_synthesis(*tensors, surrogate=1.0, backend=backend)]


ALL = {**CALLS, "events": Call("event_synthesis", lambda: [(255 * torch.rand(2, 3, 4, 5)).requires_grad_()], _events)}


class _Passing(TorchDispatchMode):
    """Hands every operator on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it."""
        return func(*args, **(kwargs or {}))


class _PassingFunctions(TorchFunctionMode):
    """Hands every function on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it."""
        return func(*args, **(kwargs or {}))


class _Subclass(Tensor):
    """A Tensor that is none to `type`."""


@pytest.fixture
def straight(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the operators that are called without torch's dispatcher, as they are."""
    names: list[str] = []

    def recorded(name: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            names.append(name)
            return implementation(*arguments)

        return call

    for name, implementation in _autograd._implementations.items():
        monkeypatch.setitem(_autograd._implementations, name, recorded(name, implementation))
    return names


@pytest.mark.parametrize("name", ALL)
def test_both_ways_give_the_same_bits(name: str, straight: list[str]) -> None:
    call = ALL[name]
    tensors = call.make()
    outputs = call.run(tensors, "native")
    grads = gradients(outputs, tensors)
    assert [way.rpartition("_")[2] for way in straight] == ["forward", "backward"]
    with _Passing():
        again = call.run(tensors, "native")
        grads_again = gradients(again, tensors)
    with torch.no_grad():
        plain = call.run(tensors, "native")
    assert len(straight) == 3
    for got, want in zip([*again, *plain, *grads_again], [*outputs, *outputs, *grads], strict=True):
        assert got is not None and want is not None and torch.equal(got, want)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_no_function_without_gradients(
    name: str, mode: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ALL[name]
    tensors = call.make()
    want = call.run(tensors, "native")
    if mode is nullcontext:
        tensors = [tensor.detach() for tensor in tensors]

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("a Function was called")

    monkeypatch.setattr(torch.autograd.Function, "apply", refuse)
    with mode():
        got = call.run(tensors, "native")
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b) and not a.requires_grad and a.is_inference() == (mode is torch.inference_mode)


@pytest.mark.parametrize("watching", [_Passing, _PassingFunctions, lambda: profile(activities=[ProfilerActivity.CPU])])
@pytest.mark.parametrize("name", ALL)
def test_watchers_see_the_operators(
    name: str, watching: Callable[[], AbstractContextManager[Any]], straight: list[str]
) -> None:
    call = ALL[name]
    tensors = call.make()
    want = gradients(call.run(tensors, "native"), tensors)
    straight.clear()
    with watching() as watcher:
        outputs = call.run(tensors, "native")
        assert not straight
        got = torch.autograd.grad([o for o in outputs if o.requires_grad], tensors, [o.detach() for o in outputs])
        assert not straight
    assert all(grad.shape == w.shape for grad, w in zip(got, want, strict=True) if w is not None)
    if isinstance(watcher, profile):
        keys = {event.key for event in watcher.key_averages()}
        assert {"forward", "backward"} <= {key.rpartition("_")[2] for key in keys if key.startswith("ief_kernels::")}


def _negated(tensor: Tensor) -> Tensor:
    """The same values as a lazy negation: the memory holds their opposites."""
    found = torch.complex(tensor, -tensor).conj().imag
    assert found.is_neg() and torch.equal(found, tensor)
    return found


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("wrap", [_negated, lambda tensor: tensor.as_subclass(_Subclass)])
def test_unusual_tensors_go_through_torch(name: str, wrap: Callable[[Tensor], Tensor], straight: list[str]) -> None:
    call = ALL[name]
    tensors = [tensor.detach() for tensor in call.make()]
    want = call.run(tensors, "native")
    straight.clear()
    for at in range(len(tensors)):
        got = call.run([wrap(tensor) if index == at else tensor for index, tensor in enumerate(tensors)], "native")
        assert not straight
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ALL)
def test_unusual_gradients_go_through_torch(name: str, straight: list[str]) -> None:
    call = ALL[name]
    tensors = call.make()
    first = call.run(tensors, "native")[0]
    incoming = torch.randn_like(first)
    want = torch.autograd.grad(first, tensors[0], incoming, retain_graph=True)
    straight.clear()
    got = torch.autograd.grad(first, tensors[0], _negated(incoming), retain_graph=True)
    none = torch.autograd.grad(first, tensors[0], torch._efficientzerotensor(first.shape, dtype=first.dtype))
    assert not straight or name == "fusion_terms"  # its terms are stacked in between, which makes usual tensors
    assert torch.equal(got[0], want[0]) and not none[0].any()


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
def test_transforms_traces_and_forward_mode(straight: list[str]) -> None:
    x, var = torch.randn(2, 1, 3, 5), torch.rand(2, 1, 3, 5) + 0.1
    want = torch.stack([kalman_scan(a, b).mean for a, b in zip(x, var, strict=True)])
    straight.clear()

    def mean(x: Tensor, var: Tensor) -> Tensor:
        found: Tensor = kalman_scan(x, var, backend="native").mean
        return found

    assert torch.equal(torch.func.vmap(mean)(x, var), want)
    graph = make_fx(mean)(x[1], var[1])
    assert "kalman_scan_forward" in graph.code and torch.equal(graph(x[0], var[0]), want[0])
    traced: Any = torch.jit.trace(mean, (x[1], var[1]), check_trace=False)
    assert torch.equal(traced(x[0], var[0]), want[0])
    with torch.device("meta"):  # a default device does not reach what a kernel allocates
        assert torch.equal(mean(x[0], var[0]), want[0])
    assert not straight
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"kalman_scan: .*jvp.*reference"):
        mean(forward_ad.make_dual(x[0], x[1]), var[0])
    with pytest.raises(RuntimeError, match=r"kalman_scan: torch.func.*reference"):
        torch.func.grad(lambda x: mean(x, var[0]).sum())(x[0])


def test_one_nu_for_both_compiles() -> None:
    """`torch.compile` refuses a Function that is given one tensor twice."""
    call = CALLS["precision_fusion"]
    tensors = call.make()
    for nu in (4.0, leaf(5, low=2.0)):

        def fuse(*tensors: Tensor, nu: Any = nu) -> Tensor:
            found: Tensor = precision_fusion(*tensors, nu=nu, backend="native").mean
            return found

        torch.testing.assert_close(torch.compile(fuse, fullgraph=True, backend="aot_eager")(*tensors), fuse(*tensors))
