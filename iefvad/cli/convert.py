"""`iefvad convert`: published checkpoints, once, into safetensors that everything else reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import safetensors

from iefvad.checkpoints.convert import Conversion, convert_checkpoint
from iefvad.cli.command import command
from iefvad.utils.options import make_parser


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
    print(f"{arguments.destination}: {conversion.kept} tensors kept, {_dropped(conversion)}")
    if conversion.quickgelu:
        model = quickgelu_model(arguments.destination) or "one that ends in -quickgelu, such as ViT-L-14-quickgelu"
        print(f"the weights are of a QuickGELU model: name it with them as {model}")
    if conversion.released is not None:
        config = conversion.released
        print(
            f"a released IEF-VAD model: {config.dim} wide, {config.layers} attention layers,"
            f" {config.refine_steps} refinement steps of hidden width {config.hidden or config.dim}\n"
            f"evaluate it: iefvad evaluate {arguments.destination} --features ROOT --test-list test.csv --gt gt.npy"
            " --out DIR\n"
            "its ν, attenuation and heads are not recorded and default to the paper's (--nu 8 --attenuation 0.5"
            " --heads 8)"
        )
    return 0


def quickgelu_model(path: str) -> str | None:
    """open_clip's QuickGELU model whose visual tower has the sizes of a converted ViT, None where there is none."""
    import open_clip

    with safetensors.safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if not {"visual.conv1.weight", "visual.positional_embedding", "visual.proj"} <= shapes.keys():
        return None
    width, _, patch, _ = shapes["visual.conv1.weight"]
    sizes = {
        "width": width,
        "patch_size": patch,
        "image_size": patch * math.isqrt(shapes["visual.positional_embedding"][0] - 1),
        "layers": len([name for name in shapes if name.endswith(".attn.in_proj_weight")]),
    }
    fitting = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        tower = config["vision_cfg"]
        same = isinstance(tower, dict) and all(tower.get(key) == value for key, value in sizes.items())
        if name.endswith("-quickgelu") and same and config["embed_dim"] == shapes["visual.proj"][1]:
            fitting.append(name)
    return min(fitting, key=len, default=None)  # others of the same tower differ in their text encoder


def _dropped(conversion: Conversion) -> str:
    named = [f"{name} {count}" for name, count in conversion.parts.items()]
    named = named[:4] + ["..."] * (len(named) > 4)
    return f"{conversion.dropped} dropped" + (f" ({', '.join(named)})" if named else "")
