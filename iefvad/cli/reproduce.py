"""`iefvad reproduce`: the paper's tables and figures on the data at hand, with the published figures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iefvad.cli.command import command
from iefvad.cli.sweep import without_runner
from iefvad.reproduce.targets import TARGETS
from iefvad.sweep.choices import Engine
from iefvad.training.contradictions import require_effects
from iefvad.training.settings import TrainConfig, resolve
from iefvad.utils.option_errors import require_effect
from iefvad.utils.options import add_options, from_namespace, make_parser, option
from iefvad.utils.seeds import read_seeds
from iefvad.utils.values import Range

_VARIED = (
    "model",
    "modality",
    "compare",
    "fixed_noise",
    "seeds",
    "explicit",
    "out",
    "resume",
    "log",
    "normal_only",
    "density",
)
"""Options of `iefvad train` that the targets decide, or that mean something else here."""


@dataclass
class ReproduceConfig:
    """Options of `iefvad reproduce` beside those of `iefvad train`."""

    lists: str | None = option(
        None, "folder of folds: each of its folders has train.csv, test.csv, and annotations.txt or gt.npy"
    )
    jobs: int | None = option(
        None, "trainings at the same time [default: as many as CPUs or GPUs allow]", Range(1, 4096)
    )
    jobs_per_gpu: int = option(1, "trainings that share one GPU", Range(1, 4096))
    engine: Engine = option("local", "local: processes of this machine; ray: a Ray cluster")
    ray_address: str | None = option(None, "address of a Ray cluster [default: start Ray on this machine]")
    out: str | None = option(
        None, "output folder; trainings that it has are not done again [default: reproduced/PRESET]"
    )


@command("reproduce", memory="use fewer --jobs or a smaller --batch")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad reproduce` and return the exit status."""
    parser = make_parser(
        "reproduce",
        "Train what tables and figures of the paper need, on your data or on the embedded benchmark, and write a page"
        " with the published figures beside yours, and each table as CSV and LaTeX. An interrupted run goes on when the"
        " same command is given again.",
        "TARGET... [options]",
    )
    for action in parser._actions:
        if "--threads" in action.option_strings:
            action.help = "number of CPU threads of each training (default: 1, so that results do not depend on --jobs)"
    parser.add_argument("targets", nargs="+", choices=TARGETS, metavar="TARGET", help=", ".join(TARGETS))
    group = parser.add_argument_group("trainings")
    group.add_argument(
        "--seeds",
        nargs="+",
        default=[],
        metavar="N",
        help="seeds: 0..9, or 0 1 2 [default: 0..9 as in the paper; 0..3 for the embedded benchmark]",
    )
    add_options(parser, ReproduceConfig)
    groups = {"features": "data", "preset": "method", "lr": "optimisation (defaults come from the preset)"}
    add_options(parser, TrainConfig, groups | {"validation": "protocol"}, without=_VARIED)
    found = parser.parse_args(argv)
    options = from_namespace(ReproduceConfig, found)
    config = from_namespace(TrainConfig, found, without=("seeds", "out"))
    settings = resolve(config)
    require_effect(parser.given, without_runner(config.device, options.engine, options.lists))
    require_effects(parser.given, [settings])
    preset = settings.preset
    config.seeds = read_seeds(found.seeds or ["0..3" if preset == "synth" else "0..9"])
    from iefvad.reproduce.run import HowToRun, reproduce

    how = HowToRun(
        jobs=options.jobs,
        threads=found.threads or 1,
        engine=options.engine,
        jobs_per_gpu=options.jobs_per_gpu,
        ray_address=options.ray_address,
    )
    out = Path(options.out or Path("reproduced") / preset)
    reproduce(found.targets, config, out, lists=options.lists, how=how)
    return 0
