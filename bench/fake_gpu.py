"""A GPU that compiles for real and runs nothing: Triton's driver, replaced.

With it the package's own host code (checks, autograd Functions, tuners, launches) takes CPU tensors through Triton's
real just-in-time compiler, specialisation and ptxas included, for any compute capability. Launches are recorded instead
of run, so outputs contain garbage: this shows whether and how kernels compile and launch, never what they compute.

One process serves one compute capability. It must import this module before anything of ``ief_kernels`` has run, and
``TRITON_INTERPRET`` must be unset; `child` starts such a process::

    # in the child: python -c "..." or a module of its own
    from bench.fake_gpu import FakeGPU
    gpu = FakeGPU(90)
    x = torch.randn(2, 64, 768, requires_grad=True)
    with gpu.watch() as seen:
        ief_kernels.kalman_scan(x, torch.rand_like(x), backend="triton").mean.sum().backward()
    print(len(seen.launches), len(seen.compilations), [launch.kernel for launch in seen.launches])

Works with triton 3.2 to 3.8. Another version than the installed one comes in as a folder that contains the unpacked
wheel, first on the child's path (``child(..., triton=folder)``)::

    pip download triton==3.3.1 --no-deps && python -m zipfile -e triton-3.3.1-*.whl triton-3.3.1
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from bench.static import SHARED_LIMIT, config_word, element_type, resource, tool

PROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
"""Multiprocessors of the largest card of each compute capability that is sold; the number of programs follows it."""


class Usage(NamedTuple):
    """What the machine code of one kernel needs.

    Attributes:
        registers: per thread.
        stack: bytes per thread.
        spills: number of instructions on thread-local memory.
    """

    registers: int
    stack: int
    spills: int


@dataclass(frozen=True, eq=False)
class Compilation:
    """One compilation by the just-in-time compiler, or one load from its cache on disk.

    Attributes:
        kernel: name of the `@triton.jit` function.
        signature: argument name → type such as "*fp32" or "i32"; "constexpr" for constants.
        constexprs: arguments that the kernel declares `tl.constexpr`, by name; not those that are 1 or None in a call.
        warps, stages: launch options.
        shared: bytes of shared memory per program.
        seconds: how long it took.
        cubin: the machine code.
    """

    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    warps: int
    stages: int
    shared: int
    seconds: float
    cubin: bytes = field(repr=False)

    @property
    def dtype(self) -> str:
        """Element type of the first floating-point pointer, or of the first pointer, as `StaticCase.dtype`."""
        return element_type(self.signature)

    @property
    def config(self) -> str:
        """The constexprs and launch options as one word, as `StaticCase.config`."""
        return config_word(self.constexprs, self.warps, self.stages)

    def usage(self) -> Usage:
        """Read registers, stack and spills from the machine code, with the tools that triton brings along."""
        with tempfile.TemporaryDirectory() as folder:
            binary = Path(folder) / "kernel.cubin"
            binary.write_bytes(self.cubin)
            text = tool("cuobjdump", "--dump-resource-usage", str(binary))
            registers, stack = (resource(text, name) for name in ("REG", "STACK"))
            # Without a stack there is no thread-local memory to spill to.
            spills = len(re.findall(r"\b(?:STL|LDL)\b", tool("nvdisasm", "-c", str(binary)))) if stack else 0
        return Usage(registers, stack, spills)


class Launch(NamedTuple):
    """One launch that was recorded instead of run.

    Attributes:
        kernel: name of the `@triton.jit` function.
        grid: number of programs in three dimensions.
        warps: per program.
        shared: bytes of shared memory per program.
        cooperative: whether all programs must be resident at once.
    """

    kernel: str
    grid: tuple[int, int, int]
    warps: int
    shared: int
    cooperative: bool


@dataclass
class Seen:
    """What happened while `FakeGPU.watch` was active, in order."""

    launches: list[Launch] = field(default_factory=list)
    compilations: list[Compilation] = field(default_factory=list)


class FakeGPU:
    """Makes this process believe in one GPU of a compute capability, for CPU tensors.

    Triton's driver is replaced, the backend "triton" takes CPU tensors as if they were on ``cuda:0``, and
    ``torch.cuda`` answers questions about the card. There is no way back: use a process of its own.

    Args:
        arch: compute capability times ten, one of `PROCESSORS`.

    Raises:
        RuntimeError: TRITON_INTERPRET is set.
    """

    def __init__(self, arch: int) -> None:
        if os.environ.get("TRITON_INTERPRET") == "1":
            raise RuntimeError("TRITON_INTERPRET=1 is set, so that nothing would be compiled; unset it")
        self.arch = arch
        self._watching: list[Seen] = []
        self._replace_driver()
        self._record_compilations()
        self._answer_for_torch()
        self._take_cpu_tensors()

    @contextmanager
    def watch(self) -> Iterator[Seen]:
        """Record launches and compilations until the block ends; blocks may be nested."""
        seen = Seen()
        self._watching.append(seen)
        try:
            yield seen
        finally:
            self._watching.remove(seen)

    def _launched(self, metadata: Any, grid: tuple[int, int, int]) -> None:
        cooperative = bool(getattr(metadata, "launch_cooperative_grid", False))
        launch = Launch(metadata.name, grid, metadata.num_warps, metadata.shared, cooperative)
        for seen in self._watching:
            seen.launches.append(launch)

    def _replace_driver(self) -> None:
        import torch
        import triton
        from triton.backends.compiler import GPUTarget

        gpu, shared, processors = self, SHARED_LIMIT[self.arch], PROCESSORS[self.arch]
        compiler = importlib.import_module("triton.compiler.compiler")
        # How many values a loaded kernel has depends on the version: a fifth is the largest number of threads.
        loaded = (1, 2, 32, 0, 1024) if "n_max_threads" in inspect.getsource(compiler) else (1, 2, 32, 0)

        class Utils:
            def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
                return loaded

            def unload_module(self, module: int) -> None:
                pass

            def get_device_properties(self, device: int) -> dict[str, int]:
                return {
                    "max_shared_mem": shared,
                    "multiprocessor_count": processors,
                    "max_num_regs": 65536,
                    "warpSize": 32,
                }

        class Launcher:
            def __init__(self, source: Any, metadata: Any) -> None:
                self.metadata = metadata

            def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
                gpu._launched(self.metadata, (x, y, z))

        class Driver:
            utils, launcher_cls, binary_ext = Utils(), Launcher, "cubin"

            def get_current_device(self) -> int:
                return 0

            def set_current_device(self, device: int) -> None:
                pass

            def get_current_stream(self, device: int) -> int:
                return 0

            def get_device_capability(self, device: int = 0) -> tuple[int, int]:
                return divmod(gpu.arch, 10)

            def get_current_target(self) -> Any:
                return GPUTarget("cuda", gpu.arch, 32)

            def get_active_torch_device(self) -> torch.device:
                return torch.device("cpu")

            def get_device_interface(self) -> Any:
                return torch.cuda

        triton.runtime.driver.set_active(Driver())

    def _record_compilations(self) -> None:
        import triton

        compiler, jit = (importlib.import_module(f"triton.{name}") for name in ("compiler.compiler", "runtime.jit"))
        compile_kernel = compiler.compile

        def recorded(source: Any, *arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            compiled = compile_kernel(source, *arguments, **options)
            found = _compilation(source, compiled, time.perf_counter() - began)
            for seen in self._watching:
                seen.compilations.append(found)
            return compiled

        modules: tuple[Any, ...] = (compiler, triton.compiler, triton, jit)
        for module in modules:  # each version looks it up in another of them
            if getattr(module, "compile", None) is compile_kernel:
                module.compile = recorded

    def _answer_for_torch(self) -> None:
        import torch

        major, minor = divmod(self.arch, 10)
        properties = SimpleNamespace(
            name=f"no GPU, sm_{self.arch}",
            major=major,
            minor=minor,
            multi_processor_count=PROCESSORS[self.arch],
            total_memory=80 << 30,
            L2_cache_size=50 << 20,
            shared_memory_per_block_optin=SHARED_LIMIT[self.arch],
        )
        cuda: Any = torch.cuda
        cuda.get_device_properties = lambda device=None: properties
        cuda.get_device_capability = lambda device=None: (major, minor)
        cuda.get_device_name = lambda device=None: properties.name

    def _take_cpu_tensors(self) -> None:
        """The package's own checks stay, asked about a GPU; kernels recorded as spilling stay out."""
        import torch

        importlib.import_module("ief_kernels")
        dispatch, shared = (importlib.import_module(f"ief_kernels.{name}") for name in ("dispatch", "_triton"))

        def on_gpu(check: Any) -> Any:
            return lambda device, dtype, facts: check(torch.device("cuda", 0), dtype, facts)

        for checks in dispatch._checks.values():
            if "triton" in checks:
                checks["triton"] = on_gpu(checks["triton"])
        choose = shared.Tuner._index

        def index(tuner: Any, *arguments: Any, **keywords: Any) -> int:
            found: int = choose(tuner, *arguments, **keywords)
            return found if found or shared._forced is not None else tuner.usable(self.arch // 10)[0]

        shared.Tuner._index = index


def _compilation(source: Any, compiled: Any, seconds: float) -> Compilation:
    names = source.fn.arg_names

    def name(key: Any) -> str:
        return key if isinstance(key, str) else names[key[0] if isinstance(key, tuple) else key]

    constants = {name(key): value for key, value in source.constants.items()}
    declared = [parameter.name for parameter in source.fn.params if parameter.is_constexpr]
    metadata = compiled.metadata
    return Compilation(
        kernel=source.fn.__name__,
        signature={name(key): str(kind) for key, kind in source.signature.items()},
        constexprs={key: constants[key] for key in declared if key in constants},
        warps=metadata.num_warps,
        stages=metadata.num_stages,
        shared=metadata.shared,
        seconds=seconds,
        cubin=compiled.asm["cubin"],
    )


def child(
    arguments: Sequence[str],
    *,
    triton: Path | None = None,
    cache: Path | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` where a `FakeGPU` can be made, and capture its output.

    Args:
        arguments: such as ``["-c", code]`` or ``["-m", module]``. This checkout is on the path.
        triton: folder with an unpacked wheel of triton to use instead of the installed one.
        cache: folder for compiled kernels, to be used again by a later child; None: a temporary one.
        timeout: seconds.
    """
    path = [str(Path(__file__).resolve().parents[1])]
    if triton is not None:
        path.insert(0, str(triton))
        for tool in (triton / "triton" / "backends" / "nvidia" / "bin").glob("*"):  # zipfile drops the bit
            tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [*path, environment.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        environment["TRITON_CACHE_DIR"] = str(cache or Path(folder) / "triton")
        environment["IEF_KERNELS_CACHE"] = str(Path(folder) / "choices")
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=timeout
        )
