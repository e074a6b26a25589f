"""Write the lists of the folds of the Surveillance Camera Fight data set, for `iefvad reproduce --lists`.

CLIPS is the folder with `clips.csv` (video, label, source, fold). Each fold is tested by what the other folds train.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, help="folder of the clips, with clips.csv")
    parser.add_argument("out", type=Path, help="folder of the lists, one folder per fold")
    arguments = parser.parse_args()
    with (arguments.clips / "clips.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for fold in sorted({row["fold"] for row in rows}):
        write_fold(rows, fold, arguments.out / f"fold{fold}")


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
