"""Fixtures of the tests of detection."""

from __future__ import annotations

import pytest

from iefvad.checkpoints.files import save_model
from tests.helpers.detecting import small_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with an untrained model."""
    folder = tmp_path_factory.mktemp("model")
    model = small_model()
    save_model(folder / "model.safetensors", model, model.provenance)
    return folder


@pytest.fixture
def room(monkeypatch):
    """Room for all that a test sends at once. A camera is slower; a busy machine would drop the oldest segments."""
    monkeypatch.setattr("iefvad.detection.live.watch._MOST", 100)
    monkeypatch.setattr("iefvad.detection.live.watch._WAITING", 1000)
    monkeypatch.setattr("iefvad.detection.live.sources._AHEAD", 100)
