"""One training of a sweep: its settings, its key, and its document (`docs/specification.md#sweeps`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iefvad.training.run import Run, Variant
from iefvad.training.settings import Settings
from iefvad.utils.errors import UserError

Measure = Literal["robustness", "shifts"]
"""What is measured beside the metrics of the clean test videos."""

Document = dict[str, Any]
"""JSON of one training: `key`, `settings`, `seed`, `data`, `epoch`, `metrics`, `learned`, `robustness`, `shifts`.

A training that cannot be finished has `failed`, the reason, instead of `data` and all that follows it.
"""

WITHOUT_EFFECT = frozenset(
    {
        "out",
        "resume",
        "device",
        "cache",
        "verify",
        "compare",
        "fixed_noise",
        "explicit",
        "cuda_graph",
        "robustness",
        "log",
        "normal_only",  # neither is an option of a sweep
        "density",
    }
)
"""Settings that change no weight and no score of a single network. `robustness` is part of a key where it is measured.

`cuda_graph` changes the order of floating point sums as little as another device does.
"""


@dataclass(frozen=True)
class Training:
    """One network with one seed: complete settings, and what is measured of the network.

    Attributes:
        settings: Settings with every choice made, for one model and one seed: `compare` is False, `modality` is not
            "all", and `seeds` has one number.
        measures: What is measured beside the metrics.
    """

    settings: Settings
    measures: frozenset[Measure] = frozenset()

    def __post_init__(self) -> None:
        if self.settings.compare or self.settings.modality == "all" or len(self.settings.seeds) != 1:
            raise UserError(
                "a training of a sweep is one network: leave --compare out, vary the modality by --vary"
                " modality=fusion,image,event, and give seeds by --seeds."
            )

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.settings.seeds[0]

    @property
    def key(self) -> str:
        """Return the digest of all settings that change the result: 16 hexadecimal digits."""
        return key_of(effective(self.settings))

    @property
    def name(self) -> str:
        """Name for messages."""
        settings = self.settings
        model = settings.modality if settings.model == "ief-vad" else settings.model
        return f"{self.key} ({model}, seed {self.seed})"

    def variant(self) -> Variant:
        """Return the model as the one variant of its run."""
        return Run(Path("."), self.settings).variants[0]


def effective(settings: Settings) -> dict[str, Any]:
    """Return the settings that change the result, as JSON has them. Numbers are floats, so that 8 and 8.0 are one."""
    values = {name: value for name, value in dataclasses.asdict(settings).items() if name not in WITHOUT_EFFECT}
    return {name: _plain(value) for name, value in sorted(values.items())}


def key_of(settings: dict[str, Any]) -> str:
    """Return the key of what `effective` returned."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
