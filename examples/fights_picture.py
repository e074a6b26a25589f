"""Draw the scores of one recording that is put together from held-out clips of fights and of normal scenes.

CLIPS is the folder of the Surveillance Camera Fight data set, with `clips.csv` and a fold for each clip. The model is
trained on the other folds, from their features in STORE (`iefvad extract CLIPS --out STORE`). Clips of the folds of
clips.csv share places: give a table without common places with `--table`.
"""

from __future__ import annotations

import argparse
import csv
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from iefvad.cli.train import parse_train
from iefvad.detection.detect import detect
from iefvad.report import plots
from iefvad.training.train import train

SIZE, RATE = (320, 240), 24
"""Width and height of the recording, and its frames per second."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, help="folder of the clips, with clips.csv")
    parser.add_argument("store", type=Path, help="feature store of the clips")
    parser.add_argument(
        "--table",
        type=Path,
        help="other folds, as examples/fights_folds.py --similar writes them",
    )
    parser.add_argument("--fold", default="0", help="fold that is held out (default: %(default)s)")
    parser.add_argument(
        "--scenes", type=int, default=5, help="number of scenes in the recording (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of clips (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/fights"), help="run folder (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=Path("docs/detect.png"), help="PNG file (default: %(default)s)")
    arguments = parser.parse_args()
    with (arguments.table or arguments.clips / "clips.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    held = [row for row in rows if row["fold"] == arguments.fold]
    lists = write_lists([row for row in rows if row not in held], held, arguments.out / "lists")
    flags = ["--preset", "own", "--fused", "--max-segments", "16", "--modality", "fusion", "--compare", "false"]
    flags += ["--features", str(arguments.store), "--seeds", "0", *lists]
    train(parse_train([*flags, "--out", str(arguments.out)]))
    recording = arguments.out / "recording.mp4"
    truth = put_together(chosen(held, arguments.scenes, arguments.seed), arguments.clips, recording)
    found = detect(arguments.out, recording, out=str(arguments.out / "detect"), thumbnails=0)[0]
    scores = found.scores
    scores.truth = truth[: 16 * len(scores.scores)]
    figure = plots.timeline(scores, threshold=found.rule.threshold, intervals=found.intervals, name="score")
    figure.savefig(arguments.picture, dpi=160)


def write_lists(train: list[dict[str, str]], test: list[dict[str, str]], folder: Path) -> list[str]:
    """Write the lists of a training, and return the options that name them. A clip as a whole is a fight or not."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, rows in (("train", train), ("test", test)):
        files[f"--{name}-list"] = "\n".join(["path,label", *(f"{row['video']},{row['label']}" for row in rows)])
    whole = {True: "-1  -1", False: "0  1000000"}  # clipped to the clip
    files["--annotations"] = "\n".join(
        f"{r['video']}  {r['label']}  {whole[r['label'] == 'Normal']}  -1  -1" for r in test
    )
    flags = []
    for flag, text in files.items():
        path = folder / f"{flag.strip('-')}.txt"
        path.write_text(text + "\n", encoding="utf-8")
        flags += [flag, str(path)]
    return flags


def chosen(rows: list[dict[str, str]], scenes: int, seed: int) -> list[list[dict[str, str]]]:
    """Choose scenes by chance, normal ones and fights in turn: three clips of each kind, whatever their scores are."""
    random = np.random.default_rng(seed)
    kinds = [[row for row in rows if (row["label"] == "Normal") == normal] for normal in (True, False)]
    left = [[kind[i] for i in random.permutation(len(kind))] for kind in kinds]
    return [left[number % 2][number // 2 * 3 :][:3] for number in range(scenes)]


def put_together(scenes: list[list[dict[str, str]]], folder: Path, path: Path) -> np.ndarray:
    """Write the clips one after another as one video, and return the truth of its frames."""
    truth: list[int] = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE, options={"qmin": "2", "qmax": "5"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for row in (row for scene in scenes for row in scene):
            with av.open(str(folder / row["video"])) as clip:
                last = -1
                for frame in clip.decode(video=0):
                    at = round((frame.time or 0) * RATE)  # frames per second differ between clips
                    for number in range(last + 1, at + 1):
                        picture = frame.reformat(*SIZE, format="yuv420p")
                        picture.pts, picture.time_base = len(truth), Fraction(1, RATE)
                        truth.append(int(row["label"] != "Normal"))
                        container.mux(stream.encode(picture))
                        last = number
        container.mux(stream.encode())
    return np.array(truth, np.uint8)


if __name__ == "__main__":
    main()
