"""Train one network: the loop, the choice of the epoch, and a state from which it resumes bitwise on the CPU.

Several processes (`torchrun`) train one network on the same batches as one process: each takes every world-th clip of
a batch, weighs its loss by its share, and the mean of the gradients is the whole batch's. Dropout draws other masks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from iefvad.data.batches import Batch, Clips, epoch_batches
from iefvad.features.videos import Video
from iefvad.model.config import ModelConfig
from iefvad.model.losses import RUN, WHOLE, LossWeights, Share, total_loss
from iefvad.model.network import Network, Output
from iefvad.scoring.metrics import evaluate
from iefvad.scoring.scorer import as_scores, score_videos
from iefvad.scoring.video_scores import VideoScores
from iefvad.training.distributed import Processes
from iefvad.training.run import Run, Variant
from iefvad.training.settings import TrainConfig
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_with
from iefvad.utils.tensors import read_tensors

CHECK = 50  # steps after which losses are looked at; each look waits for the device and the other processes


@dataclass
class Fitted:
    """A trained network, its epoch, and the score that 1% of held-out normal segments exceed (None without any)."""

    model: Network
    epoch: int
    threshold: float | None


def model_config(config: TrainConfig, dim: int, modality: str) -> ModelConfig:
    """The network's configuration for features of width `dim` and one modality: fusion, image or event."""
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    values = {name: value for name, value in dataclasses.asdict(config).items() if name in names}
    if dim % config.heads:
        raise UserError(
            f"the features are {dim} wide, which --heads {config.heads} does not divide: choose another number."
        )
    return ModelConfig(
        **values
        | {"dim": dim, "modality": modality, "window": config.window or None, "released": config.method == "released"}
    )


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where it is available. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not a device: use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: PyTorch finds no GPU here. Use --device cpu, or install a CUDA build of PyTorch."
        )
    return device


def training_step(
    model: Callable[..., Output],
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    weights: LossWeights,
    mil: Literal["topk", "segment"] = "topk",
    *,
    autocast: contextlib.AbstractContextManager[Any] | None = None,
    share: Share = WHOLE,
) -> Tensor:
    """Forward, backward and one step of the optimiser on a batch that is on the model's device.

    Returns the losses (total, cls, kl, reg), (4,) float32 on that device, and never waits for it.
    """
    with autocast or contextlib.nullcontext():
        output = model(batch.image, batch.event, batch.lengths)
        loss = total_loss(output, batch.labels, batch.lengths, weights, mil, share)
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    optimizer.step()
    return torch.stack([loss.total, loss.cls, loss.kl, loss.reg]).detach().float()


class Trainer:
    """One network's training, one seed. `fit` runs it, resuming where asked.

    With several `processes` all call the same methods in the same order; the first alone writes.
    """

    def __init__(self, run: Run, variant: Variant, seed: int, *, dim: int, processes: Processes | None = None) -> None:
        config = variant.apply(run.config)
        self.config, self.run, self.variant, self.seed = config, run, variant, seed
        self.processes = processes or Processes()
        self.device = self.processes.device(resolve_device(config.device))
        torch.manual_seed(_mix(seed, variant.modality, "initial"))
        self.model = Network(
            model_config(config, dim, variant.modality), backend="auto" if config.fused else "reference"
        )
        if config.identity_start:
            self.model.start_as_identity()
        self.model.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.epoch = 0
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0
        self.best_rank: tuple[float, float] = (-math.inf, -math.inf)
        self.history: list[dict[str, Any]] = []

    @property
    def state_path(self) -> Path:
        """Where the state after each epoch is kept."""
        return self.run.path / "trainer_state" / f"{self.variant.slug}_seed{self.seed}.safetensors"

    def fit(self, clips: Clips, held_out: Sequence[Video], test: Sequence[Video], *, progress: bool = True) -> Fitted:
        """Train to the last epoch and return the chosen one."""
        with self.processes.barrier():
            self._begin(clips)
        if not self.processes.agree(self.epoch):
            with self.processes.barrier():
                raise UserError(
                    f"the processes find different states of the run in {self.run.path}: use a folder that all machines"
                    " share."
                )
        several = self.processes.world > 1
        self.network = self.processes.replicate(self.model, unused=several and _some_unused(self.model))
        bar = tqdm(
            total=self.config.epochs,
            initial=self.epoch,
            desc=f"train {self.variant.name} (seed {self.seed})",
            unit="epoch",
            disable=not progress,
            dynamic_ncols=True,
        )
        with bar:
            while self.epoch < self.config.epochs:
                row = self._train_epoch(clips)
                row |= self._choose(held_out, test)
                self.epoch += 1
                self.history.append(row)
                with self.processes.barrier():
                    if self.processes.is_main:
                        self.run.log(row)
                        self._save_state()
                bar.update()
                bar.set_postfix({name: f"{row[name]:.3f}" for name in ("loss", "val_auc") if row.get(name) is not None})
        self.model.load_state_dict(self.best)
        return Fitted(self.model.eval(), self.best_epoch, self._threshold(held_out))

    def _begin(self, clips: Clips) -> None:
        """Go on from the state of an interrupted run, or take the statistics of the training features."""
        clips.to(self.device)
        if self.config.resume and self.state_path.exists():
            self._load_state()
        elif self.processes.is_main:  # the others receive them with the first weights
            for name in self.model.statistics:
                self.model.set_statistics(name, clips.features(name).to(self.device))

    def _train_epoch(self, clips: Clips) -> dict[str, Any]:
        config, rank, world = self.config, self.processes.rank, self.processes.world
        rate = config.lr * config.factor ** sum(self.epoch >= milestone for milestone in config.milestones)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Seeding each epoch from its number makes a resumed run draw what the uninterrupted one drew.
        masks = f"dropout {self.epoch}" + (f" process {rank}" if rank else "")
        torch.manual_seed(_mix(self.seed, self.variant.modality, masks))
        generator = torch.Generator().manual_seed(_mix(self.seed, self.variant.modality, f"order {self.epoch}"))
        with self.processes.barrier():
            order = list(epoch_batches(clips.labels, config.batch, mixed=bool(config.mixed), generator=generator))
        weights = LossWeights(config.lambda_kl, config.lambda_reg, config.lambda_cos, config.lambda_norm)
        self.network.train()
        begin, sums = time.perf_counter(), torch.zeros(4, device=self.device)
        for step, (batch, share, failure) in enumerate(self._parts(clips, order), 1):
            sums += training_step(
                self.network, batch, self.optimizer, weights, config.mil, autocast=self._autocast(), share=share
            )
            if step % CHECK == 0 or step == len(order):
                self.processes.abort_on(failure)
                means = (self.processes.sum(sums) / (step * world)).tolist()
                with self.processes.barrier():
                    if not all(map(math.isfinite, means)):
                        raise self._diverged(f"its loss became {means[0]}")
        return {
            "model": self.variant.name,
            "seed": self.seed,
            "epoch": self.epoch + 1,
            **dict(zip(("loss", "loss_cls", "loss_kl", "loss_reg"), means, strict=True)),
            "lr": rate,
            "seconds": round(time.perf_counter() - begin, 3),
            "processes": world,
        }

    def _parts(self, clips: Clips, order: Sequence[Sequence[int]]) -> Iterator[tuple[Batch, Share, Exception | None]]:
        """This process' part of each batch of an epoch, what it weighs, and why it could not be read, if so.

        The others wait for this process within the step, so one without clips takes part with something that weighs
        nothing.
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

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _choose(self, held_out: Sequence[Video], test: Sequence[Video]) -> dict[str, Any]:
        """Measure this epoch by what `--select` names, and keep it if it is the best so far."""
        row: dict[str, Any] = {}
        if held_out:
            row["val_auc"], row["val_loss"] = self._held_out(held_out)
        if self.config.select == "last":
            rank = (float(self.epoch), 0.0)
        elif self.config.select == "test":
            metrics = evaluate(self.score(test))
            row["test_auc"] = metrics["auc"]
            rank = (metrics["auc"] or 0.0, 0.0)
        else:
            rank = (row["val_auc"] or 0.0, -row["val_loss"])
        if self.processes.decide(rank > self.best_rank):
            self.best_rank, self.best_epoch = rank, self.epoch + 1
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return row

    def _held_out(self, videos: Sequence[Video]) -> tuple[float | None, float]:
        """AUC and cross-entropy of the videos' scores by their labels; no frame truth is used."""
        labels = np.array([bool(video.classes) for video in videos])
        probabilities = []
        for scored in self.score(videos):
            scores = np.sort(scored.scores)[::-1]
            probabilities.append(scores[: len(scores) // RUN + 1].mean())
        clipped = np.clip(np.array(probabilities, np.float64), 1e-7, 1 - 1e-7)
        loss = -np.where(labels, np.log(clipped), np.log(1 - clipped)).mean()
        auc = float(roc_auc_score(labels, clipped)) if 0 < labels.sum() < len(labels) else None
        return auc, float(loss)

    def score(self, videos: Sequence[Video]) -> list[VideoScores]:
        """Score videos with the network as it is; several processes share them, and all have the scores of all."""
        processes = self.processes
        mine = range(processes.rank, len(videos), processes.world)
        with processes.barrier():
            scored = self._score([videos[index] for index in mine])
        if processes.world == 1:
            return scored
        ends = np.cumsum([video.segments for video in videos], dtype=np.int64).tolist()
        starts = [0, *ends[:-1]]
        table = torch.zeros(ends[-1] if ends else 0, 4, device=self.device)
        for index, found in zip(mine, scored, strict=True):
            for column, values in enumerate((found.scores, found.w_img, found.w_evt, found.gain)):
                absent = values is None
                table[starts[index] : ends[index], column] = torch.nan if absent else torch.from_numpy(values)
        rows = processes.sum(table).cpu().numpy()
        return [as_scores(video, rows[start:end]) for video, start, end in zip(videos, starts, ends, strict=True)]

    def _score(self, videos: Sequence[Video]) -> list[VideoScores]:
        try:
            return score_videos(self.model, videos, crops=self.config.test_crops, chunk=self.config.max_segments)
        except UserError as error:
            if all(torch.isfinite(features).all() for video in videos for features in video.features(video.crops[0])):
                raise self._diverged("its scores became not finite") from error
            raise

    def _diverged(self, what: str) -> UserError:
        return UserError(
            f"epoch {self.epoch + 1} of the {self.variant.name} model diverged ({what}): lower --lr (now"
            f" {self.config.lr}) and start again."
        )

    def _threshold(self, held_out: Sequence[Video]) -> float | None:
        normal = [scored.scores for scored in self.score([video for video in held_out if not video.classes])]
        return float(np.quantile(np.concatenate(normal), 0.99)) if normal else None

    def _save_state(self) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        status = {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_rank": self.best_rank,
            "history": self.history,
        }
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        write_with(self.state_path, lambda path: save_file(tensors, path, {"status": json.dumps(status)}))

    def _load_state(self) -> None:
        tensors, metadata = read_tensors(self.state_path)
        status = json.loads(metadata["status"])
        self.epoch, self.best_epoch = status["epoch"], status["best_epoch"]
        self.best_rank = tuple(status["best_rank"])
        self.history = status["history"]
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = value.to(self.device)
        self.model.load_state_dict(groups["model"])
        self.best = groups["best"]
        state = self.optimizer.state_dict()
        for name, value in groups["optimizer"].items():
            index, _, rest = name.partition(".")
            state["state"].setdefault(int(index), {})[rest] = value
        self.optimizer.load_state_dict(state)
        if self.processes.is_main:
            for row in self.history:
                self.run.log(row)


def batch_part(
    lengths: Tensor, batch: Sequence[int], rank: int, world: int, *, padded: bool = False
) -> tuple[list[int], Share]:
    """Which clips of a batch are those of process `rank` of `world`, and what its loss weighs.

    `lengths` (N,) are those of all clips. `padded`: the loss terms are means over padding too, as in the published
    variant, and not over valid segments alone.
    """
    part = list(batch[rank::world])
    if world == 1:
        return part, WHOLE
    videos = world * len(part) / len(batch)
    if padded:
        return part, Share(videos, videos)
    valid = int(lengths[list(batch)].sum())
    return part, Share(videos, world * int(lengths[part].sum()) / max(valid, 1))


def _some_unused(model: Network) -> bool:
    """Whether some parameters take no part in the loss, as those of refinement blocks where there are none."""
    device = next(model.parameters()).device
    features = torch.zeros(1, 2, model.config.dim, device=device)
    was_training = model.training
    model.eval()  # without dropout nothing is drawn
    lengths = torch.tensor([2], device=device)
    output = model(features, features, lengths)
    total_loss(output, torch.zeros(1, device=device), lengths, LossWeights()).total.backward()
    unused = any(parameter.grad is None for parameter in model.parameters())
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return unused


def _mix(seed: int, *parts: str) -> int:
    """A seed of 63 bits that differs for every purpose."""
    digest = hashlib.sha256(f"{seed} {' '.join(parts)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
