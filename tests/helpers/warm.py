"""Imports what commands import when they compute, for processes that are forked again and again."""

from __future__ import annotations

import importlib
import pkgutil

import iefvad

_NOT_IMPORTED = ("__main__", "ray_engine")  # what runs when it is imported, and what needs a package of its own


def import_everything() -> None:
    """Import all modules of the application."""
    for module in pkgutil.walk_packages(iefvad.__path__, "iefvad."):
        if not module.name.endswith(_NOT_IMPORTED) and module.name.count(".") > 1:
            importlib.import_module(module.name)
