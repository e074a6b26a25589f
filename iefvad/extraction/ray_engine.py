"""The engine for a cluster: the stages of the local engine as a Ray Data pipeline over the videos.

Tasks decode; each has its own decoding process (`iefvad.extraction.decoding`). Actors encode batches across videos. The
calling process collects the rows of each video and stores it. The features are equal to those of the local engine to
the last bit, because both encode in passes of one size and the place of a row in a pass makes no difference.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iefvad.extraction.config import ExtractConfig, ExtractReport, encoder_of, reading, store_settings
from iefvad.extraction.decoding import SHAPE, DecoderCrashError, DecodingProcess, Ended, Opened
from iefvad.extraction.encoding import VideoEncoder, rows_stand_alone
from iefvad.extraction.jobs import Features, Job, Jobs, hash_source, open_store, require_unchanged, sidecar_of, state_of
from iefvad.utils.cluster import cluster
from iefvad.utils.errors import UserError
from iefvad.utils.threads import chosen
from iefvad.video import SEGMENT

# Kinds of rows. Every row has `name`, `kind`, `index` and `info` (JSON). Segments also have `frames` and the frame
# `before` them (empty where there is none, or it does not count), later features and the number of `encoded` frames.
_SEGMENT, _FAILED, _SKIPPED, _BROKEN = "segment", "failed", "skipped", "broken"


def extract_with_ray(paths: dict[str, Path], out: Path, config: ExtractConfig) -> ExtractReport:
    """Extract videos on a Ray cluster, or with Ray on this machine if the settings have no address.

    Files and weights must have the same paths on all machines.

    Args:
        paths: {name in the store: video file}.
        out: Folder of the store.
        config: The settings.

    Returns:
        Which videos are stored, skipped and failed.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, a GPU is wanted and the cluster has none, or as
            in `iefvad.extraction.extract.extract`.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--engine ray needs Ray ({error}): pip install 'iefvad[ray]'.") from None
    # This encoder only provides the settings of the store, with the hashes of the weights. The actors compute.
    encoder = encoder_of(config, device="cpu")
    store = open_store(out, store_settings(encoder, config), carry=config.carry)
    settings = store.settings | reading(config)
    hashes = {key: value for key, value in encoder.settings.items() if key.endswith("_hash")}
    del encoder
    with Jobs(store, paths, quiet=config.quiet, fps=config.fps) as jobs, cluster(ray, config.ray_address):
        rows = _pipeline(ray, jobs, config, settings, hashes)
        _collect(jobs, rows, settings)
        jobs.wait()
    return jobs.report


def _pipeline(
    ray: Any, jobs: Jobs, config: ExtractConfig, settings: dict[str, Any], hashes: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield rows of features, in any order."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    device, actors, cores = _resources(ray.cluster_resources(), config)
    config = dataclasses.replace(config, device=device)
    batch = config.batch or (4 * SEGMENT if device == "cuda" else SEGMENT)
    items = [
        {"name": name, "path": os.fsencode(path), "known": jobs.stored_hash(name) or ""}
        for name, path in jobs.paths.items()
    ]
    threads = chosen() or int(max(1, cores))
    # Different resource needs prevent Ray from fusing the two stages. Fused, the encoder would wait for decoding.
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(
        _Decode(settings), num_cpus=0.9 if cores >= 1 else 0.4
    )
    dataset = dataset.map_batches(
        _Encode,
        fn_constructor_kwargs={
            "config": config,
            "settings": settings,
            "hashes": hashes,
            "threads": threads,
        },
        batch_size=batch,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cores,
        num_gpus=1 if device == "cuda" else None,
    )
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for place in range(len(block["name"])):
            yield {key: column[place] for key, column in block.items()}


def _resources(there: dict[str, float], config: ExtractConfig) -> tuple[str, int, float]:
    """Device of the actors, their number, and the number of CPU cores for each."""
    gpus, cores = int(there.get("GPU", 0)), there.get("CPU", 1.0)
    wanted = config.device.split(":")[0]
    if wanted == "cuda" and not gpus:
        raise UserError("--device cuda: the Ray cluster has no GPU; use --device cpu, or another cluster.")
    device = "cuda" if gpus and wanted != "cpu" and config.image_model.strip() != "descriptor" else "cpu"
    actors = config.ray_actors or (gpus if device == "cuda" else 1)
    if device == "cuda" and actors > gpus:
        raise UserError(f"--ray-actors {actors}: the Ray cluster has {gpus} GPUs, and each actor takes one.")
    if cores < 2:
        return device, actors, 0.5 / actors
    if actors >= cores:
        raise UserError(f"--ray-actors {actors}: the Ray cluster has {cores:.0f} cores, and decoding needs one.")
    return device, actors, 1.0 if device == "cuda" else max(1.0, (cores * 3 // 4) // actors)


class _Decode:
    """Task: one video to rows, its segments or the reason why there are none."""

    _process: DecodingProcess | None = None  # one per worker of Ray, used for one video after another

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def __call__(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        name, path = item["name"], Path(os.fsdecode(item["path"]))
        try:
            state = state_of(path)
            source_hash = hash_source(path, self.settings.get("fps"))
            if source_hash == item["known"]:
                yield _row(name, _SKIPPED)
            else:
                yield from self._segments(name, path, source_hash, state)
        except (DecoderCrashError, UserError) as error:
            yield _row(name, _FAILED, reason=str(error))
        except Exception as error:  # of one video: without a row, Ray would try it again and then end the others
            yield _row(name, _FAILED, reason=f"{path}: {type(error).__name__}: {error}")

    def _segments(self, name: str, path: Path, source_hash: str, state: object) -> Iterator[dict[str, Any]]:
        process, _Decode._process = _Decode._process or DecodingProcess(), None
        try:
            yield from self._decode(process, name, path, source_hash, state)
        except UserError:
            _Decode._process = process
            raise
        except BaseException:
            process.close()  # it crashed, or stands in the middle of a video
            raise
        _Decode._process = process

    def _decode(
        self, process: DecodingProcess, name: str, path: Path, source_hash: str, state: object
    ) -> Iterator[dict[str, Any]]:
        opened, last, index = Opened(25.0, None), None, 0
        before: np.ndarray | None = None
        carry = self.settings.get("carry", False)
        settings = self.settings | {"name": name}
        for part in process.decode(path, settings, lambda: np.empty(SHAPE, np.uint8)):
            if isinstance(part, Opened):
                opened = part
            elif isinstance(part, Ended):
                assert last is not None
                require_unchanged(path, state)
                ended = dataclasses.asdict(part) | {"segments": index, "source_hash": source_hash}
                yield _row(name, _SEGMENT, index - 1, last, before, opened=dataclasses.asdict(opened), ended=ended)
            else:
                if last is not None:
                    yield _row(name, _SEGMENT, index - 1, last, before, opened=dataclasses.asdict(opened))
                    before = last[-1] if carry else None
                last, index = part, index + 1


def _row(
    name: str,
    kind: str,
    index: int = 0,
    frames: np.ndarray | None = None,
    before: np.ndarray | None = None,
    **info: Any,
) -> dict[str, Any]:
    pictures = {
        key: b"" if array is None else array.tobytes() for key, array in (("frames", frames), ("before", before))
    }
    return {"name": name, "kind": kind, "index": index, "info": json.dumps(info), **pictures}


class _Encode:
    """Actor: batches of rows with frames to batches of rows with features."""

    def __init__(self, config: ExtractConfig, settings: dict[str, Any], hashes: dict[str, str], threads: int) -> None:
        self.problem = ""
        self.crops = len(settings["crops"])
        try:
            if config.device == "cpu":
                torch.set_num_threads(threads)
            self.encoder = encoder_of(config)
            if any(self.encoder.settings[key] != value for key, value in hashes.items()):
                raise UserError("the weights at the given path differ between the machines of the cluster")
            if not rows_stand_alone(self.encoder):
                raise UserError(
                    "on this device a row of the encoder depends on its place in a batch, so that features would not"
                    " be reproducible: use --engine local, or another --precision or --batch"
                )
            self.video_encoder: VideoEncoder[int] = VideoEncoder(self.encoder, settings, across=True)
        except Exception as error:  # reported in rows, because Ray would restart the actor again and again
            self.problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = len(rows["name"])
        dim = 1 if self.problem else self.encoder.dim
        image, event = (np.zeros((count, self.crops, dim), np.float32) for _ in range(2))
        density, encoded = np.zeros(count), np.zeros(count, np.int64)
        kind, info = rows["kind"].astype(object), rows["info"].astype(object)
        if self.problem:
            kind[:], info[:] = _BROKEN, json.dumps({"reason": self.problem})
        else:
            for place in np.flatnonzero(kind == _SEGMENT).tolist():
                frames = np.frombuffer(rows["frames"][place], np.uint8).reshape(SHAPE)
                last = np.frombuffer(rows["before"][place], np.uint8).reshape(-1, *SHAPE[1:])
                before = torch.from_numpy(last[0].copy()) if len(last) else None
                encoded[place] = self.video_encoder.add(place, torch.from_numpy(frames.copy()), before)
                self.video_encoder.end(place)
            self.video_encoder.flush()
            for done in self.video_encoder.complete():
                image[done.key] = done.image[:, 0].cpu().numpy()
                event[done.key] = done.event[:, 0].cpu().numpy()
                density[done.key] = done.density[0]
        kept = {"name": rows["name"], "index": rows["index"], "kind": kind, "info": info}
        return kept | {"image": image, "event": event, "density": density, "encoded": encoded}


@dataclasses.dataclass
class _Video:
    rows: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    opened: Opened | None = None
    ended: dict[str, Any] | None = None


def _collect(jobs: Jobs, rows: Iterator[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Put the rows of each video in order, and store the video when its last row has come."""
    videos: dict[str, _Video] = {}
    for row in rows:
        name, info = str(row["name"]), json.loads(str(row["info"]))
        if row["kind"] == _BROKEN:
            raise UserError(f"an encoder of the Ray cluster cannot work: {info['reason']}.")
        if row["kind"] == _SKIPPED:
            jobs.skip(name)
        elif row["kind"] == _FAILED:
            videos.pop(name, None)
            jobs.fail(name, info["reason"])
        elif name not in jobs.report.failed:
            video = videos.setdefault(name, _Video())
            video.rows[int(row["index"])] = row
            video.opened = Opened(**info["opened"])
            video.ended = info.get("ended") or video.ended
            claimed = video.opened.frames or float("inf")
            jobs.progress.advance(name, SEGMENT, len(video.rows) * SEGMENT / claimed, int(row["encoded"]))
            if video.ended and len(video.rows) == video.ended["segments"]:
                _store(jobs, name, videos.pop(name), settings)
        jobs.check()
    for name, video in videos.items():
        jobs.fail(
            name, f"only {len(video.rows)} of its segments came back from the cluster; run the same command again"
        )


def _store(jobs: Jobs, name: str, video: _Video, settings: dict[str, Any]) -> None:
    assert video.opened is not None and video.ended is not None
    rows = [video.rows[index] for index in range(len(video.rows))]
    image, event = (torch.from_numpy(np.stack([row[key] for row in rows], 1)) for key in ("image", "event"))
    job = Job(name, jobs.paths[name], video.ended["source_hash"])
    ended = Ended(**{field.name: video.ended[field.name] for field in dataclasses.fields(Ended)})
    density = [float(row["density"]) for row in rows]
    jobs.write(job, Features(image, event, sidecar_of(job, settings, video.opened, ended, len(rows), density)))
