"""Starts `iefvad COMMAND` for each request, in a new process group that has everything imported already.

A line of JSON arguments on standard input forks a process that runs the command. Its process id is printed, and after a
line "wait" its exit status (negative: the signal that ended it). Before a fork, nothing has run here except imports.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from iefvad.cli.main import main
from tests.helpers.warm import import_everything


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
    torch.set_num_threads(1)
    import_everything()
    print("ready", flush=True)
    serve()
