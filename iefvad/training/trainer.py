"""Train one network: the loop, and the choice of the epoch.

Several processes (`torchrun`) train one network on the same batches as one process: each takes every world-th clip of
a batch and weighs its loss by its part, so that the mean of the gradients is that of the whole batch. Dropout draws
other masks.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from iefvad.data.batches import Batch, Clips, epoch_batches, steps_per_epoch
from iefvad.features.videos import Video
from iefvad.model.baselines.config import PAIRED
from iefvad.model.baselines.network import BaselineNetwork
from iefvad.model.config import MODALITIES
from iefvad.model.losses import RUN, WHOLE, Loss, LossWeights, Share
from iefvad.model.network import Network, Output
from iefvad.model.networks import LearnedNetwork, make_network
from iefvad.model.standardize import Standardize
from iefvad.scoring.metrics import evaluate
from iefvad.scoring.video_scores import VideoScores
from iefvad.training.distributed import Processes
from iefvad.training.graph import GraphedStep
from iefvad.training.masking import Mask
from iefvad.training.networks import model_config, some_unused
from iefvad.training.run import Run, Variant
from iefvad.training.scoring import score_shared
from iefvad.training.settings import Settings, for_data
from iefvad.training.state import Progress, load_state, save_state
from iefvad.training.step import (
    LossFunction,
    batch_part,
    make_optimizer,
    masked_step_loss,
    set_rate,
    training_step,
)
from iefvad.utils.devices import resolve_device
from iefvad.utils.errors import UserError
from iefvad.utils.progress import Progress as Bar

_LARGE, _PAUSE = 8 << 20, 1.0
"""A state of more bytes is written at most once in so many seconds: with few videos an epoch is quicker than a disk."""

CHECK = 50
"""Steps after which losses are looked at. Each look waits for the device and for the other processes."""


@dataclass
class Fitted:
    """A trained network.

    Attributes:
        model: The network of the chosen epoch, in evaluation mode.
        epoch: That epoch, from 1.
        threshold: The score that 1% of the held-out normal segments exceed; None without any.
        settings: Those it was trained with, where the number of epochs may depend on the data.
    """

    model: LearnedNetwork
    epoch: int
    threshold: float | None
    settings: Settings


class DivergedError(UserError):
    """Losses or scores became not finite. The same settings and seed always end so."""


class Trainer:
    """The training of one network with one seed. `fit` runs it, and resumes where the settings ask for it.

    With several processes all of them call the same methods in the same order; the main process alone writes.

    Args:
        run: The run folder.
        variant: Which of the run's models to train.
        seed: Decides initial weights, order and dropout.
        dim: Width D of the features.
        processes: The processes that train together; None: this one alone.
        refit: Settings of the training on all videos after the epoch was chosen; None: the variant's own.
    """

    def __init__(
        self,
        run: Run,
        variant: Variant,
        seed: int,
        *,
        dim: int,
        processes: Processes | None = None,
        refit: Settings | None = None,
    ) -> None:
        config = refit or variant.apply(run.config)
        self.refit = refit is not None
        self.config, self.run, self.variant, self.seed = config, run, variant, seed
        self.processes = processes or Processes()
        self.device = self.processes.device(resolve_device(config.device))
        torch.manual_seed(_mix(seed, variant.modality, "initial"))
        if config.model in PAIRED and self.processes.world > 1:
            raise UserError(
                f"the loss of {config.model} compares the videos of a batch, which several processes would tear apart:"
                " train it without torchrun."
            )
        backend = "auto" if config.fused else "reference"
        self.model = make_network(model_config(config, dim, variant.modality), backend=backend)
        if config.identity_start:
            self.model.start_as_identity()
        if isinstance(self.model, Network):
            if config.zero_start:
                self.model.start_at_zero()
            if config.image_part:
                self.model.start_divided(config.image_part)
            if config.loss_weights == "learned":
                scale = config.lambda_reg
                self.model.start_weights(config.lambda_kl, scale * config.lambda_cos, scale * config.lambda_norm)
        self.model.to(self.device)
        self.network: nn.Module = self.model
        self.graphed = config.cuda_graph and self.processes.world == 1 and not config.lambda_mask
        reason = why_no_graph(self.processes, self.device, clean=config.lambda_mask > 0)
        if config.cuda_graph and self.processes.is_main and reason:
            print(f"note: --cuda-graph: {reason}", flush=True)
        self.optimizer = make_optimizer(self.model, config, capturable=self.graphed and self.device.type == "cuda")
        self.progress = Progress()
        self._shown = Bar(None, "train", "step", shown=False)
        self._saved, self._saved_at = 0, -math.inf  # the epoch in the file of the state, and when it was written

    @property
    def state_path(self) -> Path:
        """File of the state after the last epochs."""
        phase = "_refit" if self.refit else ""
        return self.run.path / "trainer_state" / f"{self.variant.slug}_seed{self.seed}{phase}.safetensors"

    def fit(self, clips: Clips, held_out: Sequence[Video], test: Sequence[Video], *, progress: bool = True) -> Fitted:
        """Train to the last epoch and return the network of the chosen one.

        Args:
            clips: Training clips.
            held_out: Videos that choose the epoch and the threshold.
            test: Test videos, for `--select test`.
            progress: Show a bar.

        Raises:
            UserError: the training diverged, features cannot be read, or a file cannot be written.
            Aborted: another process failed.
        """
        self._begin(clips)
        step = self._step()
        steps = steps_per_epoch(clips.labels, self.config.batch, mixed=self.config.mixed)
        with self._bar(progress, steps) as self._shown:
            while self.progress.epoch < self.config.epochs and not self._has_learned():
                self._shown.name(self._doing(self.progress.epoch + 1))
                row = self._train_epoch(clips, step, lambda: self._choose(held_out, test))
                if self.config.reload_best:
                    self.model.load_state_dict(self.progress.best)
                row |= self.model.learned()
                self._finish_epoch(row)
                self._shown.tell(**{name: row[name] for name in ("loss", "val_auc") if row.get(name) is not None})
                self._shown.line()
        with self.processes.barrier():
            self._save(last=True)
        if progress and self._has_learned() and self.progress.epoch < self.config.epochs:
            loss = self.progress.history[-1]["loss_cls"]
            print(
                f"{self._doing()}: ended after epoch {self.progress.epoch}, as the classification loss {loss:.3f} is at"
                f" most {self.config.until_loss:.3g} (--until-loss)",
                file=sys.stderr,
                flush=True,
            )
        self.model.load_state_dict(self.progress.best)
        return Fitted(self.model.eval(), self.progress.best_epoch, self._threshold(held_out), self.config)

    def _has_learned(self) -> bool:
        """Whether the last epoch's classification loss is as low as the settings ask for."""
        history, until = self.progress.history, self.config.until_loss
        assert until != "auto"  # `_begin` decided
        return bool(history) and history[-1]["loss_cls"] <= until

    def score(self, videos: Sequence[Video], *, progress: bool = False) -> list[VideoScores]:
        """Score videos with the network as it is; several processes share the work, and all have all scores."""
        config = self.config
        try:
            return score_shared(
                self.processes,
                self.model,
                videos,
                crops=config.test_crops,
                chunk=config.max_segments,
                device=self.device,
                progress=f"test {self.variant.name} (seed {self.seed})" if progress else "",
            )
        except UserError as error:
            if all(torch.isfinite(features).all() for video in videos for features in video.features(video.crops[0])):
                raise self._diverged("its scores became not finite") from error
            raise

    def _begin(self, clips: Clips) -> None:
        """Go on from the state of an interrupted run, or take the statistics of the training features."""
        with self.processes.barrier():
            clips.to(self.device)
            if self.config.min_steps or self.config.until_loss == "auto":
                steps = steps_per_epoch(clips.labels, self.config.batch, mixed=self.config.mixed)
                self.config = for_data(self.config, steps, len(clips.videos))
            if self.config.resume and self.state_path.exists():
                self.progress = load_state(self.state_path, self.model, self.optimizer, self.device)
                self._saved = self.progress.epoch
                for row in self.progress.history if self.processes.is_main else ():
                    self.run.log(row)
                    self.run.tracking.epoch(self.variant, row, again=True)
            elif self.processes.is_main:  # the others receive them with the first weights
                for name in self.model.statistics:
                    self.model.set_statistics(name, clips.features(name).to(self.device))
        if not self.processes.agree(self.progress.epoch):
            with self.processes.barrier():
                raise UserError(
                    f"the processes find different states of the run in {self.run.path}: use a folder that all machines"
                    " share."
                )
        several = self.processes.world > 1
        self.network = self.processes.replicate(self.model, unused=several and some_unused(self.model))

    def _bar(self, shown: bool, steps: int) -> Bar:
        done, early = self.progress.epoch * steps, self.config.until_loss != 0
        return Bar(self.config.epochs * steps, self._doing(), "step", shown=shown, initial=done, at_most=early)

    def _doing(self, epoch: int | None = None) -> str:
        what = f"{'refit' if self.refit else 'train'} {self.variant.name} (seed {self.seed})"
        return (
            what
            if epoch is None
            else f"{what}, epoch {epoch} of {'at most ' * bool(self.config.until_loss)}{self.config.epochs}"
        )

    def _step(self) -> Callable[[Batch, Share, Mask | None], Tensor]:
        """Return the training step: from a batch, its weight and its damage to the losses."""
        config = self.config
        weights = LossWeights(config.lambda_kl, config.lambda_reg, config.lambda_cos, config.lambda_norm)

        loss: LossFunction | None = None
        if isinstance(self.model, BaselineNetwork):
            own = self.model.loss

            def loss(output: Output, labels: Tensor, lengths: Tensor, share: Share) -> Loss:
                return own(output, labels, lengths, config.mil, share)

        def step(batch: Batch, share: Share = WHOLE, mask: Mask | None = None) -> Tensor:
            more = None
            if mask is not None:
                clean, batch = batch, mask.apply(batch, self._centres())
                if config.lambda_mask:
                    with self._autocast():
                        more = masked_step_loss(self.model, clean, mask.clips, mask.share * config.lambda_mask)
            return training_step(
                self.network,
                batch,
                self.optimizer,
                weights,
                config.mil,
                autocast=self._autocast(),
                share=share,
                loss=loss,
                more=more,
            )

        if not self.graphed:
            return step
        graphed = GraphedStep(step, self.device, config.max_segments)

        def padded_step(batch: Batch, share: Share, mask: Mask | None) -> Tensor:
            return graphed(batch if mask is None else mask.apply(batch, self._centres()))

        return padded_step

    def _centres(self) -> tuple[Tensor, Tensor]:
        """What damaged dimensions become: the mean of the training features where they are standardised, or zero."""
        found = dict.fromkeys(MODALITIES, torch.zeros((), device=self.device))
        for name, statistics in self.model.statistics.items():
            assert isinstance(statistics, Standardize)
            found[name] = statistics.centre
        return found["image"], found["event"]

    def _train_epoch(
        self,
        clips: Clips,
        train: Callable[[Batch, Share, Mask | None], Tensor],
        choose: Callable[[], dict[str, Any]] = dict,
    ) -> dict[str, Any]:
        """Train one epoch and return its row of the log. `choose` is called within it, or at least at its end."""
        config, epoch, processes = self.config, self.progress.epoch, self.processes
        factor = config.factor ** sum(epoch >= milestone for milestone in config.milestones)
        set_rate(self.optimizer, factor)
        # Seeding each epoch from its number makes a resumed run draw what the uninterrupted one drew.
        masks = f"dropout {epoch}" + (f" process {processes.rank}" if processes.rank else "")
        torch.manual_seed(_mix(self.seed, self.variant.modality, masks))
        generator = torch.Generator().manual_seed(_mix(self.seed, self.variant.modality, f"order {epoch}"))
        with processes.barrier():
            order = list(epoch_batches(clips.labels, config.batch, mixed=config.mixed, generator=generator))
        self.network.train()
        begin, sums = time.perf_counter(), torch.zeros(4, device=self.device)
        measured: dict[str, Any] | None = None
        parts = zip(self._parts(clips, order), self._masks(clips, order), strict=True)
        for step, ((batch, share, failure), mask) in enumerate(parts, 1):
            sums += train(batch, share, None if failure else mask)
            self._shown.update()
            if step % CHECK == 0 or step == len(order):
                processes.abort_on(failure)
                means = (processes.sum(sums) / (step * processes.world)).tolist()
                with processes.barrier():
                    if not all(map(math.isfinite, means)):
                        raise self._diverged(f"its loss became {means[0]}")
                    if step % CHECK == 0:
                        self.run.tracking.step(self.variant, self.seed, epoch * len(order) + step, means[0])
            if self._is_choice(step):
                processes.abort_on(failure)
                measured = choose()
                self.network.train()
        seconds = round(time.perf_counter() - begin, 3)
        row = {"phase": "refit"} if self.refit else {}
        return row | {
            "model": self.variant.name,
            "seed": self.seed,
            "epoch": epoch + 1,
            **dict(zip(("loss", "loss_cls", "loss_kl", "loss_reg"), means, strict=True)),
            "lr": config.lr * factor,
            "seconds": seconds,
            "processes": processes.world,
            **(choose() if measured is None else measured),
        }

    def _is_choice(self, step: int) -> bool:
        """Whether weights are measured after this step within the epoch, from 1.

        As in the released code: after batch i, from 0, where i batches contain the next multiple of `select_every`.
        """
        every, size = self.config.select_every, self.config.batch * (1 if self.config.mixed else 2)
        if self.config.select == "last":  # nothing is chosen: the last weights are kept
            return False
        return every > 0 and step > 1 and (step - 1) * size // every > (step - 2) * size // every

    def _parts(self, clips: Clips, order: Sequence[Sequence[int]]) -> Iterator[tuple[Batch, Share, Exception | None]]:
        """Yield this process' part of each batch of an epoch, its weight, and the error if it could not be read.

        The other processes wait for this one within the step. So a process without clips, or after an error, takes
        part with something of weight 0.
        """
        released = self.config.method == "released"
        # With a single segment the recursion has no step: its parameters would miss from this process' gradients.
        pad_to = self.config.max_segments if released else 2
        processes = self.processes
        parts = [batch_part(clips.lengths, batch, processes.rank, processes.world, padded=released) for batch in order]
        own = [part or batch[:1] for (part, _), batch in zip(parts, order, strict=True)]
        batches = clips.batches(own, pad_to=pad_to)
        failure: Exception | None = None
        for _, share in parts:
            if failure is None:
                try:
                    yield next(batches), share, None
                    continue
                except (UserError, OSError) as error:
                    failure = error
            features = torch.zeros(1, pad_to, self.model.config.dim)
            nothing = Batch(features, features, torch.ones(1, dtype=torch.int64), torch.zeros(1))
            yield nothing.to(self.device), Share(0.0, 0.0), failure

    def _masks(self, clips: Clips, order: Sequence[Sequence[int]]) -> Iterator[Mask | None]:
        """Yield what is damaged in this process' part of each batch of an epoch; None: nothing.

        Every process draws for whole batches, from the epoch's number. So neither the number of processes nor a resumed
        run changes the draws.
        """
        config, processes = self.config, self.processes
        seed = _mix(self.seed, self.variant.modality, f"damage {self.progress.epoch}")
        generator = torch.Generator().manual_seed(seed)
        for batch in order:
            if not config.mask_clips:
                yield None
                continue
            mask = Mask.draw(
                (len(batch), config.max_segments, self.model.config.dim),
                clips=config.mask_clips,
                ratio=config.mask_ratio,
                damage=config.mask_damage,
                generator=generator,
            )
            mask = mask.part(clips.lengths[list(batch)], processes.rank, processes.world)
            yield mask if len(mask.streams) else None

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _choose(self, held_out: Sequence[Video], test: Sequence[Video]) -> dict[str, Any]:
        """Measure the weights by what `--select` names, and keep them if they are the best so far."""
        row: dict[str, Any] = {}
        metric = self.config.select_metric
        if held_out:
            row["val_auc"], row["val_ap"], row["val_loss"] = self._held_out(held_out)
        if self.config.select == "last" or not (held_out or self.config.select == "test"):
            rank = (float(self.progress.epoch), 0.0)
        elif self.config.select == "test":
            metrics = evaluate(self.score(test))
            row |= {"test_auc": metrics["auc"], "test_ap": metrics["ap"]}
            rank = (metrics[metric] or 0.0, 0.0)
        else:
            rank = (row[f"val_{metric}"] or 0.0, -row["val_loss"])
        if self.processes.decide(rank > self.progress.best_rank):
            self.progress.best_rank, self.progress.best_epoch = rank, self.progress.epoch + 1
            self.progress.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return row

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        """Count the epoch; the main process writes its row and the state."""
        self.progress.epoch += 1
        self.progress.history.append(row)
        with self.processes.barrier():
            if self.processes.is_main:
                self.run.log(row)
                self.run.tracking.epoch(self.variant, row)
            self._save()

    def _save(self, *, last: bool = False) -> None:
        """Write the state, in the main process. A large one waits for a later epoch if the last one is just written."""
        epoch = self.progress.epoch
        if not self.processes.is_main or self._saved == epoch:
            return
        size = 16 * sum(parameter.numel() for parameter in self.model.parameters())  # weights, best ones, two moments
        if last or size <= _LARGE or time.monotonic() - self._saved_at >= _PAUSE:
            save_state(self.state_path, self.model, self.optimizer, self.progress)
            self._saved, self._saved_at = epoch, time.monotonic()

    def _held_out(self, videos: Sequence[Video]) -> tuple[float | None, float | None, float]:
        """AUC, AP and cross-entropy of the videos' scores by their labels; no frame truth is used."""
        labels = np.array([bool(video.classes) for video in videos])
        probabilities = []
        for scored in self.score(videos):
            scores = np.sort(scored.scores)[::-1]
            probabilities.append(scores[: len(scores) // RUN + 1].mean())
        clipped = np.clip(np.array(probabilities, np.float64), 1e-7, 1 - 1e-7)
        loss = -np.where(labels, np.log(clipped), np.log(1 - clipped)).mean()
        if not 0 < labels.sum() < len(labels):
            return None, None, float(loss)
        return float(roc_auc_score(labels, clipped)), float(average_precision_score(labels, clipped)), float(loss)

    def _threshold(self, held_out: Sequence[Video]) -> float | None:
        normal = [scored.scores for scored in self.score([video for video in held_out if not video.classes])]
        return float(np.quantile(np.concatenate(normal), 0.99)) if normal else None

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"epoch {self.progress.epoch + 1} of the {self.variant.name} model diverged ({what}): lower --lr (now"
            f" {self.config.lr}) and start again."
        )


def why_no_graph(processes: Processes, device: torch.device, *, clean: bool = False) -> str | None:
    """Return why `--cuda-graph` captures nothing here, as a sentence; None if it does.

    Args:
        processes: The processes that train together.
        device: Where they train.
        clean: Damaged clips are compared with clean ones.
    """
    if clean:
        return "steps with --lambda-mask are not captured, because the number of damaged clips varies."
    if processes.world > 1:
        return "steps of several processes are not captured, so they run one by one."
    if device.type != "cuda":
        return f"there is nothing to capture on {device.type}, so the padded steps run one by one."
    return None


def _mix(seed: int, *parts: str) -> int:
    """Return a seed of 63 bits that differs for every purpose."""
    digest = hashlib.sha256(f"{seed} {' '.join(parts)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
