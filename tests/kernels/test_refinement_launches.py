"""How many kernels refinement launches on a GPU: counted without one, by launchers and operators that only count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ief_kernels.refinement import library_products
from ief_kernels.refinement import triton_launch as host
from ief_kernels.refinement import triton_products as products

STEPS, DIM = 10, 32
_VIEWS = (
    "view",
    "slice",
    "select",
    "squeeze",
    "unsqueeze",
    "t.",
    "expand",
    "empty",
    "alias",
    "detach",
    "permute",
    "transpose",
)


class Launches(TorchDispatchMode):
    """Counts the operators that launch a kernel, and the Triton kernels that `kernel` stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().removeprefix("aten::")
        if not any(name.startswith(prefix) or f"_{prefix}" in name for prefix in _VIEWS) and name != "t":
            self.names.append(name)
        return function(*args, **(kwargs or {}))

    def kernel(self, name: str) -> Any:
        """Return a kernel that is launched as Triton's are."""

        class Kernel:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                assert all(size > 0 for size in grid)
                return lambda **arguments: launches.names.append(name)

        launches = self
        return Kernel()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    found = Launches()
    names = ("product", "weight_gradient", "add_parts", "all_steps")
    kernels = SimpleNamespace(**{name: found.kernel(name) for name in names})
    monkeypatch.setattr(products, "kernels", lambda: kernels)
    monkeypatch.setattr(host, "team_size", lambda *arguments: 4)
    return found


def count(
    module: Any, tokens: int, launches: Launches, *, blocks: int = STEPS, dtype: torch.dtype, every: int = 1
) -> int:
    """Launches of a forward and a backward pass."""
    z = torch.randn(tokens, DIM, dtype=dtype)
    weights = tuple(torch.randn(blocks, *shape, dtype=dtype) for shape in ((DIM, DIM), (DIM,), (DIM, DIM), (DIM,)))
    with torch.no_grad(), launches:
        _, saved = module.forward(z, weights, 0.5, STEPS, every, dtype)
        module.backward(z, z, saved, weights, 0.5, STEPS, every, dtype, True)
    return len(launches.names)


# Forward: one launch and the fill of its counters, or two per step. Backward: per group of steps the hidden layers, two
# weight gradients and the sum of their parts, and two products per step; the first step is a group of its own. Three
# more: the gradient's copy and its sum, and the room for that. A shared block's results are converted at the end.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("blocks", [STEPS, 1])
@pytest.mark.parametrize(("tokens", "one"), [(128, True), (512, False), (2048, False)])
def test_few_tokens_need_few_launches(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, tokens: int, one: bool, blocks: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(host, "FEW_TOKENS", 256)
    monkeypatch.setattr(host, "LIBRARY_TOKENS", 10**9)
    found = count(host, tokens, launches, blocks=blocks, dtype=dtype)
    forward, backward = 2 if one else 2 * STEPS, 2 * (1 + 2 + 1) + 2 * STEPS + 3
    converted = 4 if blocks == 1 and dtype == torch.bfloat16 else 0
    assert found == forward + backward + converted, launches.names
    assert found <= 60


def test_many_tokens_keep_little(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the budget each step is a group: then products take longer than launches, and memory counts."""
    monkeypatch.setattr(host, "GROUP_BYTES", 0)
    monkeypatch.setattr(host, "LIBRARY_TOKENS", 10**9)
    assert count(host, 512, launches, dtype=torch.bfloat16) == 2 * STEPS + 6 * STEPS + 3, launches.names


def test_another_batch_compiles_nothing() -> None:
    """What changes with the batch is not specialised. Widths are, or loads would not be 16 bytes wide."""
    pytest.importorskip("triton")
    from ief_kernels.refinement import triton_kernels as kernels

    fixed = {"width", "depth", "height", "dim", "size", "scale"}
    for kernel in (kernels.product, kernels.weight_gradient, kernels.add_parts, kernels.all_steps):
        pointers = set(kernel.arg_names[: kernel.arg_names.index("rows" if "rows" in kernel.arg_names else "count_b")])
        numbers = {p.name: p.do_not_specialize for p in kernel.params if not p.is_constexpr and p.name not in pointers}
        assert all(free == (name not in fixed) for name, free in numbers.items()), kernel
        assert {"width", "dim"} & set(numbers)


def test_the_library(launches: Launches) -> None:
    # Forward: the offsets; per step hidden layer, difference, product. Backward: the gradient's copy and sum; per step
    # four products, the gate, one sum and the step itself; then ten for the gradients of the biases.
    library_products._works(library_products._fused_relu, torch.device("cpu"), torch.float32)  # looks once
    found = count(library_products, 512, launches, dtype=torch.float32)
    assert found == (1 + 3 * STEPS) + (2 + 7 * STEPS + 10), launches.names


def test_the_library_without_gradients(launches: Launches) -> None:
    z, weights = torch.randn(512, DIM), [torch.randn(STEPS, *s) for s in ((DIM, DIM), (DIM,), (DIM, DIM), (DIM,))]
    library_products._works(library_products._fused_relu, torch.device("cpu"), torch.float32)
    with torch.no_grad(), launches:
        library_products.forward(z, tuple(weights), 0.5, STEPS, STEPS, torch.float32)  # type: ignore[arg-type]
    assert len(launches.names) <= 2 * STEPS + 9, launches.names
