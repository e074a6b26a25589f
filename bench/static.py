"""What the compiler made of every Triton kernel, on a machine without a GPU: `python -m bench.static`.

Each kernel is compiled ahead of time in every configuration its tuner may choose, for sm_80, sm_90 and sm_100, and its
machine code is read with the tools that triton brings along. That happens in a process of its own, since triton must
be imported without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ief_kernels._spills import RECORDED, Spill, version

ARCHS = (80, 86, 89, 90, 100, 120)
# Bytes of shared memory one block may have: 163, 99, 99, 227, 227 and 99 KiB.
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
_LOAD = re.compile(r"LDG\.|LDGSTS|UBLKCP|UTMALDG")
_WIDE_LOAD = re.compile(r"(LDG|LDGSTS)\.[\w.]*(128|256)|LDG\.[\w.]*ENL2|UBLKCP|UTMALDG")
_STORE = re.compile(r"STG\.|UTMASTG")
_WIDE_STORE = re.compile(r"STG\.[\w.]*(128|256|ENL2)|UTMASTG")
_TENSOR_CORE = re.compile(r"HMMA|HGMMA|IGMMA|UTC\w*MMA|IMMA")
_SPILL = re.compile(r"STL|LDL")


def element_type(signature: Mapping[str, str]) -> str:
    """Return the element type of a kernel's first floating-point pointer, or of its first pointer, such as "bf16"."""
    pointers = [kind[1:] for kind in signature.values() if kind.startswith("*")]
    return next((kind for kind in pointers if "f" in kind), pointers[0])


def config_word(constexprs: Mapping[str, Any], warps: int, stages: int) -> str:
    """Return the constexprs that are not None and the launch options as one word, as the tables of spills have it."""
    shown = [f"{k}={int(v) if isinstance(v, bool) else v}" for k, v in constexprs.items() if v is not None]
    return ",".join([*shown, f"warps={warps}", f"stages={stages}"])


@dataclass(frozen=True)
class StaticCase:
    """One kernel in one configuration, as the modules of `bench.static_cases` describe it.

    Attributes:
        op: name of the public function or kernel, for the table.
        tuner: name of the tuner that chooses the configuration.
        kernel: the `@triton.jit` function.
        signature: argument name → type ("*fp32", "*bf16", "i32", "i64", "fp32"); without the constexprs.
        constexprs: tl.constexpr argument → value; an optional pointer that is absent is a constexpr None.
        num_warps, num_stages: launch options.
        wants: "vector_loads" and "tensor_cores": what its machine code must hold; all other kernels are not asked.
        divisible: integer arguments that are multiples of 16, as triton finds at a launch; pointers always are.
        fp_fusion: whether the kernel is launched with fused multiply-add.
    """

    op: str
    tuner: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    wants: Mapping[str, bool] = field(default_factory=dict)
    divisible: Sequence[str] = ()
    fp_fusion: bool = True

    @property
    def dtype(self) -> str:
        """Element type of the first floating-point pointer, or of the first pointer."""
        return element_type(self.signature)

    @property
    def config(self) -> str:
        """The constexprs and launch options as one word."""
        return config_word(self.constexprs, self.num_warps, self.num_stages)


@dataclass(frozen=True)
class StaticResult:
    """What one compilation gave.

    Loads and stores count instructions on global memory, wide ones those of 16 bytes or more (bulk copies included);
    `stack` is bytes per thread, `spills` instructions on thread-local memory, `triton` the compiler's version, major
    and minor.
    """

    triton: str
    op: str
    tuner: str
    kernel: str
    config: str
    dtype: str
    arch: int
    wants: dict[str, bool]
    registers: int
    stack: int
    spills: int
    shared: int
    instructions: int
    loads: int
    wide_loads: int
    stores: int
    wide_stores: int
    tensor_core: int
    seconds: float

    @property
    def _where(self) -> str:
        return f"{self.kernel} {self.dtype} sm_{self.arch} {self.config}"

    def spill(self) -> Spill | None:
        """Return the row for the table of spills, or None if nothing spills."""
        if not self.spills and not self.stack:
            return None
        return Spill(self.tuner, self.op, self.kernel, self.dtype, self.arch, self.config, self.spills)

    def _spill_is_known(self) -> bool:
        """Whether the table lists this spill, or says nothing about the compiler's version."""
        if self.triton not in RECORDED:
            return True
        found = self.spill()
        return found is None or any(
            row[:-1] == found[:-1] and row.instructions >= found.instructions for row in RECORDED[self.triton]
        )

    def warnings(self) -> list[str]:
        """Return what depends on the compiler's version, as sentences: known spills, and those of a version unknown."""
        if self.spill() is None or not self._spill_is_known():
            return []
        why = "as recorded" if self.triton in RECORDED else f"triton {self.triton} has not been recorded"
        return [f"{self._where}: {self.spills} spill instructions, {self.stack} bytes of stack ({why})"]

    def faults(self) -> list[str]:
        """Return what is wrong with it, as sentences; empty if nothing is."""
        where = self._where
        found = []
        if not self._spill_is_known():
            found.append(
                f"{where}: {self.spills} spill instructions, {self.stack} bytes of stack, not recorded for triton"
                f" {self.triton}"
            )
        if self.shared > SHARED_LIMIT[self.arch]:
            found.append(f"{where}: {self.shared} bytes of shared memory, the limit is {SHARED_LIMIT[self.arch]}")
        if self.wants.get("vector_loads") and not self.wide_loads:
            found.append(f"{where}: none of {self.loads} loads from global memory is 16 bytes wide")
        if self.wants.get("tensor_cores") and not self.tensor_core:
            found.append(f"{where}: no tensor-core instruction")
        return found


def archs(triton: str | None = None) -> tuple[int, ...]:
    """Return those of `ARCHS` that a version of triton compiles for (None: the one in use).

    The ptxas of 3.2 and before knows no sm_100 and sm_120.
    """
    first = [int(part) for part in (version() if triton is None else triton).split(".") if part.isdigit()]
    return tuple(arch for arch in ARCHS if arch < 100 or first >= [3, 3])


def operators() -> list[str]:
    """Return the operator folders of `ief_kernels` that have a `triton_launch` module."""
    import ief_kernels

    folders = [module.name for module in pkgutil.iter_modules(ief_kernels.__path__) if module.ispkg]
    return [name for name in folders if importlib.util.find_spec(f"ief_kernels.{name}.triton_launch") is not None]


def cases(op: str) -> list[StaticCase]:
    """Every kernel of an operator in every configuration; imports triton."""
    module = importlib.import_module(f"bench.static_cases.{op}")
    return list(module.cases())


def one_per_kernel(found: Iterable[StaticCase]) -> list[StaticCase]:
    """The first configuration of each kernel and dtype."""
    first: dict[tuple[str, str, str], StaticCase] = {}
    for case in found:
        first.setdefault((case.op, case.kernel.__name__, case.dtype), case)
    return list(first.values())


def compile_case(case: StaticCase, arch: int) -> StaticResult:
    """Compiles for a GPU that need not be there, and reads the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget

    started = time.perf_counter()
    source = _source(case)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": case.fp_fusion}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage = tool("cuobjdump", "--dump-resource-usage", str(binary))
        assembly = tool("nvdisasm", "-c", str(binary))
    instructions = [name for name in _INSTRUCTION.findall(assembly) if name != "NOP"]  # padding
    if not instructions:
        raise RuntimeError(f"nvdisasm gave no instructions for {case.op} on sm_{arch}")

    def count(pattern: re.Pattern[str]) -> int:
        return sum(pattern.match(name) is not None for name in instructions)

    return StaticResult(
        triton=version(),
        op=case.op,
        tuner=case.tuner,
        kernel=case.kernel.__name__,
        config=case.config,
        dtype=case.dtype,
        arch=arch,
        wants=dict(case.wants),
        registers=resource(usage, "REG"),
        stack=resource(usage, "STACK"),
        spills=count(_SPILL),
        shared=compiled.metadata.shared,
        instructions=len(instructions),
        loads=count(_LOAD),
        wide_loads=count(_WIDE_LOAD),
        stores=count(_STORE),
        wide_stores=count(_WIDE_STORE),
        tensor_core=count(_TENSOR_CORE),
        seconds=round(time.perf_counter() - started, 2),
    )


def _source(case: StaticCase) -> Any:
    """The kernel as triton's compiler takes it."""
    from triton.compiler import ASTSource

    names, constants = case.kernel.arg_names, dict(case.constexprs)
    divisible = [
        index
        for index, name in enumerate(names)
        if name not in constants and (case.signature[name].startswith("*") or name in case.divisible)
    ]
    if "constexprs" in inspect.signature(ASTSource).parameters:
        signature = {name: "constexpr" if name in constants else case.signature[name] for name in names}
        attributes = {(index,): [["tt.divisibility", 16]] for index in divisible}
        return ASTSource(case.kernel, signature, constexprs=constants, attrs=attributes)
    from triton.backends.compiler import AttrsDescriptor  # up to triton 3.2

    properties = {"arg_properties": {"tt.divisibility": divisible, "tt.equal_to": []}, "cls": "AttrsDescriptor"}
    attributes = AttrsDescriptor.from_dict(properties)
    return ASTSource(case.kernel, dict(case.signature), constants=constants, attrs=attributes)


def tool(name: str, *arguments: str) -> str:
    """Run a program that triton brings along, such as cuobjdump, and return what it prints."""
    import triton.backends

    path = Path(next(iter(triton.backends.__path__))) / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True).stdout


def resource(text: str, name: str) -> int:
    """Return a number from cuobjdump's resource usage, such as REG or STACK.

    Raises:
        RuntimeError: the name is not there.
    """
    found = re.search(rf"\b{name}:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump does not say {name}: {text.strip()}")
    return int(found.group(1))


def measure(
    ops: Sequence[str] | None = None,
    on: Sequence[int] | None = None,
    dtypes: Sequence[str] | None = None,
    *,
    every_config: bool = True,
) -> list[StaticResult]:
    """Compiles in child processes without TRITON_INTERPRET: one an architecture, as many at a time as there are cores.

    Args:
        ops: operator folders; None takes all that have Triton kernels.
        on: architectures; None takes `archs()`.
        dtypes: element types such as "fp32"; None takes all.
        every_config: False takes the first configuration of each kernel and dtype.

    Raises:
        RuntimeError: a kernel does not compile; the message holds the compiler's.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda arch: _measure_arch(arch, ops, dtypes, every_config), on or archs())
        return [result for part in parts for result in part]


def _measure_arch(
    arch: int, ops: Sequence[str] | None, dtypes: Sequence[str] | None, every_config: bool
) -> list[StaticResult]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        command = [sys.executable, "-m", "bench.static", "--in-process", "--json", str(out), "--archs", str(arch)]
        command += ["--ops", *ops] if ops else []
        command += ["--dtypes", *dtypes] if dtypes else []
        command += [] if every_config else ["--one-per-kernel"]
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        root = str(Path(__file__).resolve().parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"ahead-of-time compilation failed:\n{run.stdout}{run.stderr}")
        return [StaticResult(**item) for item in json.loads(out.read_text(encoding="utf-8"))]


def _compile_all(
    ops: Sequence[str], archs: Sequence[int], dtypes: Sequence[str] | None, every_config: bool
) -> list[StaticResult]:
    results = []
    for op in ops:
        found = [case for case in cases(op) if dtypes is None or case.dtype in dtypes]
        for case in found if every_config else one_per_kernel(found):
            results += [compile_case(case, arch) for arch in archs]
    return results


def table(results: Sequence[StaticResult]) -> str:
    """The results as aligned text, one row each."""
    titles = ("kernel", "config", "type", "arch", "regs", "spills", "shared", "instr", "ld128", "st128", "mma", "s")
    rows = [titles]
    for r in results:
        rows.append(
            (
                r.kernel,
                r.config,
                r.dtype,
                f"sm_{r.arch}",
                str(r.registers),
                str(r.spills),
                str(r.shared),
                str(r.instructions),
                f"{r.wide_loads}/{r.loads}",
                f"{r.wide_stores}/{r.stores}",
                str(r.tensor_core),
                f"{r.seconds:.1f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def record(results: Sequence[StaticResult]) -> str:
    """Return the rows of one version of triton as they stand in ``ief_kernels/_spills.py``."""
    lines = [f'    "{results[0].triton}": (']
    for spill in dict.fromkeys(spill for result in results if (spill := result.spill()) is not None):
        *where, config, count = spill
        lines.append(f"        Spill({', '.join(json.dumps(part) for part in where)},")
        lines.append(f"              {json.dumps(config)}, {count}),")
    return "\n".join([*lines, "    ),"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if a kernel has a fault (named below the table), 0 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=__doc__)
    parser.add_argument("--ops", nargs="+", help="operator folders; default: all with Triton kernels")
    parser.add_argument("--archs", nargs="+", type=int, choices=ARCHS, default=None)
    parser.add_argument("--dtypes", nargs="+", help="element types, such as fp32 bf16; default: all")
    parser.add_argument("--one-per-kernel", action="store_true", help="the first configuration only")
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--record", action="store_true", help="print the rows for ief_kernels/_spills.py")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    ops, every_config = options.ops or operators(), not options.one_per_kernel
    if options.in_process:
        results = _compile_all(ops, options.archs or archs(), options.dtypes, every_config)
    else:
        results = measure(ops, options.archs, options.dtypes, every_config=every_config)
        print(table(results))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1), encoding="utf-8")
    faults = [fault for result in results for fault in result.faults()]
    if not options.in_process:
        for warning in (warning for result in results for warning in result.warnings()):
            print(f"warning: {warning}")
        print("\n".join(faults) if faults else f"{len(results)} compilations, no faults")
    if options.record:
        print(record(results))
    return 1 if faults and not options.in_process else 0


if __name__ == "__main__":
    sys.exit(main())
