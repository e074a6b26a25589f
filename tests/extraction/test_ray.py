"""Extraction by Ray: the same files as the local engine."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from iefvad.cli.extract import main
from iefvad.encoders.encoder import build_encoder
from iefvad.extraction.config import ExtractConfig, encoder_of
from iefvad.extraction.decoding import DecodingProcess
from iefvad.extraction.extract import extract
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from tests.helpers.video_files import content, make_video, small_vit


def config(**changes: object) -> ExtractConfig:
    defaults = {"quiet": True, "device": "cpu", "image_model": "random-vit"}
    return ExtractConfig(**{**defaults, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", 40, seed=1)
    make_video(folder / "sub" / "b.avi", 65, (64, 96), seed=2)
    make_video(folder / "c.mp4", 16, seed=3)
    return folder


def test_without_ray_it_is_said_how_to_get_it(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = builtins.__import__

    def absent(name: str, *arguments: object, **options: object) -> object:
        if name.split(".")[0] == "ray":
            raise ImportError("No module named 'ray'")
        return load(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", absent)
    assert main([str(videos), "--out", str(tmp_path / "store"), "--engine", "ray"]) == 2
    assert "pip install 'iefvad[ray]'" in capsys.readouterr().err and not (tmp_path / "store").exists()


def test_an_encoder_of_ones_own_is_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give no encoder"):
        extract([videos], tmp_path / "store", config(engine="ray"), encoder=build_encoder(device="cpu"))


@pytest.mark.parametrize(
    ("there", "changes", "found"),
    [
        ({"CPU": 8.0}, {"device": "auto"}, ("cpu", 1, 6.0)),
        ({"CPU": 2.0}, {}, ("cpu", 1, 1.0)),
        ({"CPU": 1.0}, {}, ("cpu", 1, 0.5)),
        ({"CPU": 16.0}, {"ray_actors": 3}, ("cpu", 3, 4.0)),
        ({"CPU": 32.0, "GPU": 4.0}, {"device": "auto"}, ("cuda", 4, 1.0)),
        ({"CPU": 32.0, "GPU": 4.0}, {"device": "cuda:1", "ray_actors": 2}, ("cuda", 2, 1.0)),
        ({"CPU": 32.0, "GPU": 4.0}, {"device": "auto", "image_model": "descriptor"}, ("cpu", 1, 24.0)),
        ({"CPU": 8.0}, {"device": "cuda"}, "no GPU"),
        ({"CPU": 32.0, "GPU": 4.0}, {"device": "auto", "ray_actors": 5}, "4 GPUs"),
        ({"CPU": 4.0}, {"ray_actors": 4}, "decoding needs one"),
    ],
)
def test_share_of_the_cluster(there: dict[str, float], changes: dict[str, object], found: object) -> None:
    from iefvad.extraction.ray_engine import _resources

    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            _resources(there, config(**changes))
    else:
        assert _resources(there, config(**changes)) == found


def test_decoding_tasks(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from iefvad.extraction import ray_engine

    monkeypatch.setattr(ray_engine._Decode, "_process", None)
    decode = ray_engine._Decode({"tail": "drop", "on_truncated": "error"})
    path = videos / "sub" / "b.avi"
    rows = list(decode({"name": "b", "path": str(path), "known": ""}))
    assert [(row["kind"], row["index"]) for row in rows] == [("segment", index) for index in range(4)]
    assert all('"ended"' not in row["info"] for row in rows[:3]) and '"segments": 4' in rows[3]["info"]
    kept = ray_engine._Decode._process
    known = ray_engine.hash_source(path, None)
    assert [row["kind"] for row in decode({"name": "b", "path": str(path), "known": known})] == ["skipped"]
    absent = list(decode({"name": "x", "path": str(videos / "x.mp4"), "known": ""}))
    assert [row["kind"] for row in absent] == ["failed"] and "does not exist" in absent[0]["info"]
    assert isinstance(kept, DecodingProcess) and ray_engine._Decode._process is kept
    unfinished = decode({"name": "b", "path": str(path), "known": ""})
    next(unfinished)
    unfinished.close()  # type: ignore[attr-defined]
    assert ray_engine._Decode._process is None and kept._process.returncode is not None

    def crash(*_: object) -> Iterator[object]:
        raise ray_engine.DecoderCrashError("it crashed")
        yield

    monkeypatch.setattr(DecodingProcess, "decode", crash)
    rows = list(decode({"name": "b", "path": str(path), "known": ""}))
    assert [row["kind"] for row in rows] == ["failed"] and "it crashed" in rows[0]["info"]


def test_the_stages_give_the_features_of_the_local_engine(videos: Path, tmp_path: Path) -> None:
    """Without Ray between them; segments of one video come in several calls and in any order."""
    from iefvad.extraction.ray_engine import _Decode, _Encode

    given = config(
        image_model=small_vit(tmp_path / "model"), frames_per_segment=6, keyframes=0.03, corrupt="noise=2,drop=0.3"
    )
    path = videos / "sub" / "b.avi"
    report = extract([path], tmp_path / "store", given)
    store = FeatureStore(tmp_path / "store")
    rows = list(_Decode({**store.settings, "on_truncated": "error"})({"name": "b", "path": str(path), "known": ""}))
    encode = _Encode(given, store.settings, {}, torch.get_num_threads())
    image, event, sidecar = store.read("b")
    encoded = 0
    for places in ([2, 0], [3, 1]):
        batch = {key: np.array([rows[place][key] for place in places], object) for key in rows[0]}
        out = encode(batch)
        np.testing.assert_array_equal(out["image"].astype(np.float16), image[:, places].swapaxes(0, 1))
        np.testing.assert_array_equal(out["event"].astype(np.float16), event[:, places].swapaxes(0, 1))
        assert out["density"].tolist() == [sidecar.event_density[place] for place in places]
        encoded += int(out["encoded"].sum())
    assert encoded == report.encoded < report.frames / 2


def test_an_actor_says_what_is_wrong_with_it() -> None:
    from iefvad.extraction.ray_engine import _Encode

    settings = {"crops": [0], "threshold": 10.0, "clamp": 10, "normalize": "clamp"}
    rows = {key: np.array([value], object) for key, value in (("name", "a"), ("kind", "segment"), ("index", 0))}
    rows |= {"info": np.array(["{}"], object), "frames": np.array([b""], object)}
    hashes = {"image_weights_hash": encoder_of(config()).settings["image_weights_hash"]}
    wrong = {"image_weights_hash": "0"}
    for changes, expected, message in (
        ({"image_model": "no-such-model"}, hashes, "no encoder no-such-model"),
        ({}, wrong, "differ between the machines"),
    ):
        out = _Encode(config(**changes), settings, expected, 1)(rows)
        assert out["kind"].tolist() == ["broken"] and message in out["info"][0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_files_equal_those_of_the_local_engine(videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ray = pytest.importorskip("ray")
    (videos / "bad.mp4").write_text("not a video")
    model = small_vit(tmp_path / "model")
    settings: dict[str, object] = {"crops": 5, "image_model": model, "frames_per_segment": 6, "keyframes": 0.03}
    settings["corrupt"] = "noise=2,drop=0.3"
    local = extract([videos], tmp_path / "local", config(**settings))
    begun = extract([videos / "c.mp4"], tmp_path / "ray", config(**settings))  # by the local engine, finished by Ray
    capfd.readouterr()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    try:
        report = extract([videos], tmp_path / "ray", config(**settings, engine="ray"))
        assert ray.is_initialized()  # what was running stays
    finally:
        ray.shutdown()
    assert report.done == ["a", "sub/b"] and report.skipped == ["c"] and list(report.failed) == ["bad"]
    assert report.frames == 32 + 64 and 0 < report.encoded == local.encoded - begun.encoded < report.frames / 2
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    assert "bad failed" in capfd.readouterr().err


def test_rows_that_never_come_are_reported() -> None:
    from iefvad.extraction.ray_engine import _collect

    failed = {}
    record = SimpleNamespace(
        report=SimpleNamespace(failed=failed),
        progress=SimpleNamespace(advance=lambda *_: None),
        fail=failed.__setitem__,
        check=lambda: None,
    )
    row = {"name": "a", "kind": "segment", "index": 0, "info": '{"opened": {"fps": 25.0, "frames": null}}'}
    row["encoded"] = 16
    _collect(record, iter([row]), {})  # type: ignore[arg-type]
    assert "only 1 of its segments" in failed["a"]
    with pytest.raises(UserError, match="cannot work: no memory"):
        _collect(record, iter([{**row, "kind": "broken", "info": '{"reason": "no memory"}'}]), {})  # type: ignore[arg-type]
