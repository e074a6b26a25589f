"""Meaningless arguments are refused by name, and registered operators refuse operands that do not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import ief_kernels
from ief_kernels import KalmanScan, LowRankFusion, PrecisionFusion, Refinement, dispatch, modules, reference
from ief_kernels.kalman_scan.paths import forced_path
from tests.helpers.kernel_checks import BACKENDS, needs_native
from tests.helpers.operands import SAME, breakages, calls

SIZES = (2, 3, 4)
NAN, INF = float("nan"), float("inf")
NO_NUMBERS: tuple[Any, ...] = (
    NAN,
    True,
    np.bool_(True),
    10**400,
    "1",
    None,
    [1.0],
    1j,
    torch.tensor([True]),
    torch.ones(2, 2, 2, 2),
)
NEGATIVE: tuple[Any, ...] = (-1, -3.0, -INF, np.float32(-2), torch.tensor(-5.0), torch.tensor(-5))
NOT_FINITE: tuple[Any, ...] = (INF, np.float64(NAN), np.float32(INF), torch.tensor(NAN), torch.tensor(INF))
FUNCTIONS: dict[str, Callable[[], list[Tensor]]] = {
    "kalman_scan": lambda: [torch.randn(SIZES), torch.rand(SIZES)],
    "precision_fusion": lambda: [torch.randn(SIZES) for _ in range(4)],
    "fusion_terms": lambda: [torch.randn(SIZES) for _ in range(4)],
    "fusion_and_terms": lambda: [torch.randn(SIZES) for _ in range(4)],
    "low_rank_fusion": lambda: [torch.randn(s) for s in (*[SIZES] * 4, (4, 2), (4, 2))],
    "low_rank_kl": lambda: [torch.randn(SIZES), torch.randn(4, 2)],
    "refine": lambda: [torch.randn(s) for s in (SIZES, (1, 5, 4), (1, 5), (1, 4, 5), (1, 4))],
    "event_synthesis": lambda: [255 * torch.rand(SIZES)],
}
BAD: dict[str, tuple[Any, ...]] = {
    "eps": (*NO_NUMBERS, *NEGATIVE, *NOT_FINITE),
    "process_noise": (
        *(v for v in NO_NUMBERS if not isinstance(v, Tensor)),
        *(*NEGATIVE, *NOT_FINITE, torch.tensor([True]), torch.tensor(True)),
    ),
    "nu": (
        *(v for v in NO_NUMBERS if v is not None and not isinstance(v, Tensor)),
        *(
            0,
            0.0,
            *NEGATIVE,
            torch.tensor(NAN),
            torch.tensor(0.0),
            torch.tensor([-3.0]),
            torch.tensor(True),
            torch.tensor(1j),
        ),
    ),
    "attenuation": (*NO_NUMBERS, *NOT_FINITE),
    "steps": (*(v for v in NO_NUMBERS if v is not None), -1, 1.5, 2**31, INF),
    "checkpoint_every": (*NO_NUMBERS, 0, -1, 1.5, 2**31),
    "threshold": (*NO_NUMBERS, *NEGATIVE, *NOT_FINITE),
    "clamp": (*NO_NUMBERS, 0, -1, 256, 1.5, INF, 10**30),
    "surrogate": (*(v for v in NO_NUMBERS if v is not None), 0, *NEGATIVE, *NOT_FINITE),
}
ARGUMENTS = {
    "kalman_scan": ("eps", "process_noise", "nu"),
    "precision_fusion": ("eps", "nu"),
    "fusion_terms": ("nu",),
    "fusion_and_terms": ("eps", "nu"),
    "low_rank_fusion": ("eps", "nu"),
    "low_rank_kl": ("nu",),
    "refine": ("attenuation", "steps", "checkpoint_every"),
    "event_synthesis": ("threshold", "clamp", "surrogate"),
}


@pytest.mark.parametrize("backend", [*BACKENDS, "ief_kernels.reference"])
@pytest.mark.parametrize(("op", "name"), [(op, name) for op, names in ARGUMENTS.items() for name in names])
def test_meaningless_numbers_are_refused_by_name(op: str, name: str, backend: str) -> None:
    tensors = FUNCTIONS[op]()
    function, keywords = getattr(ief_kernels, op), {"backend": backend}
    if backend == "ief_kernels.reference":
        if name == "checkpoint_every":
            pytest.skip("the reference keeps nothing")
        function, keywords = getattr(reference, op), {}
    if op == "low_rank_kl":
        keywords = {}
    for value in BAD[name]:
        error: type[Exception] = ValueError
        if op == "kalman_scan" and name != "eps" and isinstance(value, Tensor) and "backend" in keywords:
            error = ValueError if value.is_floating_point() else TypeError  # as all its tensors of another dtype
        with pytest.raises(error, match=name):
            function(*tensors, **{name: value}, **keywords)
            pytest.fail(f"{value!r} passed")


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_with_dimensions_are_checked_for_their_sign(backend: str) -> None:
    """Their NaN follows the rule of what is not finite, since they are learned."""
    scan, beliefs = FUNCTIONS["kalman_scan"](), FUNCTIONS["precision_fusion"]()
    with pytest.raises(ValueError, match=r"process_noise must not be negative.*-2"):
        ief_kernels.kalman_scan(*scan, process_noise=torch.tensor([0.0, 1.0, -2.0, NAN]), backend=backend)
    assert ief_kernels.kalman_scan(*scan, process_noise=torch.tensor([0.0, 1.0, NAN, INF]), backend=backend)
    for wrong in (torch.tensor([1.0, 2.0, -0.5, 3.0]), torch.full((2, 1, 1), -3.0), torch.zeros(1), torch.zeros(4)):
        for nu in (wrong, (8.0, wrong)):
            with pytest.raises(ValueError, match="nu"):
                ief_kernels.precision_fusion(*beliefs, nu=nu, backend=backend)
    assert ief_kernels.precision_fusion(*beliefs, nu=torch.tensor([NAN]), backend=backend).mean.isnan().all()
    for shape in ((5,), (3, 1, 4), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match="nu must broadcast"):
            ief_kernels.precision_fusion(*beliefs, nu=torch.ones(shape), backend=backend)
    with pytest.raises(ValueError, match="pair"):
        ief_kernels.precision_fusion(*beliefs, nu=(1.0, 2.0, 3.0), backend=backend)  # type: ignore[arg-type]


def test_numbers_of_other_types_are_taken() -> None:
    scan = FUNCTIONS["kalman_scan"]()
    want = ief_kernels.kalman_scan(*scan, process_noise=2.0, nu=4.0, eps=0.5)
    for kind in (np.float32, np.float64, Fraction, torch.tensor):
        got = ief_kernels.kalman_scan(*scan, process_noise=kind(2.0), nu=kind(4.0), eps=kind(0.5))
        assert all(torch.equal(a, b) for a, b in zip(got[:3], want[:3], strict=True))
    assert ief_kernels.kalman_scan(*scan, process_noise=2, nu=4, eps=0)
    assert ief_kernels.event_synthesis(255 * torch.rand(SIZES), clamp=np.int64(3), threshold=np.uint8(4)).shape == (
        3,
        4,
    )


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda v: PrecisionFusion(nu=v), "nu"),
        (lambda v: PrecisionFusion(eps=v), "eps"),
        (lambda v: PrecisionFusion(nu="learned", initial_nu=v), "initial_nu"),
        (lambda v: LowRankFusion(4, v), "rank"),
        (lambda v: LowRankFusion(v, 2), "dim"),
        (lambda v: KalmanScan(4, v), "process_noise"),
        (lambda v: KalmanScan(4, "learned", initial_gain=v), "gain"),
        (lambda v: KalmanScan(4, "learned", unit_variance=v), "variance"),
        (lambda v: KalmanScan(4, nu=v), "nu"),
        (lambda v: KalmanScan(4, eps=v), "eps"),
        (lambda v: KalmanScan(v), "dim"),
        (lambda v: Refinement(4, steps=v), "steps"),
        (lambda v: Refinement(4, checkpoint_every=v), "checkpoint_every"),
        (lambda v: Refinement(4, v), "hidden"),
        (lambda v: modules.steady_noise(0.5, v), "variance"),
        (lambda v: forced_path("chunks", v).__enter__(), "chunk"),
    ],
)
def test_modules_refuse_meaningless_numbers(make: Callable[[Any], Any], name: str) -> None:
    for value in (NAN, -1, -INF, True, 10**400, torch.tensor(-3.0), torch.tensor(NAN), [1]):
        with pytest.raises(ValueError, match=name):
            make(value)
            pytest.fail(f"{value!r} passed")


def test_a_learned_value_that_became_nan_is_no_error() -> None:
    """A training that diverges ends with its own message."""
    module = PrecisionFusion(nu="learned")
    assert module.raw_nu is not None
    torch.nn.init.constant_(module.raw_nu, NAN)
    assert module(*FUNCTIONS["precision_fusion"]()).mean.isnan().all()


def test_a_state_must_be_a_pair() -> None:
    for wrong in ((None, torch.rand(2, 4)), (torch.rand(2, 4),), torch.rand(2, 2, 4), 3):
        with pytest.raises(ValueError, match="initial_state"):
            ief_kernels.kalman_scan(*FUNCTIONS["kalman_scan"](), initial_state=wrong)  # type: ignore[arg-type]


def test_compiled_calls_check_too() -> None:
    x, var = FUNCTIONS["kalman_scan"]()
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(x: Tensor, var: Tensor, q: Tensor, nu: Tensor) -> Tensor:
        found = ief_kernels.kalman_scan(x, var, process_noise=q, nu=nu, eps=1e-6)
        fused = ief_kernels.precision_fusion(x, var, x, var, nu=(nu, 3), eps=0)
        return found.mean + fused.mean

    assert run(x, var, torch.rand(4), torch.tensor(4.0)).isfinite().all()
    if (
        "native" in BACKENDS
        and ief_kernels.dispatch.choose("kalman_scan", "auto", x.device, x.dtype).backend == "native"
    ):
        with pytest.raises(ValueError, match="process_noise must not be negative"):
            run(x, var, -torch.rand(4), torch.tensor(4.0))
        with pytest.raises(ValueError, match="nu must be positive"):
            run(x, var, torch.rand(4), torch.tensor(-3.0))


def test_nothing_is_read_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values on meta have no memory, and are not asked for."""
    x, var = (t.to("meta") for t in FUNCTIONS["kalman_scan"]())
    minus = torch.full((4,), -1.0, device="meta")
    assert ief_kernels.kalman_scan(x, var, process_noise=minus, nu=minus[0]).mean.is_meta
    with pytest.raises(ValueError, match="process_noise"):
        ief_kernels.kalman_scan(x, var, process_noise=torch.tensor(-1.0))


def test_debug_reads_values_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `debug` a parameter elsewhere is not touched; a stand-in for one on a GPU says so."""
    from ief_kernels import _arguments

    asked: list[str] = []

    class OnGPU(Tensor):
        """A tensor that says that it is on a GPU, and notes when its values are read."""

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            """A GPU."""
            return torch.device("cuda", 0)

        @property
        def is_cpu(self) -> bool:  # type: ignore[override]
            """It is not on the CPU."""
            return False

        def item(self) -> Any:
            """Note it."""
            asked.append("item")
            return super().item()

    monkeypatch.setattr(_arguments, "unwatched", lambda tensors: True)
    for check in (_arguments.process_noise, lambda v, debug: _arguments.degrees_of_freedom("nu", v, debug=debug)):
        for values in (torch.tensor(-3.0), torch.tensor([1.0, -3.0])):
            value = values.as_subclass(OnGPU)
            assert check(value, debug=False) is value and not asked
            with pytest.raises(ValueError, match=r"process_noise|nu"):
                check(value, debug=True)
            assert asked
            asked.clear()
    code = "import torch; from ief_kernels import _arguments; assert _arguments.DEBUG"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "IEF_KERNELS_DEBUG": "1"})


# Registered operators.


@needs_native
@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", calls())
def test_broken_operands_are_refused(op: str, dtype: torch.dtype, fake: bool) -> None:
    torch.manual_seed(0)
    arguments = calls(dtype)[op]
    operator = getattr(torch.ops.ief_kernels, op)
    operator(*arguments)
    for name, place, value in breakages(op, arguments):
        if fake and ("memory" in name or name in ("sparse", "on meta")):
            continue
        broken = [value if k == place else argument for k, argument in enumerate(arguments)]
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            if fake:
                with FakeTensorMode() as mode:
                    operator(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in broken))
            else:
                operator(*broken)
            pytest.fail(f"argument {place} {name} passed")


@needs_native
@pytest.mark.parametrize("op", calls())
def test_operands_may_lie_anywhere(op: str) -> None:
    torch.manual_seed(0)
    arguments = calls()[op]
    operator = getattr(torch.ops.ief_kernels, op)
    outputs = 5 if op == "kalman_scan_forward" else None  # kept states of padding are not written
    want = operator(*arguments)[:outputs]
    for name, move in SAME.items():
        moved = [move(a) if isinstance(a, Tensor) else a for a in arguments]
        for a, b in zip(want, operator(*moved)[:outputs], strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, msg=name)


@needs_native
def test_kernels_check_sizes_and_memory() -> None:
    """The extension takes addresses as numbers. What can be seen of them is looked at."""
    from ief_kernels import _native

    extension, none = _native.extension(), [0] * 7
    for shape in ((2, 3, 4), (-1, 3, 4), (2**40, 2**40, 2)):
        with pytest.raises(ValueError):
            extension.scan_forward("float32", none, shape, 0.0, 1e-8, 1e30, 1, none)
        with pytest.raises(ValueError):
            extension.fusion_forward("float32", none, shape, [1.0, 1.0], 1e-8, 80.0, 1, [0] * 5)
    with pytest.raises(ValueError, match="threads"):
        extension.scan_forward("float32", none, (0, 3, 4), 0.0, 1e-8, 1e30, 0, none)


def test_the_backends_of_an_operator_are_checked() -> None:
    with pytest.raises(dispatch.BackendUnavailable):
        torch.ops.ief_kernels.kalman_scan_forward(*calls()["kalman_scan_forward"][:-2], "triton", True)
