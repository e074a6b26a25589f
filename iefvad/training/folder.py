"""The folder that a run may write to: its own, held while it trains, and never that of another run."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from iefvad.checkpoints.pretrained import RUN_CHECKPOINT, RUN_CONFIG
from iefvad.training.settings import Settings
from iefvad.utils.errors import UserError
from iefvad.utils.files import remove_left_over, require_writable, storage_errors
from iefvad.utils.locks import HeldError, locked
from iefvad.utils.text import few

LOCK, METRICS = ".lock", "metrics.json"
COMPUTED = ("trainer_state", "log.jsonl", RUN_CHECKPOINT)
"""What a run has as soon as something is computed."""
FOREIGN = (
    METRICS, "scores.csv", "report.html", "log.jsonl", "checkpoint.safetensors", "model.safetensors", "store.json",
    "packed.json", "sweep.json", "index.html",
)  # fmt: skip
"""Files of other results: those of an evaluation, a saved model, a store, a sweep or a detection."""


@contextlib.contextmanager
def claimed(config: Settings) -> Iterator[Settings]:
    """Hold the folder of a run while it trains. Temporary files that a killed training left there are removed.

    Without `out` a run takes the first free name: `runs/PRESET`, `runs/PRESET-2` and so on.

    Args:
        config: Settings with every choice made.

    Yields:
        The settings, with the folder's name in `out` where it is not the one of the preset.

    Raises:
        UserError: `out` contains a run or something else, another process trains there, there is no run that `resume`
            could continue, or the folder cannot be made.
    """
    for number in itertools.count(1):
        folder = config.run_dir if number == 1 else config.run_dir.with_name(f"{config.run_dir.name}-{number}")
        numbered = config.out is None and not config.resume
        if (problem := _problem(folder, config)) is not None:
            if numbered:
                continue
            raise UserError(problem)
        with contextlib.ExitStack() as stack:
            with storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(folder / LOCK, folder))
            except HeldError:
                if numbered:
                    continue
                raise
            # Another run may have taken and finished it in between.
            if (problem := _problem(folder, config)) is not None:
                if numbered:
                    continue
                raise UserError(problem)
            require_writable(folder)
            remove_left_over(folder)
            yield config if number == 1 else dataclasses.replace(config, out=str(folder))
            return


def _problem(folder: Path, config: Settings) -> str | None:
    """Return why the run cannot write to a folder."""
    if config.resume:
        if not (folder / RUN_CONFIG).is_file():
            return f"--resume: there is no run in {folder}: give its folder by --out, or leave --resume out."
        return None
    if not folder.exists():
        return None
    if not folder.is_dir():
        return f"{folder} is a file: choose another --out."
    if (folder / RUN_CONFIG).exists():
        if (folder / METRICS).exists():
            return f"{folder} contains a finished run: choose another --out."
        if any((folder / name).exists() for name in COMPUTED):
            return f"{folder} contains an interrupted run: add --resume to continue it, or choose another --out."
        return None  # it ended before its first epoch
    if found := sorted(name for name in FOREIGN if (folder / name).exists()):
        return f"{folder} contains {few(found)}, but no run: choose another --out."
    return None
