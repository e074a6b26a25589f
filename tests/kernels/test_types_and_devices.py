"""One rule of dtypes and one check of devices for all operators: docs/specification.md#types-and-devices."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ief_kernels
from ief_kernels import BackendUnavailable, dispatch, explain
from tests.helpers.kernel_checks import BACKENDS, gradients
from tests.kernels.mixed_calls import CALLS, PAIRS, assert_promoted, mixtures


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("first", "other"), PAIRS, ids=str)
def test_mixed_dtypes_are_promoted(backend: str, name: str, first: torch.dtype, other: torch.dtype) -> None:
    """A call on mixed dtypes is the call on tensors converted beforehand; gradients have each input's own dtype."""
    call = CALLS[name]
    for mixed in mixtures(call, first, other):
        assert_promoted(call, mixed, backend)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("first", "other"), PAIRS, ids=str)
def test_the_promoted_dtype_chooses_the_backend(
    name: str, first: torch.dtype, other: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, asked = CALLS[name], []

    def check(device: torch.device, dtype: torch.dtype, facts: dispatch.Facts) -> str:
        asked.append(dtype)
        return "only asked"

    monkeypatch.setitem(dispatch._checks, call.op, {"triton": check})
    for mixed in mixtures(call, first, other):
        call.run(mixed, "auto")
        assert asked.pop() == call.dtype(mixed) and not asked
        if not call.states:
            assert f"{call.op} on cpu, {call.dtype(mixed)}" in explain(call.op, *mixed)
            asked.clear()


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_do_not_widen(backend: str) -> None:
    fusion, (x, var) = CALLS["precision_fusion"].make(), CALLS["scan"].make()
    narrow = [t.detach().to(torch.bfloat16) for t in (*fusion, x, var)]
    nu = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    noise = torch.full((5,), 0.1, dtype=torch.float64, requires_grad=True)
    factors = [torch.full((5, 2), 0.1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    fused = ief_kernels.precision_fusion(*narrow[:4], nu=nu, backend=backend)
    correlated = ief_kernels.low_rank_fusion(*narrow[:4], *factors, nu=nu, backend=backend)
    scan = ief_kernels.kalman_scan(*narrow[4:], process_noise=noise, nu=nu, backend=backend)
    assert {t.dtype for t in (*fused, *correlated, *scan[:3])} == {torch.bfloat16} and scan.state[
        0
    ].dtype == torch.float32
    for grad in gradients([fused.mean, correlated.mean, scan.mean], [nu, noise, *factors]):
        assert grad is not None and grad.dtype == torch.float64 and grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_float64_alone(backend: str) -> None:
    z, *weights = (t.detach() for t in CALLS["refine"].make())
    expected = ief_kernels.refine(z.float(), *weights, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = ief_kernels.refine(z.float(), *weights, backend=backend)
        half = ief_kernels.refine(z.half(), *(weight.float() for weight in weights), backend=backend)
    assert got.dtype == torch.float64 and torch.equal(got, expected)
    assert half.dtype == torch.float16


def test_autocast_rounds_no_gradient_of_a_weight() -> None:
    """Weights stay float32 under autocast where z is in its dtype already: their gradients are sums in float32."""
    z, *weights = (t.detach() for t in CALLS["refine"].make())
    leaves = [weight.float().requires_grad_() for weight in weights]
    with torch.autocast("cpu", torch.bfloat16):
        got = ief_kernels.refine(z.to(torch.bfloat16), *leaves, backend="native")
    grad = gradients([got], [leaves[3]], rounded=torch.bfloat16)[0]  # of b2: a sum over rows, not a bfloat16 product
    assert grad is not None and not torch.equal(grad, grad.to(torch.bfloat16).float())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_mixed_dtypes_compile_as_one_graph(backend: str, name: str) -> None:
    call = CALLS[name]
    mixed = mixtures(call, torch.float32, torch.float64)[0]
    torch.compiler.reset()
    compiled = torch.compile(lambda *t: call.run(list(t), backend), fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(*mixed), call.run(mixed, backend), strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want)


# Devices.

Arguments = dict[str, Any]


def arguments_of(op: str) -> Arguments:
    """Every tensor argument of an operator by its name, the first first."""
    if op == "event_synthesis":
        return {"frames": torch.rand(2, 3, 4, 5) * 255, "carry": torch.rand(2, 4, 5) * 255}
    if op == "refine":
        return dict(zip(("z", "w1", "b1", "w2", "b2"), CALLS["refine"].make(), strict=True))
    if op == "kalman_scan":
        x, var, s, p = CALLS["carried scan"].make()
        extra = {"lengths": torch.tensor([3, 1]), "process_noise": torch.rand(5), "nu": torch.full((1,), 4.0)}
        return {"x": x, "var": var, "initial_state[0]": s, "initial_state[1]": p, **extra}
    names = ("mu_img", "logvar_img", "mu_evt", "logvar_evt")
    found: Arguments = dict(zip(names, CALLS["precision_fusion"].make(), strict=True))
    if op == "low_rank_fusion":
        found |= {"factor_img": torch.rand(5, 2), "factor_evt": torch.rand(5, 2)}
    if op != "precision_fusion":
        found["lengths"] = torch.tensor([3, 1])
    return {**found, "nu[0]": torch.full((5,), 4.0), "nu[1]": torch.full((5,), 4.0)}


def call_with(op: str, arguments: Arguments, backend: str = "auto") -> list[Tensor]:
    """Outputs of the operator; `a[0]` and `a[1]` are the two parts of one argument."""
    keywords: Arguments = {}
    for name, value in arguments.items():
        part = re.fullmatch(r"(\w+)\[\d\]", name)
        if part:
            keywords[part[1]] = (*keywords.get(part[1], ()), value)
        else:
            keywords[name] = value
    found = getattr(ief_kernels, op)(**keywords, backend=backend)
    return flat(found)


def flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [tensor for part in found for tensor in flat(part)]


OPERATORS = dispatch.operators()
EVERY_ARGUMENT = [(op, name) for op in OPERATORS for name in arguments_of(op)]
ALL_BACKENDS = ("auto", *BACKENDS)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize(("op", "name"), EVERY_ARGUMENT)
def test_a_tensor_elsewhere_is_refused_by_name(op: str, name: str, backend: str) -> None:
    arguments = arguments_of(op)
    first = next(iter(arguments))
    arguments[name] = arguments[name].to("meta")
    if name == first:
        second = list(arguments)[1]
        says = f"{second} is on cpu, but {first} is on meta"
    else:
        says = f"{name} is on meta, but {first} is on cpu"
    with pytest.raises(ValueError, match=re.escape(says)):
        call_with(op, arguments, backend)


@pytest.mark.parametrize("op", OPERATORS)
def test_meta_tensors_give_shapes(op: str) -> None:
    arguments = arguments_of(op)
    want = call_with(op, arguments)
    meta = {name: value.to("meta") for name, value in arguments.items()}
    for backend in ("auto", "reference"):
        got = call_with(op, meta, backend)
        assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in want]
        assert {t.device.type for t in got} == {"meta"}
    assert f"{op} on meta, {want[0].dtype}: auto takes reference" in explain(op, *list(meta.values())[:2])
    with pytest.raises(BackendUnavailable, match="meta"):
        call_with(op, meta, "native")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("op", [op for op in OPERATORS if "lengths" in arguments_of(op)])
def test_lengths_may_be_on_the_cpu(op: str, device: str) -> None:
    arguments = {name: value if name == "lengths" else value.to(device) for name, value in arguments_of(op).items()}
    assert call_with(op, arguments)[0].device.type == device


def test_scalars_may_be_on_the_cpu() -> None:
    """A tensor without dimensions is moved from the CPU to the tensors' device, and from nowhere else."""
    four = torch.tensor(4.0)
    here = CALLS["precision_fusion"].make()
    fusion = [t.to("meta") for t in here]
    x, var = (t.to("meta") for t in CALLS["scan"].make())
    assert ief_kernels.precision_fusion(*fusion, nu=four).mean.is_meta
    factors = torch.ones(2, 5, 1, device="meta")
    assert ief_kernels.low_rank_fusion(*fusion, *factors, nu=four).mean.is_meta
    assert ief_kernels.kalman_scan(x, var, nu=four, process_noise=four).mean.is_meta
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("nu is on meta, but mu_img", lambda: ief_kernels.precision_fusion(*here, nu=four.to("meta"))),
        ("nu is on meta, but x", lambda: ief_kernels.kalman_scan(*CALLS["scan"].make(), nu=four.to("meta"))),
        (
            "process_noise is on meta, but x",
            lambda: ief_kernels.kalman_scan(*CALLS["scan"].make(), process_noise=four.to("meta")),
        ),
        ("nu is on cpu, but x", lambda: ief_kernels.kalman_scan(x, var, nu=four.reshape(1))),
    ]
    for says, call in refused:
        with pytest.raises(ValueError, match=says):
            call()
