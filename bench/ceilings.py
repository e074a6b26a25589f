"""What the machine can do: a large copy and a large matrix product, measured in the same run as the operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.timing import Stopwatch, quartiles
from ief_kernels import _products


def gemm_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """What matrix products are measured in: bfloat16 where the device has instructions for it, and float32."""
    if device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16, torch.float32
    return (torch.float32,)


def copy_rate(device: torch.device, *, megabytes: int, repeats: int = 9) -> float:
    """Bytes per second of a copy between two buffers of `megabytes` each, reads and writes counted.

    On the CPU torch copies with all its threads; the pages of both buffers are there before the clock starts.
    """
    source = torch.rand(megabytes * (1 << 18), device=device)
    target = torch.ones_like(source)
    watch = Stopwatch(device)
    samples = []
    for _ in range(repeats):
        watch.start()
        target.copy_(source)
        watch.mark()
        samples += watch.seconds()
    return 2 * source.numel() * source.element_size() / quartiles(samples[1:])[1]


def gemm_rate(device: torch.device, dtype: torch.dtype, *, size: int, repeats: int = 9) -> float:
    """Operations per second of a size³ matrix product on random data, two for each multiply-add.

    By the faster of the libraries that torch has for it.
    """
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    ways: list[Callable[[], Tensor]] = [lambda: torch.mm(a, b, out=out)]
    if _products.served(a, b):
        ways.append(lambda: _products.product(a, b))
    watch = Stopwatch(device)
    medians = []
    for way in ways:
        samples = []
        for _ in range(repeats):
            watch.start()
            way()
            watch.mark()
            samples += watch.seconds()
        medians.append(quartiles(samples[1:])[1])
    return 2 * size**3 / min(medians)


class Ceilings:
    """Rates of one device, measured several times during a run.

    Attributes:
        samples: by name, in the order measured: "copy" in bytes/s, and "gemm_<dtype>" in operations/s for the dtypes
            the device is measured in.
    """

    def __init__(self, device: torch.device, *, quick: bool = False, needed: set[str] | None = None) -> None:
        """Measure nothing yet; later those that are `needed`, or all for None."""
        self.device = device
        self.needed = needed
        self.quick = quick
        self.samples: dict[str, list[float]] = {}

    def measure(self) -> None:
        """Adds one sample (a median of several runs) to each rate; about a second on two cores."""
        cuda = self.device.type == "cuda"
        repeats = 4 if self.quick else 9
        if self.needed is None or "copy" in self.needed:
            self._add("copy", copy_rate(self.device, megabytes=2048 if cuda else 256, repeats=repeats))
        for dtype in gemm_dtypes(self.device):
            if self.needed is not None and f"gemm_{dtype_name(dtype)}" not in self.needed:
                continue
            size = 8192 if cuda else 1024 if self.quick else 2048
            self._add(f"gemm_{dtype_name(dtype)}", gemm_rate(self.device, dtype, size=size, repeats=repeats))

    def _add(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)

    def best(self) -> dict[str, float]:
        """The highest sample of each rate."""
        return {name: max(values) for name, values in self.samples.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """Such as ``float32``."""
    return str(dtype).removeprefix("torch.")
