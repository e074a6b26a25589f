"""Small files that stand for gigabytes, or claim sizes that they lack: one error, before anything is reserved."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from iefvad.cli.main import main
from iefvad.detection.detector import Detector
from iefvad.features.npy import load_npy, npy_shape
from iefvad.utils.archives import read_npz
from iefvad.utils.errors import UserError
from iefvad.utils.plain_yaml import read_yaml
from tests.helpers.detecting import small_model, write_video

ALIASES = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nseeds: [*b, *b]\n"


def header(shape: str, dtype: str = "<f4") -> bytes:
    """The head of a .npy file that claims a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(11 + len(text)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


SHAPES = ["(1099511627776, 768)", "(4611686018427387904, 4611686018427387904)", "(-1, 768)", "(9223372036854775808, 1)"]


@pytest.mark.parametrize("shape", SHAPES)
def test_npy_with_an_absurd_shape(tmp_path, shape):
    (tmp_path / "a.npy").write_bytes(header(shape) + bytes(64))
    for read in (npy_shape, load_npy):
        with pytest.raises(UserError, match=r"a\.npy cannot be read"):
            read(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", SHAPES)
def test_npz_with_an_absurd_shape(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("labels.npy", header(shape) + bytes(64))
    with pytest.raises(ValueError):
        read_npz(tmp_path / "a.npz")


def test_npz_that_unpacks_to_more_than_allowed(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", labels=np.zeros(1 << 20, np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 2000
    assert read_npz(tmp_path / "a.npz")["labels"].size == 1 << 20
    with pytest.raises(ValueError, match=r"unpacked it has 0.0 GB, more than"):
        read_npz(tmp_path / "a.npz", largest=1 << 19)


def test_damaged_npz_is_one_error(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, labels=np.arange(4000, dtype=np.int64))
    data = buffer.getvalue()
    for position in range(0, len(data), 97):
        changed = bytearray(data)
        changed[position] ^= 0x55
        (tmp_path / "a.npz").write_bytes(changed)
        try:
            read_npz(tmp_path / "a.npz")
        except (ValueError, OSError):
            continue


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, r"line 2: aliases \(\*name\) are not taken"),
        ("nu: 2\nnu: 8\n", "the name nu occurs twice"),
        ("nu: [2\n", "cannot be read as YAML, line 2"),
        ("a: " + "[" * 5000, "cannot be read as YAML"),
        ("when: 2026-99-99\n", "cannot be read as YAML"),
    ],
)
def test_yaml_that_is_not_plain(tmp_path, text, message, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(path)
    assert main(["train", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert "config.yaml" in error and len(error) < 500
    assert main(["evaluate", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err) < 500


def test_yaml_that_is_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"nu: \xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"# comment\n" * 200_000)
    with pytest.raises(UserError, match="more than 1 MiB"):
        read_yaml(tmp_path / "b.yaml")


@pytest.mark.parametrize("command", ["detect", "calibrate"])
@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("of a library")])
def test_one_odd_video_does_not_end_the_others(tmp_path, monkeypatch, capsys, command, error):
    small_model().save_pretrained(tmp_path / "model")
    videos = [write_video(tmp_path / f"{name}.mp4", frames=48) for name in "abc"]
    score = Detector.__call__

    def odd(self: Detector, video: Path, **named):
        if video.stem == "b":
            raise error
        return score(self, video, **named)

    monkeypatch.setattr(Detector, "__call__", odd)
    words = [command, str(tmp_path / "model"), *map(str, videos), "--out", str(tmp_path / "out")]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert f"{videos[1]}: " in err and ("not enough memory" in err or "ZeroDivisionError: of a library" in err)
    if command == "detect":
        assert sorted(path.stem for path in (tmp_path / "out").glob("*.json")) == ["a", "c"]
    else:
        assert len(json.loads((tmp_path / "out" / "calibration.json").read_text())["videos"]) == 2
