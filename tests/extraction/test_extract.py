"""Extraction end to end on small real files: features, resuming, bad videos, interruptions, the command."""

from __future__ import annotations

import csv
import dataclasses
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from iefvad.cli.extract import main
from iefvad.encoders.encoder import build_encoder
from iefvad.extraction.config import ExtractConfig
from iefvad.extraction.extract import extract
from iefvad.extraction.jobs import Features, Job, Jobs, _record_failures
from iefvad.extraction.stream import FeatureStream
from iefvad.features.store import FeatureStore, Sidecar
from iefvad.utils.errors import UserError
from iefvad.utils.prefetch import ahead
from iefvad.video import read_frames, resize, ten_crop
from tests.helpers.video_files import content, event_maps_of, make_video, small_vit

# Relative: half a unit in the last place of float16. Absolute: differences of float32 sums in another order.
RTOL, ATOL = 6e-4, 1e-4


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    make_video(folder / "a.mp4", seed=1)
    make_video(folder / "b.mp4", 33, (64, 96), seed=2)
    make_video(folder / "sub" / "c.avi", 64, seed=3)
    return folder


@pytest.fixture
def videos(originals: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    for path in originals.rglob("*.*"):
        target = folder / path.relative_to(originals)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def whole(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of all originals that was written without an interruption; tests copy it."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    extract([originals], folder, quiet())
    return folder


def quiet(**changes: object) -> ExtractConfig:
    return ExtractConfig(quiet=True, **{"device": "cpu", "workers": 1, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("crops", [1, 5, 10])
def test_features_equal_a_plain_computation(originals: Path, tmp_path: Path, crops: int) -> None:
    names = ["a", "b", "sub/c"] if crops == 1 else ["b"]
    given = [originals] if crops == 1 else [originals / "b.mp4"]
    report = extract(given, tmp_path / "store", quiet(crops=crops, batch=7))
    assert report.done == names and not report.failed and not report.skipped
    assert report.frames == (32 + 32 + 64 if crops == 1 else 32)
    store = FeatureStore(tmp_path / "store")
    assert store.names() == names and store.settings["crops"] == list(range(crops))
    encoder = build_encoder(device="cpu")
    image, event, sidecar = store.read("b")
    assert (sidecar.frames, sidecar.segments, sidecar.frames_dropped, sidecar.fps) == (33, 2, 1, 10.0)
    assert image.shape == event.shape == (crops, 2, encoder.dim) and image.dtype == np.float16
    frames = np.stack(list(read_frames(originals / "b.mp4")))[:32]
    cut = torch.from_numpy(ten_crop(frames)[:, :crops])
    rows = torch.stack([encoder.encode_image(cut[:, crop]) for crop in range(crops)])
    torch.testing.assert_close(
        torch.from_numpy(image).float(), rows.view(crops, 2, 16, -1).mean(2), rtol=RTOL, atol=ATOL
    )
    maps = event_maps_of(resize(frames))
    np.testing.assert_allclose(sidecar.event_density, maps.mean((1, 2)), rtol=1e-5)
    boxes = [(16, 58), (0, 0), (0, 116), (32, 0), (32, 116)]
    windows = [maps[:, top : top + 224, left : left + 224] for top, left in boxes]
    windows += [window.flip(2) for window in windows]
    rows = torch.stack([encoder.encode_event(window) for window in windows[:crops]])
    torch.testing.assert_close(torch.from_numpy(event).float(), rows, rtol=RTOL, atol=ATOL)


def test_settings_reach_the_event_maps(videos: Path, tmp_path: Path) -> None:
    densities = {}
    settings: dict[str, dict[str, object]] = {
        "plain": {},
        "blind": {"threshold": 255.0},
        "clamp": {"clamp": 2},
        "wide": {"clamp": 15},
        "segment": {"clamp": 15, "normalize": "segment"},
    }
    for name, changes in settings.items():
        extract([videos / "a.mp4"], tmp_path / name, quiet(**changes))
        densities[name] = FeatureStore(tmp_path / name).sidecar("a").event_density
    assert densities["blind"] == [0.0, 0.0] and min(densities["plain"]) > 0
    assert densities["clamp"] > densities["plain"] and densities["segment"] > densities["wide"]


def test_again_skips_and_changed_sources_are_made_again(videos: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    extract([videos], store, quiet())
    before = content(store)
    report = extract([videos], store, quiet())
    assert report.skipped == ["a", "b", "sub/c"] and not report.done and content(store) == before
    make_video(videos / "a.mp4", 48, seed=9)
    report = extract([videos], store, quiet())
    assert report.done == ["a"] and report.skipped == ["b", "sub/c"]
    assert FeatureStore(store).sidecar("a").segments == 3


def test_half_written_videos_are_made_again_to_the_same_bytes(originals: Path, whole: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(whole, tmp_path / "store"))
    before = content(store)
    (store / "a.json").unlink()
    (store / "b.safetensors").write_bytes(before["b.safetensors"][:-10])
    report = extract([originals], store, quiet())
    assert report.done == ["a", "b"] and content(store) == before


def test_workers_do_not_change_a_byte(videos: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    extract([videos], tmp_path / "one", quiet(crops=5))
    extract([videos], tmp_path / "three", quiet(crops=5, workers=3))
    assert content(tmp_path / "one") == content(tmp_path / "three")
    assert torch.get_num_threads() == threads


def test_other_settings_are_refused(videos: Path, tmp_path: Path) -> None:
    extract([videos / "a.mp4"], tmp_path / "store", quiet())
    for changes in ({"threshold": 25.0}, {"crops": 5}, {"image_model": "random-vit"}, {"tail": "repeat"}):
        with pytest.raises(UserError, match=next(iter(changes)).replace("image_model", "image_encoder")):
            extract([videos / "b.mp4"], tmp_path / "store", quiet(**changes))
    assert FeatureStore(tmp_path / "store").names() == ["a"]


def test_weights_may_move(originals: Path, tmp_path: Path) -> None:
    first, second = (quiet(image_model=small_vit(tmp_path / name)) for name in ("here", "there"))
    extract([originals / "a.mp4"], tmp_path / "store", first)
    report = extract([originals / "a.mp4", originals / "b.mp4"], tmp_path / "store", second)
    assert report.skipped == ["a"] and report.done == ["b"]


def test_bad_videos_are_listed_and_the_rest_go_on(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    (videos / "aa_text.mp4").write_text("not a video at all")
    (videos / "empty.mp4").touch()
    make_video(videos / "short.mp4", 9)
    whole = (videos / "sub" / "c.avi").read_bytes()
    (videos / "sub" / "c.avi").write_bytes(whole[: len(whole) // 2])
    assert main([str(videos), "--out", str(store), "--quiet", "--workers", "2"]) == 1
    out = capsys.readouterr()
    assert "2 of 6 videos extracted" in out.out and "4 failed" in out.out and "aa_text failed" in out.err
    with (store / "failed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} == {"aa_text", "empty", "short", "sub/c"}
    reasons = {row["name"]: row["reason"] for row in rows}
    assert "fewer than the 16" in reasons["short"] and "truncated" in reasons["sub/c"]
    assert FeatureStore(store).names() == ["a", "b"]
    # The list follows when a video is repaired or removed.
    (videos / "sub" / "c.avi").write_bytes(whole)
    make_video(videos / "short.mp4", 16)
    (videos / "empty.mp4").unlink()
    (videos / "aa_text.mp4").unlink()
    assert main([str(videos / "aa_text.mp4"), "--out", str(store), "--quiet"]) == 2
    assert main([str(videos), "--out", str(store), "--quiet"]) == 0
    with (store / "failed.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["aa_text", "empty"]


def test_a_full_disk_ends_an_extraction_and_a_name_that_is_too_long_one_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(number: int) -> Callable[..., None]:
        def write(*content: object) -> None:
            raise UserError("not stored") from OSError(number, "")

        return write

    store = FeatureStore(tmp_path / "store", settings={"dim": 2, "crops": [0]}, create=True)
    features = Features(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), Sidecar("", "a.mp4", "hash", 25.0, 16, 1))
    job = Job("a", tmp_path / "a.mp4", "hash")
    monkeypatch.setattr(store, "write", failing(errno.ENAMETOOLONG))
    with Jobs(store, {"a": job.path}, quiet=True) as jobs:
        jobs.write(job, features)
        jobs.wait()
    assert jobs.report.failed == {"a": "not stored"}
    (tmp_path / "a.mp4").touch()
    with Jobs(store, {"a": job.path}, quiet=True) as jobs:
        jobs.write(dataclasses.replace(job, state="another"), features)
        jobs.wait()
    assert "changed while it was read" in jobs.report.failed["a"]
    monkeypatch.setattr(store, "write", failing(errno.ENOSPC))
    monkeypatch.setattr("iefvad.extraction.jobs._record_failures", failing(errno.ENOSPC))  # must not hide the first
    with pytest.raises(ZeroDivisionError), Jobs(store, {"a": job.path}, quiet=True):
        raise ZeroDivisionError
    with pytest.raises(UserError, match="not stored"), Jobs(store, {"a": job.path}, quiet=True) as jobs:
        jobs.write(job, features)
        jobs.wait()
    assert not jobs.report.failed


@pytest.mark.parametrize("error", [MemoryError(), ValueError("of a library")])
def test_a_file_that_cannot_be_hashed_costs_one_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def hashed(path: Path, fps: float | None) -> str:
        if path.stem == "a":
            raise error
        return "hash"

    monkeypatch.setattr("iefvad.extraction.jobs.hash_source", hashed)
    store = FeatureStore(tmp_path / "store", settings={"dim": 2, "crops": [0]}, create=True)
    with Jobs(store, {"a": tmp_path / "a.mp4", "b": tmp_path / "b.mp4"}, quiet=True) as jobs:
        assert [job.name for job in jobs.pending()] == ["b"]
    assert type(error).__name__ in jobs.report.failed["a"]


@pytest.mark.parametrize("damage", ["", '"' + "x" * 200_000])
def test_earlier_failures_stay_in_the_list(tmp_path: Path, damage: str) -> None:
    (tmp_path / "failed.csv").write_text("name,path,reason\nearlier,e.mp4,it was cut\nname,n.mp4,empty\n" + damage)
    _record_failures(tmp_path, {"name": Path("n.mp4"), "new": Path("=n.mp4")}, {"new": "empty"})
    assert (tmp_path / "failed.csv").read_text() == "name,path,reason\nearlier,e.mp4,it was cut\nnew,'=n.mp4,empty\n"


def test_truncated_and_short_videos_are_kept_on_request(videos: Path, tmp_path: Path) -> None:
    whole = (videos / "sub" / "c.avi").read_bytes()
    (videos / "cut.avi").write_bytes(whole[: len(whole) // 2])
    make_video(videos / "short.mp4", 9)
    paths = [videos / "cut.avi", videos / "short.mp4"]
    report = extract(paths, tmp_path / "store", quiet(on_truncated="keep", tail="repeat"))
    assert report.done == ["cut", "short"]
    assert 1 <= FeatureStore(tmp_path / "store").sidecar("cut").segments < 4
    assert FeatureStore(tmp_path / "store").sidecar("short").frames == 9


def test_two_videos_of_one_name_are_refused(videos: Path, tmp_path: Path) -> None:
    make_video(videos / "a.avi", 16)
    with pytest.raises(UserError, match="both be stored as a"):
        extract([videos], tmp_path / "store", quiet())
    assert not (tmp_path / "store").exists()
    report = extract([videos / "a.mp4", videos / "a.mp4"], tmp_path / "store", quiet())
    assert report.done == ["a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crops": 3}, "--crops"),
        ({"threshold": -1.0}, "--threshold"),
        ({"clamp": 0}, "--clamp"),
        ({"workers": -1}, "--w"),
    ],
)
def test_settings_out_of_range(videos: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        extract([videos], tmp_path / "store", quiet(**changes))


def test_interruption_keeps_finished_videos(
    originals: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, write, calls = tmp_path / "store", FeatureStore.write, []

    def interrupted(self: FeatureStore, name: str, *arguments: object) -> None:
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(self, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureStore, "write", interrupted)
    begin = set(threading.enumerate())
    assert main([str(originals), "--out", str(store), "--quiet", "--workers", "2"]) == 130
    assert "same command" in capsys.readouterr().err
    assert set(threading.enumerate()) <= begin, "a thread goes on"  # others may end meanwhile
    monkeypatch.undo()
    assert FeatureStore(store).names() == calls[:1] and calls[0] in (store / "index.csv").read_text()
    assert not list(store.rglob("*.tmp"))
    report = extract([originals], store, quiet())
    assert report.skipped == calls[:1] and len(report.done) == 2
    assert content(store) == content(whole)


def test_full_disk_is_said_and_nothing_half_written_stays(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, flush, calls = tmp_path / "store", os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:  # store.json and the first video fit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert main([str(videos), "--out", str(store), "--quiet", "--workers", "1"]) == 2
    monkeypatch.undo()
    error = capsys.readouterr().err
    assert "no space left" in error and str(store) in error and error.count("\n") == 1
    assert FeatureStore(store).names() == ["a"] and not list(store.rglob("*.tmp"))
    assert extract([videos], store, quiet()).done == ["b", "sub/c"]


def test_encoder_failures_are_not_blamed_on_the_video(videos: Path, tmp_path: Path) -> None:
    encoder = build_encoder(device="cpu")

    def broken(frames: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    encoder.encode_image = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        extract([videos], tmp_path / "store", quiet(workers=2), encoder=encoder)


def test_stream_gives_times_pictures_and_the_stored_features(videos: Path, tmp_path: Path) -> None:
    stream = FeatureStream(videos / "b.mp4", build_encoder(device="cpu"), {"tail": "repeat", "carry": True, "dim": 256})
    segments = list(stream)
    assert [segment.index for segment in segments] == [0, 1, 2]
    assert [segment.start for segment in segments] == [0.0, 1.6, 3.2] and stream.segments.frames_read == 33
    assert segments[0].thumbnail.shape == (120, 80, 3) and segments[0].thumbnail.dtype == np.uint8
    middle = list(read_frames(videos / "b.mp4"))[8]
    assert abs(segments[0].thumbnail.mean() - middle.mean()) < 3  # resized twice
    extract([videos / "b.mp4"], tmp_path / "store", quiet())
    image, event, sidecar = FeatureStore(tmp_path / "store").read("b")
    for index in range(2):
        np.testing.assert_array_equal(segments[index].image.numpy().astype(np.float16), image[:, index])
        np.testing.assert_array_equal(segments[index].event.numpy().astype(np.float16), event[:, index])
        assert segments[index].density == sidecar.event_density[index]


def test_leaving_a_stream_early_ends_its_thread(videos: Path) -> None:
    begin = set(threading.enumerate())
    segments = iter(FeatureStream(videos / "sub" / "c.avi", build_encoder(device="cpu")))
    next(segments)
    segments.close()
    assert set(threading.enumerate()) <= begin, "a thread goes on"  # others may end meanwhile


def test_ahead_keeps_order_is_bounded_and_passes_exceptions_on() -> None:
    taken = []

    def numbers(count: int) -> Iterator[int]:
        for value in range(count):
            taken.append(value)
            yield value
        raise LookupError("the end")

    items = ahead(numbers(50), 4)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(taken) <= 6  # one handed over, four waiting, one in hand
    with pytest.raises(LookupError, match="the end"):
        for expected, value in enumerate(items, 1):
            assert value == expected
    assert len(taken) == 50
    assert list(ahead(iter(()), 1)) == [] and list(ahead([None, 1], 1)) == [None, 1]


def test_command_in_its_own_process(videos: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "iefvad.extract", str(videos), "--out", str(tmp_path / "store"), "--crops", "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "3 of 3 videos extracted" in run.stdout and "frames/s" in run.stderr
    assert FeatureStore(tmp_path / "store").settings["crops"] == [0, 1, 2, 3, 4]


def test_help_and_mistyped_commands(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "feature store" in capsys.readouterr().out
    store = str(tmp_path / "store")
    mistyped: list[list[str]] = [[], ["--out", store, "--cropz", "1"], ["--out", store, "--crops", "2"]]
    for rest in mistyped:
        with pytest.raises(SystemExit) as ended:
            main([str(videos), *rest])
        assert ended.value.code == 2
    assert main([str(tmp_path / "absent"), "--out", store]) == 2
    assert "does not exist" in capsys.readouterr().err and not (tmp_path / "store").exists()


def test_real_footage(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "videos" / "ucsd_ped2_test02.avi"
    report = extract([path], tmp_path / "store", quiet())
    assert report.done == [path.stem]
    density = FeatureStore(tmp_path / "store").sidecar(path.stem).event_density
    assert all(0 < value < 0.5 for value in density)


def test_extraction_ends_with_what_comes_next(tmp_path, capsys):
    video, store = make_video(tmp_path / "my video.mp4", 20), tmp_path / "my store"
    assert main([str(video), "--out", str(store)]) == 0
    printed = capsys.readouterr().out
    assert f"  iefvad label '{video}' --out '{store}'\n" in printed
    assert (
        f"  iefvad data split LIST.csv --out '{store}'\n" in printed
        and f"  iefvad train --features '{store}'\n" in printed
    )
    (store / "train.csv").write_text("path,label\n")
    assert main([str(video), "--out", str(store)]) == 0
    printed = capsys.readouterr().out
    assert "iefvad label" not in printed and f"  iefvad data check '{store}'\n" in printed
    (tmp_path / "broken.mp4").write_bytes(b"x")
    assert main([str(tmp_path / "broken.mp4"), "--out", str(tmp_path / "other")]) == 1
    assert "next" not in capsys.readouterr().out
