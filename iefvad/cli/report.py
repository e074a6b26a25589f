"""`iefvad report RUN [RUN ...]`: a run's page again, or a page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iefvad.cli.command import command
from iefvad.utils.files import require_writable_file, rescued_file
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
    from iefvad.report.compare_page import write_comparison
    from iefvad.report.run_folder import write_run_report

    several, first = len(arguments.runs) > 1, Path(arguments.runs[0])
    path = Path(arguments.out or ("comparison.html" if several else first / "report.html"))

    def write(path: Path) -> None:
        if several:
            write_comparison(path, arguments.runs)
        else:
            write_run_report(first, path)

    if path.parent != first or first.is_dir():  # else there is no run, which is said more clearly
        require_writable_file(path)
    rescued_file(write, path, "the page")
    print(f"written: {readable(path)}")
    return 0
