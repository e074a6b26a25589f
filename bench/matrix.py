"""Every operator's kernels for every card, on a machine without a GPU: `python -m bench --matrix`.

The calls of `matrix_cases` go through the package's own host code and Triton's just-in-time compiler (`fake_gpu`), for
several versions of triton and several compute capabilities. A call has a fault if it does not compile, needs more
shared memory than the card has, spills more registers than is recorded, launches another number of kernels than
`bench.launches` says, or lets more programs wait for each other than can be resident. Nothing runs, so nothing is said
about results.

Recorded spills are in two tables: `ief_kernels/_spills.py` for configurations that the tuners leave out, and
`bench/spills.json` for what only some calls meet, such as those of odd sizes. A triton that neither knows has no faults
of this kind, only a line that says so.

Results are kept as they come: with --out every call is one line of JSON, and --resume goes on behind the last one.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench import static
from bench.fake_gpu import PROCESSORS, FakeGPU, Seen, child
from ief_kernels._spills import RECORDED, version
from iefvad.utils.errors import UserError

if TYPE_CHECKING:
    from bench.matrix_cases import Case

INSTALLED = "installed"
SPILLS = Path(__file__).parent / "spills.json"

Spills = dict[str, dict[str, dict[str, int]]]
"""By version of triton and "KERNEL DTYPE CONFIG": the architectures on which it spills, and the instructions for it."""


@dataclass
class Result:
    """What one call gave.

    Attributes:
        triton: version, major and minor.
        arch: compute capability times ten.
        op, case, dtype: which call.
        faults: sentences; empty if nothing is wrong.
        launches: of the forward and of the backward pass.
        compilations: number of kernels compiled for it that no earlier call had compiled.
        spills: "KERNEL DTYPE CONFIG" → number of instructions on thread-local memory, recorded or not.
        seconds: with compilations.
        left_out: whether the configuration asked for does not fit the card, so that the tuner leaves it out.
    """

    triton: str
    arch: int
    op: str
    case: str
    dtype: str
    faults: list[str] = field(default_factory=list)
    launches: list[int] = field(default_factory=list)
    compilations: int = 0
    spills: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    left_out: bool = False

    @property
    def key(self) -> tuple[str, int, str, str, str]:
        """What tells it from other calls."""
        return self.triton, self.arch, self.op, self.case, self.dtype

    @property
    def where(self) -> str:
        """The same in words."""
        return f"triton {self.triton}, sm_{self.arch}, {self.op} ({self.case}), {self.dtype}"


@functools.cache
def _listed() -> Spills:
    found: Spills = json.loads(SPILLS.read_text(encoding="utf-8"))
    return found


def _left_out(triton: str, arch: int) -> dict[str, int]:
    """The spills that `ief_kernels/_spills.py` lists."""
    found: dict[str, int] = {}
    for row in RECORDED.get(triton, ()):
        # Numbers that a call made constant, which are no `tl.constexpr`, have small letters.
        config = ",".join(word for word in row.config.split(",") if word[0].isupper() or word[:5] in ("warps", "stage"))
        if row.arch == arch:
            name = f"{row.kernel} {row.dtype} {config}"
            found[name] = max(found.get(name, 0), row.instructions)
    return found


def recorded(triton: str, arch: int) -> dict[str, int] | None:
    """Return the spills that the two tables list for an architecture, or None if they do not know the version."""
    if triton not in RECORDED and triton not in _listed():
        return None
    found = _left_out(triton, arch)
    for name, counts in _listed().get(triton, {}).items():
        if str(arch) in counts:
            found[name] = max(found.get(name, 0), counts[str(arch)])
    return found


def run_case(gpu: FakeGPU, case: Case, dtype: str) -> Result:
    """Make one call, forward and backward, and look at what it compiled and launched."""
    from triton.runtime.errors import OutOfResources

    from bench.matrix_cases import DTYPES, settings

    result = Result(version(), gpu.arch, case.op, case.name, dtype)
    began = time.perf_counter()
    forward, backward = Seen(), Seen()
    try:
        with settings(case, dtype):
            with gpu.watch() as forward:
                total = case.forward(DTYPES[dtype])
            if total is not None:
                with gpu.watch() as backward:
                    total.backward()
        result.launches = [len(forward.launches), len(backward.launches)]
        result.faults += _wrong_launches(case, forward, backward, trained=total is not None)
    except OutOfResources as error:
        result.left_out = case.config is not None
        result.faults += [] if result.left_out else [str(error)]
    except Exception as error:
        result.faults.append(_told(error))
    compilations = [*forward.compilations, *backward.compilations]
    result.compilations = len(compilations)
    for found in compilations:
        usage = found.usage()
        if usage.stack:
            name = f"{found.kernel} {found.dtype} {found.config}"
            result.spills[name] = max(result.spills.get(name, 0), usage.spills)
    known = recorded(version(), gpu.arch)
    result.faults += [
        f"{name}: {count} spill instructions, {known.get(name, 'none')} recorded for triton {version()}"
        for name, count in result.spills.items()
        if known is not None and count > known.get(name, -1)
    ]
    for launch in (*forward.launches, *backward.launches):
        programs = launch.grid[0] * launch.grid[1] * launch.grid[2]
        if launch.cooperative and programs > PROCESSORS[gpu.arch]:
            result.faults.append(
                f"{launch.kernel}: {programs} programs wait for each other on {PROCESSORS[gpu.arch]} processors"
            )
    result.seconds = round(time.perf_counter() - began, 2)
    return result


def _wrong_launches(case: Case, forward: Seen, backward: Seen, *, trained: bool) -> list[str]:
    found = []
    passes = (("forward", forward, case.launches.forward), ("backward", backward, case.launches.backward))
    for name, seen, count in passes if trained else passes[:1]:
        if len(seen.launches) != count.of(case.steps):
            kernels = ", ".join(launch.kernel for launch in seen.launches)
            found.append(f"{name}: {len(seen.launches)} launches instead of {count.of(case.steps)} ({kernels})")
    return found


def _told(error: Exception) -> str:
    """The error and its causes, the first cause last, and the line of the package that it came from."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        parts.append(f"{type(cause).__name__}: {str(cause).strip()[-300:]}")
        cause = cause.__cause__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "ief_kernels" in frame.filename]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return " <- ".join(parts) + where


def _run_here(arch: int, ops: Sequence[str], dtypes: Sequence[str] | None, into: Path, quick: bool) -> None:
    """Make all calls that `into` does not have yet, and add a line for each."""
    gpu = FakeGPU(arch)
    from bench.matrix_cases import cases

    done = {result.key for result in read(into)}
    with into.open("a", encoding="utf-8") as file:
        for case in cases():
            if case.op not in ops or (quick and not case.quick):
                continue
            for dtype in case.quick if quick else case.dtypes:
                at = (version(), arch, case.op, case.name, dtype)
                if (dtypes is None or dtype in dtypes) and at not in done:
                    file.write(json.dumps(asdict(run_case(gpu, case, dtype)), ensure_ascii=False) + "\n")
                    file.flush()


def read(path: Path) -> list[Result]:
    """Return the results in a file; a line that was cut off by an interruption does not count."""
    results = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        results.append(Result(**values))
    return results


def version_in(triton: str) -> str:
    """Return the version of triton in a folder, or of the installed one, major and minor; UserError without one."""
    if triton == INSTALLED:
        if not version():
            raise UserError("triton is not installed; name a folder with an unpacked wheel: --triton FOLDER")
        return version()
    found = [path.name for path in Path(triton).glob("triton-*.dist-info")]
    if not found:
        raise UserError(
            f"{triton} is not an unpacked wheel of triton; get one by: pip download triton==3.3.1 --no-deps &&"
            f" python -m zipfile -e triton-3.3.1-*.whl {triton}"
        )
    return ".".join(found[0].split("-")[1].split(".")[:2])


def measure(
    triton: str,
    arch: int,
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    *,
    into: Path | None = None,
    quick: bool = False,
) -> list[Result]:
    """Make all calls for one version of triton and one architecture, in a process of its own.

    Args:
        triton: a folder with an unpacked wheel, or "installed".
        arch: compute capability times ten.
        ops: public functions; None: all.
        dtypes: names among `matrix_cases.DTYPES`; None: all.
        into: file that results are added to as they come, and whose calls are not repeated.
        quick: only the calls and dtypes marked so.

    Raises:
        RuntimeError: the process died; the message contains what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = into or Path(folder) / "results.jsonl"
        command = ["-m", "bench.matrix", "--in-process", "--archs", str(arch), "--out", str(path)]
        command += ["--ops", *ops] if ops else []
        command += ["--dtypes", *dtypes] if dtypes else []
        command += ["--quick"] if quick else []
        run = child(command, triton=None if triton == INSTALLED else Path(triton))
        if run.returncode:
            raise RuntimeError(f"triton {triton}, sm_{arch}: the process failed:\n{run.stdout}{run.stderr}")
        at = version_in(triton)
        return [result for result in read(path) if result.triton == at and result.arch == arch]


def table(results: Sequence[Result]) -> str:
    """Versions and architectures by operators: ok, or the number of faults."""
    ops = list(dict.fromkeys(result.op for result in results))
    rows: list[tuple[str, ...]] = [("triton", "arch", *ops, "calls", "compiled", "spilling", "seconds")]
    for triton, arch in dict.fromkeys((result.triton, result.arch) for result in results):
        of = [result for result in results if (result.triton, result.arch) == (triton, arch)]
        cells = []
        for op in ops:
            faults = [len(result.faults) for result in of if result.op == op]
            cells.append("-" if not faults else "ok" if not sum(faults) else f"{sum(faults)} faults")
        compiled, spilling = (
            sum(result.compilations for result in of),
            {name for result in of for name in result.spills},
        )
        counts = (len(of), compiled, len(spilling), round(sum(result.seconds for result in of)))
        rows.append((triton, f"sm_{arch}", *cells, *map(str, counts)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def record(results: Sequence[Result], *, whole: bool) -> None:
    """Write spills into `SPILLS`, without those that `ief_kernels/_spills.py` lists.

    Args:
        results: of any versions and architectures.
        whole: whether they are all calls, so that what the table lists besides is out of date.
    """
    listed: Spills = json.loads(SPILLS.read_text(encoding="utf-8"))
    for triton, arch in dict.fromkeys((result.triton, result.arch) for result in results):
        kernels, at, others = listed.setdefault(triton, {}), str(arch), _left_out(triton, arch)
        if whole:
            for counts in kernels.values():
                counts.pop(at, None)
        for result in results:
            for name, count in result.spills.items() if (result.triton, result.arch) == (triton, arch) else ():
                if count > others.get(name, -1):
                    counts = kernels.setdefault(name, {})
                    counts[at] = max(count, counts.get(at, 0))
    versions = []
    for triton, kernels in sorted(listed.items()):
        rows = [
            f"  {json.dumps(name)}: {json.dumps(dict(sorted(counts.items(), key=lambda item: int(item[0]))))}"
            for name, counts in sorted(kernels.items())
            if counts
        ]
        versions.append(f" {json.dumps(triton)}: {{\n" + ",\n".join(rows) + "\n }")
    SPILLS.write_text("{\n" + ",\n".join(versions) + "\n}\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if a call has a fault (listed below the table), 0 otherwise."""
    from bench.matrix_cases import OPERATORS

    parser = argparse.ArgumentParser(prog="python -m bench --matrix", description=__doc__)
    parser.add_argument(
        "--triton",
        nargs="+",
        default=[INSTALLED],
        metavar="FOLDER",
        help=f"folders with unpacked wheels of triton; '{INSTALLED}' is the installed one (default)",
    )
    parser.add_argument("--archs", nargs="+", type=int, choices=static.ARCHS, help="default: all that a triton knows")
    parser.add_argument("--ops", nargs="+", choices=OPERATORS, metavar="NAME", help="public functions; default: all")
    parser.add_argument("--dtypes", nargs="+", metavar="TYPE", help="such as fp32 bf16 tf32; default: all")
    parser.add_argument("--quick", action="store_true", help="the short selection that the tests run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="add each result to this file, one line of JSON each")
    parser.add_argument("--resume", action="store_true", help="do not repeat the calls that --out has already")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: all cores)")
    parser.add_argument("--record", action="store_true", help=f"write the spills into bench/{SPILLS.name}")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    ops = options.ops or OPERATORS
    if options.in_process:
        _run_here(options.archs[0], ops, options.dtypes, options.out, options.quick)
        return 0
    if options.out is not None and options.out.exists() and not options.resume:
        raise UserError(f"{options.out} exists; go on with it by --resume, or name another file")
    units = [
        (triton, arch)
        for triton in options.triton
        for arch in static.archs(version_in(triton))
        if options.archs is None or arch in options.archs
    ]
    results: list[Result] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        parts = pool.map(
            lambda unit: measure(unit[0], unit[1], ops, options.dtypes, into=options.out, quick=options.quick), units
        )
        for part in parts:
            results += part
            print("\n".join(table(part).splitlines()[0 if len(results) == len(part) else 1 :]), flush=True)
    if options.record:
        record(results, whole=not (options.ops or options.dtypes or options.quick))
        print(f"spills written to {SPILLS}")
    for triton in dict.fromkeys(result.triton for result in results if recorded(result.triton, result.arch) is None):
        print(f"triton {triton} has not been recorded: its spills count as no faults")
    faults = [f"{result.where}: {fault}" for result in results for fault in result.faults]
    print("\n".join(faults) if faults else f"{len(results)} calls, no faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
