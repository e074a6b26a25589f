"""The CUDA kernel of event_synthesis without a GPU: run on the host against the reference; its machine code read."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ief_kernels import reference
from ief_kernels.event_synthesis.layout import normalise, packed_rows

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [
    (2, 5, 8, 32, 3),  # rows, frames and segments on 16-byte boundaries
    (3, 4, 5, 7, 3),  # none of them
    (2, 17, 3, 19, 3),
    (1, 3, 1, 1, 3),
    (2, 3, 40, 83, 3),
    (2, 6, 16, 16),  # luma
    (3, 4, 5, 7),
]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """ief_kernels._cuda compiled for the host."""
    pybind11 = pytest.importorskip("pybind11")
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("cuda_on_host")
    both = folder / "both.cpp"
    both.write_text('#include "cuda/event_synthesis.cu"\n#include "cuda/bindings.cpp"\n')
    target = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [Path(__file__).parent / "cuda_on_host", ROOT / "csrc", pybind11.get_include()]
    includes.append(sysconfig.get_paths()["include"])
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", '-DIEF_CUDA_ARCHITECTURES="host"', "-w"]
    command += [*(f"-I{path}" for path in includes), str(both), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    spec = importlib.util.spec_from_file_location("_cuda", target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(kernel: ModuleType, frames: Tensor, carry: Tensor | None, split: bool, normalize: str, clamp: int) -> Tensor:
    rgb = frames.dim() == 5
    pixels, last = packed_rows(frames, 1, rgb), None if carry is None else packed_rows(carry, 1, rgb)
    segments, _, height, width = pixels.shape[:4]
    dtype = torch.uint8 if normalize == "none" else torch.float32
    maps = torch.full((segments, *([2] if split else []), height, width), 77, dtype=dtype)
    peaks = torch.zeros(segments, dtype=torch.int32)
    kernel.event_synthesis_forward(
        frames=pixels.data_ptr(),
        strides=pixels.stride()[:3],
        carry=0 if last is None else last.data_ptr(),
        carry_strides=(0, 0) if last is None else last.stride()[:2],
        shape=tuple(pixels.shape),
        threshold=405_000,
        clamp=clamp,
        split=split,
        divisor=0.0 if normalize == "none" else float(clamp) if normalize == "clamp" else 1.0,
        maps=maps.data_ptr(),
        peaks=peaks.data_ptr() if normalize in ("segment", "batch") else 0,
        device=0,
        stream=0,
    )
    normalise(maps, peaks, clamp, normalize, split)
    return maps


def random_frames(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.uint8)


def shifted(frames: Tensor, offset: int) -> Tensor:
    """The same values `offset` bytes after a 16-byte boundary, between bytes that would change the result."""
    room = torch.full((frames.numel() + 96,), 170, dtype=torch.uint8)
    room[1::2] = 3
    start = -room.data_ptr() % 16 + 32 + offset
    room[start : start + frames.numel()] = frames.flatten()
    return room[start : start + frames.numel()].view(frames.shape)


def views(frames: Tensor) -> dict[str, Tensor]:
    result = {f"{offset} bytes off": shifted(frames, offset) for offset in (0, 1, 3, 4, 7, 8, 13, 15)}
    if frames.shape[2] > 3 and frames.shape[3] > 5:
        result["every second frame"] = frames[:, ::2]
        result["window"] = frames[:, :, 1:-1, 2:-1]
        result["rows"] = frames[:, :, ::2]
        result["mirrored"] = frames.flip(3)
    return result


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_on_the_host_equals_reference_bit_for_bit(kernel: ModuleType, shape: tuple[int, ...]) -> None:
    for name, frames in views(random_frames(*shape)).items():
        for normalize in ("clamp", "segment", "batch", "none"):
            for split in (False, True):
                for carry in (None, frames[:, -1]):
                    expected = reference.event_synthesis(
                        frames.contiguous(),
                        threshold=40.5,
                        clamp=3,
                        normalize=normalize,
                        polarity="split" if split else "merged",
                        carry=None if carry is None else carry.contiguous(),
                    )
                    actual = launch(kernel, frames, carry, split, normalize, 3)
                    assert torch.equal(actual, expected), (name, normalize, split, carry is not None)


@pytest.mark.parametrize("carried", [False, True])
def test_kernel_without_differences_writes_zeros(kernel: ModuleType, carried: bool) -> None:
    frames = random_frames(2, 1, 5, 7, 3)
    carry = 255 - frames[:, 0] if carried else None
    expected = reference.event_synthesis(frames, threshold=40.5, carry=carry)
    assert torch.equal(launch(kernel, frames, carry, False, "clamp", 10), expected)
    assert expected.any() == carried
    assert not launch(kernel, frames[:, :0], None, True, "clamp", 10).any()


def find_cuobjdump() -> str | None:
    spec = importlib.util.find_spec("triton")
    bundled = [] if spec is None or spec.origin is None else [str(Path(spec.origin).parent / "backends/nvidia/bin")]
    folders = [shutil.which("cuobjdump"), *(shutil.which("cuobjdump", path=folder) for folder in bundled)]
    return next((found for found in folders if found), None)


@pytest.fixture(scope="module")
def dump() -> Callable[..., str]:
    tool, spec = find_cuobjdump(), importlib.util.find_spec("ief_kernels._cuda")
    if spec is None or spec.origin is None:
        pytest.skip("the CUDA extension is not built (no nvcc)")
    if tool is None:
        pytest.skip("no cuobjdump")
    binary = spec.origin

    def run(*options: str) -> str:
        done = subprocess.run([tool, *options, binary], capture_output=True, text=True)
        if "Cannot decode architecture" in done.stderr:
            pytest.skip(f"this cuobjdump is older than the nvcc that built the extension: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_machine_code_spills_nothing(dump: Callable[..., str]) -> None:
    usage = re.findall(
        r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", dump("--dump-resource-usage")
    )
    kernels = [row for row in usage if "event_kernel" in row[0]]
    assert len(kernels) % 8 == 0 and kernels  # RGB or luma, merged or split, aligned or not, for each processor
    for name, registers, stack, local in kernels:
        assert (int(stack), int(local)) == (0, 0), name
        assert int(registers) <= 128, name  # four blocks on a multiprocessor


def test_machine_code_loads_16_bytes_at_once(dump: Callable[..., str]) -> None:
    listing = dump("-sass").split("Function :")[1:]
    kernels = [part for part in listing if "event_kernel" in part.split("\n", 1)[0]]
    assert kernels
    for part in kernels:
        rgb, aligned = re.search(r"event_kernelILi(\d)ELb\dELb(\d)", part).groups()
        loads = len(re.findall(r"LDG\.E\.128", part))
        assert loads >= 3 * (int(rgb) + (aligned == "0")), part.split("\n", 1)[0]


def test_extension_loads_without_torch_or_gpu() -> None:
    spec = importlib.util.find_spec("ief_kernels._cuda")
    if spec is None or spec.origin is None:
        pytest.skip("the CUDA extension is not built (no nvcc)")
    code = (
        "import importlib.util as u; s = u.spec_from_file_location('_cuda', {!r}); m = u.module_from_spec(s);"
        "s.loader.exec_module(m); print(m.architectures)"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code.format(spec.origin)],
        env={"PATH": "/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "sm_80" in result.stdout
