"""Scoring shared by several processes: each scores some of the videos, and all receive all scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from iefvad.features.videos import Video
from iefvad.model.networks import AnyNetwork
from iefvad.scoring.scorer import as_scores, score_videos
from iefvad.scoring.video_scores import VideoScores
from iefvad.training.distributed import Processes


def score_shared(
    processes: Processes,
    model: AnyNetwork,
    videos: Sequence[Video],
    *,
    crops: str,
    chunk: int,
    device: torch.device,
    progress: str = "",
) -> list[VideoScores]:
    """Score videos; every process scores every world-th of them. Args and errors as `score_videos`.

    Raises:
        Aborted: another process failed.
    """
    mine = range(processes.rank, len(videos), processes.world)
    with processes.barrier():
        scored = score_videos(model, [videos[index] for index in mine], crops=crops, chunk=chunk, progress=progress)
    if processes.world == 1:
        return scored
    ends = np.cumsum([video.segments for video in videos], dtype=np.int64).tolist()
    starts = [0, *ends[:-1]]
    table = torch.zeros(ends[-1] if ends else 0, 4, device=device)
    for index, found in zip(mine, scored, strict=True):
        for column, values in enumerate((found.scores, found.w_img, found.w_evt, found.gain)):
            absent = values is None
            table[starts[index] : ends[index], column] = torch.nan if absent else torch.from_numpy(values)
    rows = processes.sum(table).cpu().numpy()
    return [as_scores(video, rows[start:end]) for video, start, end in zip(videos, starts, ends, strict=True)]
