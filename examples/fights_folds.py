"""Write the lists of the folds of the Surveillance Camera Fight data set, for `iefvad reproduce --lists`.

CLIPS is the folder with `clips.csv` (video, label, source, fold). Each fold is tested by what the other folds train.
These folds share no source video. But some clips of different sources show the same place. `--similar` makes new folds
that share neither a source nor a place, and writes them to OUT/clips.csv too. With features of EfficientNet-Lite0, 0.7
joins all clips of one place that were found by looking, and no others; 0.9 misses some.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from iefvad.data.division import divide
from iefvad.data.sources import joined, similar_pairs
from iefvad.features.store import FeatureStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, help="folder of the clips, with clips.csv")
    parser.add_argument("out", type=Path, help="folder of the lists, one folder per fold")
    parser.add_argument("--similar", type=float, help="join sources with clips whose features have this cosine; 0.7")
    parser.add_argument("--features", type=Path, help="feature store of the clips, for --similar")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other folds (default: %(default)s)")
    arguments = parser.parse_args()
    with (arguments.clips / "clips.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if (arguments.similar is None) != (arguments.features is None):
        parser.error("--similar and --features need each other")
    if arguments.similar is not None:
        rows = divided_by_place(rows, arguments.features, arguments.similar, arguments.seed)
        arguments.out.mkdir(parents=True, exist_ok=True)
        with (arguments.out / "clips.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    for fold in sorted({row["fold"] for row in rows}):
        write_fold(rows, fold, arguments.out / f"fold{fold}")


def divided_by_place(
    rows: list[dict[str, str]], features: Path, threshold: float, seed: int, folds: int = 4
) -> list[dict[str, str]]:
    """Return the rows with other sources and folds: clips that look alike have one source."""
    store = FeatureStore(features)
    means = []
    for row in rows:
        name = Path(row["video"]).stem
        image, _ = store.read_crop(name, store.sidecar(name).crops[0])
        means.append(np.asarray(image, np.float32).mean(axis=0))
    sources = [row["source"] or f"alone {row['video']}" for row in rows]
    places = joined(sources, similar_pairs(np.stack(means), threshold))
    parts = divide(places, [row["label"] for row in rows], [1 / folds] * folds, seed=seed)
    return [{**row, "source": place, "fold": str(part)} for row, place, part in zip(rows, places, parts, strict=True)]


def write_fold(rows: list[dict[str, str]], fold: str, folder: Path) -> None:
    """Write train.csv, test.csv and annotations.txt. A clip as a whole is a fight or not."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, of_test in (("train", False), ("test", True)):
        lines = [f"{row['video']},{row['label']}" for row in rows if (row["fold"] == fold) == of_test]
        (folder / f"{name}.csv").write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
    whole = {True: "-1  -1", False: "0  1000000"}  # clipped to the clip
    tested = [row for row in rows if row["fold"] == fold]
    lines = [f"{row['video']}  {row['label']}  {whole[row['label'] == 'Normal']}  -1  -1" for row in tested]
    (folder / "annotations.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
