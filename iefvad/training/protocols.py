"""What a run does differently from its protocol, and what another method changes in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from iefvad.training.presets import METHODS, PRESETS, defaults_of
from iefvad.training.settings import Settings


def of_method(config: Settings, method: str) -> dict[str, Any]:
    """Return the settings that another method changes in a run. What the user chose stays."""
    names = {name for values in METHODS.values() for name in values}
    values = PRESETS[config.preset] | METHODS[method]
    return {"method": method} | {name: values[name] for name in names if name not in config.explicit}


def protocol_table(config: Settings) -> list[dict[str, str]]:
    """Return what the run's protocol fixes and what the run does: rows with `setting`, `protocol`, `this run`."""
    fixed = defaults_of(config.preset, config.protocol, strict=True)
    actual = dataclasses.asdict(config)
    rows = [
        {"setting": f"--{name.replace('_', '-')}", "protocol": _text(fixed[name]), "this run": _text(actual[name])}
        for name in (item.name for item in dataclasses.fields(config))
        if name in fixed
    ]
    described = (_described(fixed), _described(actual))
    rows += [{"setting": name, "protocol": described[0][name], "this run": described[1][name]} for name in described[0]]
    return rows


def deviations(config: Settings) -> list[dict[str, str]]:
    """Return the rows of `protocol_table` in which the run does not do what its protocol says."""
    return [row for row in protocol_table(config) if row["protocol"] != row["this run"]]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _described(values: Mapping[str, Any]) -> dict[str, str]:
    """What follows from the method and has no flag of its own."""
    released = values["method"] == "released"
    state = "each scored alone" if values["temporal"] == "none" else "the filter's state is carried on"
    return {
        "fusion weights": "(ν+1)/ν·exp(−logvar), divided by their sum + eps" if released else "1/(variance + eps)",
        "padding": "takes part" if released else "left out",
        "test chunks": f"{values['max_segments']} segments, {state}",
    }
