"""`python -m bench train`: its plain model is the network, its store is read by everybody, its sections add up."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from bench import associative
from bench.__main__ import main
from bench.end_to_end import _train_memory as memory
from bench.end_to_end._plain_model import PlainIEFVAD
from bench.end_to_end._random_store import video_lengths, write_store
from bench.end_to_end._train_measure import Size, check, endless, rows
from bench.end_to_end._train_tables import full_run_seconds, targets
from bench.end_to_end._ways import COMPILED, FUSED, WAYS, WEIGHTS, Sections, Training
from bench.timing import Timing
from ief_kernels import kalman_scan
from iefvad.checkpoints.hub import IEFVAD
from iefvad.data.batches import Batch, Clips, steps_per_epoch
from iefvad.data.datasets import load_packed
from iefvad.model.config import ModelConfig
from iefvad.model.losses import total_loss

CPU = torch.device("cpu")
CONFIG = ModelConfig(dim=32, heads=4, refine_steps=3, dropout=0.0)
EAGER = [name for name in WAYS if name not in COMPILED]


def ragged(segments: int = 40) -> Batch:
    """Six videos, one of a single segment; whatever lies in the padding."""
    generator = torch.Generator().manual_seed(1)
    image, event = torch.randn(2, 6, segments, 32, generator=generator)
    lengths = torch.tensor([segments, 17, 1, 16, 33, segments - 1])
    return Batch(image, event, lengths, (torch.arange(6) % 2).float())


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("segments", [40, 48])
def test_plain_model_has_the_networks_loss_and_gradients(segments: int) -> None:
    torch.manual_seed(0)
    network = IEFVAD(CONFIG, backend="reference").train()
    plain = PlainIEFVAD(network).train()
    batch = ragged(segments)
    output = network(batch.image, batch.event, batch.lengths)
    expected = total_loss(output, batch.labels, batch.lengths, WEIGHTS).total
    found = plain(batch, WEIGHTS)
    # float32 sums in another order; the plain loss takes logarithms of probabilities instead of log-sigmoids.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    found.backward()
    ours, theirs = gradients(plain), gradients(network)
    pairs = {
        "classifier.weight": "classifier.weight",
        "scan.raw_noise": "scan.raw_noise",
        "encoders.event.attentions.0.in_proj_weight": "encoders.event.layers.0.in_proj.weight",
        "encoders.image.norms.1.weight": "encoders.image.layers.1.norm.weight",
        "encoders.image.logvar.bias": "encoders.image.logvar.bias",
    }
    for name, other in pairs.items():
        torch.testing.assert_close(ours[name], theirs[other], rtol=1e-3, atol=1e-6, msg=name)
    torch.testing.assert_close(ours["refinement.blocks.2.0.weight"], theirs["refinement.w1"][2], rtol=1e-3, atol=1e-6)
    assert len(ours) == len(list(plain.parameters())), "every weight takes part"


@pytest.mark.parametrize("fill", [0.05, 0.52, 0.97])
@pytest.mark.parametrize("videos", [2, 161])
def test_lengths_have_the_padding_asked_for(fill: float, videos: int) -> None:
    lengths = video_lengths(videos, 256, fill, np.random.default_rng(0))
    assert min(lengths) >= 1 and max(lengths) <= 256 and len(lengths) == videos
    # Two videos change together in steps; of many, no single rounding shows.
    assert sum(lengths) / (256 * videos) == pytest.approx(fill, abs=0.01 if videos == 2 else 0.002)
    assert video_lengths(videos, 256, fill, np.random.default_rng(0)) == lengths
    assert videos == 2 or lengths != sorted(lengths), "short and long ones mix"


def test_plain_model_refuses_what_it_is_not() -> None:
    with pytest.raises(ValueError, match="without variations"):
        PlainIEFVAD(IEFVAD(ModelConfig(dim=8, heads=2, process_noise=0.0)))


@pytest.mark.parametrize("name", EAGER)
def test_sections_take_the_step_itself(name: str) -> None:
    """The cut graph's gradients are the whole graph's, and the sections are all of the time."""
    batch = ragged()
    whole, cut = Training(name, CONFIG, CPU), Training(name, CONFIG, CPU)
    whole.step(batch)
    sections = Sections(cut, time.perf_counter)
    began = time.perf_counter()
    sections.step(batch)
    passed = time.perf_counter() - began
    expected, found = gradients(whole.model), gradients(cut.model)
    assert expected.keys() == found.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-5, atol=1e-7, msg=parameter)
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    parts = ("encoders", "fusion and loss terms", "scan", "refinement", "classifier and loss", "optimiser")
    assert sorted(sections.seconds) == sorted(parts)
    assert all(seconds > 0 for seconds in sections.seconds.values())
    assert sum(sections.seconds.values()) == pytest.approx(passed, rel=0.2, abs=2e-3)


def test_ways_start_alike_and_a_wrong_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(clips=4, segments=40, dim=32, batch=3)
    trainings = {name: Training(name, size.model, CPU) for name in EAGER}
    errors = check(trainings, ragged(), size)
    assert set(errors) == set(EAGER) and max(errors.values()) < 2e-2
    assert max(error for name, error in errors.items() if not WAYS[name].half) < 1e-4
    original = Training.loss
    monkeypatch.setattr(
        Training, "loss", lambda self, batch: original(self, batch) * (1.01 if self.name == "fused" else 1)
    )
    with pytest.raises(ValueError, match=r"the fused step differs from the reference's by 1\.0e-02"):
        check(trainings, ragged(), size)


def test_compiled_ways_change_nothing_but_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes a minute and more, so the networks run as they are, the associative scan replaced by ours."""
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)

    def scan(x: torch.Tensor, var: torch.Tensor, noise: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
        return kalman_scan(x, var, process_noise=noise, eps=eps, backend="reference")[:3]

    monkeypatch.setattr(associative, "kalman_scan", scan)
    steps = {name: Training(name, CONFIG, CPU) for name in ("reference", *COMPILED)}
    losses = {}
    for name, training in steps.items():
        loss = training.loss(ragged())
        loss.backward()
        losses[name] = loss.item()
    for name in COMPILED:
        # The filter runs on a padded tail that the reference skips; no valid value differs.
        assert losses[name] == pytest.approx(losses["reference"], rel=1e-6)
        expected, found = (list(gradients(steps[way].model).values()) for way in ("reference", name))
        assert len(found) == len(expected) == len(list(steps[name].model.parameters()))


@pytest.mark.parametrize(("clips", "crops"), [(2, 1), (7, 1), (40, 10)])
def test_store_is_one_table_of_that_many_clips(tmp_path, clips: int, crops: int) -> None:
    write_store(tmp_path / "store", clips=clips, segments=5, dim=16)
    benchmark = load_packed(tmp_path / "store")
    assert {len(video.crops) for video in benchmark.train} == {crops}
    assert {bool(video.classes) for video in benchmark.train} == {False, True}
    served = Clips(benchmark.train, max_segments=5)
    assert len(served) == clips and set(served.lengths.tolist()) == {5}
    first, last = served.batch([0, clips - 1]), served[clips - 1]
    torch.testing.assert_close(first.image[1], last[0], rtol=0, atol=0)
    torch.testing.assert_close(first.event[1], last[1], rtol=0, atol=0)
    values = served.features("event")
    assert values.std() == pytest.approx(1, abs=0.2) and not torch.equal(values, served.features("image"))


def test_store_with_padding(tmp_path) -> None:
    write_store(tmp_path / "store", clips=40, segments=50, dim=8, fill=0.4)
    served = Clips(load_packed(tmp_path / "store").train, max_segments=50)
    lengths = served.lengths.tolist()
    assert sum(lengths) == pytest.approx(0.4 * 50 * 40, rel=0.05) and len(set(lengths)) == 4
    batch = served.batch(range(40))
    for position, length in enumerate(lengths):
        image, event = served[position]
        assert len(image) == length and (batch.image[position, length:] == 0).all()
        torch.testing.assert_close(batch.event[position, :length], event, rtol=0, atol=0)


def test_store_of_ucf_crime_has_the_epoch_of_the_paper() -> None:
    labels = torch.tensor([0.0] * 8000 + [1.0] * 8100)
    assert steps_per_epoch(labels, 64, mixed=False) == 125


def test_batches_go_on_after_an_epoch(tmp_path) -> None:
    write_store(tmp_path / "store", clips=4, segments=3, dim=8)
    batches = endless(Clips(load_packed(tmp_path / "store").train, max_segments=3), 2)
    assert [next(batches).labels.tolist() for _ in range(3)] == [[0, 0, 1, 1]] * 3
    batches.close()


def result(seconds: dict[str, float], **changes: object) -> dict:
    timings = {name: Timing({"step": [value], "data": [0.1]}) for name, value in seconds.items()}
    size = Size()
    found = rows(size, timings, {"compile": "no compiler"}, {}, {"gemm_float32": 1e12}, list(WAYS))
    content = {"share_of_ucf_step": size.share, "is_ucf": size.is_ucf, "steps_an_epoch": 125}
    waits = dict.fromkeys(seconds, 100.0)
    peaks = [{"provider": "plain", "peak_mb": 900.0}, {"provider": "fused", "peak_mb": 270.0}]
    return {
        "results": [row.record() for row in found],
        "size": content,
        "waits_for_data_ms": waits,
        "memory": peaks,
        "runs": [{"provider": "fused", "seconds": 59.0}],
        **changes,
    }


def test_targets_compare_with_the_fastest() -> None:
    seconds = {"plain": 1.0, "associative": 0.2, "compile": 0.3, "fused": 0.15, "fused-bfloat16": 0.1}
    found = {target.name: target for target in targets("cuda", result(seconds))}
    assert [target.measured for target in found.values()] == pytest.approx([10.0, 2.0, 0.2 / 0.15, 59.0, 0.3])
    assert [target.met for target in found.values()] == [True, True, False, True, True]
    smaller = {"share_of_ucf_step": 0.5, "is_ucf": False, "steps_an_epoch": 2}
    found = {target.name: target for target in targets("cuda", result(seconds, size=smaller))}
    assert found["ten epochs of UCF-Crime, the trainer's whole run: seconds"].met is None, "a smaller run is no answer"
    (step, _) = targets("cpu", result({"plain": 1.2, "fused": 1.0}))
    assert step.measured == pytest.approx(1.2) and step.met
    (step, memory_target) = targets("cpu", result({"fused": 1.0}, memory=[]))
    assert step.met is None and memory_target.met is None


def test_full_run_is_the_steps_and_the_waits_scaled() -> None:
    content = result({"fused": 1.9})
    assert full_run_seconds(content, "fused") == pytest.approx(1250 * 2.0)
    content["size"]["share_of_ucf_step"] = 0.125
    assert full_run_seconds(content, "fused") == pytest.approx(8 * 1250 * 2.0)


def test_operations_are_those_that_torch_counts() -> None:
    """Forward and backward of the plain network by torch's own counter, but for the small classifier."""
    from torch.utils.flop_counter import FlopCounterMode

    size = Size(segments=8, dim=32, batch=2)
    plain = Training("plain", size.model, CPU)
    batch = memory.random_batch(size.shape, CPU)
    with FlopCounterMode(display=False) as counter:
        plain.loss(batch).backward()
    classifier = 3 * 2 * 2 * size.batch * size.segments * size.dim
    inputs = 2 * 2 * 2 * size.batch * size.segments * 3 * size.dim**2  # features need no gradient
    assert counter.get_total_flops() == size.operations() + classifier - inputs


def test_peak_memory_counts_state_and_step() -> None:
    found = memory.measure_here("fused", (4, 64, 64), 4, CPU)
    parameters = sum(p.numel() for p in IEFVAD(ModelConfig(dim=64, heads=4)).parameters())
    features = 2 * 4 * 64 * 64
    assert found["state_mb"] == pytest.approx(4 * (3 * parameters + features) / 1e6, rel=0.01)
    assert found["peak_mb"] == pytest.approx(found["state_mb"] + found["step_mb"])


def test_quick_run_writes_tables_and_json(tmp_path, capsys) -> None:
    assert main(["train", "--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "8 clips × 12 segments × 32" in printed and "times at that size are extrapolations" in printed
    (path,) = tmp_path.glob("*_train_quick.json")
    content = json.loads(path.read_text())
    served = {row["provider"]: row for row in content["results"]}
    assert set(served) == set(WAYS)
    for name in EAGER:
        assert served[name]["median_ms"] > 0 and served[name]["repeats"] == 2
        assert sum(content["sections_ms"][name].values()) > 0
    for name in COMPILED:
        assert served[name]["median_ms"] is None and "compiling" in served[name]["reason"]
    assert [run["provider"] for run in content["runs"]] == list(FUSED)
    for run in content["runs"]:
        assert len(run["losses"]) == 2 and sum(run["seconds_epochs"]) <= run["seconds"]
    assert content["size"]["steps_an_epoch"] == 2 and not content["size"]["is_ucf"]
    assert {target["name"] for target in content["targets"]} >= {"training step, float32: times plain"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clips", "1"], "--clips must be at least 2"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--epochs", "-1"], "--epochs must not be negative"),
        (["--clips", "1000000000"], "lower --clips"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments, message, tmp_path, capsys) -> None:
    assert main(["train", "--quick", "--ways", "fused", "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_missing_gpu_is_said(capsys) -> None:
    assert main(["train", "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
