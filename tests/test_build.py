"""setup.py on a copy of the build with one small kernel: what it compiles, again or not, and what it says."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("pybind11")
pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parents[1]
X86 = platform.machine().lower() in ("x86_64", "amd64")
ISAS = 3 if X86 else 1
HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")

HEADER = """
#include "common/isa.h"
IEF_FOR_EACH_ISA(int answer(int question);)
"""
KERNEL = """
#include "cpu/tiny.h"
namespace ief::IEF_ISA { int answer(int question) { return question + 1; } }
"""
BIND = """
#include <pybind11/pybind11.h>
#include "cpu/tiny.h"
namespace ief { void bind_tiny(pybind11::module_& m) { m.def("answer", [](int q) { return IEF_SELECT(answer)(q); }); } }
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").write_text("tiny\n")
    shutil.copytree(ROOT / "csrc" / "common", tmp_path / "csrc" / "common")
    shutil.copy(ROOT / "csrc" / "bindings.cpp", tmp_path / "csrc")
    cpu = tmp_path / "csrc" / "cpu"
    cpu.mkdir()
    (cpu / "tiny.h").write_text(HEADER)
    (cpu / "tiny.cpp").write_text(KERNEL)
    (cpu / "tiny_bind.cpp").write_text(BIND)
    package = tmp_path / "ief_kernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    return tmp_path


def build(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("IEF_", "CUDA"))}
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=project,
        env={**clean, "CXXFLAGS": "-O0", **environment},  # the flag comes last; pybind11 compiles twice as fast
        capture_output=True,
        text=True,
    )


def run(project: Path, code: str) -> str:
    command = [sys.executable, "-c", f"from ief_kernels import _C; print({code})"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout.strip()


@needs_compiler
def test_compiles_each_instruction_set_and_only_what_changed(project: Path) -> None:
    files = 4 + ISAS  # bindings, isa, thread_sanitizer, tiny_bind, and the kernel for each instruction set
    first = build(project)
    assert first.returncode == 0, first.stderr
    assert f"{files} of {files} files to compile" in first.stdout
    assert run(project, "_C.answer(41)") == "42"
    for isa in ("scalar", "avx2", "avx512")[:ISAS]:
        assert run(project, f"_C.set_isa('{isa}') and (_C.isa() != '{isa}' or _C.answer(1))") in ("2", "False")

    assert f"0 of {files} files to compile" in build(project).stdout

    kernel = project / "csrc" / "cpu" / "tiny.cpp"
    kernel.write_text(KERNEL.replace("+ 1", "+ 2"))
    assert f"{ISAS} of {files} files to compile" in build(project).stdout
    assert run(project, "_C.answer(41)") == "43"

    (project / "csrc" / "cpu" / "tiny.h").write_text(HEADER + "\n")
    assert f"{ISAS + 1} of {files} files to compile" in build(project).stdout

    kernel.write_text("this is not C++")
    broken = build(project)
    assert broken.returncode != 0
    assert "this command failed" in broken.stderr
    assert "tiny.cpp" in broken.stderr


NO_KERNELS = [
    "ief_kernels: on the CPU the operators then run as plain PyTorch, which is slower (docs/install.md says how much)",
    "ief_kernels: for the C++ kernels, install g++ or clang++ (C++17) and Python's headers, and install again",
]


def compiler_that(project: Path, name: str, script: str) -> str:
    path = project / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("kind", ["none", "broken", "too old", "without headers"])
def test_installs_without_a_compiler_that_serves(project: Path, kind: str) -> None:
    real = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if real is None and kind in ("too old", "without headers"):
        pytest.skip("no C++ compiler")
    refuse = 'for word; do case "$word" in %s) exit 1;; esac; done'
    # Without headers: a compiler that is not told where Python's are, and does not find them by itself.
    drop = (
        'n=$#; while [ $n -gt 0 ]; do case "$1" in -I*python*) ;; *) set -- "$@" "$1" ;; esac; shift; n=$((n-1)); done'
    )
    compiler, reason = {
        "none": ("no-such-compiler", "no C++ compiler was found"),
        "broken": (compiler_that(project, "broken", "exit 1"), "broken cannot build an empty program"),
        "too old": (
            compiler_that(project, "old", f'{refuse % "-std=c++17"}\nexec {real} "$@"'),
            "old is too old: it cannot compile C++17",
        ),
        "without headers": (
            compiler_that(project, "bare", f'{drop}\nexec {real} "$@"'),
            "the headers of Python (Python.h) were not found",
        ),
    }[kind]
    (project / "ief_kernels" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_text("of an earlier build")
    result = build(project, CXX=compiler)
    assert result.returncode == 0, result.stderr
    said, *more = [line for line in result.stdout.splitlines() if line.startswith("ief_kernels:")]
    assert said.endswith(f"{reason}; installing without the native backend (the others still work)")
    assert more[:2] == NO_KERNELS
    assert not list(project.glob("ief_kernels/_C*"))
    assert (project / "ief_kernels" / "left_out.txt").read_text().rstrip().endswith(reason)

    forced = build(project, CXX=compiler, IEF_KERNELS_FORCE_NATIVE="1")
    assert forced.returncode != 0
    assert "IEF_KERNELS_FORCE_NATIVE is set but" in forced.stderr and reason in forced.stderr


@needs_compiler
def test_an_installation_goes_on_where_the_sources_do_not_compile(project: Path) -> None:
    (project / "csrc" / "cpu" / "tiny.cpp").write_text("this is not C++")
    call = "setup.build_or_leave_out(setup.find_compiler(), Path(sys.argv[1]))"
    code = f"import sys, setup; from pathlib import Path; {call}"
    target = project / "lib" / "_C.so"
    target.parent.mkdir()
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tiny.cpp" in done.stderr  # the whole error, for pip -v
    [reason] = (project / "lib" / "left_out.txt").read_text().splitlines()
    assert " failed: " in reason and "tiny.cpp" in reason and "error" in reason

    (project / "csrc" / "cpu" / "tiny.cpp").write_text(KERNEL)
    again = subprocess.run([sys.executable, "-c", code, str(target)], cwd=project, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert target.is_file() and not (project / "lib" / "left_out.txt").exists()


def test_a_missing_extension_says_why_and_warns_once(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    shutil.copytree(ROOT / "ief_kernels", tmp_path / "ief_kernels", ignore=ignored)
    (tmp_path / "ief_kernels" / "left_out.txt").write_text("no C++ compiler was found\n")
    code = """
import sys
# An editable installation finds the extension of its own folder for whatever package has this name.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import warnings, torch, ief_kernels
from ief_kernels import doctor
x = torch.ones(1, 3, 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ief_kernels.kalman_scan(x, x, backend="reference")
    ief_kernels.explain()
    assert not caught
    ief_kernels.kalman_scan(x, x)
    ief_kernels.precision_fusion(x, x, x, x)
    torch.compile(ief_kernels.kalman_scan, backend="eager", fullgraph=True)(x, x)
print([str(item.message) for item in caught if "extension" in str(item.message)])
print(*doctor.report(), sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", code.replace("\\\\n", "\\n")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, _, report = done.stdout.partition("\n")
    reason = "the C++ extension is not built (no C++ compiler was found); install a C++ compiler"
    assert first.count("the C++ extension is not built") == 1 and reason in first and "plain PyTorch" in first
    assert f"ief_kernels._C     {reason}" in report
    assert "without ief_kernels._C on the CPU the operators run as plain PyTorch" in report


def test_cuda_switches(project: Path) -> None:
    bare = {"PATH": "/nonexistent", "CXX": "no-such-compiler"}
    forced = build(project, IEF_KERNELS_FORCE_CUDA="1", **bare)
    assert forced.returncode != 0
    assert "IEF_KERNELS_FORCE_CUDA is set but nvcc was not found" in forced.stderr
    both = build(project, IEF_KERNELS_FORCE_CUDA="1", IEF_KERNELS_SKIP_CUDA="1", **bare)
    assert both.returncode != 0
    assert "unset one of them" in both.stderr
    assert build(project, IEF_KERNELS_SKIP_CUDA="1", IEF_KERNELS_FORCE_CUDA="0", **bare).returncode == 0


FAKE_NVCC = """#!/bin/sh
case "$*" in
    *--list-gpu-code*) printf 'sm_75\\nsm_80\\nsm_90\\n' ;;
    *-shared*) for word; do test "$previous" = -o && : > "$word"; previous="$word"; done ;;
    *broken*) echo 'broken.cu(1): error: expected a declaration' >&2; exit 1 ;;
    *) for word; do
           case "$previous" in -o | -MF) echo 'x.o: setup.py' > "$word" ;; esac; previous="$word"
       done; echo "$*" > nvcc-command ;;
esac
"""


@pytest.fixture
def cuda_project(project: Path) -> Path:
    """A project with a CUDA kernel, and an nvcc that does as if."""
    (project / "csrc" / "cuda").mkdir()
    (project / "csrc" / "cuda" / "bindings.cpp").write_text("const char* gpus = IEF_CUDA_ARCHITECTURES;\n")
    (project / "csrc" / "cuda" / "tiny.cu").write_text("")
    shutil.rmtree(project / "csrc" / "cpu")  # nothing that takes long to compile
    (project / "csrc" / "bindings.cpp").write_text("")
    tools = project / "toolkit" / "bin"
    tools.mkdir(parents=True)
    (tools / "nvcc").write_text(FAKE_NVCC)
    (tools / "nvcc").chmod(0o755)
    return project


def said_about_cuda(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith("ief_kernels:") and "c++" not in line[:40]]


@needs_compiler
def test_builds_cuda_kernels_where_nvcc_is(cuda_project: Path) -> None:
    home = str(cuda_project / "toolkit")
    result = build(cuda_project, CUDA_HOME=home, IEF_KERNELS_FORCE_CUDA="1")
    assert result.returncode == 0, result.stderr
    assert said_about_cuda(result)[-1] == f"ief_kernels: {home}/bin/nvcc: 2 of 2 files to compile, for sm_80, sm_90"
    command = (cuda_project / "nvcc-command").read_text()
    assert "-gencode=arch=compute_80,code=sm_80" in command
    assert "-gencode=arch=compute_90,code=[sm_90,compute_90]" in command  # PTX of the newest for what comes after
    assert list(cuda_project.glob("ief_kernels/_cuda*"))

    skipped = build(cuda_project, CUDA_HOME=home, IEF_KERNELS_SKIP_CUDA="1")
    assert skipped.returncode == 0, skipped.stderr
    line = "ief_kernels: installing without the CUDA C++ kernels (IEF_KERNELS_SKIP_CUDA is set)"
    assert said_about_cuda(skipped)[-1] == line
    assert not list(cuda_project.glob("ief_kernels/_cuda*"))  # one of an earlier build may not fit


@needs_compiler
def test_installs_without_cuda_kernels_where_they_cannot_be_built(cuda_project: Path) -> None:
    home = str(cuda_project / "toolkit")
    (cuda_project / "csrc" / "cuda" / "tiny.cu").rename(cuda_project / "csrc" / "cuda" / "broken.cu")
    result = build(cuda_project, CUDA_HOME=home)
    assert result.returncode == 0, result.stderr
    assert said_about_cuda(result)[-1].endswith(
        "without the CUDA C++ kernels (nvcc failed: broken.cu(1): error: expected a declaration)"
    )
    assert not list(cuda_project.glob("ief_kernels/_cuda*"))
    forced = build(cuda_project, CUDA_HOME=home, IEF_KERNELS_FORCE_CUDA="1")
    assert forced.returncode != 0
    assert "expected a declaration" in forced.stderr


@needs_compiler
def test_does_without_openmp(project: Path) -> None:
    compiler = next(path for name in ("c++", "g++", "clang++") if (path := shutil.which(name)))
    wrapper = project / "no-openmp"
    refuse = 'for word; do case "$word" in -fopenmp|-lomp) exit 1;; esac; done'
    wrapper.write_text(f'#!/bin/sh\n{refuse}\nexec {compiler} "$@"\n')
    wrapper.chmod(0o755)
    code = f"import setup; flags, _ = setup.openmp_flags([{str(wrapper)!r}]); print(*setup.BASE_FLAGS, *flags)"
    result = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    said, flags = result.stdout.splitlines()
    assert said == "ief_kernels: no OpenMP with this compiler; the native kernels will run on one thread"
    for source in sorted(set((ROOT / "csrc" / "cpu").glob("*.cpp")) - set((ROOT / "csrc" / "cpu").glob("*_bind.cpp"))):
        command = [compiler, *flags.split(), "-DIEF_ISA=scalar", f"-I{ROOT / 'csrc'}", "-fsyntax-only", str(source)]
        checked = subprocess.run(command, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Names in a wheel (built without a compiler, which is quick) and in an sdist of this tree."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("ief_kernels", "iefvad", "csrc", "bench", "docs", "examples", "recipe", "tools"):
        shutil.copytree(
            ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "results", "left_out.txt")
        )
    (root / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "installs.sh", root / "tests")
    for path in [*ROOT.glob("*.toml"), *ROOT.glob("*.md"), *ROOT.glob("MANIFEST.in"), *ROOT.glob("*.yml")]:
        shutil.copy(path, root)
    for name in ("setup.py", "LICENSE", "CITATION.cff", "Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, root)
    environment = {**os.environ, "CXX": "no-such-compiler", "PIP_NO_INDEX": "1"}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if importlib.util.find_spec("twine") and importlib.util.find_spec("readme_renderer"):
        command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, (root / "dist").iterdir())]
        checked = subprocess.run(command, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    [wheel], [sdist] = (root / "dist").glob("*.whl"), (root / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    return in_wheel, in_sdist


def test_metadata(packages: tuple[set[str], set[str]]) -> None:
    """What pyproject.toml promises about Python is what the workflows run, and every dependency has a lower bound."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert versions[0] == re.search(r'requires-python = ">=([\d.]+)"', text)[1]  # type: ignore[index]
    tested = re.search(r"python: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert tested is not None and re.findall(r'"([\d.]+)"', tested[1]) == versions
    wheels = (ROOT / ".github/workflows/wheels.yml").read_text(encoding="utf-8")
    assert re.findall(r"cp3(\d+)-\*", wheels) == [version.partition(".")[2] for version in versions]
    dependencies = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    listed = re.findall(r'"([^"]+)"', dependencies)
    assert listed and all(re.fullmatch(r"[\w.\[\]-]+>=[\d.]+(,<\d+)?(;.*)?", item) for item in listed), listed
    # the conda recipe has the same bounds
    recipe = (ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8")
    names = {"torch": "pytorch", "open_clip_torch": "open-clip-torch", "opencv-python-headless": "py-opencv"}
    names |= {"PyYAML": "pyyaml", "matplotlib": "matplotlib-base", "xxhash": "python-xxhash"}
    for item in listed:
        name, bound = re.fullmatch(r"([\w-]+)(?:\[\w+\])?(>=[\d.]+(?:,<\d+)?).*", item).groups()  # type: ignore[union-attr]
        assert f"- {names.get(name, name)} {bound}\n" in recipe or f"then: {name} {bound}\n" in recipe, item


def test_no_machine_is_named(packages: tuple[set[str], set[str]]) -> None:
    in_wheel, in_sdist = packages
    assert not [name for name in in_wheel | in_sdist if name.endswith((".so", ".pyc", ".pth"))]
    assert not [name for name in in_wheel if name.split("/")[0] in ("tests", "bench", "tools", "examples", "docs")]
    needed = {"ief_kernels/py.typed", "iefvad/py.typed", "iefvad/detection/page/files/live.css", "csrc/common/isa.h"}
    assert needed <= in_sdist and any(name.startswith("iefvad/report/templates/") for name in in_sdist)
    assert {"tools/kernel_hub.py", "recipe/recipe.yaml", "tests/installs.sh"} <= in_sdist


def test_a_wheel_holds_the_two_packages_and_nothing_beside_them(packages: tuple[set[str], set[str]]) -> None:
    in_wheel, _ = packages
    assert {name.split("/")[0] for name in in_wheel if ".dist-info/" not in name} == {"ief_kernels", "iefvad"}
    for package in ("ief_kernels", "iefvad"):
        tracked = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".pyd")
        }
        assert tracked <= in_wheel, tracked - in_wheel


def test_an_sdist_can_be_built_from(packages: tuple[set[str], set[str]]) -> None:
    _, in_sdist = packages
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources and sources <= in_sdist, sources - in_sdist
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= in_sdist
