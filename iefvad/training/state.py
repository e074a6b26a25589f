"""The state of an interrupted training, in one safetensors file. On the CPU it resumes to the same bits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iefvad.utils.errors import UserError
from iefvad.utils.plain_json import parse_json
from iefvad.utils.tensors import differences, read_tensors, write_tensors
from iefvad.utils.values import NATURAL, limited, problems


@dataclass
class Progress:
    """How far a training is, and the best network so far.

    Attributes:
        epoch: Finished epochs.
        best_epoch: The epoch that is kept, from 1; 0 before the first.
        best_rank: Its rank; higher is better.
        best: Its weights and buffers by name.
        history: One row per finished epoch, as in log.jsonl.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_rank: tuple[float, float] = (-math.inf, -math.inf)
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write the state after an epoch, whole or not at all. Raises UserError where it cannot be written."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in progress.best.items()}
    names = _names(model, optimizer)
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{names[index]}.{key}": value for key, value in state.items()}
    status = {
        "epoch": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best_rank": progress.best_rank,
        "history": progress.history,
    }
    write_tensors(path, tensors, {"status": json.dumps(status)})


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters in the order in which the optimiser numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Progress:
    """Read what `save_state` wrote into the model and the optimiser. Raises UserError for a damaged file."""
    tensors, metadata = read_tensors(path)
    try:
        return _loaded(tensors, parse_json(metadata["status"]), model, optimizer, device)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{path} is not a state of this training ({reason}): delete it to train this model from its start, or"
            " restore it."
        ) from error


@dataclass
class _Status:
    """What the header of a state has."""

    epoch: int = field(metadata=limited(NATURAL))
    best_epoch: int = field(metadata=limited(NATURAL))
    best_rank: list[float]
    history: list[dict[str, Any]]


def _loaded(
    tensors: Mapping[str, Tensor],
    status: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> Progress:
    for name, problem in problems({name: status[name] for name in _Status.__annotations__}, _Status):
        raise ValueError(f"{name} {problem}")
    if len(status["best_rank"]) != 2:
        raise ValueError("best_rank must have two numbers")
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    for name, value in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = value.to(device)
    for group in ("model", "best"):
        if differing := differences(model.state_dict(), groups[group]):
            raise ValueError(f"{group}: {differing}")
    model.load_state_dict(groups["model"])
    state = optimizer.state_dict()
    indices = {name: index for index, name in enumerate(_names(model, optimizer))}
    numbered = [name for name, _ in model.named_parameters()]
    for entry, value in groups["optimizer"].items():
        name, _, key = entry.rpartition(".")
        # Files of version 0.1 have the number of a parameter in the model instead of its name.
        index = indices[numbered[int(name)] if name.isdigit() else name]
        state["state"].setdefault(index, {})[key] = value
    _check_moments(state["state"], optimizer)
    optimizer.load_state_dict(state)
    return Progress(
        epoch=status["epoch"],
        best_epoch=status["best_epoch"],
        best_rank=tuple(status["best_rank"]),
        best=groups["best"],
        history=status["history"],
    )


def _check_moments(states: Mapping[int, Mapping[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    """Refuse what the optimiser would only notice in its next step, or never."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, state in states.items():
        if state.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"the optimiser's state {index} has {sorted(state)}")
        for key, value in state.items():
            if value.shape != (torch.Size() if key == "step" else parameters[index].shape):
                raise ValueError(f"the optimiser's {key} {index} has the shape {tuple(value.shape)}")
