"""One model with one seed on loaded data: train it, train it again on all videos where asked, score the test videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from iefvad.data.batches import Clips, split_validation
from iefvad.features.videos import Benchmark, Video
from iefvad.scoring.video_scores import VideoScores
from iefvad.training.distributed import Processes
from iefvad.training.run import Run, Variant
from iefvad.training.settings import Settings
from iefvad.training.trainer import Fitted, Trainer


@dataclass(frozen=True)
class TrainingData:
    """The data of a training.

    Attributes:
        clips: Clips of the videos that are trained on while the epoch is chosen.
        whole: Clips of all training videos; the same object without a refit.
        held_out: Videos that choose the epoch.
        test: Test videos.
        dim: Width D of the features.
    """

    clips: Clips
    whole: Clips
    held_out: Sequence[Video]
    test: Sequence[Video]
    dim: int

    @classmethod
    def of(cls, benchmark: Benchmark, config: Settings, *, table: Sequence[Video] | None = None) -> TrainingData:
        """Split and arrange the videos of a benchmark.

        Args:
            benchmark: The videos.
            config: Settings with every choice made.
            table: The same training videos with other readers, which the clips are read from.

        Raises:
            UserError: there are no training videos, or clips cannot be made of them.
        """
        videos = benchmark.train if table is None else table
        training, _ = split_validation(videos, config.validation, seed=0)
        _, held_out = split_validation(benchmark.train, config.validation, seed=0)
        # With a refit there are two tables of clips, so each gets half of the memory.
        memory = (8 << 30) // (2 if config.refit else 1)
        clips = Clips(training, max_segments=config.max_segments, memory=memory)
        whole = Clips(videos, max_segments=config.max_segments, memory=memory) if config.refit else clips
        return cls(clips, whole, held_out, benchmark.test, benchmark.dim)


def fit_and_score(
    run: Run,
    variant: Variant,
    seed: int,
    data: TrainingData,
    *,
    processes: Processes | None = None,
    progress: bool = True,
) -> tuple[Fitted, list[VideoScores]]:
    """Train one model of a run with one seed, and score the test videos. The run folder gets its log and states.

    Where the settings ask for a refit and videos were held out, the model is trained again on all training videos up to
    the chosen epoch. The threshold stays that of the held-out videos.

    Args:
        run: The run.
        variant: Which of the run's models.
        seed: The seed.
        data: The data.
        processes: The processes that train together; None: this one alone.
        progress: Show bars.

    Returns:
        The network, and the scores of the test videos.

    Raises:
        UserError: as `Trainer.fit`.
        Aborted: another process failed.
    """
    processes = processes or Processes()
    with processes.barrier():
        trainer = Trainer(run, variant, seed, dim=data.dim, processes=processes)
    fitted = trainer.fit(data.clips, data.held_out, data.test, progress=progress)
    if run.config.refit and data.held_out:
        again = dataclasses.replace(fitted.settings, epochs=fitted.epoch, min_steps=0, until_loss=0.0, select="last")
        with processes.barrier():
            trainer = Trainer(run, variant, seed, dim=data.dim, processes=processes, refit=again)
        refitted = trainer.fit(data.whole, [], data.test, progress=progress)
        fitted = dataclasses.replace(refitted, threshold=fitted.threshold)
    return fitted, trainer.score(data.test, progress=progress)
