"""Command-line options made from dataclasses: one field, one flag, one line of help."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import re
import sys
import types
import typing
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jsonargparse import (  # type: ignore[attr-defined]  # it exports its names at run time
    ActionConfigFile,
    ActionYesNo,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
)

from iefvad.utils.addresses import scrub
from iefvad.utils.errors import UserError
from iefvad.utils.option_errors import explained
from iefvad.utils.plain_yaml import read_yaml
from iefvad.utils.text import readable
from iefvad.utils.threads import use_threads
from iefvad.utils.values import Range, problems

Config = TypeVar("Config")


def option(default: Any, text: str, within: Range | None = None, *, switch: bool = False) -> Any:
    """Make a field of a dataclass that `add_options` turns into an option of the command line.

    Args:
        default: Value of the field where the option is not given.
        text: Help text of the option.
        within: Which numbers it takes.
        switch: The option is a pair without a value: `--NAME` for true, `--no-NAME` for false.
    """
    metadata = {"help": text, "switch": switch, "within": within}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class _HelpFormatter(DefaultHelpFormatter):
    """Help that shows what an option does and its default, without Python's type names."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # jsonargparse joins option and value of --print_config by a backspace, which is not shown as such.
        return str(super()._format_action_invocation(action)).replace(" \b", "")

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        text = re.sub(r" ?\(type: [^()]*(\([^()]*\))?[^()]*, default: null\)", "", text)
        text = re.sub(r" ?\(required, type: [^()]*\)$", "", text)
        text = re.sub(r" ?\((?:type: .*, )?default: (?:False|\[\])\)$", "", text)
        text = re.sub(r"\(type: .*, default: (.*)\)$", r"(default: \1)", text)
        return re.sub(r"\[(default: .*|required)\]$", r"(\1)", text)  # defaults that depend on something else


def add_options(
    parser: ArgumentParser, cls: type, groups: dict[str, str] | None = None, *, without: Collection[str] = ()
) -> None:
    """Add one option per field of a dataclass: name with hyphens, type, default and help text.

    Args:
        parser: The parser of the command.
        cls: A dataclass whose fields are made by `option`.
        groups: Name of the first field of a group → title of the group in the help.
        without: Names of fields that become no option.
    """
    hints = typing.get_type_hints(cls)
    target: Any = parser
    for field in dataclasses.fields(cls):
        if field.name in without:
            continue
        if groups and field.name in groups:
            target = parser.add_argument_group(groups[field.name])
        flag = "--" + field.name.replace("_", "-")
        text = field.metadata["help"]
        hint = hints[field.name]
        default = field.default
        if default is None:
            hint = hint | None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if hint is bool and default is False:
            target.add_argument(flag, action="store_true", help=text)
        elif field.metadata["switch"]:
            target.add_argument(flag, action=ActionYesNo(no_prefix="no-"), default=default, help=text)
        elif typing.get_origin(hint) is list or hint == list[int] | None:
            [kind] = typing.get_args(hint if typing.get_origin(hint) is list else list[int])
            target.add_argument(flag, nargs="+", type=kind, default=default, help=text, metavar=metavar(kind))
        else:
            target.add_argument(flag, type=hint, default=default, help=text, metavar=metavar(hint))


def metavar(hint: Any) -> str:
    """Return what stands for the value in the help: the words to choose from, `F` for a float, `N` for an integer."""
    names = {str: "TEXT", float: "F", int: "N", bool: "BOOL"}
    parts = []
    for member in typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,):
        if typing.get_origin(member) is typing.Literal:
            parts += [str(value) for value in typing.get_args(member)]
        elif member is not type(None):
            parts.append(names.get(member, getattr(member, "__name__", str(member))))
    return parts[0] if len(parts) == 1 else "{" + ",".join(parts) + "}"


class Parser(ArgumentParser):
    """A parser whose errors are one line, with status 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line without passwords of addresses, and exit with status 2."""
        options = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        print(f"{self.prog}: error: {readable(scrub(explained(message, options), sys.argv[1:]))}", file=sys.stderr)
        raise SystemExit(2) from ex


class Looked(BaseException):
    """Raised within `looking` in place of parsing."""

    def __init__(self, parser: CommandParser) -> None:
        super().__init__()
        self.parser = parser


_looking = False


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Let commands stop before they parse: they raise Looked, which has their parser. For shell completion."""
    global _looking
    _looking = True
    try:
        yield
    finally:
        _looking = False


class CommandParser(Parser):
    """A parser that applies `--threads`, before the command computes anything.

    Attributes:
        given: Names of the options that the user wrote: those of the command line, and those of `--config` files that
            differ from their defaults. A run's config.yaml has all settings, and says itself which are the user's.
    """

    given: frozenset[str] = frozenset()

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse as jsonargparse does, and note what the user wrote."""
        if _looking:
            raise Looked(self)
        self.from_files: set[str] = set()
        try:
            found = super().parse_args(*args, **kwargs)
        except OverflowError:  # of an integer of hundreds of digits where a float is expected
            words = [str(word) for word in (args[0] if args and args[0] is not None else sys.argv[1:])]
            pairs = [*itertools.pairwise(words), *(word.split("=", 1) for word in words if "=" in word)]
            flags = [flag for flag, word in pairs if flag.startswith("--") and len(word) > 300 and word[-1].isdecimal()]
            raise UserError(f"{(flags or ['--config'])[0]} has a number that is too large.") from None
        words = [str(word) for word in (args[0] if args and args[0] is not None else sys.argv[1:])]
        begun = {word.partition("=")[0] for word in itertools.takewhile(lambda word: word != "--", words)}
        written = {action.dest for action in self._actions if begun.intersection(action.option_strings)}
        self.given = frozenset(written | self.from_files)
        if found.threads is not None:
            use_threads(found.threads)
        return found

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return the YAML of `--print_config`, without passwords of addresses."""
        return scrub(super().dump(*args, **kwargs), sys.argv[1:])


class _ConfigFile(ActionConfigFile):
    """`--config`: the file is looked at before jsonargparse reads it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        if isinstance(values, str) and Path(values).is_file():
            content = read_yaml(values)
            for action in parser._actions if isinstance(content, dict) else ():
                given = content.get(action.dest)
                own = content.get("explicit")  # of a run's config.yaml
                if action.dest in own if isinstance(own, list) else given is not None and given != action.default:
                    parser.from_files.add(action.dest)
                if action.nargs == "+" and given is not None and not isinstance(given, list):
                    raise UserError(f"{values}: {action.dest} must be a list, such as [{readable(str(given)[:40])}].")
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


def make_parser(command: str, description: str, usage: str = "[options]") -> CommandParser:
    """Make the parser of a command. It has the options `--threads N`, which parsing applies, and `--config FILE.yaml`.

    Options after `--config` override the file. Parsing raises UserError where N is below 1.

    Args:
        command: Name of the command without `iefvad`.
        description: First lines of the help.
        usage: Arguments and options in the usage line.
    """
    parser = CommandParser(
        prog=f"iefvad {command}",
        usage=f"iefvad {command} {usage}",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action=_ConfigFile, help="YAML file with options; later options override it", metavar="FILE"
    )
    parser.add_argument(
        "--threads",
        type=int | None,
        default=None,
        help="number of CPU threads to compute with, in this process and those it starts [default: the CPUs that this"
        " process may use]",
        metavar="N",
    )
    for action in parser._actions:  # jsonargparse adds this one by itself
        if "--print_config" in action.option_strings:
            action.help = "print all options as YAML, for a file for --config, and exit"
    return parser


def from_namespace(cls: type[Config], namespace: Namespace, *, without: Collection[str] = ()) -> Config:
    """Build the dataclass that `add_options` made options of from what the parser returned.

    Args:
        cls: The dataclass.
        namespace: What the parser returned.
        without: Names of fields that keep their defaults.

    Raises:
        UserError: a value is out of its range.
    """
    every = (field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
    names = [name for name in every if name in namespace and name not in without]
    return checked(cls(**{name: namespace[name] for name in names}))


def checked(config: Config) -> Config:
    """Return settings whose fields are made by `option` after a look at their types and ranges.

    Raises:
        UserError: a value is of another type or out of its range; the message names the option.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    for name, problem in problems(values, type(config)):
        raise UserError(f"--{name.replace('_', '-')} {problem}.")
    return config
