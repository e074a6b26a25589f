"""One line per mistake on the command line, with the nearest name that exists."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence

from iefvad.utils.errors import UserError

_NUMBERS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def explained(message: str, options: Sequence[str]) -> str:
    """Turn a message of jsonargparse about the command line into one line with its remedy.

    Args:
        message: The message. One that is not known is returned as it is, on one line.
        options: The options of the command, with their hyphens.
    """
    if found := re.match(r'Parser key "([^"]+)"', message):
        return _about_value(found[1], message)
    if found := re.match(r"unrecognized arguments: (\S*)", message):
        word = found[1].partition("=")[0]
        if word in options:
            return f"{word}: its value is not of the right kind; --help shows what it takes."
        if not word.startswith("-"):
            return f"{word!r} is not expected here. Options begin with --."
        return f"there is no option {word}.{did_you_mean(word, options)}"
    if found := re.match(r"argument (\S+): ignored explicit argument '(.*)'", message):
        return f"{found[1].partition('/')[0]} takes no value: write it without ={found[2]}."  # --x/--no-x
    if found := re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
        words = [word.strip("' ") for word in found[3].split(",")]
        near = did_you_mean(found[2], words)
        return f"{found[1].lower()} {found[2]!r} does not exist.{near} One of: {', '.join(words)}."
    return " ".join(message.split())


def did_you_mean(word: str, names: Collection[str]) -> str:
    """Return " Did you mean NAME?" for the name that is most like a word, or an empty text."""
    plain = {name.lstrip("-"): name for name in names}  # hyphens make all options alike
    near = [plain[name] for name in difflib.get_close_matches(word.lstrip("-"), plain, n=1, cutoff=0.6)]
    near = near or sorted((name for name in names if len(word) > 2 and name.startswith(word)), key=len)[:1]
    return f" Did you mean {near[0]}?" if near else ""


def require_effect(given: Collection[str], reasons: Mapping[str, str]) -> None:
    """Refuse an option that the user wrote although others leave it without effect.

    Args:
        given: Names of the options that the user wrote, with underscores.
        reasons: Name of an option → why it has no effect, and the remedy: the end of a sentence.

    Raises:
        UserError: for the first of them.
    """
    for name, reason in reasons.items():
        if name in given:
            raise UserError(f"--{name.replace('_', '-')} has no effect {reason}.")


def _about_value(key: str, message: str) -> str:
    option = "--" + key.rpartition(".")[2].replace("_", "-")
    given = re.search(r"(?:Given value|Got value): (.*)", message, re.DOTALL)
    if given is None:
        reason = message.partition(": ")[2] or message.partition("\n")[2]
        return f"{option}: {' '.join(reason.split())}"
    value = given[1].strip()
    message = message.partition("Given value type:")[0]
    words = [
        word for listed in re.findall(r"Literal\[([^\]]*)\]", message) for word in re.findall(r"'([^']*)'", listed)
    ]
    words = list(dict.fromkeys(words))
    kinds = dict.fromkeys(_NUMBERS[kind] for kind in re.findall(r"<class '(\w+)'>", message) if kind in _NUMBERS)
    if value in words or not (words or kinds):
        return f"{option}: {' '.join(message.split())}"
    expected = ", ".join((*kinds, *words)) if not words or kinds else f"one of {', '.join(words)}"
    return f"{option} {value!r}: expected {expected}.{did_you_mean(value, words)}"
