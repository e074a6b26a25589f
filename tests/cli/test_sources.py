"""Sources that fail cost one line each, for extract, detect and calibrate alike, and the others are done."""

from __future__ import annotations

import builtins
import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from iefvad.checkpoints.files import save_model
from iefvad.cli import calibrate, detect, extract
from iefvad.features.store import FeatureStore
from iefvad.scoring.video_scores import read_scores_csv
from tests.helpers.detecting import small_model, write_video
from tests.video.test_folders import numbered, write_folder

COMMANDS = ("extract", "detect", "calibrate")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=32, burst=range(1, 2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, network = tmp_path_factory.mktemp("model"), small_model()
    save_model(folder / "model.safetensors", network, network.provenance)
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command on videos. Returns its exit status, stdout and stderr."""

    def run(command: str, videos: Sequence[Path], *options: str) -> tuple[int, str, str]:
        given, out = [str(video) for video in videos], ["--out", str(tmp_path / command)]
        if command == "extract":
            status = extract.main([*given, *out, "--quiet", *options])
        elif command == "detect":
            status = detect.main([str(model), *given, *out, "--device", "cpu", *options])
        else:
            few = ["--device", "cpu", "--false-alarms-per-hour", "1"]
            status = calibrate.main([str(model), *given, *out, *few, *options])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def count(command: str, out: str) -> int:
    """Return the number of videos that a command did."""
    if command == "calibrate":
        return out.count("highest score")
    lines = [line for line in out.splitlines() if not line.startswith("index of the videos")]
    return int(lines[-1 if command == "detect" else 0].split()[0])


@pytest.mark.parametrize("command", COMMANDS)
def test_odd_names(run, clip: Path, tmp_path: Path, command: str) -> None:
    folder = os.fsencode(tmp_path / "odd")
    os.makedirs(folder + b"/sub\xff")
    good = [
        b"z_good.mp4",
        b"Stra\xdfe.mp4",
        b"sub\xff/in.mp4",
        b"a" * 243 + b".mp4",
        b"a" * 250 + b"b.mp4",
        b"line\nbreak\x07.mp4",
        b"Case.mp4",
        b"case .mp4",
        b"-'\",.mp4",
    ]
    for name in good:
        shutil.copy(clip, folder + b"/" + name)
    os.symlink("/mnt/nas/gone.mp4", folder + b"/gone.mp4")
    os.symlink("loop.mp4", folder + b"/loop.mp4")
    os.mkfifo(folder + b"/pipe.mp4")
    status, out, err = run(command, [tmp_path / "odd"])
    assert status == 1 and count(command, out) == len(good)
    lines = [line for line in err.splitlines() if line.startswith(f"iefvad {command}:")]
    assert len(lines) == 3 == len(err.splitlines())
    for what in ("gone.mp4 is a link to a file that is missing", "loop.mp4 cannot be read", "pipe.mp4 is a"):
        assert sum(what in line for line in lines) == 1
    (out + err).encode()  # no half characters
    if command == "extract":
        rows = list(csv.DictReader(io.StringIO((tmp_path / "extract" / "failed.csv").read_text(encoding="utf-8"))))
        assert [row["name"] for row in rows] == ["gone", "loop", "pipe"]
        names = FeatureStore(tmp_path / "extract").names()
        assert {"z_good", "Stra%DFe", "sub%FF/in", "line%0Abreak%07", "a" * 243} - {"a" * 243} <= set(names)
        assert len((tmp_path / "extract" / "index.csv").read_text(encoding="utf-8").splitlines()) == len(good) + 1
        assert run(command, [tmp_path / "odd"])[1].startswith("0 of 12 videos extracted, 9 were already there")
    elif command == "detect":
        for page in (tmp_path / "detect").iterdir():
            page.read_text(encoding="utf-8")
        assert len(list((tmp_path / "detect").glob("*.html"))) == len(good) + 1  # and the index
        assert read_scores_csv(tmp_path / "detect" / "Stra%DFe.csv")[0].scores.size == 2
    else:
        document = json.loads((tmp_path / "calibrate" / "calibration.json").read_text(encoding="utf-8"))
        assert any(video["path"].endswith("Stra%DFe.mp4") for video in document["videos"])


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("extract", errno.EIO),
        ("extract", errno.ESTALE),
        ("extract", errno.ENOTCONN),
        ("extract", errno.EACCES),
        ("detect", errno.EIO),
        ("calibrate", errno.ESTALE),
    ],
)
def test_a_share_that_drops(run, clip: Path, tmp_path: Path, monkeypatch, command: str, number: int) -> None:
    """Files and folders on it fail, also one that fails only when it is read; what is elsewhere is done."""
    videos = tmp_path / "videos"
    (videos / "share").mkdir(parents=True)
    shutil.copy(clip, videos / "share" / "inside.mp4")
    write_folder(videos / "frames_on_share", numbered(20))
    for name in ("a.mp4", "share_file.mp4", "z.mp4"):
        shutil.copy(clip, videos / name)
    with monkeypatch.context() as patch:
        failing(
            patch,
            lambda path: videos in (given := Path(os.fsdecode(path))).parents and "share" in given.name,
            number,
        )
        status, out, err = run(command, [videos, videos / "share" / "inside.mp4"], "--fps", "10")
    assert status == 1 and count(command, out) >= 2, err
    lines = err.splitlines()
    assert all(line.startswith(f"iefvad {command}:") and os.strerror(number) in line for line in lines)
    for name in ("share_file.mp4", "frames_on_share", "videos/share cannot"):
        assert sum(name in line for line in lines) == 1, err


def failing(patch: pytest.MonkeyPatch, is_gone: Callable[[str], bool], number: int) -> None:
    """Let all functions that touch a path fail with an error."""

    def wrap(module: object, name: str) -> None:
        real = getattr(module, name)

        def function(path, *arguments, **named):
            if isinstance(path, (str, bytes, os.PathLike)) and is_gone(os.fspath(path)):
                raise OSError(number, os.strerror(number), os.fspath(path))
            return real(path, *arguments, **named)

        patch.setattr(module, name, function)

    for name in ("stat", "open", "listdir", "scandir"):
        wrap(os, name)
    wrap(builtins, "open")
    wrap(io, "open")


@pytest.mark.parametrize("command", COMMANDS)
def test_not_videos_given_directly(run, clip: Path, tmp_path: Path, command: str) -> None:
    words = tmp_path / "words.txt"
    words.write_text("hello world\n" * 300)
    still = write_folder(tmp_path / "still", ["still.jpg"]) / "still.jpg"
    status, out, err = run(command, [words, still, clip])
    assert status == 1 and count(command, out) == 1
    assert len(err.splitlines()) == 2 and all("has no moving pictures" in line for line in err.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_folders_of_frames(run, clip: Path, tmp_path: Path, command: str) -> None:
    root = tmp_path / "frames"
    for name in ("01_0014", "01.v2"):
        write_folder(root / name, numbered(40))
    shutil.copy(clip, root / "clip.mp4")
    status, out, err = run(command, [root])
    assert status == 2 and "01.v2 is a folder of frames, as are 1 more" in err and "add --fps" in err
    status, out, err = run(command, [root, root / "01_0014"], "--fps", "10")
    assert (status, count(command, out), err) == (0, 3, "")
    if command == "extract":
        store = FeatureStore(tmp_path / "extract")
        assert store.names() == ["01.v2", "01_0014", "clip"]
        sidecar = store.sidecar("01_0014")
        assert (sidecar.fps, sidecar.frames, sidecar.segments) == (10.0, 40, 2)
        assert run(command, [root], "--fps", "10")[1].startswith("0 of 3 videos extracted, 3 were")
        (root / "01_0014" / "039.jpg").unlink()
        assert run(command, [root], "--fps", "10")[1].startswith("1 of 3 videos extracted, 2 were")
        assert run(command, [root], "--fps", "20")[1].startswith("2 of 3 videos extracted, 1 were")
        run(command, [root / "01_0014"], "--fps", "20")
    elif command == "detect":
        assert {"01.v2.html", "01_0014.html", "clip.html"} <= {path.name for path in (tmp_path / "detect").iterdir()}
        [scores] = read_scores_csv(tmp_path / "detect" / "01_0014.csv")
        assert scores.starts.tolist() == [0.0, 1.6, 3.2] and scores.ends.tolist() == [1.6, 3.2, 4.0]
        assert run(command, [root / "01_0014"], "--fps", "10", "--overlay")[0] == 0
        assert (tmp_path / "detect" / "01_0014_overlay.mp4").stat().st_size > 0


def test_the_reports_of_others(run, shared_data: Path, tmp_path: Path, clip: Path) -> None:
    reports = shared_data / "reports" / "not_videos"
    if not reports.is_dir():
        pytest.skip("the shared reports are not here")
    status, _, err = run("detect", [reports / "words.txt", reports / "song.mp4"])
    assert status == 1 and err.count("no moving pictures") == 2 == len(err.splitlines())
