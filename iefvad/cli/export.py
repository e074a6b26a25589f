"""`iefvad export RUN --to onnx --out FILE`: a trained network in one file that runs without this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from iefvad.cli.command import command
from iefvad.utils.errors import UserError
from iefvad.utils.options import make_parser
from iefvad.utils.text import readable


@command("export")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad export` and return the exit status."""
    parser = make_parser(
        "export",
        "Write a trained network into one file that runs without this package, with its standardisation inside and the"
        " state of its recursion as input and output. It takes features; `iefvad extract` makes them.",
        usage="RUN --to {onnx,torch-export,aoti} --out FILE",
    )
    parser.add_argument("run", type=str, help="run folder, saved model or owner/name on the hub", metavar="RUN")
    parser.add_argument(
        "--to",
        type=Literal["onnx", "torch-export", "aoti"],
        required=True,
        help="onnx: for ONNX Runtime and others. torch-export: a torch.export program. aoti: compiled by AOTInductor,"
        " for C++ or Python, on this kind of machine",
        metavar="{onnx,torch-export,aoti}",
    )
    parser.add_argument("--out", type=str, required=True, help="file to write: .onnx, or .pt2", metavar="FILE")
    parser.add_argument(
        "--device", type=str, default="cpu", help="device that an aoti package is compiled for", metavar="TEXT"
    )
    arguments = parser.parse_args(argv)

    from iefvad.checkpoints.export import SUFFIXES, export_model  # torch: not for --help
    from iefvad.checkpoints.hub import load_trained
    from iefvad.utils.devices import resolve_device
    from iefvad.utils.files import require_writable_file

    path = Path(arguments.out)
    if path.suffix != SUFFIXES[arguments.to]:
        raise UserError(f"--to {arguments.to} writes a {SUFFIXES[arguments.to]} file, not {path.name}: rename --out.")
    require_writable_file(path)
    device = resolve_device(arguments.device)
    if device.type != "cpu" and arguments.to != "aoti":
        raise UserError(f"--device is for --to aoti: a file of --to {arguments.to} runs anywhere.")
    metadata = export_model(load_trained(arguments.run), path, arguments.to, device=device)
    inputs = ", ".join(f"{name} {_shape(shape)}" for name, shape in metadata["inputs"].items())
    outputs = ", ".join(f"{name} {_shape(shape)}" for name, shape in metadata["outputs"].items())
    print(f"inputs:  {inputs}\noutputs: {outputs}")
    print(f"up to {metadata['chunk']} segments per call; threshold {metadata['threshold']:.4g}")
    print(f"written: {readable(str(path))} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _shape(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"
