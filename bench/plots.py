"""Pictures of a result file: `python -m bench plot RESULT.json [--out DIR]`.

Two for each file: the time of every operator over the size of its input, and how near to the machine's ceiling each
provider comes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from math import log, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import environment
from bench.operators import OPERATORS, SIZES
from bench.providers import PROVIDERS
from iefvad.utils.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]

# What is not ours is grey or pale, so that the fused kernels stand out; distinct in lightness too.
STYLES = {
    "reference": ("#9aa0a6", "o"),
    "plain": ("#5f6368", "s"),
    "compile": ("#e8a33d", "^"),
    "associative": ("#b06fc4", "v"),
    "native": ("#1a73e8", "D"),
    "triton": ("#188038", "P"),
    "cuda": ("#c5221f", "X"),
}
NAMES = {
    "reference": "reference, eager",
    "plain": "plain code",
    "compile": "reference, torch.compile",
    "associative": "associative_scan, torch.compile",
    "native": "native C++",
    "triton": "Triton",
    "cuda": "CUDA C++",
}
MAIN_DTYPES = ("float32", "uint8")
DIRECTIONS = ("forward", "backward")
HEADER, FOOTER = 1.0, 0.5
"""Inches above and below the axes, for the title and the legend, and for the line that says what is measured."""


def draw(result: dict[str, Any], stem: Path) -> list[Path]:
    """Writes ``<stem>_times.png`` and ``<stem>_ceilings.png``; a figure with nothing to show is left out."""
    from matplotlib.figure import Figure

    records = [r for r in result["results"] if r["median_ms"] is not None and r["direction"] in DIRECTIONS]
    written = []
    for name, plot in (("times", _times), ("ceilings", _ceilings)):
        figure = Figure()
        if plot(figure, records, result):
            path = stem.with_name(f"{stem.name}_{name}.png")
            figure.savefig(path, dpi=110)
            written.append(path)
    return written


def _order(found: Iterable[str], order: Iterable[str]) -> list[str]:
    return sorted(set(found), key=list(order).index)


def _frame(figure: Figure, height: float, title: str, about: dict[str, Any], text: str, records: list[Record]) -> None:
    """Size, title, legend and the text below the axes, which get `height` inches."""
    from matplotlib.patches import Patch

    whole = HEADER + height + FOOTER
    figure.set_size_inches(11, whole)
    figure.set_layout_engine("constrained", rect=(0, FOOTER / whole, 1, height / whole))
    figure.text(0.5, 1 - 0.12 / whole, title, ha="center", va="top", fontsize=13, fontweight="bold")
    device = f"{environment.name(about)}; {about['date']}"
    figure.text(0.5, 1 - 0.4 / whole, device, ha="center", va="top", fontsize=8)
    providers = _order((r["provider"] for r in records), PROVIDERS)
    handles = [Patch(color=STYLES[provider][0], label=NAMES[provider]) for provider in providers]
    anchor = (0.5, 1 - 0.58 / whole)
    columns = len(handles)
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=anchor, ncols=columns, fontsize=8, frameon=False)
    figure.text(0.5, 0.1 / whole, text, ha="center", va="bottom", fontsize=8)


# ------------------------------------------------------------------------------------------------- time over size


def _times(figure: Figure, records: list[Record], result: dict[str, Any]) -> bool:
    """One axis for each operator and pass that was measured at several sizes."""
    panels: dict[tuple[str, str], list[Record]] = {}
    for op in OPERATORS:
        for direction in DIRECTIONS:
            found = [
                r
                for r in records
                if (r["op"], r["direction"]) == (op, direction) and r["size"] in SIZES and r["dtype"] in MAIN_DTYPES
            ]
            if len({r["size"] for r in found}) > 1:
                panels[op, direction] = found
    if not panels:
        return False
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    text = (
        "Medians of interleaved runs, bars from the first to the third quartile; float32, events from uint8 frames.\n"
        "Across: elements of the first input (for events: pixels of all frames). Both axes are logarithmic."
    )
    _frame(figure, 2.5 * rows, "Time over size", result, text, [r for found in panels.values() for r in found])
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, ((op, direction), found) in zip(axes, panels.items(), strict=False):
        _time_axis(axis, found)
        axis.set_title(f"{op}, {direction}", fontsize=9, loc="left")
    for axis in axes[::columns]:
        axis.set_ylabel("time [ms]", fontsize=8)
    return True


def _elements(record: Record) -> int:
    shape = record["shape"]
    return prod(shape[:-1] if record["dtype"] == "uint8" else shape)


def _time_axis(axis: Axes, records: list[Record]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    for provider in _order((r["provider"] for r in records), PROVIDERS):
        points = sorted((r for r in records if r["provider"] == provider), key=_elements)
        spread = [[r["median_ms"] - r["q1_ms"] for r in points], [r["q3_ms"] - r["median_ms"] for r in points]]
        color, marker = STYLES[provider]
        across, times = [_elements(r) for r in points], [r["median_ms"] for r in points]
        axis.errorbar(across, times, yerr=spread, color=color, marker=marker, markersize=4, linewidth=1.2, capsize=2)
    axis.set_xscale("log")
    axis.set_yscale("log")
    sizes = sorted({(_elements(r), r["size"]) for r in records})
    labels, lowered = [], False
    span = log(sizes[-1][0] / sizes[0][0]) or 1.0
    for number, (at, size) in enumerate(sizes):
        near = number > 0 and log(at / sizes[number - 1][0]) < 0.4 * span
        lowered = near and not lowered  # so that neighbours' labels do not touch
        labels.append(("\n" if lowered else "") + f"{size}, {_compact(at)}")
    axis.set_xticks([at for at, _ in sizes], labels, fontsize=7)
    axis.minorticks_off()
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(True, axis="both", linewidth=0.4, alpha=0.5)
    axis.margins(x=0.1, y=0.12)


def _compact(number: float) -> str:
    """Three digits and a prefix, such as ``3.15 M``."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "


# ------------------------------------------------------------------------------------------- fraction of a ceiling


def _ceilings(figure: Figure, records: list[Record], result: dict[str, Any]) -> bool:
    """One axis for training, the long video and training in half precision; in each a group of bars for each pass."""
    rated = [r for r in records if r["fraction_of_ceiling"] is not None]
    panels = {
        "training": [r for r in rated if r["size"] == "training" and r["dtype"] in MAIN_DTYPES],
        "one long video": [r for r in rated if r["size"] == "long" and r["dtype"] in MAIN_DTYPES],
        "training, bfloat16": [r for r in rated if r["size"] == "training" and r["dtype"] == "bfloat16"],
    }
    panels = {title: found for title, found in panels.items() if found}
    shown = [r for found in panels.values() for r in found]
    if not shown:
        return False
    providers = _order((r["provider"] for r in shown), PROVIDERS)
    passes = sorted(
        {(r["op"], r["direction"]) for r in shown},
        key=lambda pair: (list(OPERATORS).index(pair[0]), DIRECTIONS.index(pair[1])),
    )
    step = len(providers) + 1
    text = (
        f"Least bytes (refine: operations) over the median time, against {_describe(result['ceilings'])}.\n"
        "Above 1: a part was found in a cache, or stored past it, which the copy does not do."
    )
    height = 0.6 + 0.125 * step * len(passes)
    _frame(figure, height, "How near to the ceiling measured in the same run", result, text, shown)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, sharex=True)[0]
    for axis, (title, found) in zip(axes, panels.items(), strict=True):
        for record in found:
            share, color = record["fraction_of_ceiling"], STYLES[record["provider"]][0]
            group = passes.index((record["op"], record["direction"]))
            at = group * step + providers.index(record["provider"])
            axis.barh(at, share, height=0.85, color=color)
            axis.text(share, at, f" {share:.2f}", va="center", fontsize=6)
        axis.set_title(title, fontsize=9, loc="left")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xlabel("fraction of the ceiling", fontsize=8)
        axis.grid(True, axis="x", linewidth=0.4, alpha=0.5)
        axis.set_axisbelow(True)
        axis.tick_params(axis="x", labelsize=7)
        axis.tick_params(axis="y", length=0)
    middle = (len(providers) - 1) / 2
    axes[0].set_yticks([n * step + middle for n in range(len(passes))], [f"{o}\n{d}" for o, d in passes], fontsize=7)
    axes[0].set_ylim(len(passes) * step - 1, -1)
    axes[0].set_xlim(0, max(1.1, 1.12 * max(r["fraction_of_ceiling"] for r in shown)))
    return True


def _describe(ceilings: dict[str, float]) -> str:
    parts = [f"a large copy, {_compact(ceilings['copy'])}B/s read and written"] if "copy" in ceilings else []
    for name, value in ceilings.items():
        if name != "copy":
            parts.append(f"a {name.removeprefix('gemm_')} matrix product, {_compact(value)}FLOP/s")
    return ", and ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the pictures of one result file."""
    parser = argparse.ArgumentParser(prog="python -m bench plot", description="Draws the pictures of a result file.")
    parser.add_argument("result", type=Path, metavar="RESULT.json", help="what `python -m bench` has written")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the pictures (default: beside the file)")
    options = parser.parse_args(argv)
    path: Path = options.result
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from None
    if not isinstance(result, dict) or not {"results", "ceilings", "device"} <= result.keys():
        raise UserError(f"{path} is not a result of `python -m bench`: it has no results, ceilings and device")
    folder: Path = options.out or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    for written in draw(result, folder / path.stem):
        print(written)
    return 0
