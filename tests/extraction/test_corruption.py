"""Damage of decoded frames (`--corrupt`): each kind by hand, the same everywhere, never mixed with clean features."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from iefvad.cli.evaluate import main as evaluate
from iefvad.cli.extract import main
from iefvad.cli.train import main as train
from iefvad.encoders.encoder import build_encoder
from iefvad.extraction.config import ExtractConfig
from iefvad.extraction.extract import extract
from iefvad.extraction.stream import DEFAULTS, FeatureStream, event_maps
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from iefvad.video import Segments
from iefvad.video.corruption import Corruptions, FrameCorruption
from tests.helpers.detecting import small_detector, small_model
from tests.helpers.stores import training_flags, write_store
from tests.helpers.video_files import content, make_video, small_vit


def damaged(text: str, frames: np.ndarray, name: str = "video") -> np.ndarray:
    corruption = FrameCorruption(Corruptions.parse(text), name)
    frames = frames.copy()
    for frame in frames:
        corruption.apply(frame)
    return frames


def flat(value: int, count: int = 1, size: tuple[int, int] = (2, 2)) -> np.ndarray:
    return np.full((count, *size, 3), value, np.uint8)


# Each kind.


def test_dark_multiplies_and_rounds() -> None:
    levels = np.array([0, 1, 2, 3, 10, 100, 255], np.uint8)
    frame = np.repeat(levels[None, None, :, None], 3, axis=3)
    assert damaged("dark=0.3", frame)[0, 0, :, 1].tolist() == [0, 0, 1, 1, 3, 30, 76]  # 76.5 goes to the even number
    assert damaged("dark=0", frame).max() == 0


def test_blur_spreads_a_point_by_a_gaussian() -> None:
    frame = flat(0, size=(21, 25))
    frame[0, 10, 12] = 255
    one = np.array([math.exp(-(k**2) / (2 * 1.5**2)) if abs(k) <= 5 else 0.0 for k in range(-10, 11)])
    expected = 255 * np.outer(one, one) / one.sum() ** 2
    found = damaged("blur=1.5", frame)[0]
    for channel in range(3):
        np.testing.assert_allclose(
            found[:, 2:23, channel], expected, atol=1
        )  # cv2 computes with 8 bits behind the point
    assert (found[:4] == 0).all() and found.max() == round(expected.max())
    assert (damaged("blur=3", flat(77, size=(8, 8))) == 77).all()


def test_noise_has_its_deviation_and_depends_on_name_and_number() -> None:
    frames = damaged("noise=6", flat(128, 3, (256, 340)))
    # Of 261120 values the mean has a deviation of 0.012 and the variance one of 0.1; rounding adds 1/12 to it.
    for frame in frames.astype(np.float64):
        assert frame.mean() == pytest.approx(128, abs=0.06) and frame.var() == pytest.approx(36 + 1 / 12, abs=0.5)
    assert not np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames, damaged("noise=6", flat(128, 3, (256, 340))))
    assert not np.array_equal(frames[0], damaged("noise=6", flat(128, 1, (256, 340)), "other")[0])
    clipped = damaged("noise=100", flat(250, 1, (64, 64))) == 255  # not wrapped around
    assert 0.4 < clipped.mean() < 0.55


def test_lost_frames_repeat_the_one_before() -> None:
    frames = np.arange(200, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    found = damaged("drop=0.3", frames)[:, 0, 0, 0]
    lost = found != np.arange(200)
    assert not lost[0]
    for number in range(1, 200):
        assert found[number] == (found[number - 1] if lost[number] else number)
    assert 36 <= lost.sum() <= 84  # 60 ± 24, 3.7 deviations
    assert (lost[1:] & lost[:-1]).any()
    more = damaged("drop=0.6", frames)[:, 0, 0, 0] != np.arange(200)
    assert (more | ~lost).all()  # whoever is lost at 0.3 is lost at 0.6
    assert (damaged("drop=1", frames) == 0).all()
    corruption, buffer = FrameCorruption(Corruptions.parse("drop=1"), "video"), flat(0)
    for value in (7, 8):
        buffer[0] = value
        corruption.apply(buffer[0])
    assert (buffer == 7).all()  # also where the caller uses one array for all frames


def test_dead_event_stream() -> None:
    frames = torch.randint(0, 256, (2, 16, 8, 12, 3), dtype=torch.uint8)
    maps = [event_maps(frames, DEFAULTS | {"corrupt": text}) for text in (None, "dark=0.5,dead-event")]
    assert maps[0].shape == maps[1].shape and maps[0].dtype == maps[1].dtype
    assert maps[0].max() > 0 and maps[1].max() == 0
    assert damaged("dead-event", flat(9)).tolist() == flat(9).tolist()


def test_several_are_applied_in_a_fixed_order() -> None:
    frame = flat(200, size=(32, 32))
    assert np.array_equal(damaged("noise=5,dark=0", frame), damaged("dark=0,noise=5", frame))
    assert damaged("noise=5,dark=0", frame).max() > 0  # noise is that of the sensor, so darkness does not weaken it
    frames = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    both = damaged("drop=0.5,noise=5", frames)
    assert any(np.array_equal(*pair) for pair in pairwise(both))  # a frozen picture freezes its noise


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        (None, ""),
        ("", ""),
        ("dead-event, drop=0.30 ,dark=3e-1", "dark=0.3,drop=0.3,dead-event"),
        ("noise=5.0,blur=3", "blur=3,noise=5"),
    ],
)
def test_one_way_of_writing(given: str | None, canonical: str) -> None:
    assert str(Corruptions.parse(given)) == canonical
    assert Corruptions.parse(canonical) == Corruptions.parse(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("fog=1", "'fog=1' is not a corruption; there are blur=SIGMA"),
        ("dark", "'dark' is not a corruption"),
        ("dead-event=1", "'dead-event=1' is not a corruption"),
        ("dark=0.3,", "'' is not a corruption"),
        ("dark=1", "dark must be at least 0 and below 1, not '1'"),
        ("blur=0", "blur must be above 0 and at most 50, not '0'"),
        ("noise=nan", "noise must be above 0"),
        ("drop=half", "drop must be above 0 and at most 1, not 'half'"),
        ("drop=0.1,drop=0.2", "drop is given twice"),
        ("dead-event,dead-event", "dead-event is given twice"),
    ],
)
def test_mistakes_are_explained(given: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = make_video(tmp_path / "v.mp4", 20)
    assert main([str(video), "--out", str(tmp_path / "store"), "--corrupt", given]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "store").exists()


# In the pipeline.

EVERY = "blur=1,dark=0.5,noise=3,drop=0.3"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", 40, seed=1)
    make_video(folder / "sub" / "b.mp4", 33, seed=1)
    return folder


def quiet(**changes: object) -> ExtractConfig:
    return ExtractConfig(quiet=True, **{"device": "cpu", **changes})  # type: ignore[arg-type]


def test_resized_frames_are_damaged_and_events_follow(videos: Path) -> None:
    clean = np.concatenate(list(Segments(videos / "a.mp4")))
    found = np.concatenate(list(Segments(videos / "a.mp4", corrupt=EVERY, name="a")))
    assert np.array_equal(found, damaged(EVERY, clean, "a"))
    settings = DEFAULTS | {"corrupt": EVERY, "name": "a"}
    stream = FeatureStream(videos / "a.mp4", build_encoder(device="cpu"), settings)
    expected = event_maps(torch.from_numpy(found[:16]), DEFAULTS).double().mean()
    assert next(iter(stream)).density == pytest.approx(float(expected))


@pytest.mark.parametrize("model", ["descriptor", "vit"])
def test_features_depend_on_nothing_else(model: str, videos: Path, tmp_path: Path) -> None:
    """Threads for the descriptor, decoding processes for a model; one or two; all videos or one after another."""
    given = {"corrupt": EVERY, "image_model": model if model == "descriptor" else small_vit(tmp_path / "model")}
    extract([videos], tmp_path / "one", quiet(workers=1, **given))
    extract([videos], tmp_path / "two", quiet(workers=2, **given))
    extract([videos / "sub"], tmp_path / "other", quiet(workers=1, **given))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    one, other = FeatureStore(tmp_path / "one"), FeatureStore(tmp_path / "other")
    # The name is part of the seed: b alone has another name, and so another noise.
    assert not np.array_equal(one.read("sub/b")[0], other.read("b")[0])
    extract([videos], tmp_path / "clean", quiet(workers=1, image_model=given["image_model"]))
    assert not np.array_equal(one.read("a")[0], FeatureStore(tmp_path / "clean").read("a")[0])


def test_a_store_is_damaged_or_clean(videos: Path, tmp_path: Path) -> None:
    clean, damaged_store = tmp_path / "clean", tmp_path / "damaged"
    extract([videos / "a.mp4"], clean, quiet())
    assert "corrupt" not in json.loads((clean / "store.json").read_text())
    extract([videos / "a.mp4"], damaged_store, quiet(corrupt="dead-event,dark=0.30"))
    assert json.loads((damaged_store / "store.json").read_text())["corrupt"] == "dark=0.3,dead-event"
    assert json.loads((damaged_store / "a.json").read_text())["settings"]["corrupt"] == "dark=0.3,dead-event"
    assert max(FeatureStore(damaged_store).sidecar("a").event_density) == 0
    with pytest.raises(UserError, match=r"corrupt: None there, 'dark=0\.3' here"):
        extract([videos], clean, quiet(corrupt="dark=0.3"))
    for other in (None, "dark=0.3", "dark=0.4,dead-event"):
        with pytest.raises(UserError, match=r"corrupt: 'dark=0\.3,dead-event' there"):
            extract([videos], damaged_store, quiet(corrupt=other))
    report = extract([videos], damaged_store, quiet(corrupt="dark=0.3,dead-event"))
    assert report.skipped == ["a"] and report.done == ["sub/b"]


def test_evaluation_on_a_damaged_store_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "clean")
    assert train(training_flags(store, tmp_path / "run", "--modality", "fusion", "--compare", "false")) == 0
    assert "(--corrupt)" not in capsys.readouterr().out
    write_store(tmp_path / "damaged", corrupt="dark=0.3")
    flags = ["--features", str(tmp_path / "damaged"), "--robustness", "false", "--out", str(tmp_path / "found")]
    assert evaluate([str(tmp_path / "run"), *flags]) == 0
    run = json.loads((tmp_path / "found" / "metrics.json").read_text())["run"]
    said = "damaged videos: dark=0.3 (--corrupt)"
    assert run["corrupt"] == "dark=0.3" and any(said in note for note in run["notes"])
    assert said in (tmp_path / "found" / "report.html").read_text()
    # Training on it is allowed, and said.
    capsys.readouterr()
    more = ["--modality", "fusion", "--compare", "false", "--epochs", "1"]
    assert train(training_flags(tmp_path / "damaged", tmp_path / "again", *more)) == 0
    assert said in capsys.readouterr().out


def test_detection_damages_nothing() -> None:
    model = small_model()
    model.provenance["encoder"] = model.provenance["encoder"] | {"corrupt": "dark=0.3"}
    assert small_detector(model=model).settings["corrupt"] is None
