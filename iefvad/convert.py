"""`iefvad convert`: published checkpoints, once, into safetensors that everything else reads."""

from __future__ import annotations

from collections.abc import Sequence

from iefvad.command import command
from iefvad.options import make_parser
from iefvad.weights import convert_checkpoint


@command("convert")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `iefvad convert`; returns the exit status."""
    parser = make_parser(
        "convert",
        "Convert a published checkpoint (.pt, .pth, .bin) of an image or event encoder, or of the published IEF-VAD,"
        " into a safetensors file. This is the only command that opens such files; it reads tensors alone and runs no"
        " code from them.",
        usage="SOURCE DESTINATION",
    )
    parser.add_argument("source", type=str, help="checkpoint file to read", metavar="SOURCE")
    parser.add_argument("destination", type=str, help="safetensors file to write", metavar="DESTINATION")
    arguments = parser.parse_args(argv)
    conversion = convert_checkpoint(arguments.source, arguments.destination)
    print(f"{arguments.destination}: {conversion.kept} tensors kept, {conversion.dropped} dropped")
    if conversion.quickgelu:
        print("the weights are of a QuickGELU model: name a `-quickgelu` model with them, such as ViT-L-14-quickgelu")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
