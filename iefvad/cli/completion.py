"""`iefvad --print-completion SHELL`: a script with which a shell completes commands, options, words and files."""

from __future__ import annotations

import argparse
import importlib
import typing
from collections.abc import Mapping
from typing import Any

from iefvad.utils.errors import UserError
from iefvad.utils.options import CommandParser, Looked, looking

SHELLS = ("bash", "zsh", "tcsh")


def script(shell: str, commands: Mapping[str, tuple[str, str]]) -> str:
    """Return the script.

    Args:
        shell: One of `SHELLS`.
        commands: Name → where its main is, and one line of help, as for `dispatch`.

    Raises:
        UserError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise UserError("--print-completion needs shtab: pip install 'iefvad[completion]'.") from None
    root = argparse.ArgumentParser("iefvad")
    root.add_argument("--version", action="store_true", help="print the version")
    root.add_argument("--print-completion", choices=SHELLS, help="print a script that completes commands")
    _add(root, commands, shtab.FILE)
    return str(shtab.complete(root, shell))


def _add(parser: argparse.ArgumentParser, commands: Mapping[str, tuple[str, str]], files: Any) -> None:
    chooser = parser.add_subparsers()
    for name, (where, text) in commands.items():
        module, _, function = where.partition(":")
        child = chooser.add_parser(name, help=text)
        found = importlib.import_module(module)
        inner = getattr(found, "COMMANDS", None) if function == "main" else None
        if inner:
            _add(child, inner, files)
        else:
            _copy(child, _parser_of(getattr(found, function)), files)


def _parser_of(main: Any) -> CommandParser:
    """Return the parser that a command makes, before it parses anything."""
    with looking():
        try:
            main([])
        except Looked as looked:
            return looked.parser
    raise AssertionError("a command must make its parser by make_parser")


def _copy(target: argparse.ArgumentParser, parser: CommandParser, files: Any) -> None:
    """Add the options of a parser of jsonargparse to a plain one, which only has to be completed."""
    for action in parser._actions:
        if action.help is argparse.SUPPRESS or "--help" in action.option_strings:
            continue
        options: dict[str, Any] = {"help": action.help and action.help.replace("%", "%%")}
        hint = getattr(action, "_typehint", action.type)
        words = list(map(str, action.choices)) if action.choices else list(_words(hint))
        if action.nargs == 0 or set(action.option_strings) & {"--print_config"} or len(action.option_strings) > 1:
            options["action"] = "store_true"
        elif action.nargs is not None:
            options["nargs"] = action.nargs
        if words and "action" not in options:
            options["choices"] = words
        names = action.option_strings or [action.dest]
        added = target.add_argument(*names, **options)
        if not words and (action.dest == "config" or hint is str or str in typing.get_args(hint)):
            added.complete = files  # type: ignore[attr-defined]  # what shtab reads


def _words(hint: Any) -> list[str]:
    """Return the words that a type of values consists of: those of Literal, true and false."""
    if hint is bool:
        return ["true", "false"]
    if typing.get_origin(hint) is typing.Literal:
        return [str(value) for value in typing.get_args(hint)]
    return [word for inner in typing.get_args(hint) if inner is not type(None) for word in _words(inner)]
