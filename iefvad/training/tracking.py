"""Experiment trackers (`--log`): TensorBoard, Weights & Biases and MLflow, written while a run trains.

Each network of a run, that is each model and seed, is one run of the tracker. Names and step numbers depend on the
settings alone, so a resumed run goes on where it was. A package is imported only if it was asked for.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from iefvad.utils.errors import UserError
from iefvad.utils.files import write_json
from iefvad.utils.plain_json import read_object
from iefvad.utils.text import readable
from iefvad.utils.values import problem

if TYPE_CHECKING:
    from iefvad.scoring.video_scores import VideoScores

TRACKING = "tracking.json"
"""File of a run folder: the trackers' numbers of its networks, for `--resume`."""

RESULTS = ("auc", "ap", "ano_auc", "brier", "ece")

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Named(Protocol):
    """A model of a run: `iefvad.training.run.Variant`."""

    @property
    def name(self) -> str:
        """Its name in tables."""

    @property
    def slug(self) -> str:
        """The name as a part of file names."""


class Writer(Protocol):
    """One network in one tracker.

    Attributes:
        number: What the tracker finds the network by.
    """

    number: str

    def scalars(self, values: Mapping[str, float], axis: str, step: int) -> None:
        """Write values at a step. `axis` names what is counted: "epoch", "refit epoch" or "step"."""

    def results(self, values: Mapping[str, float]) -> None:
        """Write metrics of the finished network."""

    def close(self) -> None:
        """Write what is not written yet, and end."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError if the package of a tracker is missing."""
    missing = [_PACKAGES[name] for name in names if importlib.util.find_spec(_PACKAGES[name]) is None]
    if missing:
        raise UserError(
            f"--log {' '.join(names)}: the package {missing[0]} is not installed. Install it with"
            f" `pip install {' '.join(missing)}`, or leave it out of --log."
        )


class Tracking:
    """The trackers of a run. Without any, and in all processes but the main one, every call does nothing.

    Args:
        folder: The run folder.
        settings: Settings of the run, which has `log`, the names of the trackers, and `resume`.
        networks: The run's models, the main one first; the first is opened at once, so that a tracker that cannot be
            used is known before the training.

    Raises:
        UserError: a package is missing, or a tracker cannot be started.
    """

    def __init__(self, folder: Path | None = None, settings: Any = None, networks: Sequence[Named] = ()) -> None:
        self._names: list[str] = list(dict.fromkeys(settings.log)) if settings is not None else []
        self._open: dict[str, Writer] = {}
        self._network = ""
        self._known: dict[str, dict[str, str]] = {}
        if folder is None or not self._names:
            return
        check_trackers(self._names)
        self._folder, self._settings = folder, settings
        path = folder / TRACKING
        if not settings.resume:
            path.unlink(missing_ok=True)
            for stale in folder.glob("tensorboard/*/events.*"):
                stale.unlink()
        elif path.exists():
            remedy = "delete it to let the trackers begin new runs"
            self._known = read_object(path, remedy)
            if not all(problem(numbers, dict) is None for numbers in self._known.values()):
                raise UserError(f"{path} is damaged: {remedy}.")
        self._before = {name: set(numbers) for name, numbers in self._known.items()}
        self._enter(networks[0], settings.seeds[0], first=True)

    def epoch(self, network: Named, row: Mapping[str, Any], *, again: bool = False) -> None:
        """Report a row of log.jsonl. With `again`, only to trackers that did not see the network before the resume."""
        phase = f"{row['phase']} " if "phase" in row else ""
        values = {key: float(value) for key, value in row.items() if isinstance(value, float)}
        names = self._enter(network, row["seed"])
        if again:
            names = [name for name in names if self._network not in self._before.get(name, ())]
        for name in names:
            prefix = phase.replace(" ", "/")
            self._call(name, "scalars", {prefix + key: v for key, v in values.items()}, f"{phase}epoch", row["epoch"])

    def step(self, network: Named, seed: int, step: int, loss: float) -> None:
        """Report the mean loss of the epoch so far, after `step` steps of the training."""
        for name in self._enter(network, seed):
            self._call(name, "scalars", {"step/loss": loss}, "step", step)

    def tested(self, network: Named, seed: int, videos: Sequence[VideoScores]) -> None:
        """Report the metrics of a finished network on the test videos, and end it."""
        if not self._names:
            return
        from iefvad.scoring.metrics import evaluate  # here, because the options need this module without numpy

        found = evaluate(videos)
        values = {f"test/{key}": found[key] for key in RESULTS if found[key] is not None}
        for name in self._enter(network, seed):
            self._call(name, "results", values)
        self.close()

    def close(self) -> None:
        """End the network that is open."""
        for name in list(self._open):
            self._call(name, "close")
        self._open.clear()
        self._network = ""

    def _enter(self, network: Named, seed: int, first: bool = False) -> list[str]:
        """Open the network in every tracker, if it is not open, and return the trackers."""
        if not self._names:
            return []
        key = f"{network.slug}_seed{seed}"
        if key != self._network:
            self.close()
            self._network = key
            for name in list(self._names):
                number = self._known.get(name, {}).get(key)
                try:
                    writer = _WRITERS[name](self._folder, key, self._config(network, seed), number)
                except Exception as error:
                    if first:
                        raise UserError(f"--log {name} cannot be started: {_line(error)}") from error
                    self._drop(name, error)
                    continue
                self._open[name] = writer
                self._known.setdefault(name, {})[key] = writer.number
            write_json(self._folder / TRACKING, self._known)
        return list(self._open)

    def _config(self, network: Named, seed: int) -> dict[str, Any]:
        settings = {key: value for key, value in vars(self._settings).items() if key not in ("explicit", "log")}
        return settings | {"network": network.name, "seed": seed}

    def _call(self, name: str, method: str, *values: Any) -> None:
        try:
            getattr(self._open[name], method)(*values)
        except Exception as error:
            self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        """Go on without a tracker that failed: a lost connection must not end a training."""
        print(f"note: --log {name} stopped ({readable(_line(error))}); the training goes on without it.", flush=True)
        self._names = [other for other in self._names if other != name]
        self._open.pop(name, None)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _TensorBoard:
    """Events in `tensorboard/NETWORK` of the run folder."""

    def __init__(self, folder: Path, network: str, config: Mapping[str, Any], number: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.number = network
        self._writer = SummaryWriter(str(folder / "tensorboard" / network))

    def scalars(self, values: Mapping[str, float], axis: str, step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._last = step
        self._writer.flush()

    def results(self, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, getattr(self, "_last", 0))

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases, in the group of the run folder. Its own environment variables apply."""

    def __init__(self, folder: Path, network: str, config: Mapping[str, Any], number: str | None) -> None:
        import wandb

        self.number = number or os.urandom(8).hex()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "iefvad"),
            group=folder.resolve().name,
            name=network,
            id=self.number,
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )
        self._run.define_metric("*", step_metric="epoch")
        self._run.define_metric("refit/*", step_metric="refit epoch")
        self._run.define_metric("step/*", step_metric="step")

    def scalars(self, values: Mapping[str, float], axis: str, step: int) -> None:
        self._run.log({**values, axis: step})

    def results(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow at `MLFLOW_TRACKING_URI`, in the experiment `MLFLOW_EXPERIMENT_NAME` or iefvad."""

    def __init__(self, folder: Path, network: str, config: Mapping[str, Any], number: str | None) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        if number is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "iefvad")
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
            tags = {"mlflow.runName": f"{folder.resolve().name} {network}"}
            number = self._client.create_run(experiment, tags=tags).info.run_id
            for key, value in config.items():
                self._client.log_param(number, key, value)
        else:
            self._client.update_run(number, status="RUNNING")
        self.number: str = number

    def scalars(self, values: Mapping[str, float], axis: str, step: int) -> None:
        for key, value in values.items():
            self._client.log_metric(self.number, key, value, step=step)

    def results(self, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._client.log_metric(self.number, key, value)

    def close(self) -> None:
        self._client.set_terminated(self.number)


_Start = Callable[[Path, str, Mapping[str, Any], str | None], Writer]
_WRITERS: dict[str, _Start] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MLflow}
