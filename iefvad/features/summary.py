"""What a feature store or a packed store contains, as text."""

from __future__ import annotations

from typing import Any

from iefvad.features.packed import SPLITS, PackedStore, is_packed
from iefvad.features.store import FeatureStore
from iefvad.utils.text import few, readable


def describe(root: str) -> str:
    """Describe the contents of a feature store or a packed store in a few lines.

    Raises:
        UserError: The folder is neither.
    """
    if is_packed(root):
        return describe_packed(PackedStore(root))
    store = FeatureStore(root)
    sidecars = store.sidecars()
    segments = sum(sidecar.segments for sidecar in sidecars)
    frames = sum(sidecar.frames for sidecar in sidecars)
    crops = sorted({crop for sidecar in sidecars for crop in sidecar.crops})
    counts = f"{len(sidecars)} videos, {frames:,} frames, {segments:,} segments, crops {crops}"
    lines = [f"{readable(root)}: feature store, {counts}"]
    return "\n".join(lines + _settings(store.settings) + [f"  {note}" for note in incomplete_note(store)])


def incomplete_note(store: FeatureStore) -> list[str]:
    """Name the videos of a store that are damaged or not complete. The list is empty if there are none."""
    names = store.incomplete()
    if not names:
        return []
    return [f"note: {len(names)} videos are damaged or not complete and are left out: {few(names)}; extract them again"]


def describe_packed(store: PackedStore) -> str:
    """Describe the contents of a packed store in a few lines."""
    size = sum(table.nbytes for table in store.features.values())
    lines = [
        f"{readable(store.root)}: packed store of {readable(store.name)}, features {store.dim} wide, {size / 1e9:.2f}"
        f" GB, training clips of at most {store.max_segments} segments"
    ]
    for split in SPLITS:
        videos = store.listed(split)
        clips, rows = sum(len(video["crops"]) for video in videos), len(store.features[split][0]) - 1
        parts = [
            f"{len(videos)} videos ({sum(bool(video['classes']) for video in videos)} abnormal)",
            f"{sum(video['segments'] for video in videos):,} segments",
            f"{clips} clips of {rows:,} rows in all",
        ]
        if split == "test":
            parts.append(f"truth of {sum(video['truth'] for video in videos)}")
            parts.append(f"event densities of {sum(video['event_density'] for video in videos)}")
        lines.append(f"  {split}: " + ", ".join(parts))
    return "\n".join([*lines, *_settings(store.settings), *(f"  note: {readable(note)}" for note in store.notes)])


def _settings(settings: dict[str, Any]) -> list[str]:
    if not settings:
        return ["  encoders: unknown"]
    return ["  " + ", ".join(readable(f"{key} {value}") for key, value in settings.items())]
