"""What git knows of this tree, and another commit checked out beside it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iefvad.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("ief_kernels", "iefvad", "csrc", "setup.py")
"""What a result depends on; a change elsewhere does not make a tree another one."""


def _git(root: Path, *arguments: str) -> str:
    """The output of a git command; UserError where git, or a repository, is missing or the command fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("git was not found; install it, or measure without --base") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        if "not a git repository" in done.stderr:
            raise UserError(f"{root} is not a git repository; --base needs a clone of the project")
        raise UserError(f"git {arguments[0]} failed: {lines[-1]}")
    return done.stdout.strip()


def _require_repository(root: Path) -> None:
    """UserError unless `root` is the top of a git repository (a copy inside another repository is not)."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if Path(top).resolve() != root.resolve():
        raise UserError(f"{root} is not a git repository; --base needs a clone of the project")


def label(root: Path) -> str | None:
    """The commit of a tree, such as ``edb3436``, with ``+changes`` if measured files differ; None without git."""
    try:
        _require_repository(root)
        commit = _git(root, "rev-parse", "--short", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", *MEASURED)
    except UserError:
        return None
    return f"{commit}+changes" if changed else commit


def resolve(root: Path, revision: str) -> str:
    """The full commit id of a revision; UserError if no revision has that name."""
    _require_repository(root)
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except UserError:
        raise UserError(f"there is no commit {revision!r} in {root}; see git log, or fetch it first") from None


def same(root: Path, revision: str, *paths: str) -> bool:
    """Whether the tree's tracked files under these paths are those of the revision."""
    return not _git(root, "diff", "--name-only", revision, "--", *paths)


@contextmanager
def checked_out(root: Path, revision: str) -> Iterator[Path]:
    """A folder with the files of a revision, gone at the end; `root` and its index stay as they are."""
    with tempfile.TemporaryDirectory(prefix="bench-base-") as folder:
        tree = Path(folder) / "tree"
        _git(root, "worktree", "add", "--quiet", "--detach", str(tree), revision)
        try:
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))
