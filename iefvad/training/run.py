"""The run folder: what a training run writes, and how other commands read it (`docs/specification.md#run-folder`)."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iefvad.checkpoints.pretrained import RUN_CHECKPOINT, RUN_CONFIG
from iefvad.training.presets import METHODS
from iefvad.training.protocols import of_method
from iefvad.training.settings import BEYOND, Settings, TrainConfig, later_settings, load_config, save_config
from iefvad.training.tracking import Tracking
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_text, write_with
from iefvad.utils.log_file import read_log

NORMAL_ONLY = "normal-only"
"""What a detector made from normal footage is called as a method and in tables."""


def baseline_name(model: str, modality: str) -> str:
    """Return the name of a baseline in tables: that of its method, with the stream if it sees only one."""
    return model if modality == "fusion" else f"{model} ({modality})"


@dataclass(frozen=True)
class Variant:
    """One of the models of a run.

    Attributes:
        name: Its name in tables.
        modality: Its streams: fusion, image or event.
        method: Its method: ief, paper or released.
        process_noise: Its process noise, where that is not the method's.
    """

    name: str
    modality: str
    method: str
    process_noise: float | None = None

    @property
    def slug(self) -> str:
        """The name as a part of file names."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")

    def apply(self, config: Settings) -> Settings:
        """Return the settings of this model. Another method brings its own values, except where the user chose.

        The released code has nothing that goes beyond the paper, whatever the user chose for the other rows.
        """
        changes = of_method(config, self.method) if self.method != config.method else {}
        if self.method == "released":
            changes |= {name: getattr(TrainConfig, name) for name in BEYOND}
        if self.process_noise is not None:
            changes["process_noise"] = self.process_noise
        return dataclasses.replace(config, **changes)


@dataclass
class Run:
    """One run folder.

    Attributes:
        path: The folder.
        config: Its settings.
        history: The content of log.jsonl, one row per epoch and model.
        tracking: The experiment trackers that the training is reported to.
    """

    path: Path
    config: Settings
    history: list[dict[str, Any]] = field(default_factory=list)
    tracking: Tracking = field(default_factory=Tracking)

    @classmethod
    def create(cls, config: Settings) -> Run:
        """Make the folder and write config.yaml. With `resume`, check that the settings are those of the run.

        Raises:
            UserError: with `resume`, settings differ from those of the interrupted run; the message names them.
        """
        run = cls(config.run_dir, config)
        path = run.path / RUN_CONFIG
        if config.resume and path.exists():
            # A run of an earlier version goes on as that version trained, whatever the defaults are today.
            later = {name: value for name, value in later_settings(path).items() if name not in config.explicit}
            before = load_config(path)
            if "fused" not in config.explicit:  # its default has changed, and the kernels compute the same
                later["fused"] = before.fused
            config = run.config = dataclasses.replace(config, **later)
            old, new = dataclasses.asdict(before), dataclasses.asdict(config)
            free = {"resume", "out", "device", "cache", "cuda_graph", "density_prior", "explicit", "log", "verify"}
            differing = [key for key in new if key not in free and old[key] != new[key]]
            if differing:
                changes = ", ".join(f"{key} was {old[key]}, now {new[key]}" for key in differing)
                raise UserError(f"--resume continues the run in {run.path} with its own settings, but {changes}.")
        else:
            shutil.rmtree(run.path / "trainer_state", ignore_errors=True)
        run.save()
        return run

    def save(self) -> None:
        """Write config.yaml."""
        config = dataclasses.replace(self.config, resume=False)
        write_with(self.path / RUN_CONFIG, lambda temporary: save_config(temporary, config))

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run folder. Raises UserError if it is not one."""
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"there is no run folder {folder}: train one with `python -m iefvad.train --out {folder}`.")
        run = cls(folder, load_config(folder / RUN_CONFIG))
        log = folder / "log.jsonl"
        if log.exists():
            run.history = read_log(log)
        return run

    @property
    def variants(self) -> list[Variant]:
        """The models that the run trains, the main one first."""
        config = self.config
        modalities = ["fusion", "image", "event"] if config.modality == "all" else [str(config.modality)]
        if config.normal_only:
            return [Variant(baseline_name(NORMAL_ONLY, name), name, config.method) for name in modalities]
        if config.model != "ief-vad":
            return [Variant(baseline_name(config.model, name), name, config.method) for name in modalities]
        result = [Variant(name, name, config.method) for name in modalities]
        if config.compare:
            first = modalities[0]
            if config.temporal != "none" and config.process_noise == "learned" and config.fixed_noise is not None:
                result.append(Variant(f"{first} (q = {config.fixed_noise})", first, config.method, config.fixed_noise))
            for method in METHODS:
                other = Variant(f"{first} ({method})", first, method)
                # Where flags decide all that the methods differ in, the row would be the same network again.
                same = dataclasses.replace(other.apply(config), method=config.method) == config
                if method != config.method and not (same and "released" not in (method, config.method)):
                    result.append(other)
        return result

    def checkpoint(self, variant: Variant, seed: int | None = None) -> Path:
        """Return the path of a model: `checkpoint.safetensors` for the main one; others add their name and seed."""
        parts = [Path(RUN_CHECKPOINT).stem]
        if variant != self.variants[0]:
            parts.append(variant.slug)
        if seed is not None and seed != self.config.seeds[0]:
            parts.append(f"seed{seed}")
        return self.path / ("_".join(parts) + ".safetensors")

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to log.jsonl. It replaces a row of the same model, seed, epoch and phase."""
        key = ("model", "seed", "epoch", "phase")
        self.history = [old for old in self.history if any(old.get(name) != row.get(name) for name in key)] + [row]
        write_text(self.path / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in self.history))
