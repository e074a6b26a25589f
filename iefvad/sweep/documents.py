"""The files of a sweep: documents of trainings, the log, and the lock (`docs/specification.md#sweeps`)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iefvad.sweep.trainings import Document, Training, effective, key_of
from iefvad.utils import locks
from iefvad.utils.errors import UserError
from iefvad.utils.files import remove_left_over, storage_errors, write_json, write_text
from iefvad.utils.plain_json import parse_json, read_object
from iefvad.utils.values import COUNT, problem

FORMAT = 1
LOCK, FOLDER_FILE, LOG = "lock", "sweep.json", "log.jsonl"


def text_of(document: Document) -> str:
    """Return the text of a document. Its last entry is the digest of all others, so that damage is noticed."""
    return json.dumps(document | {"digest": _digest(document)}, indent=1, allow_nan=False) + "\n"


def _digest(document: Document) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode()).hexdigest()


def document_path(out: Path, key: str) -> Path:
    """Return the path of a training's document."""
    return out / "trainings" / f"{key}.json"


def write_document(out: Path, key: str, text: str) -> Document:
    """Write a document, completely or not at all, and return its content."""
    write_text(document_path(out, key), text)
    document: Document = json.loads(text)
    return document


def read_document(out: Path, training: Training) -> Document | None:
    """Return the document of a training, or None if it is missing, damaged or of something else."""
    try:
        document: Document = parse_json(document_path(out, training.key).read_bytes())
        rest = {name: value for name, value in document.items() if name != "digest"}
        whole = document["digest"] == _digest(rest) and key_of(document["settings"]) == training.key
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return document if whole and document["settings"] == effective(training.settings) else None


def measured(document: Document, training: Training) -> bool:
    """Whether the document has all that is asked for."""
    if "failed" in document:
        return True
    damage = document["damage"] is None or document["damage"] == training.settings.robustness
    return training.measures <= set(document["measures"]) and damage


def log(out: Path, row: dict[str, Any]) -> None:
    """Append a row to the log: what has a time in it. It is no result, and may be lost."""
    with contextlib.suppress(OSError), open(out / LOG, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def locked(out: Path, threads: int) -> Iterator[None]:
    """Hold the folder of a sweep: one process works in it at a time. A killed process holds nothing.

    Args:
        out: The folder; it is made.
        threads: CPU threads per training, which all trainings of the folder have in common.

    Raises:
        UserError: another process holds it, or it belongs to something else or to another number of threads.
    """
    with storage_errors(out):
        if out.is_dir() and any(out.iterdir()) and not (out / FOLDER_FILE).exists() and not (out / LOCK).exists():
            raise UserError(f"{out} contains something else than a sweep: choose another --out.")
        out.mkdir(parents=True, exist_ok=True)
    with locks.locked(out / LOCK, out):
        remove_left_over(out)
        _check_folder(out, threads)
        try:
            yield
        finally:
            remove_left_over(out)  # of its processes, which an interruption has ended


def _check_folder(out: Path, threads: int) -> None:
    path = out / FOLDER_FILE
    wanted = {"format": FORMAT, "threads": threads}
    if not path.exists():
        write_json(path, wanted)
        return
    remedy = "delete it if the trainings are those of this version"
    found = read_object(path, remedy)
    there = {name: found.get(name) for name in wanted}
    for name, number in there.items():
        if problem_found := problem(number, int, COUNT):
            raise UserError(f"{path} is damaged: {name} {problem_found}; {remedy}.")
    if there["format"] != FORMAT:
        raise UserError(f"{out} is a sweep of another version (format {there['format']}): choose another --out.")
    if there["threads"] != threads:
        raise UserError(
            f"the trainings in {out} took {there['threads']} thread(s) each, which may change their last digits: use"
            f" --threads {there['threads']}, or another --out."
        )
