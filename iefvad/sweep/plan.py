"""From `--vary`, `--seeds` and `--lists` to the trainings of a sweep. All values go through the real `resolve`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from iefvad.sweep.trainings import Training, effective
from iefvad.training.settings import Settings, TrainConfig, resolve
from iefvad.utils.errors import UserError
from iefvad.utils.options import add_options, metavar
from iefvad.utils.text import few

BASE = "base"
"""What stands for the setting in the rows of a sweep that varies nothing."""

_NOT_VARIED = {
    "seeds": "give them by --seeds",
    "out": "it is the folder of the sweep",
    "resume": "a sweep always goes on where it stopped",
    "compare": "vary --method instead",
    "fixed_noise": "vary --process-noise instead",
    "device": "it does not belong to the method",
    "cache": "it does not belong to the method",
    "normal_only": "it trains no network",
    "density": "it belongs to --normal-only, which trains no network",
    "explicit": "it is no option",
}


@dataclass(frozen=True)
class Point:
    """One value of what is varied, with its settings.

    Attributes:
        setting: Name of the setting, or the names of several that change together.
        value: The value as text.
        base: Whether it is the value of the base settings.
        settings: Complete settings; their seeds and data are replaced.
    """

    setting: str
    value: str
    base: bool
    settings: Settings


@dataclass(frozen=True)
class Fold:
    """Lists of a fold.

    Attributes:
        name: Name of its folder; empty where there is one set of lists.
        lists: The settings that name its files.
    """

    name: str
    lists: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One row of the plan: a training and the place of its results in the tables."""

    point: Point
    fold: str
    seed: int
    training: Training


def plan(
    base: TrainConfig, vary: Sequence[str], seeds: Sequence[int], *, grid: bool = False, lists: str | None = None
) -> list[Entry]:
    """Return what a sweep trains, in the order of the tables. Trainings may occur several times.

    Args:
        base: The base settings.
        vary: Texts of the form `NAME=VALUE,VALUE` or `NAME,NAME=VALUE,VALUE;VALUE,VALUE`.
        seeds: Seeds of each point.
        grid: Every combination of the values; otherwise one setting at a time.
        lists: Folder of folders, each of which has the lists of a fold.

    Raises:
        UserError: a text cannot be read, or a value is refused; the message names it.
    """
    folds = read_folds(lists, base) if lists is not None else [Fold("", {})]
    if base.compare:
        raise UserError("--compare true trains several networks: vary --method or --process-noise instead.")
    if base.modality == "all":
        raise UserError("--modality all trains three networks: use --vary modality=fusion,image,event.")
    base = dataclasses.replace(base, compare=False, modality=base.modality or "fusion", seeds=[seeds[0]])
    points = points_of(dataclasses.replace(base, **folds[0].lists), [read_variation(text) for text in vary], grid)
    entries = []
    for point in points:
        for fold in folds:
            for seed in seeds:
                settings = dataclasses.replace(point.settings, seeds=[seed], **fold.lists)
                entries.append(Entry(point, fold.name, seed, Training(settings)))
    return entries


@dataclass(frozen=True)
class Variation:
    """One `--vary`: names of settings, and tuples of values with their texts."""

    names: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    texts: tuple[str, ...]

    @property
    def label(self) -> str:
        """The names as on the command line."""
        return ", ".join(name.replace("_", "-") for name in self.names)


def read_variation(text: str) -> Variation:
    """Read the text of one `--vary`. Raises UserError."""
    left, equal, right = text.partition("=")
    names = tuple(name.strip().lstrip("-").replace("-", "_") for name in left.split(","))
    if not equal or not all(names) or not right.strip():
        raise UserError(
            f"--vary {text}: write NAME=VALUE,VALUE, such as --vary nu=2,4,8, or several settings that change together"
            ' as --vary "lambda-reg,lambda-kl=0,0;1,0;1,1".'
        )
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        if name not in known:
            raise UserError(f"--vary {text}: `iefvad train` has no setting {flag}; see `iefvad train --help`.")
        if name in _NOT_VARIED:
            raise UserError(f"--vary {text}: {flag} cannot be varied: {_NOT_VARIED[name]}.")
    if len(set(names)) < len(names):
        raise UserError(f"--vary {text}: a setting is named twice; name it once.")
    groups = [group.split(",") for group in right.split(";")] if len(names) > 1 else [[v] for v in right.split(",")]
    values, texts = [], []
    for group in groups:
        if len(group) != len(names):
            raise UserError(
                f'--vary {text}: "{",".join(group)}" has {len(group)} values for {len(names)} settings; separate values'
                " by commas and groups by semicolons."
            )
        values.append(tuple(_value(name, word.strip(), text) for name, word in zip(names, group, strict=True)))
        texts.append(", ".join(word.strip() for word in group))
    if repeated := [one for number, one in enumerate(texts) if values.index(values[number]) < number]:
        raise UserError(f"--vary {text}: {few(repeated)} occurs twice; name each value once.")
    return Variation(names, tuple(values), tuple(texts))


def _value(name: str, word: str, text: str) -> Any:
    """Return a value of the setting's type."""
    hint = typing.get_type_hints(TrainConfig)[name]
    if hint is bool:
        if word.lower() in ("true", "false"):
            return word.lower() == "true"
    elif word:
        parser = ArgumentParser(exit_on_error=False)
        add_options(parser, TrainConfig)
        flag = f"--{name.replace('_', '-')}"
        try:
            return parser.parse_args([flag, *word.split()] if "list" in str(hint) else [f"{flag}={word}"])[name]
        except (argparse.ArgumentError, TypeError, ValueError):
            pass
    what = metavar(hint) if hint is not bool else "true or false"
    raise UserError(f'--vary {text}: "{word}" is not a value of {name.replace("_", "-")}, which takes {what}.')


def points_of(base: TrainConfig, variations: Sequence[Variation], grid: bool) -> list[Point]:
    """Return the points of a sweep. The base value of each setting is among them. Raises UserError."""
    names = [name for variation in variations for name in variation.names]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--vary names {few(sorted(repeated))} twice: give all its values at once.")
    settings = resolve(base)
    if not variations:
        return [Point(BASE, "", True, settings)]
    if grid:
        variations = [_product(variations)]
    points = []
    for variation in variations:
        found = [
            Point(variation.label, text, False, _resolved(base, variation, values, text))
            for values, text in zip(variation.values, variation.texts, strict=True)
        ]
        keys = [effective(point.settings) for point in found]
        for number, key in enumerate(keys):
            if keys.index(key) < number:
                one, other = found[keys.index(key)].value, found[number].value
                raise UserError(f"--vary {variation.label}: {one} and {other} are the same training; leave one out.")
        if effective(settings) in keys:
            place = keys.index(effective(settings))
            found[place] = dataclasses.replace(found[place], base=True)
        else:
            value = ", ".join(_text(getattr(settings, name)) for name in variation.names)
            found.insert(_place(value, variation.texts), Point(variation.label, value, True, settings))
        points += found
    return points


def _place(value: str, texts: Sequence[str]) -> int:
    """Return where the base value stands: among ascending numbers at its place, otherwise first."""
    try:
        number, others = float(value), [float(text) for text in texts]
    except ValueError:
        return 0
    return sum(other < number for other in others) if others == sorted(others) else 0


def _product(variations: Sequence[Variation]) -> Variation:
    names = tuple(name for variation in variations for name in variation.names)
    values = tuple(sum(group, ()) for group in itertools.product(*(variation.values for variation in variations)))
    texts = tuple(", ".join(group) for group in itertools.product(*(variation.texts for variation in variations)))
    return Variation(names, values, texts)


def _resolved(base: TrainConfig, variation: Variation, values: tuple[Any, ...], text: str) -> Settings:
    try:
        return resolve(dataclasses.replace(base, **dict(zip(variation.names, values, strict=True))))
    except UserError as error:
        raise UserError(f"--vary {variation.label}={text}: {error}") from None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_folds(folder: str, base: TrainConfig) -> list[Fold]:
    """Return the folds in a folder: its folders with train.csv, test.csv, and gt.npy or annotations.txt.

    Raises:
        UserError: there is none, a file is missing, or lists are given twice.
    """
    given = [name for name in ("train_list", "test_list", "annotations", "gt") if getattr(base, name) is not None]
    if given:
        raise UserError(f"--lists has the lists of all folds: leave {', '.join(_flag(name) for name in given)} out.")
    root = Path(folder)
    places = sorted((path for path in root.glob("*") if path.is_dir()), key=lambda path: _natural(path.name))
    places = [path for path in places if any((path / name).exists() for name in ("train.csv", "test.csv"))]
    if not places:
        raise UserError(
            f"--lists {folder} contains no folds: it needs folders with train.csv, test.csv and annotations.txt (or"
            " gt.npy) each."
        )
    folds = []
    for path in places:
        files = {"train_list": path / "train.csv", "test_list": path / "test.csv"}
        truth = path / "gt.npy"
        files["gt" if truth.exists() else "annotations"] = truth if truth.exists() else path / "annotations.txt"
        if missing := [file.name for file in files.values() if not file.exists()]:
            raise UserError(f"the fold {path} has no {' and no '.join(missing)}: add it, or take the folder out.")
        names = ("train_list", "test_list", "gt", "annotations")
        folds.append(Fold(path.name, {name: str(files[name]) if name in files else None for name in names}))
    return folds


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
