"""The C++ kernels on processors that are not at hand: compiled for aarch64, run in an emulator, compared with x86.

The packages are g++-aarch64-linux-gnu and qemu-user of Debian and Ubuntu; clang adds the compiler of macOS.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HERE = Path(__file__).parent / "other_processors"
KERNELS = [path for path in sorted((CSRC / "cpu").glob("*.cpp")) if not path.stem.endswith("_bind")]
LIBRARIES = Path("/usr/aarch64-linux-gnu")  # where Debian has the other architecture's C library
# macOS' own compiler has no OpenMP; clang there vectorises for the same instructions as here.
COMPILERS = {
    "gcc": (["aarch64-linux-gnu-g++"], ["-fopenmp"]),
    "clang without OpenMP": (["clang++", "--target=aarch64-linux-gnu"], ["-fopenmp-simd", "-Wno-unknown-pragmas"]),
}
# Relative to the largest value. Roundings of half an ulp gather over 21 steps of a recursion, and over sums of up to
# 4,851 products: 16 ulps of float, whose sums are in double, and 180 of double. Largest found: 6e-7 and 7e-15.
BOUNDS = {"float": 2e-6, "double": 4e-14}


@functools.cache
def setup_py() -> ModuleType:
    """setup.py, which knows the flags."""
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("setup_of_ief_kernels", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def needed(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def execute(*command: str | Path) -> bytes:
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=120)
    assert done.returncode == 0, f"{command}\n{done.stderr.decode()}"
    assert not done.stderr, done.stderr.decode()  # a warning too
    return done.stdout


def build(folder: Path, compiler: list[str], flags: list[str]) -> Path:
    """Compile kernels and driver as setup.py compiles them; return the program."""
    flags = [*setup_py().BASE_FLAGS, *flags, f"-I{CSRC}", "-DIEF_HAVE_SCALAR"]
    folder.mkdir()

    def compile_one(source: Path) -> Path:
        own = [*setup_py().OP_FLAGS.get(source.stem, []), "-DIEF_ISA=scalar"] if source in KERNELS else []
        execute(*compiler, *flags, *own, "-c", source, "-o", folder / f"{source.stem}.o")
        return folder / f"{source.stem}.o"

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*KERNELS, CSRC / "common" / "isa.cpp", HERE / "driver.cpp"]))
    link = [flag for flag in flags if flag == "-fopenmp"]
    execute(*compiler, *objects, *link, "-o", folder / "driver")
    return folder / "driver"


def results(output: bytes) -> dict[str, np.ndarray]:
    found, at = {}, 0
    while at < len(output):
        end = output.index(b"\n", at)
        name, count = output[at:end].decode().split()
        found[name] = np.frombuffer(output, np.float64, int(count), end + 1)
        at = end + 1 + 8 * int(count)
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Results of the scalar kernels on this processor; compiled quickly, as they run once."""
    needed("g++")
    return results(execute(build(tmp_path_factory.mktemp("here") / "build", ["g++"], ["-fopenmp", "-O1"])))


@pytest.fixture(scope="module", params=COMPILERS)
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the program and of the objects for aarch64."""
    compiler, flags = COMPILERS[request.param]
    needed(compiler[0], "aarch64-linux-gnu-g++", "qemu-aarch64", "aarch64-linux-gnu-objdump")
    return build(tmp_path_factory.mktemp("there") / "build", compiler, flags).parent


def test_aarch64_computes_what_x86_computes(here: dict[str, np.ndarray], there: Path) -> None:
    found = results(execute("qemu-aarch64", "-L", LIBRARIES, there / "driver"))
    assert list(found) == list(here) and len(found) > 40
    for name, values in found.items():
        kind = name.split(".")[1]
        exact = here[name.replace(".float.", ".double.")] if kind == "float" else here[name]
        assert np.isfinite(values).all() and np.abs(values).sum() > 0, name
        if name.startswith("events") and "grad" not in name:
            assert np.array_equal(values, here[name]), name  # whole numbers, and no fused products in their comparison
            continue
        error = np.abs(values - exact).max() / max(1.0, np.abs(exact).max())
        assert error <= BOUNDS[kind], (name, error)


@pytest.mark.parametrize(
    ("kernel", "instructions"),
    [
        ("kalman_scan", ("fdiv", "fmul", "fadd|fmla", "fsub|fmls")),
        ("precision_fusion", ("fdiv", "fmul", "fmla", "fadd|fsub")),
        ("event_synthesis", ("fmul", "cmgt|cmhi")),
    ],
)
def test_aarch64_loops_are_vectors(there: Path, kernel: str, instructions: tuple[str, ...]) -> None:
    """NEON's instructions for four floats are there, and not only in one place."""
    listing = execute("aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", there / f"{kernel}.o").decode()
    for names in instructions:
        assert len(re.findall(rf"\b(?:{names})\s+v\d+\.4s", listing)) >= 2, (kernel, names)


@pytest.mark.parametrize("source", ["cpu/kalman_scan_bind.cpp", "bindings.cpp"])
def test_bindings_compile_for_aarch64(source: str) -> None:
    """Nothing in them is for x86 alone. Python's headers are those at hand, so nothing is linked."""
    needed("aarch64-linux-gnu-g++")
    pytest.importorskip("pybind11")
    if "<aarch64-linux-gnu/python" in Path(sysconfig.get_config_h_filename()).read_text():
        pytest.skip("Debian's headers of Python are for one processor only")
    flags = [*setup_py().BASE_FLAGS, f"-I{CSRC}", *setup_py().python_flags(), "-DIEF_HAVE_SCALAR"]
    execute("aarch64-linux-gnu-g++", *flags, "-DIEF_OPS(OP)=OP(kalman_scan)", "-O0", "-fsyntax-only", CSRC / source)


# What setup.py does on such machines, without their compilers.


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Let setup.py believe that it runs on this system and machine, with a compiler that accepts these flags."""

    def believe(system: str, machine: str, archs: str = "", rejected: tuple[str, ...] = ()) -> ModuleType:
        module = setup_py()
        monkeypatch.setattr("sys.platform", system)
        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setenv("ARCHFLAGS", archs)
        monkeypatch.delenv("CXXFLAGS", raising=False)
        monkeypatch.setattr(module, "accepts", lambda _, flags, *code, **how: not set(flags) & set(rejected))
        return module

    return believe


@pytest.mark.parametrize(
    ("system", "machine", "archs", "isas"),
    [
        ("linux", "x86_64", "", ["scalar", "avx2", "avx512"]),
        ("linux", "aarch64", "", ["scalar"]),
        ("linux", "x86_64", "-arch arm64", ["scalar", "avx2", "avx512"]),  # it has no meaning there
        ("darwin", "arm64", "", ["scalar"]),
        ("darwin", "x86_64", "", ["scalar", "avx2", "avx512"]),
        ("darwin", "arm64", "-arch x86_64", ["scalar", "avx2", "avx512"]),
        ("darwin", "x86_64", "-arch arm64", ["scalar"]),
        ("darwin", "x86_64", "-arch arm64 -arch x86_64", ["scalar"]),
    ],
)
def test_instruction_sets(on, system: str, machine: str, archs: str, isas: list[str]) -> None:
    assert on(system, machine, archs).instruction_sets(["c++"]) == isas


def test_build_for_both_architectures_of_macos(on, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = on("darwin", "arm64", "-arch arm64 -arch x86_64", rejected=("-fopenmp",))
    commands: list[list[str]] = []

    def record(command: tuple[str, ...] | list[str]) -> None:
        commands.append(list(command))
        Path(command[-1]).write_text("")  # all commands end with their output

    monkeypatch.setattr(module, "execute", record)
    monkeypatch.setattr(module, "objects_folder", lambda: tmp_path / "objects")
    module.build(["c++"], tmp_path / "_C.so")
    *compiled, linked = commands
    assert len(compiled) == len(list(CSRC.glob("cpu/*.cpp"))) + len(list(CSRC.glob("common/*.cpp"))) + 1
    for command in commands:
        assert command[:5] == ["c++", "-arch", "arm64", "-arch", "x86_64"]
        assert not [
            word for word in command if word.startswith("-mavx") or word == "-fopenmp" or "IEF_HAVE_AVX" in word
        ]
    assert all("-fopenmp-simd" in command and "-Wno-unknown-pragmas" in command for command in compiled)
    assert linked[5:8] == ["-bundle", "-undefined", "dynamic_lookup"] and (tmp_path / "_C.so").exists()
