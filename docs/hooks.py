"""Hooks of the documentation site: pages that live elsewhere in the repository, and links to the repository's files.

Every page links as GitHub shows it: relative to its own place in the repository. Here these links are turned into the
site's, and links to files that are not on the site (sources, scripts) become plain text.
"""

from __future__ import annotations

import posixpath
import re

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

# Place in the repository → place on the site.
ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "bench/NOTES.md": "notes.md",
    "examples/upcam.md": "upcam.md",
}
NOTEBOOKS = {f"examples/notebooks/{name}.ipynb": f"{name}.md" for name in ("operators", "own_footage", "robustness")}
"""Notebooks become pages, with the outputs that they are stored with. They are not executed."""
_RESULTS = "bench/results"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that lie outside docs/."""
    root = posixpath.dirname(config.config_file_path.replace("\\", "/"))
    for source, target in ELSEWHERE.items():
        files.append(File.generated(config, target, abs_src_path=f"{root}/{source}"))
    for source, target in NOTEBOOKS.items():
        for file in _notebook(f"{root}/{source}", f"notebooks/{target}", config):
            files.append(file)
    notes = f"{root}/bench/NOTES.md"
    with open(notes, encoding="utf-8") as file:
        for name in re.findall(r"\]\(results/([^)]+\.png)\)", file.read()):
            files.append(File.generated(config, f"results/{name}", abs_src_path=f"{root}/{_RESULTS}/{name}"))
    return files


def _notebook(path: str, target: str, config: MkDocsConfig) -> list[File]:
    """Return the page of a notebook and its pictures."""
    text, resources = MarkdownExporter().from_notebook_node(nbformat.read(path, as_version=4))
    text = re.sub(r"<style scoped>.*?</style>", "", text, flags=re.DOTALL)
    stem = posixpath.splitext(posixpath.basename(target))[0]
    pictures = {name: f"{stem}_{name}" for name in resources["outputs"]}
    for name, picture in pictures.items():
        text = text.replace(f"({name})", f"({picture})")
    page = File.generated(config, target, content=text)
    folder = posixpath.dirname(target)
    return [
        page,
        *(
            File.generated(config, f"{folder}/{picture}", content=resources["outputs"][name])
            for name, picture in pictures.items()
        ),
    ]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that hold in the repository into links that hold on the site; code is left alone."""
    site = page.file.src_uri
    here = next((source for source, target in ELSEWHERE.items() if target == site), f"docs/{site}")
    if site.startswith("notebooks/"):
        return markdown  # its links are to its own pictures
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_links(markdown[end : fence.start()], here, site, files), fence[0]]
        end = fence.end()
    return "".join([*parts, _links(markdown[end:], here, site, files)])


def _links(text: str, here: str, site: str, files: Files) -> str:
    def replace(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        path, mark, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return match[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        if place in ELSEWHERE:
            place = ELSEWHERE[place]
        elif place in NOTEBOOKS:
            place = f"notebooks/{NOTEBOOKS[place]}"
        elif place.startswith(f"{_RESULTS}/"):
            place = place.removeprefix("bench/")
        else:
            place = place.removeprefix("docs/") if place.startswith("docs/") else ""
        if place and files.get_file_from_path(place) is not None:
            return f"{picture}[{label}]({posixpath.relpath(place, posixpath.dirname(site) or '.')}{mark}{anchor})"
        return match[0] if picture or place else label

    return _LINK.sub(replace, text)
