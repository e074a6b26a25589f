"""Fewer encoded frames (`--frames-per-segment`, `--keyframes`) and events across the edges of segments (`--carry`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from iefvad.cli.extract import main
from iefvad.detection.config import DetectConfig
from iefvad.detection.detector import Detector
from iefvad.detection.live.sources import LiveSource
from iefvad.detection.live.watch import Watch
from iefvad.encoders.encoder import Encoder, build_encoder
from iefvad.extraction.config import ExtractConfig
from iefvad.extraction.encoding import VideoEncoder
from iefvad.extraction.extract import extract
from iefvad.extraction.frame_choice import Choice, _changes, choose_frames, evenly_placed
from iefvad.extraction.stream import DEFAULTS, FeatureStream, event_maps
from iefvad.features.store import FeatureStore
from iefvad.scoring.scorer import check_encoder
from iefvad.utils.errors import UserError
from iefvad.video import Segments
from tests.helpers.detecting import small_detector, small_model, tcp_server, write_video
from tests.helpers.video_files import content, event_maps_of, make_video, small_vit

SHAPE = (16, 256, 340, 3)


def quiet(**changes: object) -> ExtractConfig:
    return ExtractConfig(quiet=True, **{"device": "cpu", "workers": 1, **changes})  # type: ignore[arg-type]


def write_frames(path: Path, frames: np.ndarray) -> Path:
    """Write frames without loss, so that equal frames stay equal."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return build_encoder(image_model=small_vit(tmp_path_factory.mktemp("models") / "small"), device="cpu", batch=16)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames of noise, of which some repeat the one before."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (40, 64, 96, 3), dtype=np.uint8)
    shown = [0, 0, 0, 3, 4, 4, 6, 7, 8, 9, 10, 10, 10, 10, 14, 15, 15, 15, *[18] * 14, *range(32, 40)]
    return write_frames(tmp_path_factory.mktemp("still") / "still.mkv", pictures[shown])


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("moving") / "moving.mp4", 48, seed=4)


# The choice.


def test_frames_are_evenly_placed() -> None:
    assert [evenly_placed(count, 16) for count in (1, 2, 4)] == [[8], [4, 12], [2, 6, 10, 14]]
    assert evenly_placed(8, 16) == list(range(1, 16, 2)) and evenly_placed(16, 16) == list(range(16))
    for count in range(1, 17):
        placed = evenly_placed(count, 16)
        steps = set(np.diff(placed).tolist())
        assert len(placed) == count and placed[0] >= 0 and placed[-1] < 16
        assert all(step in (16 // count, 16 // count + 1) for step in steps)


def plain_choice(frames: np.ndarray, count: int, fraction: float, threshold: float) -> tuple[list[int], list[int]]:
    """The definition of docs/specification.md, frame after frame."""
    luma = frames.astype(np.int64) @ np.array([2989, 5870, 1140])
    placed = [int((part + 0.5) * 16 / count) for part in range(count)]
    indices, runs = [placed[0]], [1]
    for frame in placed[1:]:
        events = np.abs(luma[frame] - luma[indices[-1]]) > threshold * 10_000
        differs = events.mean() > fraction if fraction else not np.array_equal(frames[frame], frames[indices[-1]])
        if differs:
            indices.append(frame)
            runs.append(1)
        else:
            runs[-1] += 1
    return indices, runs


def scenes() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    still = random.integers(20, 200, (20, 30, 3), dtype=np.uint8)
    frames = np.stack([still] * 16)
    flash, flicker, drift, faint, block = (frames.copy() for _ in range(5))
    flash[7] = 255
    flicker[::2] = 250
    drift += (np.arange(16, dtype=np.uint8) * 3)[
        :, None, None, None
    ]  # 3 levels from frame to frame: slow, yet it adds up
    faint[9, 0, 0, 0] += 1
    for index in range(16):
        block[index, 5:15, index : index + 6] = 255  # 60 of 600 pixels, less where it was bright before
    noise = random.integers(0, 256, (16, 20, 30, 3), dtype=np.uint8)
    return {
        "still": frames,
        "flash": flash,
        "flicker": flicker,
        "drift": drift,
        "faint": faint,
        "block": block,
        "noise": noise,
    }


@pytest.mark.parametrize("name", scenes())
def test_key_frames_are_those_of_the_definition(name: str) -> None:
    frames = scenes()[name]
    for count in (16, 5, 1):
        for fraction in (0.0, 0.02, 0.1, 0.5, 1.0):
            settings = {**DEFAULTS, "frames_per_segment": count, "keyframes": fraction}
            choice = choose_frames(torch.from_numpy(frames), settings)
            assert (choice.indices, choice.runs) == plain_choice(frames, count, fraction, 10)
            assert sum(choice.runs) == count
    pixels, settings = torch.from_numpy(frames), {**DEFAULTS, "keyframes": 0.1}
    one, all_at_once = (_changes(pixels, settings, at_once=at_once) for at_once in (False, True))
    assert all(one(i, j) == all_at_once(i, j) for i in range(16) for j in range(i + 1, 16))


def test_key_frames_of_simple_scenes() -> None:
    def chosen(name: str, **settings: object) -> list[int]:
        return choose_frames(torch.from_numpy(scenes()[name]), {**DEFAULTS, **settings}).indices

    assert chosen("still", keyframes=0) == [0]
    assert chosen("flicker", keyframes=0.5) == chosen("noise", keyframes=0) == list(range(16))
    assert chosen("flash", keyframes=0.9) == [0, 7, 8]
    assert chosen("drift", keyframes=0.9) == [0, 4, 8, 12], "each is compared with the last encoded frame"
    assert chosen("faint", keyframes=0) == [0, 9, 10] and chosen("faint", keyframes=1e-9) == [0]
    assert chosen("drift", keyframes=0.9, threshold=2.0) == list(range(16)), "events have the threshold of the store"
    exact = np.zeros((16, 10, 10, 3), np.uint8)
    exact[8:, 0, :5] = 255  # 5% of the pixels
    assert choose_frames(torch.from_numpy(exact), {**DEFAULTS, "keyframes": 0.05}).indices == [0]
    assert choose_frames(torch.from_numpy(exact), {**DEFAULTS, "keyframes": 0.049}).indices == [0, 8]


def test_the_mean_is_weighted_by_the_runs() -> None:
    rows = torch.randn(3, 2, 5)
    found = Choice([0, 3, 15], [3, 12, 1]).mean(rows)
    weights = torch.tensor([3.0, 12.0, 1.0])[:, None, None] / 16
    torch.testing.assert_close(found, (rows * weights).sum(0))
    assert torch.equal(found, torch.cat([rows[:1]] * 3 + [rows[1:2]] * 12 + [rows[2:]]).mean(0))
    assert torch.equal(Choice([2, 6, 10], [1, 1, 1]).mean(rows), rows.mean(0))


# Extraction.


@pytest.mark.parametrize("engine", ["threads", "pipeline"])
def test_identical_frames_are_skipped_without_changing_a_bit(
    still: Path, tmp_path: Path, encoder: Encoder, engine: str
) -> None:
    """`--keyframes 0` gives the features of all frames, and 16 frames per segment are all frames."""
    given = None if engine == "threads" else encoder
    whole = extract([still], tmp_path / "whole", quiet(crops=5), encoder=given)
    fewer = extract([still], tmp_path / "fewer", quiet(crops=5, keyframes=0.0), encoder=given)
    same = extract([still], tmp_path / "same", quiet(crops=5, frames_per_segment=16), encoder=given)
    assert (whole.frames, whole.encoded, same.encoded) == (32, 32, 32)
    assert (fewer.frames, fewer.encoded) == (32, 10 + 2)
    features = [FeatureStore(tmp_path / name).read("still")[:2] for name in ("whole", "fewer", "same")]
    for image, event in features[1:]:
        np.testing.assert_array_equal(image, features[0][0])
        np.testing.assert_array_equal(event, features[0][1])
    assert content(tmp_path / "same") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    "settings", [{"frames_per_segment": 5}, {"keyframes": 0.3}, {"frames_per_segment": 8, "keyframes": 0.2}]
)
def test_features_are_the_weighted_mean_of_the_chosen_frames(
    moving: Path, still: Path, tmp_path: Path, encoder: Encoder, settings: dict[str, Any]
) -> None:
    """In both local engines and in a stream. Event maps still use all frames."""
    report = extract([moving, still], tmp_path / "store", quiet(crops=5, **settings), encoder=encoder)
    store = FeatureStore(tmp_path / "store")
    assert {key: store.settings[key] for key in settings} == settings and store.settings["carry"] is True
    encoded = 0
    for path in (moving, still):
        segments = [segment.copy() for segment in Segments(path)]
        image, _, sidecar = store.read(path.stem)
        streamed = list(FeatureStream(path, encoder, store.settings))
        for number, segment in enumerate(segments):
            indices, runs = (
                plain_choice(segment, settings.get("frames_per_segment", 16), settings["keyframes"], 10)
                if "keyframes" in settings
                else (evenly_placed(5, 16), [1] * 5)
            )
            encoded += len(indices)
            centre = encoder.encode_image(torch.from_numpy(segment[indices, 16:240, 58:282]))
            expected = (centre * torch.tensor(runs)[:, None]).sum(0) / sum(runs)
            # Half a unit of float16, and float32 sums in another order.
            torch.testing.assert_close(torch.from_numpy(image[0, number]).float(), expected, rtol=6e-4, atol=2e-4)
            torch.testing.assert_close(streamed[number].image[0], expected, rtol=1e-4, atol=1e-5)
            assert streamed[number].encoded == len(indices)
        maps = event_maps_of(np.concatenate(segments))
        np.testing.assert_allclose(sidecar.event_density, maps.mean((1, 2)), rtol=1e-5)
        assert np.isfinite(image).all()
    assert report.encoded == encoded < report.frames == 48 + 32


def test_ragged_segments_fill_batches() -> None:
    """The encoder is called as seldom as possible, whatever each segment brings."""

    class Counting:
        dim, batch, device = 2, 8, torch.device("cpu")
        calls: ClassVar[list[int]] = []

        def encode_image(self, frames: Tensor) -> Tensor:
            self.calls.append(len(frames))
            return frames.float().mean((1, 2))[:, :2]

        def encode_event(self, maps: Tensor) -> Tensor:
            return maps.mean((1, 2))[:, None].expand(-1, 2)

    random = torch.Generator().manual_seed(0)
    video: VideoEncoder[str] = VideoEncoder(Counting(), {**DEFAULTS, "keyframes": 0.0})  # type: ignore[arg-type]
    segments, counts = [], []
    for distinct in (3, 1, 7, 16, 2):
        pictures = torch.randint(0, 256, (distinct, *SHAPE[1:]), dtype=torch.uint8, generator=random)
        segments.append(pictures[[min(index, distinct - 1) for index in range(16)]])
        counts.append(video.add("video", segments[-1]))
    video.end("video")
    video.flush()
    (done,) = video.complete()
    assert counts == [3, 1, 7, 16, 2] and Counting.calls == [8] * 4  # 29 frames
    centres = torch.stack(segments)[:, :, 16:240, 58:282, :2].float()
    torch.testing.assert_close(done.image[0], centres.mean((1, 2, 3)))


# What a store records.


def test_a_store_refuses_another_choice(moving: Path, tmp_path: Path) -> None:
    changes: tuple[dict[str, Any], ...] = ({"frames_per_segment": 4}, {"keyframes": 0.1}, {"carry": False})
    extract([moving], tmp_path / "plain", quiet())
    for number, change in enumerate(changes):
        with pytest.raises(UserError, match=next(iter(change))):
            extract([moving], tmp_path / "plain", quiet(**change))
        extract([moving], tmp_path / str(number), quiet(**change))
        assert extract([moving], tmp_path / str(number), quiet(**change)).skipped == ["moving"]
        name, value = next(iter(change.items()))
        if name != "carry":
            with pytest.raises(UserError, match=f"{name}: {value} there"):
                extract([moving], tmp_path / str(number), quiet())


def test_stores_of_older_versions_mean_all_frames_and_no_carry(moving: Path, tmp_path: Path) -> None:
    extract([moving], tmp_path / "store", quiet(carry=False))
    recorded = json.loads((tmp_path / "store" / "store.json").read_text())
    assert not {"carry", "frames_per_segment", "keyframes"} & recorded.keys()
    before = content(tmp_path / "store")
    assert extract([moving], tmp_path / "store", quiet()).skipped == ["moving"], (
        "without --carry it is continued as it is"
    )
    assert content(tmp_path / "store") == before
    (tmp_path / "store" / "moving.json").unlink()
    assert extract([moving], tmp_path / "store", quiet()).done == ["moving"]
    assert content(tmp_path / "store") == before
    with pytest.raises(UserError, match="carry: False there, True here"):
        extract([moving], tmp_path / "store", quiet(carry=True))


def test_a_model_refuses_features_of_another_choice(moving: Path, tmp_path: Path) -> None:
    settings = {}
    for name, changes in (("old", {"carry": False}), ("new", {}), ("few", {"carry": False, "frames_per_segment": 2})):
        extract([moving], tmp_path / name, quiet(**changes))
        settings[name] = FeatureStore(tmp_path / name).settings
        check_encoder(settings[name], settings[name], "the features")
    for trained, given, named in (
        ("old", "new", "carry"),
        ("new", "old", "carry"),
        ("few", "old", "frames_per_segment"),
    ):
        with pytest.raises(UserError, match=named):
            check_encoder(settings[trained], settings[given], "the features")
    check_encoder(settings["few"], {}, "features of unknown origin")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--frames-per-segment", "0"), ("--frames-per-segment", "17"), ("--keyframes", "1.5")],
)
def test_values_out_of_range_are_named(
    moving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert main([str(moving), "--out", str(tmp_path / "store"), option, value]) == 2
    assert option in capsys.readouterr().err and not (tmp_path / "store").exists()


def test_a_fraction_that_is_nan_is_refused(moving: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--keyframes must be a finite number"):
        extract([moving], tmp_path / "store", quiet(keyframes=float("nan")))


def test_the_command_says_how_many_frames_were_encoded(
    moving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(moving), "--out", str(tmp_path / "store"), "--quiet"]
    assert main([*arguments, "--frames-per-segment", "2", "--no-carry"]) == 0
    assert "48 frames at " in (said := capsys.readouterr().out) and ", 6 of them encoded" in said
    assert main([*arguments, "--frames-per-segment", "2", "--carry"]) == 2
    assert "carry: False there, True here" in capsys.readouterr().err


# Detection.


def model_of(settings: dict[str, Any]) -> Any:
    model = small_model()
    model.provenance["encoder"] |= settings
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five segments, as a file that a server can send. A block flickers in two of them."""
    return write_video(tmp_path_factory.mktemp("live") / "clip.ts", frames=80, burst=range(2, 4))


@pytest.mark.parametrize("settings", [{"frames_per_segment": 2}, {"keyframes": 0.05}, {"carry": True}])
def test_detection_makes_the_features_that_the_model_was_trained_on(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """From a file and live; scores show whether they are the same."""
    monkeypatch.setattr("iefvad.detection.live.sources._AHEAD", 100)
    extract([clip], tmp_path / "store", quiet(**{"carry": False, **settings}))
    model = model_of(FeatureStore(tmp_path / "store").settings)
    file = Detector(model, DetectConfig(device="cpu", hop=1))(clip).scores.scores
    other = small_detector(hop=1)(clip).scores.scores
    with tcp_server(clip.read_bytes()) as address:
        watch = Watch(Detector(model, DetectConfig(device="cpu", hop=1, retries=0), live=True), address)
        live = [float(scored.row[0]) for scored in watch]
    np.testing.assert_allclose(live, file, atol=1e-5)
    image, event, _ = FeatureStore(tmp_path / "store").read("clip")
    stored = Detector(model, DetectConfig(device="cpu", hop=1)).scorer()
    rows = stored.feed(torch.from_numpy(image).float(), torch.from_numpy(event).float())
    np.testing.assert_allclose(file, rows[:, 0], atol=2e-3)  # features are stored as float16
    assert np.abs(file - other).max() > 1e-4, "the settings make no difference here, so this test shows nothing"


def test_live_segments_know_the_frame_before(clip: Path) -> None:
    sent = clip.read_bytes()
    with tcp_server(sent, sent) as address:
        source = LiveSource(address, retries=1, retry_seconds=0.01)
        segments = list(source)
    assert len(segments) == 10
    for number in (0, 5):
        assert segments[number].before is None, "after a lost connection the frame before is not known"
    for number in (1, 4, 6, 9):
        np.testing.assert_array_equal(segments[number].before, segments[number - 1].frames[-1])


# Events across the edges of segments.


def step(path: Path, at: int) -> Path:
    frames = np.full((48, 60, 80, 3), 60, np.uint8)
    frames[at:] = 200
    return write_frames(path, frames)


@pytest.mark.parametrize(("at", "segment"), [(15, 0), (16, 1), (17, 1), (32, 2)])
@pytest.mark.parametrize("given", [None, "encoder"])
def test_a_step_gives_events_wherever_it_is(
    tmp_path: Path, encoder: Encoder, at: int, segment: int, given: str | None
) -> None:
    path = step(tmp_path / "step.mkv", at)
    for carry in (True, False):
        extract([path], tmp_path / str(carry), quiet(carry=carry), encoder=encoder if given else None)
        density = FeatureStore(tmp_path / str(carry)).sidecar("step").event_density
        expected = [0.0, 0.0, 0.0]
        if carry or at % 16:
            expected[segment] = 0.1
        np.testing.assert_allclose(density, expected, rtol=1e-6)


def test_reported_steps_give_events(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "reports" / "event_boundary"
    if not folder.is_dir():
        pytest.skip("the reported files are absent")
    extract([folder], tmp_path / "store", quiet())
    for sidecar in FeatureStore(tmp_path / "store").sidecars():
        np.testing.assert_allclose(sidecar.event_density, [0.0, 0.1, 0.0], rtol=1e-6)


def test_carry_is_a_segment_of_17_frames() -> None:
    frames = torch.randint(0, 256, (33, 20, 30, 3), dtype=torch.uint8)
    settings = {**DEFAULTS, "carry": True, "clamp": 255}
    plain = event_maps(frames[16:32], settings, frames[15]), event_maps(frames[:16], settings)
    for found, part in zip(plain, (frames[15:32], frames[:16]), strict=True):
        assert torch.equal(found, event_maps(part, settings))
    assert torch.equal(
        event_maps(frames[16:32], {**settings, "carry": False}, frames[15]), event_maps(frames[16:32], settings)
    )
