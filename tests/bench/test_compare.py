"""`python -m bench --base REV`: what git is asked, what each side measures, and what the ratios say."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from bench import compare, revisions
from bench.__main__ import main
from bench.operators import Case
from bench.timing import Budget
from iefvad.utils.errors import UserError


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits of a tree whose setup.py puts an empty file where the extension belongs, or fails in the first."""
    if shutil.which("git") is None:
        pytest.skip("git is absent")
    root = tmp_path / "clone"
    (root / "ief_kernels").mkdir(parents=True)
    (root / "ief_kernels" / "__init__.py").write_text("")
    (root / "csrc").mkdir()
    (root / "csrc" / "a.cpp").write_text("int a;\n")
    git(tmp_path, "init", "--quiet", str(root))
    for text in ("raise SystemExit('no compiler here')\n", "open('ief_kernels/_C.so', 'w').write('new')\n"):
        (root / "setup.py").write_text(text)
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", "a commit")
    return root


def test_revisions(repository: Path, tmp_path: Path) -> None:
    head = revisions.resolve(repository, "HEAD")
    assert revisions.label(repository) == head[:7]
    with revisions.checked_out(repository, revisions.resolve(repository, "HEAD~1")) as tree:
        assert "no compiler" in (tree / "setup.py").read_text()
        assert revisions.label(tree) == revisions.resolve(repository, "HEAD~1")[:7]
    assert not tree.exists()
    listed = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 1
    (repository / "csrc" / "a.cpp").write_text("int b;\n")
    assert revisions.label(repository) == f"{head[:7]}+changes"
    assert not revisions.same(repository, "HEAD", "csrc")
    assert revisions.same(repository, "HEAD", "setup.py")
    for wrong in ("no-such-branch", "--help", ""):
        with pytest.raises(UserError, match="there is no commit"):
            revisions.resolve(repository, wrong)


def test_no_repository_and_no_git(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, repository / "csrc"):
        assert revisions.label(folder) is None
        with pytest.raises(UserError, match="not a git repository"):
            revisions.resolve(folder, "HEAD")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revisions.label(repository) is None
    with pytest.raises(UserError, match="git was not found"):
        revisions.resolve(repository, "HEAD")


def test_the_base_gets_an_extension_of_its_own_sources(repository: Path, tmp_path: Path) -> None:
    def prepare(revision: str) -> str:
        with revisions.checked_out(repository, revision) as tree:
            compare.prepare(repository, tree, revision, cuda=False, progress=told.append)
            return (tree / "ief_kernels" / "_C.so").read_text()

    told: list[str] = []
    with pytest.raises(UserError, match=r"is missing; run `python setup\.py"):
        prepare("HEAD")
    here = repository / "ief_kernels" / "_C.so"
    here.write_text("here")
    assert prepare("HEAD") == "here", "the same sources need no second build"
    with pytest.raises(UserError, match=r"(?s)base commit failed.*no compiler here"):
        prepare("HEAD~1")
    (repository / "csrc" / "a.cpp").write_text("int b;\n")
    with pytest.raises(UserError, match=r"older than csrc/a\.cpp"):
        prepare("HEAD")
    here.write_text("here")
    assert prepare("HEAD") == "new", "other sources are built"
    assert told == ["building the extension of HEAD~1", "building the extension of HEAD"]


def test_speedup_and_verdict() -> None:
    made = compare.Comparison("refine", "odd", [1, 2, 3], "float32", "forward", "native")
    compare.fill(made, [2.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    assert (made.base_ms, made.here_ms, made.speedup, made.repeats) == (2000.0, 1000.0, 2.0, 3)
    assert (made.speedup_q1, made.speedup_q3, made.verdict) == (2.0, 3.0, "faster")
    compare.fill(made, [1.0, 1.0], [2.0, 2.5])
    assert made.verdict == "slower"
    compare.fill(made, [1.0, 2.0], [2.0, 1.0])
    assert made.verdict == "alike"
    failed = dataclasses.replace(made, base_ms=None, here_ms=None, reason="base: no such kernel")
    text = compare.comparison_table([dataclasses.asdict(made), dataclasses.asdict(failed)])
    assert "alike" in text
    assert text.endswith("native, refine odd (1×2×3) float32: base: no such kernel")


def test_a_worker_measures_the_tree_it_was_given(tmp_path: Path) -> None:
    worker = compare.Worker(revisions.ROOT)
    try:
        fields = {"op": "refine", "size": "odd", "shape": [1, 3, 4], "dtype": "float32"}
        about = {"case": fields, "device": "cpu", "quick": True, "seed": 0}
        answer = worker.ask(**about, providers=["plain", "cuda"])
        assert answer == {"reasons": {"cuda": "needs a CUDA device"}}
        assert set(worker.ask(run="plain", index=0)["laps"]) == {"forward", "backward", "both"}
        assert worker.ask(check="plain") == {}
        with pytest.raises(RuntimeError, match="KeyError"):
            worker.ask(run="cuda", index=0)
        assert worker.ask(run="plain", index=1)["laps"]["both"] > 0, "an error is an answer, not the end"
    finally:
        worker.close()
    empty = compare.Worker(tmp_path)
    try:
        with pytest.raises(RuntimeError, match=r"ended: .*(not from|No module)"):
            empty.ask(run="plain", index=0)
    finally:
        empty.close()


@pytest.mark.slow
def test_comparing_head_with_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if revisions.label(revisions.ROOT) is None:
        pytest.skip("git or the repository is absent")
    monkeypatch.setattr("bench.command.QUICK", Budget(rounds=3, least_rounds=1, provider_seconds=0.2))
    monkeypatch.setattr("bench.command.cases", lambda device, quick: [Case("kalman_scan", "odd", (2, 4, 5))])
    options = ["--op", "kalman_scan", "--size", "odd", "--provider", "reference", "cuda", "--out", str(tmp_path)]
    assert main(["--base", "HEAD", "--quick", *options]) == 0
    assert "speed-up" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert result["base"]["commit"] == revisions.resolve(revisions.ROOT, "HEAD")[:7]
    measured = [record for record in result["comparisons"] if record["reason"] is None]
    assert [(r["provider"], r["direction"]) for r in measured] == [
        ("reference", name) for name in ("forward", "backward", "both")
    ]
    # The same code twice; a factor of 5 leaves room for a machine that does other things too.
    assert all(0.2 < record["speedup"] < 5 for record in measured)
    (refused,) = (record for record in result["comparisons"] if record["reason"])
    assert refused["reason"] == "base: needs a CUDA device"
