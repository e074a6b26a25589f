"""What all commands share: error messages, exit status, and the choice of a sub-command."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from jsonargparse import ArgumentParser

import iefvad
from iefvad.utils.addresses import scrub
from iefvad.utils.errors import UserError
from iefvad.utils.files import file_error, too_many_files
from iefvad.utils.interrupts import Interrupts, interruptible
from iefvad.utils.memory import is_shortage, memory_is_short, shortage
from iefvad.utils.options import Parser
from iefvad.utils.streams import forgiving_streams
from iefvad.utils.terminal import visible_output
from iefvad.utils.text import readable, visible


class Main(Protocol):
    """The main function of a command."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the command with these arguments, or with those of the process, and return the exit status."""


_MEMORY = "close other programs, raise the limit (`ulimit -v`), or use a machine with more memory"
_LITTLE = 32 << 20
_running = False  # within `guarded`


def command(name: str, *, memory: str = "") -> Callable[[Callable[[Sequence[str] | None], int]], Main]:
    """Decorate the main function of a command, so that errors become messages and an exit status.

    UserError, errors of the file system, and a lack of memory or of open files become one line on stderr and status 2.
    Ctrl-C becomes status 130, SIGTERM 143 and SIGHUP 129. Passwords in addresses are left out of messages and
    tracebacks, also where a library repeats them.

    Args:
        name: Name of the command without `iefvad`, for the messages.
        memory: What a user can do where memory is short, such as "use a smaller --batch".
    """

    def decorate(main: Callable[[Sequence[str] | None], int]) -> Main:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            given = list(sys.argv[1:] if argv is None else argv)
            if argv is None:
                _hide_in_tracebacks(given)
            remedy = f"{memory}, {_MEMORY}" if memory else _MEMORY
            return guarded(f"iefvad {name}", lambda: main(argv), given, memory=remedy, ending=argv is None)

        return run

    return decorate


def guarded(
    program: str, work: Callable[[], int], given: Sequence[str] = (), *, memory: str = _MEMORY, ending: bool = False
) -> int:
    """Do the work of a command: errors become one line, signals act like Ctrl-C, and a closed output is no error.

    Where standard output is closed or its reader has enough, the command goes on and writes its files. Where its disk
    is full, it does so too, and says in the end that printed text is lost.

    Args:
        program: The command, for the messages.
        work: Does the work and returns the exit status.
        given: The words of the command line, whose passwords are left out of messages.
        memory: What a user can do where memory is short.
        ending: The process ends when the work is done.

    Returns:
        The exit status.
    """
    global _running
    if _running:  # an outer call takes care of the streams and of signals
        return _explained(program, work, given, memory)
    _running = True
    try:
        with interruptible(ending=ending) as interrupts:
            leaving: SystemExit | None = None
            with forgiving_streams() as output, visible_output():
                try:
                    status = _explained(program, _started(work, interrupts), given, memory)
                    interrupts.raising = False
                except SystemExit as error:  # after --help, or a mistake on the command line
                    interrupts.raising = False
                    leaving, status = error, error.code if isinstance(error.code, int) else int(error.code is not None)
                except KeyboardInterrupt:  # a further signal, while the message about the first one was printed
                    interrupts.raising = False
                    status = 130
                status = interrupts.exit_status(status)
                output.flush()
                if output.lost:
                    print(
                        f"{program}: what was printed is lost, because standard output cannot be written"
                        f" ({output.lost}). Written files are not affected.",
                        file=sys.stderr,
                    )
                    status = status or 1
            interrupts.status = status
            if leaving is not None and status == leaving.code:
                raise leaving
            return status
    finally:
        _running = False


def _started(work: Callable[[], int], interrupts: Interrupts) -> Callable[[], int]:
    """Return work that refuses to start where memory is short already: a thread that cannot start may hang Python."""

    def start() -> int:
        interrupts.begin()
        if memory_is_short(_LITTLE):
            raise MemoryError
        return work()

    return start


def _explained(program: str, work: Callable[[], int], given: Sequence[str], memory: str) -> int:
    """Do the work; an error that the user can correct becomes a line on stderr."""

    def tell(text: str) -> int:
        print(f"{program}: error: {readable(scrub(text, given))}", file=sys.stderr)
        return 2

    try:
        return work()
    except UserError as error:
        return tell(f"{error}{_exhausted(error)}")
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; everything complete is kept.", file=sys.stderr)
        return 130
    except OSError as error:
        if is_shortage(error):
            return tell(f"{shortage(error)}: {memory}.")
        return tell(str(file_error(error)))
    except Exception as error:
        if is_shortage(error):
            return tell(f"{shortage(error)}{_place(error)}: {memory}.")
        if memory_is_short():  # libraries may say anything then
            return tell(f"{type(error).__name__}: {error}: probably there is not enough memory: {memory}.")
        raise


def _exhausted(error: BaseException) -> str:
    """Add what to do where too few open files or too little memory are behind an error."""
    reason = error.__cause__ or error.__context__
    while reason is not None and "ulimit" not in str(error):
        if isinstance(reason, OSError) and too_many_files(reason):
            return f" {file_error(reason)}".replace(" too", " Too", 1)
        if isinstance(reason, MemoryError):
            return f" There is {shortage(reason)}."
        reason = reason.__cause__ or reason.__context__
    return ""


def _place(error: BaseException) -> str:
    """Name the function of this package in which an error was raised."""
    trace = error.__traceback__
    place = ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        function = trace.tb_frame.f_code.co_name
        if module.startswith("iefvad.") and not module.startswith("iefvad.cli") and function != "<module>":
            place = f" in {module}.{function}"
        trace = trace.tb_next
    return place


def unused_rate(videos: Iterable[Path]) -> dict[str, str]:
    """Return why `--fps` has no effect, where all videos are files."""
    if not all(os.path.isfile(video) for video in videos):  # a path that cannot be read may be such a folder
        return {}
    return {"fps": "on video files, which have their own rate: leave it out"}


def dispatch(
    program: str,
    description: str,
    commands: Mapping[str, tuple[str, str]],
    argv: Sequence[str] | None = None,
    *,
    more: Callable[[ArgumentParser], None] | None = None,
) -> int:
    """Run the sub-command that the first argument names. Only the module of this sub-command is imported.

    Args:
        program: The command before the sub-command, such as "iefvad data".
        description: Description for `--help`.
        commands: Name → where its main is ("module:function"), and one line of help.
        argv: The arguments; those of the process where None. `help NAME` stands for `NAME --help`.
        more: Adds options that stand in the place of a sub-command.

    Returns:
        The exit status. Without arguments it is 0, and the overview is printed.

    Raises:
        SystemExit: with 0 after `--help`; with 2 and a message on stderr for an unknown sub-command.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        _hide_in_tracebacks(arguments)
    return guarded(
        program, lambda: _dispatch(program, description, commands, arguments, more), arguments, ending=argv is None
    )


def _dispatch(
    program: str,
    description: str,
    commands: Mapping[str, tuple[str, str]],
    arguments: Sequence[str],
    more: Callable[[ArgumentParser], None] | None,
) -> int:
    parser = Parser(prog=program, usage=f"{program} COMMAND [options]", description=description, allow_abbrev=False)
    chooser = parser.add_subcommands(
        title="commands",
        description=f"`{program} COMMAND --help` explains a command.",
        dest="command",
        metavar="COMMAND",
        required=False,
    )
    parser.add_argument("--version", action="version", version=f"{program} {iefvad.__version__}")
    if more is not None:
        more(parser)
    for name, (_, text) in commands.items():
        chooser.add_subcommand(name, ArgumentParser(), help=text)
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    known = arguments[0] in parser._option_string_actions  # an option may have a value
    chosen = parser.parse_args(arguments[: 2 if known else 1]).command
    if chosen is None:
        parser.error(f"{arguments[0]}: the name of a command is missing: `{program}` lists them.")
    module, _, function = commands[chosen][0].partition(":")
    main: Main = getattr(import_module(module), function)
    return main(arguments[1:])


def _hide_in_tracebacks(arguments: Sequence[str]) -> None:
    """Leave the passwords of addresses out of the traceback that ends the process."""

    def show(*error: Any) -> None:
        text = "".join(traceback.format_exception(*error))
        print(visible(scrub(text, arguments)), end="", file=sys.stderr)

    sys.excepthook = show
