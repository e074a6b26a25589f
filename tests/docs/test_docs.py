"""The documents: links and anchors exist, citations in the sources hold, examples run, the site builds cleanly."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", "venv", "build", "dist", "runs", "stores", "site", "node_modules"}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    ROOT / "bench" / "NOTES.md",
    *sorted((ROOT / "examples").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
EXAMPLE_PAGES = [ROOT / "docs" / "start.md", *sorted((ROOT / "docs" / "operators").glob("*.md"))]
SOURCES = {".py", ".sh", ".cpp", ".h", ".cu", ".cuh", ".toml", ".yml", ".yaml", ".md"}
FENCE = re.compile(r"^(`{3,}|~{3,})(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)


def name_of(path: Path) -> str:
    """A file's place in the repository, with forward slashes."""
    return path.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page's text without its code."""
    return INLINE_CODE.sub("`", FENCE.sub("", page.read_text(encoding="utf-8")))


@cache
def anchors(page: Path) -> frozenset[str]:
    """Anchors of a page's headings, as GitHub makes them: lower case, punctuation dropped, spaces to hyphens."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    seen: Counter[str] = Counter()
    found = set()
    for title in re.findall(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", text, re.MULTILINE):
        title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return frozenset(found | set(re.findall(r'<a (?:id|name)="([^"]+)"', text)))


def sources() -> list[Path]:
    """Every text file of the repository that may cite a document."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.endswith((".egg-info", "_cache"))]
        found += [Path(folder, name) for name in names if Path(name).suffix in SOURCES or folder.endswith("/.ci")]
    return sorted(found)


# Links and citations.


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    dangling = []
    for target in re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", prose(page)):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            dangling.append(target)
    assert not dangling, f"{name_of(page)} links to what does not exist: {dangling}"


def test_pages_are_found() -> None:
    assert len(PAGES) > 20 and all(page.is_file() for page in PAGES)


def test_citations_of_documents_exist() -> None:
    dangling = []
    for path in sources():
        for file, anchor in re.findall(r"\b(docs/[\w./-]+?\.md)(?:#([\w-]+))?", path.read_text(encoding="utf-8")):
            page = ROOT / file
            if not page.is_file() or (anchor and anchor not in anchors(page)):
                dangling.append(f"{name_of(path)}: {file}{'#' + anchor if anchor else ''}")
    assert not dangling, "these citations lead nowhere:\n" + "\n".join(dangling)


def test_nothing_cites_a_specification_that_is_not_in_the_repository() -> None:
    here = Path(__file__).resolve()
    stale = []
    for path in sources():
        if path == here or path.name == "CHANGELOG.md":
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        stale += [
            f"{name_of(path)}:{number}: {line.strip()}"
            for number, line in enumerate(lines, 1)
            if re.search(r"SPEC\s*§|SPEC\.md|\bSPEC\b", line)
        ]
    assert not stale, "cite a section of docs/specification.md instead:\n" + "\n".join(stale)


def test_specification_has_the_anchors_that_sources_rely_on() -> None:
    fixed = """
        data-flow event-synthesis precision-fusion kalman-scan refinement loss-terms not-finite types-and-devices
        network training presets methods released-checkpoints data-conventions metrics robustness embedded-benchmark
        run-folder clock commands build
    """
    assert set(fixed.split()) <= anchors(ROOT / "docs" / "specification.md")


# What the documents say of the code.


def literal_text(node: ast.expr) -> str | None:
    """A string as written, with … for what is filled in; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(literal_text(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = literal_text(node.left), literal_text(node.right)
        return None if left is None or right is None else left + right
    return None


@cache
def code_strings() -> str:
    """All strings of the packages and of setup.py, one a line."""
    files = [ROOT / "setup.py", *(ROOT / "ief_kernels").rglob("*.py"), *(ROOT / "iefvad").rglob("*.py")]
    strings = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.expr) and (text := literal_text(node)) is not None:
                strings.append(" ".join(text.split()))
    return "\n".join(strings)


def quoted_messages() -> list[str]:
    """The first column of the tables of docs/troubleshooting.md."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


@pytest.mark.parametrize("message", quoted_messages())
def test_messages_of_the_troubleshooting_page_exist(message: str) -> None:
    """… in a quoted message stands for anything within one string of the code."""
    pattern = ".*".join(re.escape(part) for part in message.split("…"))
    assert re.search(pattern, code_strings()), f"no such message in the code any more: {message}"


def test_every_environment_variable_is_described() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`([A-Z][A-Z0-9_]+)(?:=[^`]*)?`", page))
    read = set()
    for folder in ("ief_kernels", "iefvad", "bench"):
        for file in (ROOT / folder).rglob("*.py"):
            read |= set(re.findall(r"environ(?:\.get|\.setdefault)?[\[(]\"(\w+)\"", file.read_text(encoding="utf-8")))
    read |= set(
        re.findall(r"environ(?:\.get)?[\[(]\"(\w+)\"|switched_on\(\"(\w+)\"", (ROOT / "setup.py").read_text())[0]
    )
    for file in (ROOT / "csrc").rglob("*.cpp"):
        read |= set(re.findall(r'getenv\("(\w+)"\)', file.read_text(encoding="utf-8")))
    assert {"IEFVAD_CACHE", "IEF_KERNELS_CACHE", "IEF_KERNELS_ISA"} <= read
    assert read - {""} <= described


# Examples and the site.


def examples(page: Path) -> list[str]:
    """The Python examples of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", EXAMPLE_PAGES, ids=name_of)
def test_examples_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = examples(page)
    assert found, f"{name_of(page)} has no example"
    for number, code in enumerate(found, 1):
        exec(compile(code, f"{name_of(page)}, example {number}", "exec"), {"__name__": "__main__"})
        assert "print(" not in code or capsys.readouterr().out


@pytest.mark.slow
def test_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    missing = [name for name in ("mkdocs", "material", "mkdocstrings_handlers.python") if not _installed(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (pip install -e '.[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert built.returncode == 0, built.stderr[-4000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?https?://[^\s>]+", text)
        fetched += re.findall(r"<link[^>]*\srel=\"?(?:stylesheet|preconnect)[^>]*https?://[^\s>]+", text)
        assert not fetched, f"{page.name} fetches {fetched}"


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
