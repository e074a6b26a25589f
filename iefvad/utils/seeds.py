"""Seeds as people write them: `0..9`, `0-9`, `0 1 2`, `0,1,2`, `[0,1,2]`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from iefvad.utils.errors import UserError
from iefvad.utils.text import few


def read_seeds(words: Sequence[str]) -> list[int]:
    """Return the seeds that words such as `0..9`, `0-9`, `3`, `0,1,2` and `[0,1,2]` name. Raises UserError."""
    seeds: list[int] = []
    for word in (part for text in words for part in re.split(r"[,\s\[\]]+", text) if part):
        match = re.fullmatch(r"(\d+)(?:(?:\.\.|-)(\d+))?", word)
        if match is None:
            raise UserError(f'--seeds: "{word}" is not a seed; write --seeds 0..9, or --seeds 0 1 2.')
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"--seeds {word}: the last seed is below the first; write --seeds {last}..{first}.")
        seeds += range(first, last + 1)
    if not seeds:
        raise UserError("--seeds needs at least one number, for example --seeds 0..9.")
    if repeated := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise UserError(f"--seeds names {few(map(str, repeated))} twice: name each seed once.")
    return seeds


def expand_seeds(arguments: Sequence[str]) -> list[str]:
    """Return arguments of a command line with the seeds behind `--seeds` written out. Raises UserError."""
    result: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        flag, equal, value = word.partition("=")
        if flag != "--seeds":
            result.append(word)
            continue
        seeds = [value] if equal else []
        while not equal and words and not words[0].startswith("--"):
            seeds.append(words.pop(0))
        result += ["--seeds", *map(str, read_seeds(seeds))]
    return result
