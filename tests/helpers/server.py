"""A process that starts a command again and again, with everything imported already, for tests that kill it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class Server:
    """The process of a script of this folder, such as `extract_server.py`.

    Args:
        script: Name of the script.
        environment: Variables that it gets beside those of this process.
    """

    def __init__(self, script: str, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, str(Path(__file__).with_name(script))]
        path = os.pathsep.join(path for path in sys.path if path)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        )
        assert self.read() == "ready"

    def start(self, arguments: list[str]) -> int:
        """Start the command and return the number of its process."""
        self.send(json.dumps(arguments))
        return int(self.read())

    def wait(self) -> int:
        """Return the exit status of the command; negative for the signal that ended it."""
        self.send("wait")
        return int(self.read())

    def send(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)
