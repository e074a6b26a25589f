"""`iefvad compare RUN RUN ...`: how runs differ, in the terminal and on the page of `iefvad report RUN RUN`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iefvad.cli.command import command
from iefvad.utils.errors import UserError
from iefvad.utils.files import require_writable_file, rescued_file
from iefvad.utils.options import make_parser
from iefvad.utils.text import readable


@command("compare")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad compare` and return the exit status."""
    parser = make_parser(
        "compare",
        "Print how runs differ: settings, metrics with their deviations over seeds, and the differences over common"
        " seeds with paired tests. Also write the page that `iefvad report RUN RUN ...` writes. The first run is what"
        " the others are compared with.",
        usage="RUN RUN [RUN ...] [options]",
    )
    parser.add_argument(
        "runs", nargs="+", type=str, help="run folders that `iefvad train` or `iefvad evaluate` wrote", metavar="RUN"
    )
    parser.add_argument(
        "--out", type=str, default="comparison.html", help="the HTML file (default: comparison.html)", metavar="FILE"
    )
    arguments = parser.parse_args(argv)
    if len(arguments.runs) < 2:
        raise UserError("a comparison needs at least two runs: name another one, or use `iefvad report RUN`.")
    from iefvad.report.compare_page import comparison_text, write_comparison

    path = Path(arguments.out)
    require_writable_file(path)
    print(comparison_text(arguments.runs))
    rescued_file(lambda place: write_comparison(place, arguments.runs), path, "the page")
    print(f"\nwritten: {readable(path)}")
    return 0
