"""The benchmark of encoded frames: what it computes is what extraction stores, and it runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.end_to_end import frames
from iefvad.encoders.encoder import build_encoder
from iefvad.extraction.config import ExtractConfig
from iefvad.extraction.extract import extract
from iefvad.features.store import FeatureStore
from tests.helpers.video_files import make_video


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    lines = ["video,label,source,fold"]
    for number in range(8):
        make_video(folder / f"c{number}.mp4", 32, seed=number)
        lines.append(f"c{number}.mp4,{'Fight' if number % 2 else 'Normal'},{number},{number // 4}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_variants_are_what_extraction_stores(clips: Path, tmp_path: Path) -> None:
    encoder = build_encoder(device="cpu", batch=16)
    clip = frames.features(clips, frames.read_clips(clips)[0], encoder)
    for number, variant in enumerate((frames.Variant(2), frames.Variant(4, 0.05), frames.Variant(carry=False))):
        config = ExtractConfig(
            frames_per_segment=variant.frames_per_segment, keyframes=variant.keyframes, carry=variant.carry, quiet=True
        )
        report = extract([clips / clip.name], tmp_path / str(number), config, encoder=encoder)
        image, event, _ = FeatureStore(tmp_path / str(number)).read("c0")
        # Half a unit of float16, and float32 sums in another order.
        np.testing.assert_allclose(clip.image[variant], image[0], rtol=6e-4, atol=2e-4)
        np.testing.assert_allclose(clip.event[variant.carry], event[0], rtol=6e-4, atol=2e-4)
        assert clip.encoded[variant] == report.encoded


def test_it_runs(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frames, "VARIANTS", (frames.Variant(), frames.Variant(2), frames.Variant(carry=False)))
    arguments = ["frames", str(clips), "--encoder", "descriptor", "--quick", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "2 frames" in capsys.readouterr().out
    (path,) = tmp_path.glob("*frames_quick.json")
    whole, few, _ = json.loads(path.read_text())["variants"]
    assert (whole["encoded_per_segment"], few["encoded_per_segment"]) == (16, 2)
    assert whole["cosine_mean"] == pytest.approx(1) and whole["speed"] == 1 and few["cosine_mean"] < 1
