"""Odd footage, odd names and odd layouts of features, as users report them, through the commands.

Each case is made here from small inputs. Where the shared data are there, the reported files themselves are tried too.
Damaged and odd videos one by one are in `tests/video`, cameras in `tests/detection`, weights in `tests/encoders`.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from iefvad.cli.main import main
from tests.helpers.detecting import small_model, write_video
from tests.video.test_clock import write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reports(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue("shared_data") / "reports"
    if not folder.is_dir():
        pytest.skip("the shared data have no folder of reports")
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]):
    """Run a command and return its exit status and all that it printed. It never ends with a traceback."""

    def call(*words: object) -> tuple[int, str]:
        capfd.readouterr()
        status = main([str(word) for word in words])
        captured = capfd.readouterr()
        text = captured.out + captured.err
        assert "Traceback" not in text, text
        return status, text

    return call


def document(path: Path) -> dict:
    return json.loads(path.read_text())


# Footage: times, loss, the edge of a segment.


@pytest.mark.parametrize(("name", "end"), [("cfr.mp4", 6.4), ("vfr.mp4", 16.0), ("gap.ts", 6.4), ("gap.mkv", 6.4)])
def test_times_are_those_of_a_player(name, end, model, tmp_path, run):
    kept = [index for index in range(160) if "gap" not in name or not 40 <= index < 90]
    path = write(tmp_path / name, kept, stamp=lambda i: 5 * min(i, 60) + max(i - 60, 0) if "vfr" in name else i)
    status, text = run("detect", model, path, "--out", tmp_path / "out", "--tail", "repeat")
    found = document(tmp_path / "out" / f"{path.stem}.json")
    assert status == 0 and found["segments"][-1]["end"] == pytest.approx(end, abs=0.05)
    assert ("about 50 frames lost from 0:00:01.6 to 0:00:03.6" in text) == ("gap" in name)


@pytest.mark.parametrize(
    ("name", "start", "end"), [("cfr.mp4", 9.6, 12.8), ("vfr.mp4", 35.2, 38.4), ("gap.ts", 9.76, 12.8)]
)
def test_reported_times(name, start, end, reports, model, tmp_path, run):
    assert run("detect", model, reports / "times" / name, "--out", tmp_path)[0] == 0
    segments = document(tmp_path / f"{Path(name).stem}.json")["segments"]
    # A player shows the event in the last three seconds; the gap ends within a segment.
    assert any(row["start"] == pytest.approx(start, abs=0.01) for row in segments)
    assert segments[-1]["end"] == pytest.approx(end, abs=0.01)


def damaged(path: Path, *, noise: bool) -> Path:
    """Zero the middle of a transport stream, as a bad disk leaves it."""
    still = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    shift = 31 if noise else 1  # a picture that cannot be predicted makes a file with a longer hole
    frames = [np.roll(still if noise else cv2.GaussianBlur(still, (0, 0), 3), shift * index, 1) for index in range(160)]
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "10"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 10 : len(data) * 6 // 10] = bytes(len(data) * 6 // 10 - len(data) * 3 // 10)
    path.write_bytes(data)
    return path


def check_hole(path: Path, model: str, out: Path, run, end: float) -> None:
    status, text = run("detect", model, path, "--out", out / "no")
    assert status == 1 and "damaged" in text and "frames lost from" in text and "--on-truncated keep" in text
    status, text = run("extract", path, "--out", out / "store")
    [row] = csv.DictReader((out / "store" / "failed.csv").open())
    assert status == 1 and "frames lost" in " ".join(row.values())
    status, text = run("detect", model, path, "--out", out / "yes", "--on-truncated", "keep")
    found = document(out / "yes" / "hole.json")
    assert status == 0 and "frames lost from" in text and found["clock"]["lost"]
    assert found["segments"][-1]["end"] == pytest.approx(end, abs=0.7)  # a last piece may be shorter than a segment


@pytest.mark.parametrize("noise", [False, True], ids=["short", "long"])
def test_a_hole_is_refused_or_named(noise, model, tmp_path, run):
    check_hole(damaged(tmp_path / "hole.ts", noise=noise), model, tmp_path, run, 6.4)


def test_the_reported_hole(reports, model, tmp_path, run):
    check_hole(reports / "damage" / "hole.ts", model, tmp_path, run, 12.8)


def step_at(path: Path, frame: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for index in range(48):
            picture = np.full((120, 160, 3), 60 if index < frame else 200, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("options", "seen"), [((), True), (("--carry",), True), (("--no-carry",), False)])
def test_a_change_at_the_edge_of_a_segment(options, seen, tmp_path, run):
    videos = [step_at(tmp_path / f"step{frame}.mp4", frame) for frame in (16, 17)]
    assert run("extract", *videos, "--out", tmp_path / "store", *options)[0] == 0
    density = [document(tmp_path / "store" / f"{video.stem}.json")["event_density"] for video in videos]
    assert density[1] == pytest.approx([0, 0.1, 0])
    assert density[0] == pytest.approx([0, 0.1 * seen, 0])


def test_the_reported_edges(reports, tmp_path, run):
    assert run("extract", *sorted((reports / "event_boundary").glob("*.mp4")), "--out", tmp_path)[0] == 0
    for frame in (16, 17):
        assert document(tmp_path / f"step{frame}.json")["event_density"] == pytest.approx([0, 0.1, 0])


# What is no video, and odd names.


def not_videos(folder: Path) -> list[Path]:
    picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    (folder / "words.txt").write_text("hello world\n" * 300)
    (folder / "page.mp4").write_text("<html>not found</html>\n" * 40)
    cv2.imwrite(str(folder / "still.jpg"), picture)
    with av.open(str(folder / "song.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 160, 120, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        container.mux([*cover.encode(frame), *cover.encode()])
        for index in range(20):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            block.sample_rate, block.pts = 16000, 1024 * index
            container.mux(sound.encode(block))
        container.mux(sound.encode())
    return [folder / name for name in ("words.txt", "page.mp4", "still.jpg", "song.mp4")]


@pytest.mark.parametrize("command", ["detect", "extract", "calibrate"])
def test_what_has_no_moving_pictures_is_refused(command, model, tmp_path, run):
    files = not_videos(tmp_path)
    status, text = run(*{
        "detect": ("detect", model, *files, "--out", tmp_path / "out"),
        "extract": ("extract", *files, "--out", tmp_path / "out"),
        "calibrate": ("calibrate", model, *files),
    }[command])  # fmt: skip
    assert status == (2 if command == "calibrate" else 1)
    lines = [line for line in text.splitlines() if "no moving pictures" in line]
    for path in files:
        assert any(str(path) in line for line in lines), f"{path.name}: {text}"


@pytest.mark.parametrize("command", ["detect", "extract"])
def test_odd_names(command, model, tmp_path, run):
    folder = tmp_path / "videos"
    folder.mkdir()
    clip = write_video(folder / "z_good.mp4", frames=32).read_bytes()
    (folder / ("a" * 243 + ".mp4")).write_bytes(clip)
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    odd = os.fsencode(folder) + b"/Stra\xdfe.mp4"
    try:
        with open(odd, "wb") as file:
            file.write(clip)
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    out = tmp_path / "out"
    words = ("detect", model, folder) if command == "detect" else ("extract", folder)
    status, text = run(*words, "--out", out)
    assert status == 1 and "gone.mp4 is a link to a file that is missing" in text
    assert f"3 of 4 videos {'scored' if command == 'detect' else 'extracted'}" in text
    assert (out / "z_good.json").is_file()


def test_a_title_that_is_not_utf_8(reports, model, tmp_path, run):
    path = reports / "odd_videos" / "latin1_title.avi"
    assert run("detect", model, path, "--out", tmp_path / "out")[0] == 0
    assert run("extract", path, "--out", tmp_path / "store")[0] == 0


# Cameras.

ADDRESSES = (
    "rtsp://admin:p#ss@127.0.0.1:9/stream",
    "rtsp://admin:se/cret@127.0.0.1:9/stream",
    "rtsp://admin:p?ss@127.0.0.1:9/s",
    "rtsp://admin:[x]@127.0.0.1:9/s",
    "rtsp://127.0.0.1:9/user=admin&password=secret&channel=1&stream=0.sdp",
    "http://127.0.0.1:9/video.cgi?user=admin&pwd=secret&token=se/cret",
)
SECRETS = ("p#ss", "se/cret", "p?ss", "[x]", "secret")


def check_address(address: str, model: str, out: Path, run) -> None:
    status, text = run("detect", model, address, "--retries", 0, "--timeout", 3, "--out", out)
    assert status == 2 and not any(secret in text for secret in SECRETS), text
    needs_escapes = "@" in address and any(character in address.split("@")[0].split("://")[1] for character in "#/?[")
    assert ("# as %23, / as %2F, ? as %3F, [ as %5B" in text) == needs_escapes, text
    written = [str(path) for path in out.rglob("*")] if out.exists() else []
    contents = "".join(path.read_text(errors="replace") for path in map(Path, written) if path.is_file())
    assert not any(secret in " ".join(written) + contents for secret in SECRETS)


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_of_cameras(address, model, tmp_path, run):
    check_address(address, model, tmp_path / "out", run)


def test_reported_addresses(reports, model, tmp_path, run):
    lines = (reports / "camera_urls" / "urls.txt").read_text().splitlines()
    for index, address in enumerate(line for line in lines if line and not line.startswith("#")):
        check_address(address, model, tmp_path / str(index), run)


# Encoders.


def transformers_folder(folder: Path) -> Path:
    folder.mkdir()
    tensors = {
        "vision_model.embeddings.class_embedding": torch.randn(64),
        "visual_projection.weight": torch.eye(32, 64),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"], "model_type": "clip"}))
    return folder


@pytest.mark.parametrize("form", ["local-dir:{}", "{}", "{}/model.safetensors"])
@pytest.mark.parametrize("known", [False, True], ids=["made", "reported"])
def test_the_layout_of_transformers_is_named(form, known, tmp_path, run, request):
    folder = request.getfixturevalue("reports") / "encoders" / "hf" if known else transformers_folder(tmp_path / "hf")
    video = write_video(tmp_path / "clip.mp4", frames=16)
    options = ("--image-model", "ViT-B-32", "--image-weights", form.format(folder))
    status, text = run("extract", video, *options, "--out", tmp_path / "store")
    assert status == 2 and "in the layout of transformers, does not fit" in text, text


def test_a_torchscript_archive_is_converted(tmp_path, run):
    class Visual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 8, 4, 4, bias=False)
            self.proj = torch.nn.Parameter(torch.randn(8, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv1(x).mean((2, 3)) @ self.proj

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = Visual()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.visual(x)

    torch.jit.save(torch.jit.trace(Whole(), torch.zeros(1, 3, 8, 8)), str(tmp_path / "ViT.pt"))
    status, text = run("convert", tmp_path / "ViT.pt", tmp_path / "x.safetensors")
    assert status == 0 and "2 tensors kept" in text and (tmp_path / "x.safetensors").is_file()


# Layouts of features.

VIDEOS = (("ab0", "Fight"), ("no0", "Normal"), ("ab1", "Fight"), ("no1", "Normal"), ("ab2", "Fight"), ("no2", "Normal"))
DIM = 16


def layout(
    root: Path,
    *,
    folders: tuple[str, ...] = ("rgb", "event"),
    name: str = "{}__{}.npy",
    shape: tuple[int, ...] = (12, DIM),
    crops: tuple[int, ...] = (0,),
    train: int = 4,
) -> list[object]:
    """Write features and lists of the field. Returns the options of `train` that name them."""
    random = np.random.default_rng(0)
    for video, label in VIDEOS:
        for folder in folders:
            for crop in crops:
                path = root / folder / label / name.format(video, crop)
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, random.normal(size=shape).astype(np.float32))
    for part, videos in (("train", VIDEOS[:train]), ("test", VIDEOS[4:])):
        rows = [
            f"/a/{folders[0]}/{label}/{name.format(video, crop)},{label}" for video, label in videos for crop in crops
        ]
        (root / f"{part}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    truth = np.zeros(16 * 24)
    truth[64:96] = 1
    np.save(root / "gt.npy", truth)
    lists: list[object] = [
        "--train-list",
        root / "train.csv",
        "--test-list",
        root / "test.csv",
        "--gt",
        root / "gt.npy",
    ]
    return ["train", *lists, "--features", root, "--epochs", 1, "--out", root / "run", "--heads", 2, "--layers", 1]


def crop_of(root: Path, name: str = "run") -> str:
    return document(root / name / "metrics.json")["run"]["test_crops"]


def test_one_video_of_each_kind(tmp_path, run):
    status, text = run(*layout(tmp_path, train=2), "--test-crops", 0)
    assert status == 0 and "too few videos to hold one of each kind out: the last epoch is kept" in text
    assert crop_of(tmp_path) == "0"


@pytest.mark.parametrize("shape", [(12, 10, DIM), (10, 12, DIM)])
def test_crops_in_one_file(shape, tmp_path, run):
    status, text = run(*layout(tmp_path, name="{}_i3d.npy", shape=shape))
    assert status == 0, text


@pytest.mark.parametrize("folder", ["rgb", "UCFClipFeatures"])
def test_images_alone(folder, tmp_path, run):
    words = layout(tmp_path, folders=(folder,))
    status, text = run(*words)
    assert status == 2 and "--modality image needs no event features" in text
    assert ("--image-folder" in text) == (folder != "rgb")
    assert run(*words, "--modality", "image")[0] == 0
    assert run("evaluate", tmp_path / "run", "--out", tmp_path / "again")[0] == 0
    first, again = (document(path / "metrics.json")["image"]["auc"] for path in (tmp_path / "run", tmp_path / "again"))
    assert first == again


def test_events_alone(tmp_path, run):
    words = layout(tmp_path)
    for path in (tmp_path / "rgb").rglob("*.npy"):
        path.unlink()
    assert run(*words, "--modality", "event")[0] == 0
    for path in (tmp_path / "event").rglob("*.npy"):
        path.unlink()
    status, text = run(*words, "--modality", "event", "--out", tmp_path / "again")
    assert status == 2 and "event features of" in text and "--event-folder" in text


def test_another_image_folder(tmp_path, run):
    words = layout(tmp_path, folders=("UCFClipFeatures", "event"))
    assert run(*words, "--image-folder", "UCFClipFeatures")[0] == 0


def test_crops_0_to_4(tmp_path, run):
    words = layout(tmp_path, crops=tuple(range(5)))
    status, text = run(*words)
    assert status == 0 and "2 of 2 test videos have no crop 5: crop 0 is tested" in text and "--test-crops" in text
    assert crop_of(tmp_path) == "0"
    status, text = run(*words, "--test-crops", "all", "--out", tmp_path / "all")
    assert status == 0 and "have no crop" not in text and crop_of(tmp_path, "all") == "all"
    assert run("evaluate", tmp_path / "all", "--test-crops", 5, "--out", tmp_path / "again")[0] == 0
    assert document(tmp_path / "again" / "metrics.json")["run"]["test_crops"] == "0"


def test_the_reported_one_per_class(reports, tmp_path, run):
    root = reports / "one_per_class"
    lists = ("--train-list", root / "train.csv", "--test-list", root / "test.csv", "--gt", root / "gt.npy")
    status, text = run("train", *lists, "--features", root, "--test-crops", 0, "--epochs", 1, "--out", tmp_path / "run")
    assert status == 0 and "too few videos to hold one of each kind out" in text
