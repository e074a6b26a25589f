"""The smallest group, as an example: words that are no command."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from iefvad.cli.main import COMMANDS, main
from tests.fuzz.case import Case


def prepare(stock: Path) -> None:
    """Nothing is needed."""


def unchanged(stock: Path) -> list[Case]:
    """Return each command with a word that it knows."""

    def act(command: str) -> Callable[[], int]:
        return lambda: main([command, "--help"])

    return [Case(f"iefvad {command} --help", lambda folder: None, act(command)) for command in sorted(COMMANDS)]


def case(number: int, random: random.Random, stock: Path) -> Case:
    """Return a command with a word too much."""
    word = random.choice(("", "--", "-", "--nothing", "\x1b[31m", "a" * 10000, "--help=1", "@", "\udcff"))
    command = sorted(COMMANDS)[number % len(COMMANDS)]
    return Case(f"iefvad {command} {word[:20]!r}", lambda folder: None, lambda: main([command, word]))
