"""`iefvad evaluate MODEL`: metrics of a run or a model, also per class and with masked features."""

from __future__ import annotations

from collections.abc import Sequence

from iefvad.cli.command import command
from iefvad.evaluation.config import EvaluateConfig, without_effect
from iefvad.utils.option_errors import require_effect
from iefvad.utils.options import add_options, from_namespace, make_parser


@command("evaluate")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad evaluate` and return the exit status."""
    parser = make_parser(
        "evaluate",
        "Evaluate a finished run on its test videos or on others, or a saved or released model on the test videos that"
        " you name: AUC, AP, Ano-AUC, metrics per class, and metrics when a fraction of one modality's feature"
        " dimensions is masked. Write metrics.json, scores.csv and report.html.",
        usage="MODEL [options]",
    )
    parser.add_argument(
        "run",
        type=str,
        help="run folder that `iefvad train` wrote, folder that `save_pretrained` wrote, or .safetensors file that"
        " `iefvad convert` made of a released model",
        metavar="MODEL",
    )
    add_options(parser, EvaluateConfig)
    arguments = parser.parse_args(argv)
    config = from_namespace(EvaluateConfig, arguments)
    require_effect(parser.given, without_effect(config))
    from iefvad.evaluation.evaluate import evaluate

    evaluate(arguments.run, config)
    return 0
