"""`iefvad evaluate MODEL`: metrics of a run or a model, per class, and with features of one stream masked."""

from __future__ import annotations

from collections.abc import Sequence

from iefvad.cli.command import command
from iefvad.evaluation.evaluate import EvaluateConfig, evaluate
from iefvad.utils.options import add_options, from_namespace, make_parser


@command("evaluate")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `iefvad evaluate`; returns the exit status."""
    parser = make_parser(
        "evaluate",
        "Evaluate a finished run on its test videos (or on others), or a saved or released model on the ones you name:"
        " AUC, AP, Ano-AUC, per class, and how the scores hold when a share of one stream's feature dimensions is"
        " masked. Writes metrics.json, scores.csv and report.html.",
        usage="MODEL [options]",
    )
    parser.add_argument(
        "run",
        type=str,
        help="run folder that `iefvad train` wrote, folder by `save_pretrained`, or .safetensors file (a released"
        " model after `iefvad convert`)",
        metavar="MODEL",
    )
    add_options(parser, EvaluateConfig)
    arguments = parser.parse_args(argv)
    evaluate(arguments.run, from_namespace(EvaluateConfig, arguments))
    return 0
