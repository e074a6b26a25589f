"""Seeds as people write them: `0..9`, `0-9`, `0 1 2`, `0,1,2`, `[0,1,2]`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from iefvad.utils.errors import UserError
from iefvad.utils.text import few

MOST = 10_000
"""Maximum number of seeds."""


def read_seeds(words: Sequence[str]) -> list[int]:
    """Return the seeds that words such as `0..9`, `0-9`, `3`, `0,1,2` and `[0,1,2]` name. Raises UserError."""
    seeds: list[int] = []
    for word in (part for text in words for part in re.split(r"[,\s\[\]]+", text) if part):
        match = re.fullmatch(r"(\d+)(?:(?:\.\.|-)(\d+))?", word)
        if match is None:
            raise UserError(f'--seeds: "{word}" is not a seed; write --seeds 0..9, or --seeds 0 1 2.')
        if len(word) > 40 or max(first := int(match[1]), last := int(match[2] or match[1])) >= 1 << 63:
            raise UserError(f"--seeds {word[:60]}: seeds are below 2^63; choose smaller ones.")
        if last < first:
            raise UserError(f"--seeds {word}: the last seed is below the first; write --seeds {last}..{first}.")
        if last - first >= MOST:
            raise UserError(f"--seeds {word}: at most {MOST:,} seeds; write --seeds {first}..{first + MOST - 1}.")
        seeds += range(first, last + 1)
    if not seeds:
        raise UserError("--seeds needs at least one number, for example --seeds 0..9.")
    if len(seeds) > MOST:
        raise UserError(f"--seeds names {len(seeds):,} seeds, and at most {MOST:,} are possible: name fewer.")
    if repeated := sorted(seed for seed, count in Counter(seeds).items() if count > 1):
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
