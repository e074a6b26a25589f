"""What all commands share: error messages, exit status, and the choice of a sub-command."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from jsonargparse import ArgumentParser

import iefvad
from iefvad.utils.addresses import scrub
from iefvad.utils.errors import UserError
from iefvad.utils.files import storage_error
from iefvad.utils.options import Parser
from iefvad.utils.terminal import visible_output
from iefvad.utils.text import readable, visible


class Main(Protocol):
    """The main function of a command."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the command with these arguments, or with those of the process, and return the exit status."""


def command(name: str) -> Callable[[Callable[[Sequence[str] | None], int]], Main]:
    """Decorate the main function of a command, so that errors become messages and an exit status.

    UserError and errors of the file system that the user can correct become one line on stderr and status 2. Ctrl-C
    becomes status 130. Passwords in addresses are left out of messages and tracebacks, also where a library repeats
    them.

    Args:
        name: Name of the command without `iefvad`, for the messages.
    """

    def decorate(main: Callable[[Sequence[str] | None], int]) -> Main:
        @functools.wraps(main)
        @visible_output()
        def run(argv: Sequence[str] | None = None) -> int:
            given = list(sys.argv[1:] if argv is None else argv)
            if argv is None:
                _hide_in_tracebacks(given)

            def tell(error: Exception) -> int:
                print(f"iefvad {name}: error: {readable(scrub(str(error), given))}", file=sys.stderr)
                return 2

            try:
                return main(argv)
            except UserError as error:
                return tell(error)
            except BrokenPipeError:  # the reader of the output, such as `head`, has enough
                with open(os.devnull, "w") as nothing:
                    os.dup2(nothing.fileno(), sys.stdout.fileno())  # or the last flush would complain again
                return 0
            except OSError as error:
                explained = storage_error(error, Path(str(error.filename or ".")).parent)
                if explained is not error:
                    return tell(explained)
                if error.filename is None:
                    raise  # not about a file that the user named
                return tell(
                    UserError(f"{str(error.filename)[-300:]} cannot be used ({error.strerror}): check this path.")
                )
            except KeyboardInterrupt:
                print(f"\niefvad {name}: interrupted; everything complete is kept.", file=sys.stderr)
                return 130

        return run

    return decorate


@visible_output()
def dispatch(
    program: str, description: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str] | None = None
) -> int:
    """Run the sub-command that the first argument names. Only the module of this sub-command is imported.

    Args:
        program: The command before the sub-command, such as "iefvad data".
        description: Description for `--help`.
        commands: Name → where its main is ("module:function"), and one line of help.
        argv: The arguments; those of the process where None.

    Returns:
        The exit status. Without arguments it is 0, and the overview is printed.

    Raises:
        SystemExit: with 0 after `--help`; with 2 and a message on stderr for an unknown sub-command.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog=program, usage=f"{program} COMMAND [options]", description=description, allow_abbrev=False)
    chooser = parser.add_subcommands(
        title="commands",
        description=f"`{program} COMMAND --help` explains a command.",
        dest="command",
        metavar="COMMAND",
        required=False,
    )
    parser.add_argument("--version", action="version", version=f"{program} {iefvad.__version__}")
    for name, (_, text) in commands.items():
        chooser.add_subcommand(name, ArgumentParser(), help=text)
    if not arguments:
        parser.print_help()
        return 0
    if argv is None:
        _hide_in_tracebacks(arguments)
    chosen = parser.parse_args(arguments[:1]).command
    module, _, function = commands[chosen][0].partition(":")
    main: Main = getattr(import_module(module), function)
    return main(arguments[1:])


def _hide_in_tracebacks(arguments: Sequence[str]) -> None:
    """Leave the passwords of addresses out of the traceback that ends the process."""

    def show(*error: Any) -> None:
        text = "".join(traceback.format_exception(*error))
        print(visible(scrub(text, arguments)), end="", file=sys.stderr)

    sys.excepthook = show
