"""The feature store: writing and reading, resuming, damage, a full disk, several writers, the field's .npy layout."""

from __future__ import annotations

import csv
import errno
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from iefvad.features.npy_folders import export_npy, import_npy
from iefvad.features.store import FeatureStore, Sidecar, hash_file
from iefvad.utils.errors import UserError

SETTINGS = {"image_encoder": "descriptor", "event_encoder": "descriptor", "dim": 6, "crops": (0, 5), "threshold": 10}


def features(segments: int, crops: int = 2, dim: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    image, event = generator.normal(size=(2, crops, segments, dim)).astype(np.float32)
    return image, event


def sidecar(segments: int, **changes: object) -> Sidecar:
    values = {
        "name": "",
        "source": "videos/a.mp4",
        "source_hash": "sha256:1",
        "fps": 25.0,
        "frames": 16 * segments + 3,
        "segments": segments,
        "frames_dropped": 3,
        "crops": [0, 5],
        "event_density": np.linspace(0, 1, segments, dtype=np.float32),
    }
    return Sidecar(**{**values, **changes})


def put(store: FeatureStore, name: str, segments: int = 4, seed: int = 0, **changes: object) -> None:
    store.write(name, *features(segments, seed=seed), sidecar(segments, **changes))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", settings=SETTINGS, create=True)


NAMES = ["a", "sub/deep/b", "Bad.Boys.1995__#01-11_label_G-B2-B6", "v=x y", "видео"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("segments", [1, 7])
def test_round_trip(store: FeatureStore, name: str, segments: int) -> None:
    assert name not in store
    image, event = features(segments)
    store.write(name, image[:, ::-1], event, sidecar(segments))
    again = FeatureStore(store.root)
    assert name in again and again.names() == [name] and len(again) == 1
    read_image, read_event, side = again.read(name)
    assert read_image.dtype == np.float16
    np.testing.assert_array_equal(read_image, image[:, ::-1].astype(np.float16))
    np.testing.assert_array_equal(read_event, event.astype(np.float16))
    assert (side.name, side.segments, side.frames_dropped, side.crops) == (name, segments, 3, [0, 5])
    assert side.settings == again.settings
    np.testing.assert_allclose(side.event_density, np.linspace(0, 1, segments), atol=1e-7)  # float32 as decimal text


def test_one_crop_alone(store: FeatureStore) -> None:
    put(store, "a")
    image, event, _ = store.read("a")
    one_image, one_event = store.read_crop("a", 5)
    np.testing.assert_array_equal(one_image, image[1])
    np.testing.assert_array_equal(one_event, event[1])
    with pytest.raises(UserError, match=r"crops \[0, 5\], not 3"):
        store.read_crop("a", 3)


def test_files_are_plain_safetensors(store: FeatureStore) -> None:
    put(store, "a")
    tensors = load_file(store.root / "a.safetensors")
    assert {key: (value.shape, value.dtype.name) for key, value in tensors.items()} == {
        "image": ((2, 4, 6), "float16"),
        "event": ((2, 4, 6), "float16"),
    }


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for root in ("one", "two"):
        store = FeatureStore(tmp_path / root, settings=SETTINGS, create=True)
        for name in ("b", "sub/a") if root == "one" else ("sub/a", "b"):
            put(store, name)
        store.write_index()
        files = sorted(path for path in store.root.rglob("*") if path.is_file())
        contents.append({path.relative_to(store.root).as_posix(): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {
        "b.json", "b.safetensors", "sub/a.json", "sub/a.safetensors", "store.json", "index.csv"
    }  # fmt: skip


def test_is_current(store: FeatureStore) -> None:
    put(store, "a")
    assert store.is_current("a", "sha256:1")
    assert not store.is_current("a", "sha256:2")
    assert not store.is_current("b", "sha256:1")


def test_replacing_a_video(store: FeatureStore) -> None:
    put(store, "a", segments=4)
    put(store, "a", segments=9, source_hash="sha256:2")
    assert store.sidecar("a").segments == 9
    assert store.is_current("a", "sha256:2")


def test_settings_must_agree(store: FeatureStore) -> None:
    assert FeatureStore(store.root, settings=SETTINGS).settings == store.settings
    assert FeatureStore(store.root, settings=SETTINGS, create=True).settings["format"] == 1
    with pytest.raises(UserError, match="other settings") as caught:
        FeatureStore(store.root, settings={**SETTINGS, "dim": 8, "image_encoder": "ViT-L-14"}, create=True)
    for part in ("dim: 6 there, 8 here", "image_encoder: 'descriptor' there, 'ViT-L-14' here"):
        assert part in str(caught.value)
    assert "threshold" not in str(caught.value)
    with pytest.raises(UserError, match="tail: None there, 'repeat' here"):
        FeatureStore(store.root, settings={**SETTINGS, "tail": "repeat"})


def test_not_a_store(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="is not a feature store"):
            FeatureStore(root)
    with pytest.raises(ValueError, match="settings are required"):
        FeatureStore(tmp_path / "absent", create=True)
    assert not (tmp_path / "absent").exists()
    (tmp_path / "store.json").write_text("{half")
    with pytest.raises(UserError, match=r"store\.json cannot be read"):
        FeatureStore(tmp_path)
    (tmp_path / "store.json").write_text('{"format": 7}')
    with pytest.raises(UserError, match="format 7"):
        FeatureStore(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        FeatureStore(tmp_path / "file", settings=SETTINGS, create=True)


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../a", "a/../../b", "a//b", "./a", "C:\\a", "\\a", "store", "Store"]
)
def test_names_that_leave_the_store_are_refused(store: FeatureStore, name: str) -> None:
    with pytest.raises(UserError, match="name"):
        put(store, name)
    assert name not in store
    assert [path.name for path in store.root.iterdir()] == ["store.json"]


def damage_cut_features(root: Path) -> None:
    os.truncate(root / "a.safetensors", (root / "a.safetensors").stat().st_size - 1)


def damage_empty_features(root: Path) -> None:
    os.truncate(root / "a.safetensors", 0)


def damage_no_features(root: Path) -> None:
    (root / "a.safetensors").unlink()


def damage_no_sidecar(root: Path) -> None:
    (root / "a.json").unlink()


def damage_cut_sidecar(root: Path) -> None:
    os.truncate(root / "a.json", 40)


def damage_list_sidecar(root: Path) -> None:
    (root / "a.json").write_text("[]")


def change(**values: object):
    def damage(root: Path) -> None:
        content = json.loads((root / "a.json").read_text())
        (root / "a.json").write_text(json.dumps({**content, **values}))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        damage_cut_features,
        damage_empty_features,
        damage_no_features,
        damage_no_sidecar,
        damage_cut_sidecar,
        damage_list_sidecar,
        change(segments=5),
        change(crops=[0]),
        change(crops=3),
        change(source_hash="sha256:of another video"),
        change(settings={"dim": 6}),
    ],
)
def test_damaged_videos_count_as_absent(store: FeatureStore, damage) -> None:
    put(store, "a")
    put(store, "b")
    damage(store.root)
    assert "a" not in store and store.names() == ["b"]
    assert not store.is_current("a", "sha256:1")
    for use in (store.read, store.sidecar, lambda name: store.read_crop(name, 0)):
        with pytest.raises(UserError, match="no complete video 'a'"):
            use("a")
    put(store, "a")
    assert "a" in store


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.nan, "image features contain NaN or infinity in 1 of 4 segments"),
        (-np.inf, "image features contain NaN or infinity in 1 of 4 segments"),
        (70000.0, "image features reach 7e[+]04, beyond float16"),
    ],
)
def test_values_that_float16_cannot_hold(store: FeatureStore, bad: float, message: str) -> None:
    image, event = features(4)
    image[1, 2, 3] = bad
    with pytest.raises(UserError, match=message) as caught:
        store.write("clip7", image, event, sidecar(4))
    assert "clip7" in str(caught.value)
    assert [path.name for path in store.root.iterdir()] == ["store.json"]


def test_shapes_must_agree(store: FeatureStore) -> None:
    image, event = features(4)
    for bad in (
        (image, event[:, :3], sidecar(4)),
        (image, event, sidecar(5)),
        (image, event, sidecar(4, crops=[0])),
        (image[..., :5], event[..., :5], sidecar(4)),
        (image[0], event[0], sidecar(4)),
        (image, event, sidecar(4, event_density=[0.5])),
    ):
        with pytest.raises(ValueError, match="a: "):
            store.write("a", *bad)
    assert store.names() == []


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("calls", [1, 2])
def test_full_disk(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, function: str, calls: int) -> None:
    put(store, "a")
    put(store, "b")
    real, seen = getattr(os, function), []

    def sometimes(*arguments: object, **options: object) -> object:
        seen.append(arguments)
        return no_space() if len(seen) >= calls else real(*arguments, **options)

    monkeypatch.setattr(os, function, sometimes)
    with pytest.raises(UserError, match=r"no space left in .*store while storing c") as caught:
        put(store, "c")
    assert str(store.root) in str(caught.value)
    if (
        function == "fsync"
    ):  # not even a video about to be replaced is lost: nothing is taken away before all is written
        seen.clear()
        with pytest.raises(UserError, match="no space left"):
            put(store, "a", seed=1, source_hash="sha256:2")
        assert store.is_current("a", "sha256:1")
    monkeypatch.undo()
    assert store.names() == ["a", "b"]
    assert not list(store.root.rglob("*.tmp"))
    put(store, "c")
    assert "c" in store


def test_killed_between_the_two_renames(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "a")
    real, seen = os.replace, []

    def once(*arguments: str) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(arguments)
        real(*arguments)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        put(store, "a", seed=1, source_hash="sha256:2")
    assert load_file(store.root / "a.safetensors")["image"].shape == (2, 4, 6)
    assert "a" not in store  # new features without their sidecar, and no old sidecar that would vouch for them


def test_other_write_errors_name_the_folder(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(UserError, match=r"store cannot be written to while storing a \(Permission denied\)"):
        put(store, "a")


def test_interrupt_leaves_no_temporary_file(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    put(store, "a")
    monkeypatch.setattr(os, "fsync", interrupted)
    for name in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            put(store, name, source_hash="sha256:2")
    monkeypatch.undo()
    assert store.names() == ["a"] and store.is_current("a", "sha256:1")
    assert not list(store.root.rglob("*.tmp"))


def test_several_writers(store: FeatureStore) -> None:
    def work(number: int) -> None:
        mine = FeatureStore(store.root, settings=SETTINGS, create=True)
        for index in range(6):
            put(mine, "same")
            put(mine, f"sub/{number}_{index}")
        mine.write_index()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.names()) == 25
    assert not list(store.root.rglob("*.tmp"))


def test_index(store: FeatureStore) -> None:
    put(store, "b", segments=3)
    put(store, "a", segments=2)
    path = store.write_index()
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["segments"], row["frames"], row["crops"]) for row in rows] == [
        ("a", "2", "35", "0 5"),
        ("b", "3", "51", "0 5"),
    ]
    (store.root / "a.json").unlink()
    assert len(store.write_index().read_text().splitlines()) == 2


def test_hash_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert hash_file(path) == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr("iefvad.features.store._WHOLE_FILE", 1000)
    monkeypatch.setattr("iefvad.features.store._BLOCK", 100)
    hashes = set()
    for data in (bytes(5000), bytes(5001), b"\1" + bytes(4999), bytes(4999) + b"\1", bytes(2500) + b"\1" + bytes(2499)):
        path.write_bytes(data)
        hashes.add(hash_file(path))
    assert len(hashes) == 5
    assert all(text.startswith("sha256-sampled:") for text in hashes)


def test_npy_round_trip(store: FeatureStore, tmp_path: Path) -> None:
    put(store, "Abuse/Abuse001_x264", segments=3)
    put(store, "b", segments=5, seed=1)
    assert export_npy(store, tmp_path / "rgb", tmp_path / "event") == 4
    exported = np.load(tmp_path / "rgb" / "Abuse" / "Abuse001_x264__5.npy", allow_pickle=False)
    assert exported.dtype == np.float32
    np.testing.assert_array_equal(exported, store.read_crop("Abuse/Abuse001_x264", 5)[0])
    copy = import_npy(tmp_path / "rgb", tmp_path / "event", tmp_path / "copy", settings={"image_encoder": "ViT-L-14"})
    assert copy.names() == store.names()
    assert copy.settings["dim"] == 6
    for name in store.names():
        for ours, theirs in zip(store.read(name)[:2], copy.read(name)[:2], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    side = copy.sidecar("b")
    assert (side.crops, side.segments, side.frames, side.fps) == ([0, 5], 5, 80, 30.0)
    before = {path: path.stat().st_mtime_ns for path in copy.root.rglob("*.safetensors")}
    import_npy(tmp_path / "rgb", tmp_path / "event", tmp_path / "copy", settings={"image_encoder": "ViT-L-14"})
    assert before == {path: path.stat().st_mtime_ns for path in copy.root.rglob("*.safetensors")}


def layout(root: Path) -> tuple[Path, Path]:
    for folder in ("rgb", "event"):
        (root / folder).mkdir()
        for crop in (0, 1):
            np.save(root / folder / f"clip__{crop}.npy", np.ones((4, 3), np.float32))
    return root / "rgb", root / "event"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "1 event files are missing"),
        (np.ones((5, 3)), r"clip__1.npy is \(5, 3\)"),
        (np.ones((4, 2)), r"clip__1.npy is \(4, 2\)"),
        (np.ones(4), r"clip__1.npy has shape \(4,\)"),
        (np.full((4, 3), np.nan), "clip: event features have NaN"),
        (np.full((4, 3), 1e6), "clip: event features reach 1e"),
        (np.array([[{}, 1]], dtype=object), "clip__1.npy contains pickled objects"),
        (np.array([["a", "b"]]), "clip__1.npy contains <U1"),
    ],
)
def test_import_npy_refuses(tmp_path: Path, values: np.ndarray | None, message: str) -> None:
    image_dir, event_dir = layout(tmp_path)
    if values is None:
        (event_dir / "clip__1.npy").unlink()
    else:
        np.save(event_dir / "clip__1.npy", values, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        import_npy(image_dir, event_dir, tmp_path / "store")


def test_import_npy_of_damaged_files(tmp_path: Path) -> None:
    image_dir, event_dir = layout(tmp_path)
    for size, message in ((100, "cannot be read"), (140, "cannot be read"), (0, r"is not a \.npy file")):
        os.truncate(image_dir / "clip__0.npy", size)
        with pytest.raises(UserError, match=message):
            import_npy(image_dir, event_dir, tmp_path / "store")
    with pytest.raises(UserError, match="contains no NAME__0"):
        import_npy(tmp_path / "nowhere", event_dir, tmp_path / "store")
