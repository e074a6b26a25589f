"""`iefvad sweep`: many trainings, and tables over their seeds (docs/sweeps.md)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iefvad.cli.command import command
from iefvad.sweep.choices import Engine
from iefvad.training.contradictions import require_effects
from iefvad.training.settings import TrainConfig
from iefvad.utils.option_errors import require_effect
from iefvad.utils.options import add_options, from_namespace, make_parser, option
from iefvad.utils.seeds import read_seeds
from iefvad.utils.text import readable
from iefvad.utils.values import Range

if TYPE_CHECKING:
    from iefvad.sweep.plan import Entry


@dataclass
class SweepConfig:
    """Options of `iefvad sweep` beside those of `iefvad train`."""

    grid: bool = option(False, "train every combination of the values; otherwise one setting changes at a time")
    lists: str | None = option(
        None, "folder of folds: each of its folders has train.csv, test.csv, and annotations.txt or gt.npy"
    )
    jobs: int | None = option(
        None,
        "number of trainings at a time [default: as many as there are CPUs, or --jobs-per-gpu per GPU]",
        Range(1, 4096),
    )
    jobs_per_gpu: int = option(1, "number of trainings that share one GPU", Range(1, 4096))
    engine: Engine = option("local", "local: processes of this machine; ray: tasks of a Ray cluster")
    ray_address: str | None = option(None, "address of the Ray cluster [default: Ray on this machine]")
    out: str | None = option(None, "folder of the sweep [default: sweeps/PRESET]")


@dataclass
class Sweep:
    """A parsed command line."""

    config: SweepConfig
    entries: list[Entry]
    out: Path
    threads: int


def without_runner(device: str, engine: str, lists: str | None) -> dict[str, str]:
    """Return the options of a sweep that have no effect, and why."""
    found = {}
    if engine != "ray":
        found["ray_address"] = "without --engine ray: add it, or leave --ray-address out"
    if device == "cpu":
        found["jobs_per_gpu"] = "with --device cpu: leave it out, and use --jobs"
    if lists is not None:
        for name in ("train_list", "test_list", "annotations", "gt"):
            found[name] = "with --lists, whose folders have these files: leave it out"
    return found


def parse_sweep(argv: Sequence[str] | None = None) -> Sweep:
    """Parse the command line of `iefvad sweep` and plan its trainings. Raises UserError for wrong values."""
    parser = make_parser(
        "sweep",
        "Train one network per value of a setting and per seed, and compare them: tables of mean and deviation with"
        " paired tests, as CSV, LaTeX and a page. A sweep that was interrupted goes on with the same command.",
    )
    for action in parser._actions:
        if "--threads" in action.option_strings:
            action.help = "number of CPU threads of each training (default: 1, so that results do not depend on --jobs)"
    group = parser.add_argument_group("sweep")
    group.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="a setting of `iefvad train` and its values, such as nu=2,4,8; several times for several settings."
        ' Settings that change together: "lambda-reg,lambda-kl=0,0;1,0;1,1"',
    )
    group.add_argument("--seeds", nargs="+", default=["0"], metavar="N", help="seeds: 0..9, or 0 1 2 (default: 0)")
    add_options(parser, SweepConfig)
    groups = {"features": "data", "preset": "method", "lr": "optimisation (defaults come from the preset)"}
    groups["validation"] = "protocol"
    without = ("seeds", "out", "resume", "compare", "fixed_noise", "explicit", "log", "normal_only", "density")
    add_options(parser, TrainConfig, groups, without=without)
    found = parser.parse_args(argv)
    config = from_namespace(SweepConfig, found)
    base = from_namespace(TrainConfig, found, without=("seeds", "out"))
    from iefvad.sweep.plan import plan, read_variation

    entries = plan(base, found.vary, read_seeds(found.seeds), grid=config.grid, lists=config.lists)
    unused = without_runner(base.device, config.engine, config.lists)
    if len(found.vary) < 2:
        unused["grid"] = "with fewer than two --vary: leave it out"
    require_effect(parser.given, unused)
    varied = {name for text in found.vary for name in read_variation(text).names}
    require_effects(parser.given | varied, [entry.training.settings for entry in entries])
    out = Path(config.out or Path("sweeps") / entries[0].training.settings.preset)
    return Sweep(config, entries, out, found.threads or 1)


@command("sweep", memory="use fewer --jobs or a smaller --batch")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad sweep` and return the exit status: 1 where a training failed."""
    sweep = parse_sweep(argv)
    from iefvad.sweep.outputs import text_tables, write_outputs
    from iefvad.sweep.runner import run_all

    config, entries = sweep.config, sweep.entries
    trainings = {entry.training.key: entry.training for entry in entries}
    names = {entry.training.key: _name(entry) for entry in reversed(entries)}
    print(f"iefvad sweep: {len(trainings)} trainings, folder {readable(sweep.out)}", flush=True)
    try:
        documents = run_all(
            list(trainings.values()),
            sweep.out,
            jobs=config.jobs,
            threads=sweep.threads,
            engine=config.engine,
            jobs_per_gpu=config.jobs_per_gpu,
            ray_address=config.ray_address,
            names=names,
        )
    except KeyboardInterrupt:
        print(
            f"\niefvad sweep: interrupted; finished trainings are kept in {readable(sweep.out)}. Go on with the same"
            " command.",
            file=sys.stderr,
        )
        return 130
    settings = write_outputs(sweep.out, entries, documents)
    print(f"\n{text_tables(settings)}\n\npage: {readable(sweep.out / 'index.html')}")
    failed = [key for key, document in documents.items() if "failed" in document]
    if failed:
        print(f"iefvad sweep: {len(failed)} of {len(documents)} trainings failed.", file=sys.stderr)
    return 1 if failed else 0


def _name(entry: Entry) -> str:
    point = entry.point
    parts = [f"{point.setting} {point.value}".strip(), entry.fold, f"seed {entry.seed}"]
    return ", ".join(part for part in parts if part)
