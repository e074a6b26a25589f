"""The program of each process of `torchrun tests/helpers/processes.py CASES`: several training runs, one after another.

CASES is a JSON list of {"name", "argv", "stop": epoch or null, "fail": rank or null}. NAME_RANK.json beside it gets the
exit status and the output of the process. "stop" interrupts the training before that epoch. "fail" makes one process
fail after it has read the features of nine videos.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from iefvad.cli.train import main
from iefvad.features.videos import Video
from iefvad.training.trainer import Trainer
from iefvad.utils.errors import UserError


def run(case: dict) -> dict:
    """Run one case in this process."""
    train_epoch, features = Trainer._train_epoch, Video.features
    calls = []

    def interrupted(self, *arguments):
        if self.progress.epoch == case.get("stop"):
            raise KeyboardInterrupt
        return train_epoch(self, *arguments)

    def unreadable(self, crop):
        calls.append(crop)
        if len(calls) > 9 and str(case.get("fail")) == os.environ["RANK"]:
            raise UserError(f"{self.name} cannot be read: extract it again.")
        return features(self, crop)

    Trainer._train_epoch, Video.features = interrupted, unreadable
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(case["argv"])
            except SystemExit as end:
                status = end.code
    finally:
        Trainer._train_epoch, Video.features = train_epoch, features
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    cases = Path(sys.argv[1])
    for case in json.loads(cases.read_text()):
        result = cases.with_name(f"{case['name']}_{os.environ['RANK']}.json")
        result.write_text(json.dumps(run(case)))
