"""The pipeline of extraction: decoding processes, batches across videos, bad videos, crashes and interruptions."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from iefvad.cli.extract import main
from iefvad.encoders.encoder import Encoder, build_encoder
from iefvad.extraction import local
from iefvad.extraction.config import ExtractConfig
from iefvad.extraction.decoding import SHAPE, DecoderCrashError, DecodingProcess, Opened
from iefvad.extraction.encoding import VideoEncoder, rows_stand_alone
from iefvad.extraction.extract import extract
from iefvad.extraction.progress import Progress
from iefvad.extraction.stream import DEFAULTS
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from iefvad.video import Segments, read_frames, resize, ten_crop
from tests.helpers.video_files import content, event_maps_of, make_video, small_vit

# Relative: half a unit in the last place of float16. Absolute: differences of float32 sums in another order.
RTOL, ATOL = 6e-4, 2e-4


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    make_video(folder / "a.mp4", 32, seed=1)
    make_video(folder / "b.mp4", 49, (64, 96), seed=2)
    make_video(folder / "sub" / "c.avi", 31, seed=3)
    return folder


@pytest.fixture
def videos(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "videos"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_vit(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def encoder(model: str) -> Encoder:
    return build_encoder(image_model=model, device="cpu", batch=7)


@pytest.fixture(scope="module")
def whole(originals: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The content of a store of all originals that was written without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    extract([originals], folder, quiet(), encoder=encoder)
    return content(folder)


def quiet(**changes: object) -> ExtractConfig:
    return ExtractConfig(quiet=True, device="cpu", **changes)  # type: ignore[arg-type]


def decoders() -> set[int]:
    """Process ids of the living decoding processes of this process."""
    found = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,stat=,args="], capture_output=True, text=True)
    lines = [line.split(None, 2) for line in found.stdout.splitlines()]
    return {int(pid) for pid, state, args in lines if "extraction.decoding" in args and state[0] != "Z"}


@pytest.mark.parametrize("crops", [1, 10])
def test_features_equal_a_plain_computation(videos: Path, tmp_path: Path, encoder: Encoder, crops: int) -> None:
    given = [videos] if crops == 1 else [videos / "b.mp4"]
    report = extract(given, tmp_path / "store", quiet(crops=crops), encoder=encoder)
    assert report.done == (["a", "b", "sub/c"] if crops == 1 else ["b"])
    assert not report.failed and report.frames == (32 + 48 + 16 if crops == 1 else 48)
    assert 0 < report.waited < report.seconds
    image, event, sidecar = FeatureStore(tmp_path / "store").read("b")
    assert (sidecar.frames, sidecar.segments, sidecar.frames_dropped, sidecar.fps) == (49, 3, 1, 10.0)
    frames = np.stack(list(read_frames(videos / "b.mp4")))[:48]
    cut = torch.from_numpy(ten_crop(frames)[:, :crops])
    rows = torch.stack([encoder.encode_image(cut[:, crop]) for crop in range(crops)]).view(crops, 3, 16, -1).mean(2)
    torch.testing.assert_close(torch.from_numpy(image).float(), rows, rtol=RTOL, atol=ATOL)
    maps = event_maps_of(resize(frames))
    assert sidecar.event_density == [float(events.numpy().mean(dtype=np.float64)) for events in maps]
    boxes = [(16, 58), (0, 0), (0, 116), (32, 0), (32, 116)]
    windows = [maps[:, top : top + 224, left : left + 224] for top, left in boxes]
    windows += [window.flip(2) for window in windows]
    rows = torch.stack([encoder.encode_event(window) for window in windows[:crops]])
    torch.testing.assert_close(torch.from_numpy(event).float(), rows, rtol=RTOL, atol=ATOL)


def test_neither_company_nor_processes_change_a_byte(originals: Path, tmp_path: Path, model: str) -> None:
    extract([originals], tmp_path / "together", quiet(image_model=model))
    extract([originals], tmp_path / "processes", quiet(image_model=model, workers=3))
    for path in (originals / "b.mp4", originals / "a.mp4", originals):
        extract([path], tmp_path / "alone", quiet(image_model=model))
    whole = content(tmp_path / "together")
    assert content(tmp_path / "processes") == whole
    assert content(tmp_path / "alone") == whole


class _ByPlace:
    """An encoder as on devices where a result depends on the place of its row in the batch: it adds that place."""

    dim, batch, device = 3, 4, torch.device("cpu")

    def encode_image(self, frames: Tensor) -> Tensor:
        return self._rows(frames.float().mean((1, 2)))

    def encode_event(self, maps: Tensor) -> Tensor:
        return self._rows(maps.mean((1, 2))[:, None].expand(-1, 3))

    def _rows(self, values: Tensor) -> Tensor:
        return values + torch.arange(len(values))[:, None]


class _OwnPlace(_ByPlace):
    batch = 8

    def _rows(self, values: Tensor) -> Tensor:
        return values * 2


def encode_all(encoder: object, videos: dict[str, list[Tensor]], order: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    mixed: VideoEncoder[str] = VideoEncoder(encoder, DEFAULTS)  # type: ignore[arg-type]
    left = {name: iter(segments) for name, segments in videos.items()}
    counts = {name: len(segments) for name, segments in videos.items()}
    for name in order:
        mixed.add(name, next(left[name]))
        counts[name] -= 1
        if not counts[name]:
            mixed.end(name)
    mixed.flush()
    return {done.key: (done.image, done.event) for done in mixed.complete()}


@pytest.mark.parametrize(("encoder", "alone"), [(_ByPlace(), False), (_OwnPlace(), True)])
def test_features_do_not_depend_on_other_videos_whatever_the_device_does(encoder: object, alone: bool) -> None:
    random = torch.Generator().manual_seed(0)
    videos = {
        name: [torch.randint(0, 256, SHAPE, dtype=torch.uint8, generator=random) for _ in range(count)]
        for name, count in (("a", 2), ("b", 3), ("c", 1))
    }
    assert rows_stand_alone(encoder) is alone  # type: ignore[arg-type]
    single = {name: encode_all(encoder, {name: videos[name]}, [name] * len(videos[name]))[name] for name in videos}
    for order in ("aabbbc", "babcab", "cabbba"):
        for name, found in encode_all(encoder, videos, list(order)).items():
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, single[name], strict=True))


def test_a_dropped_video_leaves_no_trace() -> None:
    segment = torch.full(SHAPE, 7, dtype=torch.uint8)
    mixed: VideoEncoder[str] = VideoEncoder(_OwnPlace(), DEFAULTS)  # type: ignore[arg-type]
    for name in ("bad", "good", "good"):
        mixed.add(name, segment)
    mixed.drop("bad")
    mixed.drop("unheard of")
    mixed.end("good")
    assert not list(mixed.complete())  # one event map waits for company
    mixed.flush()
    done = list(mixed.complete())
    assert [video.key for video in done] == ["good"] and done[0].image.shape == (1, 2, 3)
    assert torch.equal(done[0].image, torch.full((1, 2, 3), 14.0)) and not list(mixed.complete())


def bad_files(folder: Path, whole: bytes) -> None:
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video at all")
    (folder / "cut.avi").write_bytes(whole[: len(whole) // 2])
    (folder / "renamed.mp4").write_bytes(whole)  # an AVI file: its content tells
    make_video(folder / "short.mp4", 9)
    with av.open(str(folder / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))


def test_bad_videos_are_listed_and_the_rest_go_on(
    videos: Path, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad_files(videos, (videos / "sub" / "c.avi").read_bytes())
    arguments = [str(videos), "--out", str(tmp_path / "store"), "--quiet", "--image-model", model]
    assert main([*arguments, "--device", "cpu", "--workers", "2"]) == 1
    said = capsys.readouterr()
    assert "4 of 9 videos extracted" in said.out and "5 failed" in said.out and "text failed" in said.err
    assert FeatureStore(tmp_path / "store").names() == ["a", "b", "renamed", "sub/c"]
    lines = (tmp_path / "store" / "failed.csv").read_text().splitlines()
    reasons = {line.split(",")[0]: line for line in lines[1:]}
    assert set(reasons) == {"cut", "empty", "short", "sound", "text"}
    assert "truncated" in reasons["cut"] and "no video track" in reasons["sound"] and "fewer than" in reasons["short"]
    assert "0 bytes" in reasons["empty"] and "cannot be opened" in reasons["text"]
    assert not decoders()


def test_a_crash_of_the_decoder_fails_one_video(
    originals: Path, tmp_path: Path, encoder: Encoder, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, started = DecodingProcess.decode, set()

    def crashing(self: DecodingProcess, path: Path, *arguments: object) -> Iterator[object]:
        started.add(self.pid)
        for item in decode(self, path, *arguments):  # type: ignore[arg-type]
            yield item
            if path.name == "b.mp4" and isinstance(item, np.ndarray):
                os.kill(self.pid, signal.SIGSEGV)

    monkeypatch.setattr(local.DecodingProcess, "decode", crashing)
    report = extract([originals], tmp_path / "store", quiet(workers=1), encoder=encoder)
    assert report.done == ["a", "sub/c"] and list(report.failed) == ["b"] and len(started) == 2
    assert "SIGSEGV" in report.failed["b"] and "b.mp4" in report.failed["b"]
    monkeypatch.undo()
    assert extract([originals], tmp_path / "store", quiet(), encoder=encoder).done == ["b"]
    assert content(tmp_path / "store") == whole and not decoders()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_end_in_the_middle_leaves_nothing_running(
    originals: Path,
    tmp_path: Path,
    encoder: Encoder,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    encode, calls = encoder.encode_image, []

    def ending(frames: Tensor) -> Tensor:
        calls.append(len(frames))
        if len(calls) == 5:
            raise error("out of memory")
        return encode(frames)

    monkeypatch.setattr(encoder, "encode_image", ending)
    begin = set(threading.enumerate())
    with pytest.raises(error):
        extract([originals], tmp_path / "store", quiet(workers=2), encoder=encoder)
    assert set(threading.enumerate()) <= begin and not decoders()
    monkeypatch.undo()
    extract([originals], tmp_path / "store", quiet(), encoder=encoder)
    assert content(tmp_path / "store") == whole


def test_full_disk_ends_the_run(
    videos: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:  # store.json and the first video fit
            raise OSError(28, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        extract([videos], tmp_path / "store", quiet(), encoder=encoder)
    monkeypatch.undo()
    assert FeatureStore(tmp_path / "store").names() == ["a"] and not list((tmp_path / "store").rglob("*.tmp"))


def test_decoding_process_gives_the_segments_and_ends_with_its_parent(videos: Path) -> None:
    process = DecodingProcess()
    with pytest.raises(UserError, match="does not exist"):
        list(process.decode(videos / "absent.mp4", DEFAULTS, lambda: np.empty(SHAPE, np.uint8)))
    opened, *segments, ended = process.decode(videos / "b.mp4", DEFAULTS, lambda: np.empty(SHAPE, np.uint8))
    assert isinstance(opened, Opened) and opened.fps == 10.0 and (ended.frames, ended.frames_dropped) == (49, 1)
    assert all(np.array_equal(a, b) for a, b in zip(segments, Segments(videos / "b.mp4"), strict=True))
    decoding = process.decode(videos / "b.mp4", DEFAULTS, lambda: np.empty(SHAPE, np.uint8))
    next(decoding)
    process._requests.close()  # what the kernel does when the parent is killed
    process._replies.close()
    assert process._process.wait(20) == 0
    with contextlib.suppress(ValueError, DecoderCrashError):
        next(decoding)
    process.close()


def test_decoding_process_that_does_not_start(monkeypatch: pytest.MonkeyPatch, videos: Path) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    process = DecodingProcess()
    with pytest.raises(RuntimeError, match=r"did not start .*exit status 1"):
        next(process.decode(videos / "a.mp4", DEFAULTS, lambda: np.empty(SHAPE, np.uint8)))
    process.close()


def test_decoding_imports_no_torch() -> None:
    code = "import sys, iefvad.extraction.decoding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_progress_counts_bytes_and_says_when_it_is_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {name: tmp_path / name for name in "abcd"}
    for name, size in zip("abc", (1000, 3000, 6000), strict=True):
        paths[name].write_bytes(bytes(size))
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(paths, quiet=False)
    progress.finish("a", skipped=True)
    progress.advance("b", 400, 0.5)
    now[0] += 30
    progress.advance("b", 200, 2 / 3)  # 2000 of the 9000 bytes not skipped in 30 s: 7000 more in 105 s
    text = capsys.readouterr().err
    assert "1.7/4 videos" in text and "20 frames/s" in text and re.search(r"01:45 left, until \d\d:\d\d", text)
    for name in "bcd":
        progress.finish(name)
    progress.close()
    text = capsys.readouterr().err
    assert "4.0/4 videos" in text and "left" not in text


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its memory from /proc")
def test_memory_does_not_grow_with_the_video(model: str) -> None:
    """Stored features must not fragment the heap between the large temporary buffers."""
    code = """
import sys, torch
from iefvad.encoders.encoder import build_encoder
from iefvad.extraction.encoding import VideoEncoder
from iefvad.extraction.stream import DEFAULTS

def megabytes():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

torch.set_num_threads(1)
encoder = VideoEncoder(build_encoder(image_model=sys.argv[1], device="cpu", batch=16), DEFAULTS)
segment = torch.randint(0, 256, (16, 256, 340, 3), dtype=torch.uint8)
for _ in range(30):
    encoder.add("video", segment)
before = megabytes()
for _ in range(70):
    encoder.add("video", segment)
print(megabytes() - before)
"""
    run = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 70  # MB; with one allocation per segment it would be 440
