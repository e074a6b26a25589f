"""Settings of `iefvad label`."""

from __future__ import annotations

from dataclasses import dataclass, field

from iefvad.utils.options import option
from iefvad.utils.values import RATE, SEED, Range


@dataclass
class LabelConfig:
    """Settings of `iefvad label`."""

    out: str = option(
        "labels", "folder for labels.json and the lists; give the feature store to have them where training looks"
    )
    classes: list[str] = field(
        default_factory=lambda: ["Anomaly"],
        metadata={
            "help": "names of the abnormal classes; more can be added on the page",
            "switch": False,
            "within": None,
        },
    )
    host: str = option("127.0.0.1", "address to serve the page on; with another one, other machines can reach it")
    port: int = option(8010, "port of the page; 0 chooses a free one", Range(0, 65535))
    fps: float | None = option(None, "frames per second of folders of frames", RATE)
    test_fraction: float = option(0.3, "fraction of the labelled videos that are tested", Range(0, 0.9))
    source_pattern: str | None = option(
        None,
        "regular expression that finds the source in the name of a video; videos of one source are never on both sides"
        " [default: NAME of NAME_001]",
    )
    seed: int = option(0, "seed of the division into training and test videos", SEED)
    overwrite: bool = option(False, "replace lists in --out that this command did not write")
