"""Masking augmentation: what is damaged, that every way of training draws the same, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from iefvad.cli.train import main
from iefvad.data.batches import Batch
from iefvad.model.config import ModelConfig
from iefvad.model.losses import LossWeights, Share, damage_loss
from iefvad.model.network import Network
from iefvad.training.masking import Mask
from iefvad.training.networks import model_config
from iefvad.training.run import Run, Variant
from iefvad.training.settings import TrainConfig, resolve
from iefvad.training.step import batch_part, masked_step_loss, training_step
from iefvad.training.trainer import Trainer, why_no_graph
from iefvad.utils.errors import UserError
from tests.helpers.stores import training_flags, write_store

CENTRES = (torch.full((6,), 2.0), torch.full((6,), -3.0))


def draw(clips: float = 1.0, ratio: float = 1.0, damage: str = "features", batch: int = 200, seed: int = 0) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    return Mask.draw((batch, 8, 6), clips=clips, ratio=ratio, damage=damage, generator=generator)


def batch_of(count: int, segments: int = 5) -> Batch:
    torch.manual_seed(1)
    image, event = torch.randn(2, count, segments, 6)
    return Batch(image, event, torch.full((count,), segments), torch.ones(count))


@pytest.mark.parametrize("damage", ["features", "segments", "both"])
def test_one_modality_of_a_clip_is_damaged_as_the_specification_says(damage):
    mask, batch = draw(0.6, 0.5, damage), batch_of(200)
    damaged = mask.apply(batch, CENTRES)
    hit = mask.streams >= 0
    assert 0.5 < hit.double().mean() < 0.7 and mask.clips.tolist() == hit.nonzero().flatten().tolist()
    kinds = set()
    fractions = []
    for index in range(200):
        for stream, (values, old) in enumerate(((damaged.image, batch.image), (damaged.event, batch.event))):
            changed = values[index] != old[index]
            if mask.streams[index] != stream:
                assert not changed.any()
                continue
            dimensions, steps = changed.all(0), changed.all(1)
            if changed.any() and not steps.all():
                kinds.add("features" if dimensions.any() else "segments")
            if steps.any() and not dimensions.any():
                centre = CENTRES[stream]
                torch.testing.assert_close(values[index][steps], centre + 0.01 * (old[index][steps] - centre))
            elif dimensions.any() and not steps.any():
                assert (values[index][:, dimensions] == CENTRES[stream][dimensions]).all()
            fractions.append(changed.double().mean())
    assert kinds == ({"features", "segments"} if damage == "both" else {damage})
    # Fractions are uniform between 0 and 0.5; the mean of 120 clips varies by 0.02.
    assert torch.stack(fractions).mean() == pytest.approx(0.25, abs=0.06)


def test_settings_do_not_change_what_others_draw():
    one, other = draw(0.3, 0.5), draw(0.9, 0.5)
    assert torch.equal(one.streams[one.streams >= 0], other.streams[one.streams >= 0])
    assert torch.equal(one.dimensions, other.dimensions)
    assert torch.equal(draw(damage="segments").streams, draw(damage="features").streams)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(world):
    torch.manual_seed(0)
    network = Network(ModelConfig(dim=6, heads=2, layers=1, refine_steps=1, dropout=0.0)).double().train()
    whole = batch_of(7, 8)
    lengths = torch.tensor([8, 3, 1, 5, 8, 2, 4])
    whole = dataclasses.replace(whole, image=whole.image.double(), event=whole.event.double(), lengths=lengths)
    mask = draw(0.7, batch=7)

    def gradient(positions: list[int], share: Share, part: Mask) -> torch.Tensor:
        clean = Batch(*(value[positions] for value in vars(whole).values()))
        more = masked_step_loss(network, clean, part.clips, part.share * 0.7)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        centres = tuple(centre.double() for centre in CENTRES)
        training_step(network, part.apply(clean, centres), optimizer, LossWeights(), share=share, more=more)
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    expected = gradient(list(range(7)), Share(), mask)
    parts = [batch_part(lengths, list(range(7)), rank, world) for rank in range(world)]
    found = [gradient(*part, mask.part(lengths, rank, world)) for rank, part in enumerate(parts)]
    # The classification is float32 in any network.
    torch.testing.assert_close(torch.stack(found).mean(0), expected, rtol=1e-4, atol=1e-6)


def test_the_clean_pass_has_no_gradient_and_no_dropout():
    network = Network(ModelConfig(dim=6, heads=2, layers=1, refine_steps=1, dropout=0.5)).train()
    batch, mask = batch_of(4), draw(batch=4)
    damaged = mask.apply(batch, CENTRES)
    torch.manual_seed(3)
    more = masked_step_loss(network, batch, torch.tensor([1, 3]), 0.5)
    assert network.training and torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(3)))
    output = network.eval()(damaged.image, damaged.event, damaged.lengths)
    rows = [1, 3]
    clean = network(batch.image[rows], batch.event[rows], batch.lengths[rows])
    spoiled = network(damaged.image[rows], damaged.event[rows], batch.lengths[rows])
    torch.testing.assert_close(more(output), 0.5 * damage_loss(clean, spoiled, batch.lengths[rows]))
    assert masked_step_loss(network, batch, torch.tensor([], dtype=torch.int64), 0.5) is None


FLAGS = ["--mask-clips", "0.7", "--lambda-mask", "0.3", "--surprise", "--loss-weights", "learned", "--compare", "false"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("masking") / "store")


def test_a_resumed_run_draws_the_same_and_reports_what_was_learned(store, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(training_flags(store, whole, *FLAGS)) == 0
    finish = Trainer._finish_epoch

    def stop(self, row):
        finish(self, row)
        if self.progress.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish_epoch", stop)
        assert main(training_flags(store, parts, *FLAGS)) == 130
    assert main(["--config", str(parts / "config.yaml"), "--resume"]) == 0
    assert (parts / "checkpoint.safetensors").read_bytes() == (whole / "checkpoint.safetensors").read_bytes()
    metrics = json.loads((whole / "metrics.json").read_text())
    learned = metrics["fusion"]["learned"]
    assert learned["weight_cls"] != 1.0 and {"weight_kl", "weight_cos", "weight_norm"} <= learned.keys()
    assert "loss weight, kl" in (whole / "report.html").read_text()


def test_masking_changes_the_training_by_the_seed(store, tmp_path):
    config = resolve(TrainConfig(features=str(store), preset="synth", heads=2, mask_clips=0.5))
    trainer = Trainer(Run(tmp_path, config), Variant("fusion", "fusion", "ief"), 0, dim=16)
    clips = type("Clips", (), {"lengths": torch.full((6,), 9)})
    order = [[0, 1, 2], [3, 4, 5]]
    first, again = list(trainer._masks(clips, order)), list(trainer._masks(clips, order))
    assert all(torch.equal(a.dimensions, b.dimensions) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].dimensions, first[1].dimensions)
    trainer.progress.epoch = 1
    assert not torch.equal(next(trainer._masks(clips, order)).dimensions, first[0].dimensions)
    off = Trainer(Run(tmp_path, dataclasses.replace(config, mask_clips=0.0)), trainer.variant, 0, dim=16)
    assert list(off._masks(clips, order)) == [None, None]


def test_the_released_row_has_nothing_of_it(tmp_path):
    config = resolve(TrainConfig(surprise=True, mask_clips=0.5, loss_weights="learned", compare=True))
    for variant in Run(tmp_path, config).variants:
        released = variant.method == "released"
        found = variant.apply(config)
        assert (found.surprise, found.mask_clips > 0, found.loss_weights == "learned") == (not released,) * 3


def test_rows_of_one_stream_have_the_plain_fusion():
    config = resolve(TrainConfig(fusion="cross-attention"))
    assert [model_config(config, 16, name).fusion for name in ("fusion", "image")] == ["cross-attention", "precision"]


def test_a_graph_cannot_hold_a_varying_number_of_clean_clips():
    trainer = type("Alone", (), {"world": 1})
    assert "--lambda-mask" in why_no_graph(trainer, torch.device("cuda"), clean=True)
    assert why_no_graph(trainer, torch.device("cuda")) is None


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"mask_clips": 1.5}, "--mask-clips must be at most 1, not 1.5"),
        ({"mask_ratio": -0.1}, "--mask-ratio must be at least 0, not -0.1"),
        ({"lambda_mask": -1.0, "mask_clips": 0.5}, "--lambda-mask must be at least 0"),
        ({"lambda_mask": 0.1}, "add --mask-clips"),
        ({"surprise": True, "standardize": False}, "add --standardize true"),
        ({"loss_weights": "learned", "lambda_kl": 0.0}, "--lambda-kl must be greater"),
        ({"repair": True, "standardize": False}, "add --standardize true"),
        ({"fusion": "gated", "modality": "image"}, "--fusion gated needs both streams"),
        ({"method": "released", "refinement": "shared"}, "--refinement has no meaning for the released code"),
        ({"model": "rtfm", "fusion": "gated"}, "--fusion has no meaning for --model rtfm"),
        ({"method": "released", "surprise": True}, "--surprise has no meaning for the released code"),
        ({"method": "released", "mask_clips": 0.5}, "--mask-clips has no meaning for the released code"),
        ({"model": "rtfm", "loss_weights": "learned"}, "--loss-weights has no meaning for --model rtfm"),
        ({"model": "concat", "mask_clips": 0.5}, "--mask-clips has no meaning for --model concat"),
    ],
    ids=str,
)
def test_impossible_choices_are_refused(choices, message):
    with pytest.raises(UserError, match=message):
        resolve(TrainConfig(**choices))
