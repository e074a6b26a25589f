"""What the Triton kernels share: availability, launch options, and the choice among a few configurations.

Nothing here imports triton before a kernel runs. Environment variables, read when this module is imported:

    TRITON_INTERPRET=1       kernels run in triton's interpreter and take CPU tensors (for tests; triton's own variable)
    IEF_KERNELS_CACHE=DIR    where measured choices are kept; default: ief_kernels/ in $XDG_CACHE_HOME or ~/.cache
    IEF_KERNELS_TUNE=0       measure nothing: every kernel runs in its first configuration
    IEF_KERNELS_QUIET=1      no line on stderr about compilations that take long
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _measure, _spills
from .dispatch import Check, Facts

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
TUNE = os.environ.get("IEF_KERNELS_TUNE") != "0"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# Fused multiply-add, always passed: triton's default for it changes between versions.
FP_FUSION = True
_FOUND = importlib.util.find_spec("triton") is not None
# Whether all programs of a launch can be made resident at once, so that they may wait for each other: triton 3.3 can.
COOPERATIVE = [int(part) for part in _spills.version().split(".") if part.isdigit()] >= [3, 3]


def _missing_compiler() -> str:
    """Return why triton cannot compile its launchers, or an empty string if it can.

    Triton takes $CC as one word, else gcc, else clang.
    """
    named = os.environ.get("CC")
    if named is not None:
        return (
            "" if shutil.which(named) else f"the C compiler that CC names ({named}) is not found; correct or unset CC"
        )
    if shutil.which("gcc") or shutil.which("clang"):
        return ""
    return "triton finds no C compiler for its launcher; install gcc or clang, or set CC"


_COMPILER_REASON = _missing_compiler()


def triton_check(dtypes: tuple[torch.dtype, ...] = FLOATS) -> Check:
    """Return the usual check of a Triton kernel.

    Triton must be installed, with a C compiler for its launchers. The tensors must lie on an NVIDIA GPU of compute
    capability 8.0 or later, and the dtype must be among `dtypes`. The interpreter takes CPU tensors instead, except
    bfloat16, which it gets wrong.
    """

    def check(device: torch.device, dtype: torch.dtype, facts: Facts) -> str | None:
        if not _FOUND:
            return "triton is not installed"
        if dtype not in dtypes:
            return f"its kernel does not take {dtype}"
        if INTERPRET:
            if dtype == torch.bfloat16:
                return "triton's interpreter (TRITON_INTERPRET=1) gets bfloat16 wrong"
            return None if device.type == "cpu" else "TRITON_INTERPRET=1 is set, which is for CPU tensors"
        if device.type != "cuda":
            return f"its kernel runs on a CUDA device, and the tensors are on {device.type}"
        if torch.version.hip is not None:
            return "its kernel has not been tried on ROCm"
        if _major(device) < 8:
            return "its kernel needs a GPU of compute capability 8.0 or later"
        if _COMPILER_REASON:
            return _COMPILER_REASON
        return None

    return check


_majors: dict[int, int] = {}


def _major(device: torch.device) -> int:
    """Major compute capability. torch takes some 5 µs to look it up, so it is kept."""
    if device.index is None or torch.compiler.is_compiling():
        return torch.cuda.get_device_properties(device).major  # a constant to torch.compile, unlike a dictionary
    if device.index not in _majors:
        _majors[device.index] = torch.cuda.get_device_properties(device).major
    return _majors[device.index]


@dataclass(frozen=True)
class Config:
    """One way to compile a kernel.

    Attributes:
        meta: its tl.constexpr arguments that may be chosen.
        num_warps: warps per program, as triton's launch option.
        num_stages: stages of triton's software pipelining.
    """

    meta: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 1

    @functools.cached_property
    def name(self) -> str:
        """The configuration as one word, such as ``BLOCK=128,warps=4,stages=1``."""
        shown = [f"{name}={value}" for name, value in self.meta.items()]
        return ",".join([*shown, f"warps={self.num_warps}", f"stages={self.num_stages}"])

    @functools.cached_property
    def _options(self) -> Mapping[str, Any]:
        launch = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": FP_FUSION}
        return {**self.meta, **launch}

    def options(self) -> Mapping[str, Any]:
        """Return the keyword arguments of ``kernel[grid](...)``, ``meta`` included."""
        return self._options


_NO_GUARD = nullcontext()


def device_guard(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU the current one, so that a kernel launches on it and not on the first."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _NO_GUARD
    return torch.cuda.device(tensor.device)


def cache_folder() -> Path:
    """Return the folder where measured choices are kept, one JSON file per kind of GPU."""
    named = os.environ.get("IEF_KERNELS_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ief_kernels"


class Forced:
    """What `forced` makes every tuner take.

    Attributes:
        index: of the configuration.
        largest: the largest number of configurations of a tuner that has launched since.
    """

    def __init__(self, index: int) -> None:
        self.index, self.largest = index, 0

    def of(self, count: int) -> int:
        """Return the index for a tuner with so many configurations."""
        self.largest = max(self.largest, count)
        return min(self.index, count - 1)


_forced: Forced | None = None


@contextmanager
def forced(index: int) -> Iterator[Forced]:
    """Make every `Tuner` take configuration ``index``, or its last if it has fewer (for tests)."""
    global _forced
    before, _forced = _forced, Forced(index)
    try:
        yield _forced
    finally:
        _forced = before


_compile_only = False


@contextmanager
def compile_only() -> Iterator[None]:
    """Make every `Tuner` compile all its configurations, run the first and measure nothing."""
    global _compile_only
    before, _compile_only = _compile_only, True
    try:
        yield
    finally:
        _compile_only = before


class Tuner:
    """Chooses among a kernel's configurations by measuring each once per kind of GPU, key and size.

    Configurations that are recorded as spilling registers on the GPU, with the triton in use, do not take part
    (`_spills`), unless all are. One that gives other results than the first never takes part again (`_measure`).

    Args:
        name: of the kernel; part of the key.
        configs: the first serves calls too small to measure, CUDA-graph capture before any measurement, and the
            interpreter.
    """

    def __init__(self, name: str, configs: Sequence[Config]) -> None:
        self.name = name
        self.configs = tuple(configs)
        described = json.dumps([[sorted(c.meta.items()), c.num_warps, c.num_stages] for c in self.configs])
        self._version = hashlib.sha256(described.encode()).hexdigest()[:12]
        self._chosen: dict[tuple[int, Hashable, int], int] = {}
        self._compiled: set[tuple[int, Hashable]] = set()
        self._usable: dict[int, tuple[int, ...]] = {}

    def launch(
        self,
        tensor: Tensor,
        key: tuple[Hashable, ...],
        run: Callable[[Config], None],
        worth: bool = True,
        *,
        rows: int = 0,
        outputs: Sequence[Tensor | None] = (),
        compared: Callable[[Config], Sequence[Tensor]] | None = None,
    ) -> Config:
        """Run the kernel on the tensor's device in the best configuration.

        Args:
            tensor: any of the kernel's tensors; decides the device.
            key: what the choice may depend on, such as dtypes and D, but never B or T.
            run: launches the kernel once. Measuring calls it repeatedly, so it may only overwrite its outputs.
            worth: False for a call too small to tell configurations apart. It always takes the first, so that what a
                call computes does not depend on the calls before it.
            rows: size of the call, such as B·T. The choice may depend on its power of two.
            outputs: every tensor that `run` writes.
            compared: ``compared(config)`` returns what must be the same in every configuration, after a run in
                ``config``; the default is `outputs`. Where the layout of partial sums depends on the configuration,
                it returns their totals.

        Returns:
            The configuration that ran.

        Raises:
            RuntimeError: the GPU has no room for any configuration.
        """
        with device_guard(tensor):
            written = [output for output in outputs if output is not None]
            config = self.configs[self._index(tensor, key, run, worth, rows, written, compared)]
            run(config)
        return config

    def usable(self, major: int) -> tuple[int, ...]:
        """Return the indices of the configurations that take part on a GPU of this major compute capability."""
        spilling = _spills.spilling(self.name, major, tuple(config.name for config in self.configs))
        kept = tuple(index for index, config in enumerate(self.configs) if config.name not in spilling)
        return kept or tuple(range(len(self.configs)))

    def _usable_on(self, device: torch.device) -> tuple[int, ...]:
        at = device.index
        if at not in self._usable:
            wrong = _read(_device_name(device)).get(self._entry("wrong"), [])
            names = wrong if isinstance(wrong, list) else []
            everything = tuple(range(len(self.configs)))
            recorded = torch.version.hip is None
            usable = self.usable(torch.cuda.get_device_capability(device)[0]) if recorded else everything
            # the first is never recorded as wrong: the others are compared with it
            self._usable[at] = tuple(i for i in usable if self.configs[i].name not in names) or usable[:1]
        return self._usable[at]

    def _entry(self, what: str) -> str:
        """Key in the file of choices; another torch or triton may compile other code, so it measures anew."""
        return f"{self.name} {self._version} torch {torch.__version__} triton {_spills.full_version()} {what}"

    def _index(
        self,
        tensor: Tensor,
        key: tuple[Hashable, ...],
        run: Callable[[Config], None],
        worth: bool,
        rows: int,
        outputs: Sequence[Tensor],
        compared: Callable[[Config], Sequence[Tensor]] | None,
    ) -> int:
        if _forced is not None:
            return _forced.of(len(self.configs))
        if not _measurable(tensor) or len(self.configs) == 1:
            return 0
        device, at = tensor.device, (tensor.device.index, key, _bucket(rows))
        usable = self._usable_on(device)
        if not worth or not TUNE or len(usable) == 1:
            return usable[0]
        if at in self._chosen:
            return self._chosen[at]
        name = _device_name(device)
        entry = self._entry(f"{key!r} 2^{_bucket(rows)}")
        known = _read(name).get(entry)
        if isinstance(known, int) and known in usable:
            self._chosen[at] = known
            return known
        if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            return usable[0]
        task = _measure.Task(
            self.name, self.configs, run, outputs, compared or (lambda config: outputs), device, _shown_name(device)
        )
        if not _compile_only:
            return self._measured(task, at, usable, entry)
        if at[:2] not in self._compiled:
            _measure.compile_all(task, usable)
            self._compiled.add(at[:2])
        return usable[0]

    def _measured(self, task: _measure.Task, at: tuple[int, Hashable, int], usable: tuple[int, ...], entry: str) -> int:
        """Measure, keep the choice and what is wrong, and return the choice."""
        try:
            found = _measure.measure(task, usable)
        except torch.OutOfMemoryError:
            warnings.warn(
                f"too little GPU memory is free to measure the configurations of {self.name}; the first is used. "
                "Run `python -m ief_kernels.warmup` for these shapes before training",
                RuntimeWarning,
                stacklevel=4,
            )
            self._chosen[at] = usable[0]
            return usable[0]
        self._chosen[at] = found.best
        times = {self.configs[index].name: round(1e6 * seconds, 1) for index, seconds in found.seconds.items()}
        kept: dict[str, Any] = {entry: found.best, f"{entry}, microseconds": times}
        name = _device_name(task.device)
        left_out = (*found.wrong, *found.failed)
        if left_out:
            self._usable[at[0]] = tuple(index for index in usable if index not in left_out)
            # choices of other keys and sizes may be the wrong one
            self._chosen = {a: i for a, i in self._chosen.items() if a[0] != at[0] or i not in left_out}
        if found.wrong:
            before = _read(name).get(self._entry("wrong"), [])
            names = {*(before if isinstance(before, list) else []), *(self.configs[i].name for i in found.wrong)}
            kept[self._entry("wrong")] = sorted(names)
        _write(name, kept)
        return found.best


def _measurable(tensor: Tensor) -> bool:
    return tensor.is_cuda and not INTERPRET


def _bucket(rows: int) -> int:
    """The power of two next to the number of rows."""
    return round(math.log2(max(rows, 1)))


def _shown_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def _device_name(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    name = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name(device))
    return f"{name}-{major}.{minor}"


def _read(device: str) -> dict[str, Any]:
    try:
        found = json.loads((cache_folder() / f"{device}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # not there yet, or damaged: it is measured again
    return found if isinstance(found, dict) else {}


def _write(device: str, entries: Mapping[str, Any]) -> None:
    """Add entries to the file; where the folder cannot be written, the choice lasts as long as the process."""
    temporary = None
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**_read(device), **entries}, indent=1, sort_keys=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False, encoding="utf-8") as file:
            temporary = file.name
            file.write(text)
        os.replace(temporary, folder / f"{device}.json")
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
