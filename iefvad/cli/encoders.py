"""`iefvad encoders [WORD]`: which encoders can be named, what is in the cache, and how fast they are here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iefvad.cli.command import command
from iefvad.encoders.choices import Precision
from iefvad.utils.option_errors import require_effect
from iefvad.utils.options import add_options, from_namespace, make_parser, option
from iefvad.utils.text import readable

if TYPE_CHECKING:
    from iefvad.encoders.listing import Listed


@dataclass
class EncodersConfig:
    """Settings of `iefvad encoders`."""

    cached: bool = option(False, "list only those that need no network: built in, installed or in the cache")
    measure: bool = option(False, "measure frames per second on this machine, with random weights (at most 8 models)")
    device: str = option("auto", "where to measure: auto, cpu, cuda or cuda:N")
    precision: Precision = option("auto", "number type to measure; auto: bfloat16 on a GPU, float32 on a CPU")


@command("encoders")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad encoders` and return the exit status."""
    parser = make_parser(
        "encoders",
        "List the encoders that `iefvad extract` can use by name: --image-model MODEL --image-weights WEIGHTS, and"
        " --event-model and --event-weights likewise. Nothing is fetched: weights that are not here yet come from the"
        " Hugging Face hub when `iefvad extract` names them.",
        usage="[WORD] [options]",
    )
    parser.add_argument(
        "word", nargs="?", type=str, help="part of a name; timm:WORD lists models of timm", metavar="WORD"
    )
    add_options(parser, EncodersConfig)
    arguments = parser.parse_args(argv)
    config = from_namespace(EncodersConfig, arguments)
    if not config.measure:
        unused = {name: "without --measure: add it, or leave it out" for name in ("device", "precision")}
        require_effect(parser.given, unused)
    from iefvad.encoders.listing import list_encoders, measure

    entries = [entry for entry in list_encoders(arguments.word or "") if entry.here or not config.cached]
    if config.measure:
        entries = measure(
            entries,
            config.device,
            config.precision,
            show=lambda model: print(f"measuring {readable(model)} ...", file=sys.stderr, flush=True),
        )
    print("\n".join(_table(entries)))
    return 0


def _table(entries: list[Listed]) -> list[str]:
    rows = [("model", "weights", "width", *(("frames/s",) if any(e.speed for e in entries) else ()), "here", "source")]
    for entry in entries:
        width = "?" if entry.width is None else str(entry.width)
        speed = () if entry.speed is None else (f"{entry.speed:.4g}",)
        rows.append((entry.model, entry.weights or "-", width, *speed, "yes" if entry.here else "no", entry.note))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in rows]
