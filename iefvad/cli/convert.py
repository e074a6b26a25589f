"""`iefvad convert SOURCE DESTINATION`: turn a released checkpoint into safetensors, which other commands read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from iefvad.cli.command import command
from iefvad.utils.options import make_parser
from iefvad.utils.text import readable

if TYPE_CHECKING:
    from iefvad.checkpoints.convert import Conversion


@command("convert")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad convert` and return the exit status."""
    parser = make_parser(
        "convert",
        "Convert a released checkpoint (.pt, .pth, .bin, also a TorchScript archive such as OpenAI's CLIP) into a"
        " safetensors file: that of an image or event encoder, or of the released IEF-VAD. Only this command opens such"
        " files. It reads only tensors and runs no code from the file.",
        usage="SOURCE DESTINATION",
    )
    parser.add_argument("source", type=str, help="checkpoint file to read", metavar="SOURCE")
    parser.add_argument("destination", type=str, help="safetensors file to write", metavar="DESTINATION")
    arguments = parser.parse_args(argv)
    from iefvad.checkpoints.convert import convert_checkpoint
    from iefvad.encoders.weights import quickgelu_model

    conversion = convert_checkpoint(arguments.source, arguments.destination)
    print(f"{readable(arguments.destination)}: {conversion.kept} tensors kept, {_dropped(conversion)}")
    if conversion.quickgelu:
        model = quickgelu_model(arguments.destination) or "one that ends in -quickgelu, such as ViT-L-14-quickgelu"
        print(f"these are weights of a QuickGELU model: use them with the model {model}")
    if conversion.released is not None:
        config = conversion.released
        print(
            f"a released IEF-VAD model: {config.dim} wide, {config.layers} attention layers,"
            f" {config.refine_steps} refinement steps of hidden width {config.hidden or config.dim}\n"
            f"evaluate it: iefvad evaluate {readable(arguments.destination)} --features ROOT --test-list test.csv"
            " --gt gt.npy --out DIR\n"
            "its ν, attenuation and heads are not recorded; the defaults are those of the paper (--nu 8 --attenuation"
            " 0.5 --heads 8)"
        )
    return 0


def _dropped(conversion: Conversion) -> str:
    named = [f"{name} {count}" for name, count in conversion.parts.items()]
    named = named[:4] + ["..."] * (len(named) > 4)
    return f"{conversion.dropped} dropped" + (f" ({', '.join(named)})" if named else "")
