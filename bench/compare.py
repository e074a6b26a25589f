"""Two commits against each other: one process per tree, called in turn, so that both run under the same conditions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import revisions, timing
from bench.ceilings import dtype_name
from bench.measure import PASSES
from bench.operators import Case
from bench.providers import COMPILED
from bench.tables import duration, significant, text_table
from bench.timing import Budget, Laps
from iefvad.utils.errors import UserError

SOURCES = ("csrc", "setup.py")
BUILT = ("native", "cuda")
"""Providers that need the C++ or CUDA extension."""
PAUSE = 0.005
"""Seconds between two requests, in which the threads of the process asked last go to sleep."""


@dataclass
class Comparison:
    """One provider on one pass of a case, in both trees; `speedup` is base over here, above 1 where here is faster.

    Quartiles of the speed-up are over rounds, in each of which both trees ran once.
    """

    op: str
    size: str
    shape: list[int]
    dtype: str
    direction: str
    provider: str
    base_ms: float | None = None
    here_ms: float | None = None
    speedup: float | None = None
    speedup_q1: float | None = None
    speedup_q3: float | None = None
    repeats: int = 0
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """What the middle half of the rounds agrees on."""
        if self.speedup_q1 is None or self.speedup_q3 is None or self.repeats < 2:
            return ""
        return "faster" if self.speedup_q1 > 1 else "slower" if self.speedup_q3 < 1 else "alike"


class Worker:
    """A process that measures one tree."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed in close)
        script = Path(__file__).with_name("worker.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(tree)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer; raise RuntimeError with the reason where there is none."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        time.sleep(PAUSE)
        try:
            print(json.dumps(request), file=stdin, flush=True)
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines() or [f"exit status {self.process.wait()}"]
            raise RuntimeError(f"the process measuring {self.tree} ended: {last[-1]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()
        self.errors.close()


def extensions(tree: Path, *, cuda: bool) -> list[Path]:
    """The compiled extensions that lie in a tree: C++ and, if asked for, CUDA."""
    stems = ("_C", "_cuda") if cuda else ("_C",)
    found = (tree / "ief_kernels").iterdir()
    return [path for path in found if path.suffix in (".so", ".pyd") and path.name.split(".")[0] in stems]


def build(tree: Path, *, cuda: bool) -> None:
    """Compiles the extensions into a tree; UserError with the compiler's last words if there are none then."""
    environment = {**os.environ, **({} if cuda else {"IEF_KERNELS_SKIP_CUDA": "1"})}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode or not extensions(tree, cuda=cuda):
        lines = (done.stdout + done.stderr).strip().splitlines()[-5:]
        raise UserError("building the extension of the base commit failed:\n" + "\n".join(lines))


def prepare(root: Path, tree: Path, commit: str, *, cuda: bool, progress: Callable[[str], None]) -> None:
    """Sees to it that both trees hold extensions of their own sources.

    The base's is built, or copied from here where the sources are the same. UserError where the one here is missing or
    older than its sources, since its times would be another commit's.
    """
    built = extensions(root, cuda=cuda)
    sources = [root / "setup.py", *(path for path in (root / "csrc").rglob("*") if path.is_file())]
    if not cuda:
        sources = [path for path in sources if path.parent != root / "csrc" / "cuda"]
    newest = max(sources, key=_changed)
    if not built or min(map(_changed, built)) < _changed(newest):
        state = f"older than {newest.relative_to(root)}" if built else "missing"
        raise UserError(f"the extension in {root} is {state}; run `python setup.py build_ext --inplace` there first")
    if revisions.same(root, commit, *SOURCES):
        for path in built:
            shutil.copy2(path, tree / "ief_kernels" / path.name)
    else:
        progress(f"building the extension of {commit[:7]}")
        build(tree, cuda=cuda)


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def compare(
    revision: str,
    cases: Sequence[Case],
    device: str,
    budget: Budget,
    providers: Sequence[str],
    *,
    root: Path = revisions.ROOT,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """`base` and `here` (which trees) and `comparisons` of the providers on the cases, as records of a result file.

    Raises:
        UserError: no git, no such revision, or an extension that is missing, out of date or does not build.
    """
    commit = revisions.resolve(root, revision)
    with revisions.checked_out(root, commit) as tree:
        if any(provider in BUILT for provider in providers):
            prepare(root, tree, commit, cuda=device == "cuda", progress=progress)
        workers = {"base": Worker(tree), "here": Worker(root)}
        try:
            rows = []
            for number, case in enumerate(cases, 1):
                progress(f"{number}/{len(cases)} {case.op} {case.size} {dtype_name(case.dtype)}")
                rows += compare_case(workers, case, device, budget, providers)
        finally:
            for worker in workers.values():
                worker.close()
    return {
        "base": {"revision": revision, "commit": commit[:7]},
        "here": {"commit": revisions.label(root)},
        "comparisons": [asdict(row) for row in rows],
    }


def compare_case(
    workers: Mapping[str, Worker], case: Case, device: str, budget: Budget, providers: Sequence[str]
) -> list[Comparison]:
    """Rows of all providers and passes of one case; a provider that does not serve in both has one with the reason."""
    fields = {**asdict(case), "dtype": dtype_name(case.dtype)}
    reasons: dict[str, str] = {}
    for side, worker in workers.items():
        try:
            answer = worker.ask(case=fields, device=device, providers=list(providers), quick=budget.quick, seed=0)
            found = answer["reasons"]
        except RuntimeError as error:
            found = dict.fromkeys(providers, str(error))
        for provider in providers:
            if provider in found:
                reasons.setdefault(provider, f"{side}: {found[provider]}")

    def run(side: str, provider: str) -> timing.Run:
        def timed(index: int) -> Laps:
            laps: Laps = workers[side].ask(run=provider, index=index)["laps"]
            return laps

        return timed

    sides = {f"{side} {name}": run(side, name) for name in providers if name not in reasons for side in workers}

    def check(name: str, seconds: float) -> None:
        side, _, provider = name.partition(" ")
        workers[side].ask(check=provider)

    compiled = frozenset(name for name in sides if name.partition(" ")[2] in COMPILED)
    timings, failures = timing.interleave(sides, budget, compiled=compiled, on_first=check)
    for name, why in failures.items():
        side, _, provider = name.partition(" ")
        reasons.setdefault(provider, f"{side}: {why}")
    rows = []
    for provider in providers:
        if provider in reasons:
            rows.append(_row(case, "both" if case.trains else "forward", provider))
            rows[-1].reason = reasons[provider]
            continue
        base, here = (timings[f"{side} {provider}"].samples for side in ("base", "here"))
        for direction in PASSES if case.trains else PASSES[:1]:
            row = _row(case, direction, provider)
            fill(row, base[direction], here[direction])
            rows.append(row)
    return rows


def _row(case: Case, direction: str, provider: str) -> Comparison:
    return Comparison(case.op, case.size, list(case.shape), dtype_name(case.dtype), direction, provider)


def fill(row: Comparison, base: Sequence[float], here: Sequence[float]) -> None:
    """Medians of both in ms, and the speed-up with its quartiles, from seconds by round."""
    row.base_ms, row.here_ms = (timing.quartiles(list(seconds))[1] * 1e3 for seconds in (base, here))
    rounds = [timing.ratio(a, b) for a, b in zip(base, here, strict=False)]
    row.speedup_q1, _, row.speedup_q3 = timing.quartiles(rounds)
    row.speedup = timing.ratio(row.base_ms, row.here_ms)
    row.repeats = len(rounds)


def comparison_table(records: Sequence[dict[str, Any]], *, decides: bool = True) -> str:
    """One line per row, and beneath the table why others have none. On a busy machine nothing is decided."""
    lines, missing = [], []
    for row in (Comparison(**record) for record in records):
        case = f"{row.op} {row.size} ({'×'.join(map(str, row.shape))}) {row.dtype}"
        if row.base_ms is None or row.here_ms is None or row.speedup_q1 is None or row.speedup_q3 is None:
            missing.append(f"  {row.provider}, {case}: {row.reason}")
            continue
        spread = f"{row.speedup_q1:.3f} – {row.speedup_q3:.3f}"
        times = (duration(row.base_ms), duration(row.here_ms), significant(row.speedup or 0.0), spread)
        lines.append((case, row.direction, row.provider, *times, str(row.repeats), row.verdict if decides else "?"))
    header = ("case", "pass", "provider", "base", "here", "speed-up", "quartiles", "rounds", "here is")
    parts = [text_table(header, lines, left=3)]
    if missing:
        parts.append("Not measured:\n" + "\n".join(missing))
    return "\n\n".join(parts)
