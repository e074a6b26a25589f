"""`iefvad report RUN [RUN ...]`: a run's page again, or a page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iefvad.cli.command import command
from iefvad.utils.options import make_parser
from iefvad.utils.text import readable


@command("report")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad report` and return the exit status."""
    parser = make_parser(
        "report",
        "Make the page of a run again from the files of its folder, without models and data. With several runs, write"
        " one page that compares them: metrics with the differences over common seeds, classes, curves, robustness, and"
        " the settings that differ. The first run is what the others are compared with.",
        usage="RUN [RUN ...] [options]",
    )
    parser.add_argument(
        "runs", nargs="+", type=str, help="run folders that `iefvad train` or `iefvad evaluate` wrote", metavar="RUN"
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="the HTML file [default: report.html in the run folder; comparison.html for several runs]",
        metavar="FILE",
    )
    arguments = parser.parse_args(argv)
    # Here, because matplotlib is slow to import.
    from iefvad.report.compare_page import write_comparison
    from iefvad.report.run_folder import write_run_report

    if len(arguments.runs) == 1:
        path = write_run_report(arguments.runs[0], arguments.out)
    else:
        path = Path(arguments.out or "comparison.html")
        write_comparison(path, arguments.runs)
    print(f"written: {readable(path)}")
    return 0
