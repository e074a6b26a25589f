"""Builds the C++ extension ``ief_kernels._C`` and, where nvcc is, the CUDA extension ``ief_kernels._cuda``.

Everything else about the package is in pyproject.toml.

Every ``csrc/cpu/<op>.cpp`` is compiled once per instruction set (see ``csrc/common/isa.h``), every
``csrc/cpu/<op>_bind.cpp``, ``csrc/common/*.cpp`` and ``csrc/bindings.cpp`` once. Objects stay in ``build/`` and are
compiled again only if their source, a header they include, or their command changed. ``csrc/cuda/`` becomes an
extension of its own, with CUDA's runtime inside, so that it loads on machines without a GPU, a driver or CUDA.

An installation never fails for want of a compiler: what cannot be built is left out. The reason is said at the end, and
is written to ``ief_kernels/left_out.txt``, because pip hides the output of builds. ``python setup.py build_ext`` is for
developers and stops at an error of a compiler that works.

Environment variables read here:

=========================  ===========================================================================================
CXX                        the C++ compiler (otherwise c++, g++ or clang++, the first one found)
CXXFLAGS, LDFLAGS          added to the compiler's and the linker's flags
ARCHFLAGS                  macOS: the architectures, such as ``-arch arm64 -arch x86_64`` for both in one file
MAX_JOBS                   how many files are compiled at once (otherwise as many as cores and memory allow)
IEF_KERNELS_SKIP_CUDA=1    build no CUDA kernels although nvcc is there
IEF_KERNELS_FORCE_CUDA=1   fail if CUDA kernels cannot be built, instead of leaving them out
IEF_KERNELS_FORCE_NATIVE=1  fail if the C++ kernels cannot be built, instead of leaving them out
IEF_KERNELS_SANITIZE       address, undefined or thread: the C++ kernels with this sanitizer, for tests/sanitizers.sh
=========================  ===========================================================================================
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CUDA_NAME = "ief_kernels._cuda"
LEFT_OUT = "left_out.txt"
"""Beside the extension that is missing: why it is. `ief_kernels._native` reads it."""
CXX17 = """
#include <optional>
#include <utility>
inline std::optional<int> found{1};
template <class... T> constexpr auto sum(T... t) { if constexpr (sizeof...(t) > 0) return (t + ...); else return 0; }
int main() { auto [a, b] = std::pair(sum(1, 2), *found); return a - 3 * b; }
"""
BASE_FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# No result depends on errno or on floating-point traps, and loops with comparisons become vectors without them.
BASE_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]
AVX2_FLAGS = ["-mavx2", "-mfma", "-mbmi2", "-mf16c"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
ISA_FLAGS = {"scalar": [], "avx2": AVX2_FLAGS, "avx512": AVX512_FLAGS}
# Nobody reads floating-point exceptions or errno, and g++ leaves a loop with a comparison scalar to keep them exact.
QUIET_FLOATS = ["-fno-trapping-math", "-fno-math-errno"]
# Event maps of float frames equal the reference bit for bit: no fused products and sums there.
OP_FLAGS = {
    "event_synthesis": ["-ffp-contract=off"],
    "precision_fusion": QUIET_FLOATS,
    "low_rank_fusion": QUIET_FLOATS,
    "kalman_scan": QUIET_FLOATS,
}
NVCC_FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{CSRC}", "--threads=0"]
GPUS = ("sm_80", "sm_90", "sm_100")  # compiled for those that nvcc knows, and as PTX for what comes after
MEMORY_PER_JOB = 1 << 30
SANITIZERS = {
    # Report and go on, so that one run shows everything.
    "address": ["-fsanitize=address", "-fsanitize-recover=address"],
    # Kernels shift and add numbers on purpose only where that is defined; shifts of floats are none of its checks.
    "undefined": ["-fsanitize=undefined,float-cast-overflow", "-fno-sanitize=vptr"],
    "thread": ["-fsanitize=thread"],
}


def say(text: str) -> None:
    print(f"ief_kernels: {text}", flush=True)


def switched_on(variable: str) -> bool:
    return os.environ.get(variable, "0").strip().lower() not in ("", "0", "false", "no", "off")


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command, or None; CXX wins, and may hold several words (``ccache g++``)."""
    wanted = os.environ.get("CXX")
    for candidate in [shlex.split(wanted)] if wanted else [["c++"], ["g++"], ["clang++"]]:
        if candidate and shutil.which(candidate[0]):
            return candidate
    return None


def sanitizer() -> str:
    """The sanitizer that the C++ kernels are built with, or ""."""
    name = os.environ.get("IEF_KERNELS_SANITIZE", "").strip()
    if name and name not in SANITIZERS:
        raise SystemExit(f"IEF_KERNELS_SANITIZE must be one of {', '.join(SANITIZERS)}, got {name!r}")
    return name


def find_nvcc() -> str | None:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home and (found := shutil.which("nvcc", path=str(Path(home) / "bin"))):
            return found
    return shutil.which("nvcc")


def check_cuda() -> None:
    """Says what becomes of CUDA kernels; stops the build where they were demanded and cannot be had."""
    skip, force = switched_on("IEF_KERNELS_SKIP_CUDA"), switched_on("IEF_KERNELS_FORCE_CUDA")
    if skip and force:
        raise SystemExit("IEF_KERNELS_SKIP_CUDA and IEF_KERNELS_FORCE_CUDA are both set; unset one of them")
    if force and find_nvcc() is None:
        raise SystemExit(
            "IEF_KERNELS_FORCE_CUDA is set but nvcc was not found; put nvcc on PATH, set CUDA_HOME, or unset the switch"
        )


def jobs() -> int:
    if os.environ.get("MAX_JOBS", "").isdigit():
        return max(1, int(os.environ["MAX_JOBS"]))
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return count
    return max(1, min(count, memory // MEMORY_PER_JOB))


@dataclass(frozen=True)
class Job:
    """One compiler run; ``obj`` has a list of what it included (``.d``) and its command (``.cmd``) beside it."""

    source: Path
    obj: Path
    command: tuple[str, ...]

    def current(self) -> bool:
        depends, recorded = self.obj.with_suffix(".d"), self.obj.with_suffix(".cmd")
        if not (self.obj.exists() and depends.exists() and recorded.exists()):
            return False
        if recorded.read_text() != shlex.join(self.command):
            return False
        built = self.obj.stat().st_mtime_ns
        _, _, names = depends.read_text().replace("\\\n", " ").partition(": ")
        return all(Path(name).exists() and Path(name).stat().st_mtime_ns <= built for name in shlex.split(names))

    def run(self) -> None:
        self.obj.parent.mkdir(parents=True, exist_ok=True)
        self.obj.with_suffix(".cmd").unlink(missing_ok=True)
        execute(self.command)
        self.obj.with_suffix(".cmd").write_text(shlex.join(self.command))


def execute(command: tuple[str, ...] | list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"ief_kernels: this command failed:\n{shlex.join(command)}\n{result.stdout}{result.stderr}")
    if result.stderr.strip():
        print(result.stderr.rstrip(), file=sys.stderr, flush=True)


def accepts(
    compiler: list[str], flags: list[str], code: str = "int main() { return 0; }", *, link: bool = False
) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(code)
        command = [*compiler, str(source), *flags, "-o", str(Path(folder) / "probe"), *([] if link else ["-c"])]
        return subprocess.run(command, capture_output=True).returncode == 0


def openmp_flags(compiler: list[str]) -> tuple[list[str], list[str]]:
    """Compiler and linker flags for OpenMP; for doing without it where there is none, such as plain Apple clang."""
    code = "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }"
    for compile_flags, link_flags in ((["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])):
        if accepts(compiler, [*compile_flags, *link_flags], code, link=True):
            return compile_flags, link_flags
    say("no OpenMP with this compiler; the native kernels will run on one thread")
    # Vectors need no OpenMP library, but without this flag a sum stays scalar.
    simd = [flag for flag in ["-fopenmp-simd"] if accepts(compiler, [flag])]
    return [*simd, "-Wno-unknown-pragmas"], []


def arch_flags() -> list[str]:
    """What ARCHFLAGS says on macOS, where one file can hold code for several architectures."""
    return shlex.split(os.environ.get("ARCHFLAGS", "")) if sys.platform == "darwin" else []


def instruction_sets(compiler: list[str]) -> list[str]:
    """Instruction sets to compile for. "scalar" is the base of the architecture, vectors included (SSE2, NEON)."""
    named = [word for word in arch_flags() if not word.startswith("-")]
    if any(machine.lower() not in ("x86_64", "amd64") for machine in named or [platform.machine()]):
        return ["scalar"]
    return [isa for isa, flags in ISA_FLAGS.items() if accepts(compiler, flags)]


class NativeBuild(build_ext):
    """Compiles ``csrc/`` in parallel and incrementally; leaves the extension out where it cannot be compiled."""

    def build_extension(self, ext: Extension) -> None:
        check_cuda()
        compiler = find_compiler()
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if ext.name == CUDA_NAME:
            if compiler and os.name != "nt":
                build_or_leave_out_cuda(compiler, target)
            return
        build_or_leave_out(compiler, target)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        built, inplace = (Path(folder) / "ief_kernels" / LEFT_OUT for folder in (self.build_lib, ROOT))
        inplace.unlink(missing_ok=True)
        if built.exists():
            shutil.copy(built, inplace)


def build_or_leave_out(compiler: list[str] | None, target: Path) -> None:
    """Builds the C++ kernels; where they cannot be had, says so and what it costs, or stops if they must."""
    reason = ""
    if os.name == "nt":
        reason = "Windows is not supported"
    elif compiler is None:
        reason = "no C++ compiler was found"
    else:
        reason = unusable(compiler)
    record = target.parent / LEFT_OUT
    if not reason:
        assert compiler is not None
        try:
            build(compiler, target)
            record.unlink(missing_ok=True)
            return
        except SystemExit as error:
            # A developer wants to see the error; an installation goes on without these kernels.
            if "build_ext" in sys.argv or switched_on("IEF_KERNELS_FORCE_NATIVE"):
                raise
            print(error, file=sys.stderr, flush=True)
            reason = f"{shlex.join(compiler)} failed: {first_error(str(error))}"
    if switched_on("IEF_KERNELS_FORCE_NATIVE"):
        raise SystemExit(f"IEF_KERNELS_FORCE_NATIVE is set but {reason}")
    for stale in (target, ROOT / "ief_kernels" / target.name):
        stale.unlink(missing_ok=True)  # it may not fit the sources beside it
    record.write_text(f"{reason}\n", encoding="utf-8")
    say(f"{reason}; installing without the native backend (the others still work)")
    say("on the CPU the operators then run as plain PyTorch, which is slower (docs/install.md says how much)")
    say("for the C++ kernels, install g++ or clang++ (C++17) and Python's headers, and install again")


def unusable(compiler: list[str]) -> str:
    """Why this compiler cannot build an extension of this Python, or "": it is broken, too old, or lacks headers."""
    name = shlex.join(compiler)
    if not accepts(compiler, [], link=True):
        return f"{name} cannot build an empty program"
    if not accepts(compiler, ["-std=c++17"], CXX17):
        return f"{name} is too old: it cannot compile C++17"
    if not accepts(compiler, ["-std=c++17", *python_flags()], "#include <Python.h>\n"):
        return "the headers of Python (Python.h) were not found"
    return ""


def first_error(text: str) -> str:
    lines = text.splitlines()
    return next((line for line in lines[1:] if "error" in line.lower()), lines[-1]).strip()


def python_flags() -> list[str]:
    import pybind11

    return [f"-I{sysconfig.get_paths()['include']}", f"-I{pybind11.get_include()}"]


def objects_folder() -> Path:
    suffix = f"-{name}" if (name := sanitizer()) else ""
    return ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}{suffix}"


def make_job(compiler: list[str], source: Path, flags: list[str], tag: str = "") -> Job:
    obj = objects_folder() / source.relative_to(CSRC).parent / f"{source.stem}{tag}.o"
    depends = ["-MMD", "-MF", str(obj.with_suffix(".d"))]
    return Job(source, obj, (*compiler, *flags, *depends, "-c", str(source), "-o", str(obj)))


def link(command: list[str], plan: list[Job], flags: list[str], target: Path) -> None:
    # Link to a new file and rename: a process that has the old one mapped keeps it intact.
    partial = target.with_name(target.name + f".{os.getpid()}.tmp")
    execute([*command, *(str(item.obj) for item in plan), *flags, "-o", str(partial)])
    partial.replace(target)


def compile_stale(plan: list[Job], compiler: str, purpose: str) -> None:
    stale = [item for item in plan if not item.current()]
    say(f"{compiler}: {len(stale)} of {len(plan)} files to compile, for {purpose}")
    with ThreadPoolExecutor(max_workers=jobs()) as pool:
        for _ in pool.map(Job.run, stale):
            pass


def build(compiler: list[str], target: Path) -> None:
    compiler = [*compiler, *arch_flags()]
    isas = instruction_sets(compiler)
    omp_compile, omp_link = openmp_flags(compiler)
    bindings = sorted((CSRC / "cpu").glob("*_bind.cpp"))
    ops = " ".join(f"OP({path.stem.removesuffix('_bind')})" for path in bindings)
    common = [*BASE_FLAGS, *omp_compile, f"-I{CSRC}", *(f"-DIEF_HAVE_{isa.upper()}" for isa in isas)]
    checks = [*SANITIZERS[name], "-O1", "-g", "-fno-omit-frame-pointer"] if (name := sanitizer()) else []
    common += [*checks, *shlex.split(os.environ.get("CXXFLAGS", ""))]

    def job(source: Path, flags: list[str], tag: str = "") -> Job:
        return make_job(compiler, source, [*common, *flags], tag)

    python = [*python_flags(), f"-DIEF_OPS(OP)={ops}"]
    plan = [job(path, python) for path in (CSRC / "bindings.cpp", *bindings)]
    plan += [job(path, []) for path in sorted((CSRC / "common").glob("*.cpp"))]
    for path in sorted(set((CSRC / "cpu").glob("*.cpp")) - set(bindings)):
        for isa in isas:
            plan.append(job(path, [*ISA_FLAGS[isa], f"-DIEF_ISA={isa}", *OP_FLAGS.get(path.stem, [])], f".{isa}"))
    compile_stale(plan, " ".join(compiler), ", ".join(isas))
    shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    link([*compiler, *shared], plan, [*checks, *shlex.split(os.environ.get("LDFLAGS", "")), *omp_link], target)


def known_gpus(nvcc: str) -> list[str]:
    """Those of GPUS that this nvcc can compile for."""
    result = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True)
    return [gpu for gpu in GPUS if gpu in result.stdout.split()]


def gpu_flags(gpus: list[str]) -> list[str]:
    """Flags to compile for these processors, and as PTX for later ones."""
    flags = []
    for gpu in gpus:
        virtual = gpu.replace("sm", "compute")
        flags.append(
            f"-gencode=arch={virtual},code=[{gpu},{virtual}]"
            if gpu == gpus[-1]
            else f"-gencode=arch={virtual},code={gpu}"
        )
    return flags


def build_or_leave_out_cuda(compiler: list[str], target: Path) -> None:
    """Builds the CUDA kernels where nvcc is; where they cannot be had, says so in one line, or stops if they must."""
    if sanitizer() or not any((CSRC / "cuda").glob("*.cu")):
        return
    nvcc, reason = find_nvcc(), ""
    if switched_on("IEF_KERNELS_SKIP_CUDA"):
        reason = "IEF_KERNELS_SKIP_CUDA is set"
    elif nvcc is None:
        reason = "nvcc was not found on PATH or in CUDA_HOME"
    elif not (gpus := known_gpus(nvcc)):
        reason = f"{nvcc} knows none of {', '.join(GPUS)}"
    else:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return build_cuda(compiler, nvcc, gpus, target)
        except SystemExit as error:
            if switched_on("IEF_KERNELS_FORCE_CUDA"):
                raise
            reason = f"nvcc failed: {first_error(str(error))}"
    if switched_on("IEF_KERNELS_FORCE_CUDA"):
        raise SystemExit(f"IEF_KERNELS_FORCE_CUDA is set but {reason}")
    for stale in (target, ROOT / "ief_kernels" / target.name):
        stale.unlink(missing_ok=True)  # it may not fit the Python beside it
    say(f"installing without the CUDA C++ kernels ({reason})")


def build_cuda(compiler: list[str], nvcc: str, gpus: list[str], target: Path) -> None:
    # nvcc takes its own default compiler, or the one that CXX names if that is one word.
    wanted = shlex.split(os.environ.get("CXX", ""))
    device = [nvcc, *(["-ccbin", wanted[0]] if len(wanted) == 1 else [])]
    named = f'-DIEF_CUDA_ARCHITECTURES="{" ".join(gpus)}"'
    host = [*BASE_FLAGS, f"-I{CSRC}", *python_flags(), named, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    plan = [make_job(compiler, CSRC / "cuda" / "bindings.cpp", host)]
    plan += [
        make_job(device, path, [*NVCC_FLAGS, *gpu_flags(gpus)], ".cuda")
        for path in sorted((CSRC / "cuda").glob("*.cu"))
    ]
    compile_stale(plan, nvcc, ", ".join(gpus))
    # The runtime inside stays invisible, so that it and torch's own cannot be taken for one another.
    hidden = ["-Xlinker=--exclude-libs=ALL", "-Xlinker=-Bsymbolic"]
    link([*device, "-shared", "-cudart=static", *gpu_flags(gpus)], plan, hidden, target)


if __name__ == "__main__":
    modules = [Extension(name, sources=[], optional=True) for name in ("ief_kernels._C", CUDA_NAME)]
    setup(ext_modules=modules, cmdclass={"build_ext": NativeBuild})
