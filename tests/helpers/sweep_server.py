"""Starts `iefvad sweep` for each request, in a new process group that has everything imported already.

A line of JSON arguments on standard input forks a process that runs the command. Its process id is printed, and after a
line "wait" its exit status (negative: the signal that ended it). The processes of the sweep are forked too, so that a
start costs next to nothing. Before a fork, nothing has run here except imports.
"""

from __future__ import annotations

import json
import os
import sys

import scipy.stats  # noqa: F401  (what takes long to import)
import sklearn.metrics  # noqa: F401

import iefvad.sweep.outputs
import iefvad.sweep.plan
import iefvad.sweep.runner
import iefvad.sweep.work  # noqa: F401
from iefvad.cli.sweep import main
from iefvad.sweep import local

local.START = "fork"


def serve() -> None:
    for line in sys.stdin:
        arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            status = 3
            try:
                status = main(arguments)
            finally:
                os._exit(status)
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    print("ready", flush=True)
    serve()
