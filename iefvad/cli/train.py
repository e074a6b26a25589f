"""`iefvad train`: data → training → evaluation → run folder.

On several GPUs or machines: `torchrun --nproc-per-node N -m iefvad.train ...`, with the same options and results.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from iefvad.cli.command import command
from iefvad.training.contradictions import require_effects
from iefvad.training.main_process import Aborted, main_process_output
from iefvad.training.settings import Settings, TrainConfig, resolve
from iefvad.utils.options import add_options, from_namespace, make_parser
from iefvad.utils.seeds import expand_seeds
from iefvad.utils.text import readable


def parse_train(argv: Sequence[str] | None = None) -> Settings:
    """Parse the command line of `iefvad train` and fill in preset and method. Raises UserError for wrong values."""
    parser = make_parser(
        "train",
        "Train IEF-VAD and evaluate it. Without your own data it renders a small surveillance benchmark and runs the"
        " whole system on it. Writes a run folder: checkpoint, metrics.json, scores.csv, report.html. With `torchrun"
        " --nproc-per-node N -m iefvad.train`, N processes share each batch, with the same results as one process.",
    )
    groups = {
        "features": "data",
        "preset": "method",
        "lr": "optimisation (defaults come from the preset)",
        "seeds": "protocol",
        "out": "run folder",
    }
    add_options(parser, TrainConfig, groups)
    words = expand_seeds(sys.argv[1:] if argv is None else argv)
    settings = resolve(from_namespace(TrainConfig, parser.parse_args(words)))
    require_effects(parser.given, [settings])
    return settings


@command("train", memory="use a smaller --batch or --max-segments")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad train` and return the exit status."""
    try:
        with main_process_output():
            config = parse_train(argv)
    except Aborted:
        return 2
    from iefvad.training.train import Interrupted, train

    try:
        train(config)
    except Aborted:
        return 2
    except Interrupted as interrupted:
        with main_process_output():
            path = interrupted.folder / "config.yaml"
            print(
                f"\niefvad: interrupted; finished epochs are kept. Continue with:"
                f" python -m iefvad.train --config {readable(path)} --resume",
                file=sys.stderr,
            )
        return 130
    return 0
