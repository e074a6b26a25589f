"""Batches: the same bits from every kind of source, one gather from a packed store, and equal training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from iefvad.cli.train import main
from iefvad.data.batches import Batch, Clips, epoch_batches, split_validation
from iefvad.data.datasets import load_packed
from iefvad.features.packed import PackedStore
from iefvad.features.packing import pack
from iefvad.features.readers import Reader
from iefvad.features.videos import Benchmark, Video, pad_batch, resample
from iefvad.utils.errors import UserError
from tests.helpers.stores import training_flags, write_store

DIM, BINS = 5, 8
SEGMENTS = (3, 8, 1, 21, 9, 16)
WAYS = ("table", "reading", "packed")


class Made(Reader):
    """Makes features from the crop number, and counts how often each crop is read."""

    def __init__(self, folder: Path, index: int, segments: int, scale: float = 1.0) -> None:
        super().__init__("error", [])
        self.folder, self.index, self.segments, self.scale = folder, index, segments, scale
        self.reads: list[int] = []

    def __call__(self, crop: int) -> tuple[np.ndarray, np.ndarray]:
        self.reads.append(crop)
        random = np.random.default_rng([self.index, crop])
        image, event = (self.scale * random.normal(size=(2, self.segments, DIM))).astype(np.float32)
        return image, event

    def where(self, crop: int) -> tuple[str, str]:
        return f"v{self.index} image", f"v{self.index} event"

    def files(self, crop: int) -> list[Path]:
        return [self.folder]


def made(folder: Path, **options: float) -> list[Video]:
    videos = []
    for index, segments in enumerate(SEGMENTS):
        crops = (0, 5) if index % 2 else (5,)
        video = Video(f"v{index}", ("Fire",) if index % 3 else (), segments, 30.0, 16 * segments, crops=crops)
        video.reader = Made(folder, index, segments, **options)
        videos.append(video)
    return videos


@pytest.fixture
def store(tmp_path: Path) -> PackedStore:
    videos = made(tmp_path)
    return pack(Benchmark("b", videos, videos[:1], DIM), tmp_path / "p", max_segments=BINS, progress=False)


def clips_of(way: str, store: PackedStore) -> Clips:
    videos = store.benchmark_videos("train") if way == "packed" else made(store.root.parent)
    return Clips(videos, max_segments=BINS, memory=0 if way == "reading" else 1 << 30)


def expected(folder: Path, positions: list[int], pad_to: int | None) -> Batch:
    """A batch that is made in the simplest way."""
    videos = made(folder)
    items = [(video, crop) for video in videos for crop in video.crops]
    pairs = [[resample(f, BINS).half().float() for f in items[p][0].features(items[p][1])] for p in positions]
    image, lengths = pad_batch([pair[0] for pair in pairs])
    event, _ = pad_batch([pair[1] for pair in pairs])
    if pad_to is not None:
        image, event = (torch.nn.functional.pad(f, (0, 0, 0, pad_to - f.shape[1])) for f in (image, event))
    labels = torch.tensor([float(bool(items[position][0].classes)) for position in positions])
    return Batch(image, event, lengths, labels)


def assert_equal(batch: Batch, other: Batch) -> None:
    for name, value in vars(batch).items():
        assert value.dtype == getattr(other, name).dtype, name
        assert torch.equal(value.cpu(), getattr(other, name)), name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pad_to", [None, BINS, 11])
@pytest.mark.parametrize("positions", [[0], [3], [5, 0, 3], [2, 2, 8], list(range(9))])
def test_batches_have_the_same_bits_however_they_are_served(
    store: PackedStore, way: str, pad_to: int | None, positions: list[int]
) -> None:
    clips = clips_of(way, store)
    for _ in range(2):
        batch = clips.batch(positions, pad_to=pad_to)
        assert_equal(batch, expected(store.root.parent, positions, pad_to))
        assert batch.image.dtype == torch.float32 and batch.lengths.dtype == torch.int64
    assert batch.image.is_contiguous() and batch.event.is_contiguous()


@pytest.mark.parametrize("way", WAYS)
def test_an_epoch_in_the_background_has_the_same_batches(store: PackedStore, way: str) -> None:
    order = [[0, 1, 2], [8], list(range(9)), [4, 4], [7, 0, 3, 1]]
    clips = clips_of(way, store)
    seen = []
    for batch in clips.batches(iter(order), pad_to=BINS):
        seen.append(Batch(*(value.clone() for value in vars(batch).values())))
    assert len(seen) == len(order)
    for batch, positions in zip(seen, order, strict=True):
        assert_equal(batch, expected(store.root.parent, positions, BINS))
    assert list(clips.batches([])) == []


def test_what_goes_wrong_in_the_background_is_raised(store: PackedStore) -> None:
    def order() -> Iterator[list[int]]:
        yield [0]
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        list(clips_of("table", store).batches(order()))
    batches = clips_of("table", store).batches([[0], [1], [2]])
    next(batches)
    batches.close()  # an epoch that is left early must not hang


@pytest.mark.parametrize("way", WAYS)
def test_clips_tell_their_sizes(store: PackedStore, way: str) -> None:
    clips = clips_of(way, store)
    assert (len(clips), clips.dim) == (9, DIM)
    assert clips.lengths.tolist() == [3, 8, 8, 1, 8, 8, 8, 8, 8] and clips.lengths.dtype == torch.int64
    assert clips.labels.tolist() == [0, 1, 1, 1, 0, 0, 1, 1, 1] and clips.labels.dtype == torch.float32
    for stream, modality in enumerate(("image", "event")):
        features = clips.features(modality)
        assert features.dtype == torch.float32
        assert torch.equal(features, torch.cat([clips[position][stream] for position in range(9)]))
    batch = expected(store.root.parent, [5], None)
    assert torch.equal(clips[5][0], batch.image[0]) and torch.equal(clips[-4][1], batch.event[0])
    with pytest.raises(IndexError):
        clips[9]


def test_lengths_stay_where_they_can_be_read(store: PackedStore) -> None:
    batch = clips_of("packed", store).batch([0, 1]).to(torch.device("meta"))
    assert batch.lengths.device.type == "cpu"
    assert {values.device.type for values in (batch.image, batch.event, batch.labels)} == {"meta"}


def test_clips_are_read_once_where_memory_allows(store: PackedStore) -> None:
    for way, times in (("table", 1), ("reading", 3)):
        clips = clips_of(way, store)
        reader = clips.videos[3].reader
        assert isinstance(reader, Made)
        assert reader.reads == []
        for _ in range(3):
            clips.batch([4, 5])
        assert reader.reads == [0, 5] * times
    packed = clips_of("packed", store)
    packed.batch([4, 5])
    assert packed._missing == {0, 1, 2, 3, *range(6, len(packed))}, "the checksums of unused clips were compared"


def test_packed_clips_are_the_file_itself(store: PackedStore) -> None:
    table = store.features["train"]
    for videos in (store.benchmark_videos("train"), store.benchmark_videos("train")[1::2]):
        clips = Clips(videos, max_segments=BINS, memory=0)
        assert clips._table is not None and clips._table.data_ptr() == table.data_ptr()
    training, held_out = split_validation(store.benchmark_videos("train"), 0.3, 0)
    clips = Clips(training, max_segments=BINS)
    assert held_out and clips._table is not None and clips._table.data_ptr() == table.data_ptr()
    direct = [next(video for video in made(store.root.parent) if video.name == kept.name) for kept in training]
    positions = list(range(len(clips)))
    assert_equal(clips.batch(positions), Clips(direct, max_segments=BINS).batch(positions))
    assert torch.equal(clips.features("event"), Clips(direct, max_segments=BINS).features("event"))


def test_videos_of_two_stores_make_a_table_of_their_own(store: PackedStore, tmp_path: Path) -> None:
    both = store.benchmark_videos("train")[:2] + PackedStore(store.root).benchmark_videos("train")[2:]
    clips = Clips(both, max_segments=BINS)
    assert clips._table is not None and clips._table.data_ptr() != store.features["train"].data_ptr()
    assert_equal(clips.batch([5, 0, 3]), expected(tmp_path, [5, 0, 3], None))


def test_other_numbers_of_bins(store: PackedStore) -> None:
    videos = store.benchmark_videos("train")
    for bins in (BINS - 1, BINS + 1):
        with pytest.raises(UserError, match=rf"averaged to 8 bins, not {bins}: pass --max-segments 8, or import again"):
            Clips(videos, max_segments=bins)
    short = [video for video in videos if not video.reader.averaged]  # type: ignore[union-attr]
    assert len(short) == 3
    direct = [video for video in made(store.root.parent) if video.segments <= BINS]
    positions = list(range(4))
    assert_equal(Clips(short, max_segments=100).batch(positions), Clips(direct, max_segments=100).batch(positions))
    batch, other = (Clips(videos, max_segments=2).batch(positions) for videos in (short, direct))
    assert torch.equal(batch.lengths, other.lengths)
    # the stored values were rounded to float16 before they were averaged: half a unit more, and they stay below 4
    torch.testing.assert_close(batch.image, other.image, atol=2**-9, rtol=0)


def test_what_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training video"):
        Clips([], max_segments=4)
    empty = Video("empty", (), 0, 30.0, 0, reader=Made(tmp_path, 0, 0))
    with pytest.raises(UserError, match="empty has no segments"):
        Clips([*made(tmp_path), empty], max_segments=4)
    for memory in (0, 1 << 20):
        clips = Clips(made(tmp_path, scale=1e6), max_segments=4, memory=memory)
        with pytest.raises(UserError, match=r"v2 image: features reach .* beyond float16"):
            clips.batch([3])


@pytest.mark.parametrize("mixed", [True, False])
def test_an_epoch_draws_every_clip_once(mixed: bool) -> None:
    labels = torch.tensor([0.0, 1.0] * 8)
    order = list(epoch_batches(labels, 4, mixed=mixed, generator=torch.Generator().manual_seed(0)))
    drawn = sorted(position for positions in order for position in positions)
    assert drawn == list(range(16))
    if not mixed:
        assert all(labels[positions].tolist() == [0.0] * 4 + [1.0] * 4 for positions in order)


@pytest.mark.parametrize("method", ["ief", "released"])
def test_training_on_a_packed_store_is_training_on_the_store(tmp_path: Path, method: str) -> None:
    store = write_store(tmp_path / "store")
    from iefvad.data.datasets import load_store

    pack(load_store(store), tmp_path / "packed", progress=False)
    assert load_packed(tmp_path / "packed").notes == []
    for name in ("store", "packed"):
        flags = training_flags(tmp_path / name, tmp_path / f"run_{name}", "--method", method)
        assert main([*flags, "--max-segments", "32", "--epochs", "2"]) == 0
    runs = [tmp_path / "run_store", tmp_path / "run_packed"]
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in runs]
    for rows in zip(*logs, strict=True):
        for name in ("loss", "loss_cls", "loss_kl", "loss_reg", "val_auc", "val_loss"):
            assert rows[0][name] == rows[1][name], name
    first, second = [json.loads((run / "metrics.json").read_text()) for run in runs]
    assert first["fusion"] == second["fusion"] and first["event density"] == second["event density"]
    assert (runs[0] / "checkpoint.safetensors").read_bytes() == (runs[1] / "checkpoint.safetensors").read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("share", [0.6, 0.0])
def test_batches_on_a_gpu_have_the_same_bits(
    store: PackedStore, monkeypatch: pytest.MonkeyPatch, way: str, share: float
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr("iefvad.data.batches._MEMORY_FRACTION", share)
    clips = clips_of(way, store).to("cuda")
    resident = share > 0 and way != "reading"
    assert clips._table is None or clips._table.is_cuda == resident
    order = [[0, 1, 2], [8], list(range(9)), [4, 4], [7, 0, 3, 1]]
    for positions, batch in zip(order, clips.batches(order), strict=True):
        assert batch.image.is_cuda and batch.labels.is_cuda
        assert_equal(batch, expected(store.root.parent, positions, None))
        assert_equal(clips.batch(positions), expected(store.root.parent, positions, None))
    assert clips.features("image").shape == (60, DIM)
