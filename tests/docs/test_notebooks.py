"""The notebooks run from top to bottom, and what they show is what they compute."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
ROOT = NOTEBOOKS.parents[1]


def executed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a notebook in an empty folder, as a new kernel does it."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def printed(notebook: Any) -> str:
    """Everything that its cells print."""
    return "".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_is_committed_is_small_complete_and_without_errors(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert len(text) < 400_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))  # run once, from the top
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert any(not {"image/png", "text/html"}.isdisjoint(output.get("data", {})) for output in outputs)  # it shows
    assert "/tmp" not in text and "/home" not in text and "/root" not in text
    assert "[K" not in text and "\\r" not in text  # bars are written to their last state


def test_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed("operators", tmp_path, monkeypatch)
    assert "kalman_scan on cpu" in printed(notebook)
    assert not any(tmp_path.iterdir())


@pytest.mark.long
def test_own_footage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(executed("own_footage", tmp_path, monkeypatch))
    assert "96 of 96 videos extracted" in text
    assert "fusion" in text and "event density" in text
    assert "segments; alarms:" in text
    assert (tmp_path / "runs" / "own" / "report.html").is_file()


@pytest.mark.long
def test_robustness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(executed("robustness", tmp_path, monkeypatch))
    assert "image masked: its weight changes by" in text and "event masked" in text
    rows = json.loads((tmp_path / "runs" / "robustness-masked" / "metrics.json").read_text())["robustness"]
    assert len(rows) == 11
