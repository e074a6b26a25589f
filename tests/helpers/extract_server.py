"""Starts `iefvad extract` for each request, in a new process that has everything imported already.

A line of JSON arguments on standard input forks a process that runs the command. Its process id is printed, and after a
line "wait" its exit status (negative: the signal that ended it). Before a fork, nothing has run here except imports.
"""

from __future__ import annotations

import json
import os
import sys

import open_clip  # noqa: F401  (what takes long to import)

import iefvad.extraction.extract  # noqa: F401
from iefvad.cli.extract import main


def serve() -> None:
    for line in sys.stdin:
        arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
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
