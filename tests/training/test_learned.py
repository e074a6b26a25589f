"""Learned process noise and degrees of freedom: they find the values that data were made with, and are reported."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import ief_kernels
from iefvad.cli.train import main
from iefvad.model.config import ModelConfig
from iefvad.model.network import Network
from iefvad.training.run import Run, Variant
from iefvad.training.settings import TrainConfig, load_config, resolve
from iefvad.training.state import Progress, load_state, save_state
from iefvad.training.step import make_optimizer, set_rate
from iefvad.training.trainer import Trainer
from iefvad.utils.tensors import read_tensors, write_tensors
from tests.helpers.stores import training_flags, write_store

STEPS = 100
"""A training of the preset `synth` has about this number of steps, one of UCF-Crime's somewhat more."""


def learn(module: torch.nn.Module, loss) -> None:
    """Minimise a loss as the trainer does with the preset synth: its optimiser, rates and milestones."""
    config = resolve(TrainConfig())
    optimizer = make_optimizer(module, config, capturable=False)
    for step in range(STEPS):
        epoch = step * config.epochs // STEPS
        set_rate(optimizer, config.factor ** sum(epoch >= milestone for milestone in config.milestones))
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def walks(noise: Tensor, *, videos: int, steps: int) -> Tensor:
    """Random walks (B, T, D) with process noise (D,), observed with noise of variance 1: an AR(1) state of factor 1."""
    states = (torch.randn(videos, steps, len(noise)) * noise.sqrt()).cumsum(1)
    return states + torch.randn(states.shape)


@pytest.mark.parametrize("nu", [None, 1e6])
def test_process_noise_finds_the_value_that_the_data_were_made_with(nu):
    torch.manual_seed(0)
    noise = torch.tensor([0.05, 0.2, 0.5, 1.0, 2.0])
    seen = walks(noise, videos=256, steps=64)
    scan = ief_kernels.KalmanScan(len(noise), "learned", unit_variance=4 / 9, nu=nu)
    assert torch.allclose(scan.process_noise(), torch.tensor(0.4))

    def loss() -> Tensor:
        # The next observation is predicted best by the filter that knows the data's process noise.
        return (scan(seen, torch.ones_like(seen)).mean[:, 4:-1] - seen[:, 5:]).square().mean(dim=(0, 1)).sum()

    learn(scan, loss)
    # 16,000 predictions per dimension leave an error of about 5% in q. The rate must cover the way.
    torch.testing.assert_close(scan.process_noise().detach(), noise, rtol=0.2, atol=0)


def test_degrees_of_freedom_find_the_values_that_the_data_were_made_with():
    torch.manual_seed(0)
    module = ief_kernels.PrecisionFusion(nu="learned")
    true = (3.0, 12.0)
    truth, logvars = torch.randn(100_000), torch.randn(2, 100_000)
    scales = torch.tensor([nu / (nu + 1) for nu in true])[:, None]
    image, event = truth + torch.randn(logvars.shape) * (scales * logvars.exp()).sqrt()

    def loss() -> Tensor:
        fused = module(image, logvars[0], event, logvars[1])
        # Likelihood of the truth by the fused belief: the variances that the model gives to this ν are right.
        return ((truth - fused.mean).square() / fused.var + fused.var.log()).mean()

    learn(module, loss)
    found = torch.stack([nu.detach() for nu in module.nu()])
    # 20% of ν = 12 is 1.4% of a variance. 100,000 values tell a variance to 0.5%.
    torch.testing.assert_close(found, torch.tensor(true), rtol=0.2, atol=0)


def test_learned_scalars_have_a_rate_of_their_own_and_no_weight_decay():
    network = Network(ModelConfig(dim=8, heads=2, refine_steps=1, nu="learned", covariance_rank=2))
    config = resolve(TrainConfig(lr=0.01, scalar_lr=0.25, weight_decay=0.5))
    optimizer = make_optimizer(network, config, capturable=False)
    scalars = [
        network.scan.raw_noise, network.fusion.raw_nu, network.fusion.raw_factor_img, network.fusion.raw_factor_evt
    ]  # fmt: skip
    weights, own = optimizer.param_groups
    assert {id(raw) for raw in own["params"]} == {id(raw) for raw in scalars}
    assert len(weights["params"]) + 4 == len(list(network.parameters()))
    assert (weights["lr"], weights["weight_decay"], own["lr"], own["weight_decay"]) == (0.01, 0.5, 0.25, 0.0)
    set_rate(optimizer, 0.1)
    assert (weights["lr"], own["lr"]) == pytest.approx((0.001, 0.025))
    fixed = Network(ModelConfig(dim=8, heads=2, refine_steps=1, process_noise=0.4))
    assert len(make_optimizer(fixed, config, capturable=False).param_groups) == 1 and fixed.learned() == {}


@pytest.mark.parametrize("modality", ["fusion", "event"])
def test_the_robust_filter_uses_the_learned_nu(modality):
    torch.manual_seed(0)
    config = ModelConfig(dim=8, heads=2, refine_steps=0, modality=modality, nu="learned", temporal="robust-kalman")
    network = Network(config).eval()
    features = torch.randn(2, 2, 9, 8)
    # With its ν at 8, the network is one of ν = 8. The terms of the loss are left out: the filter alone is asked.
    before = network(*features).gain
    torch.testing.assert_close(before, _fixed(network, 8.0)(*features).gain)
    before.sum().backward()
    own = [0, 1] if modality == "fusion" else [1]
    assert (network.fusion.raw_nu.grad[own] != 0).all()
    with torch.no_grad():
        network.fusion.raw_nu[own] = 1.0  # ν = 1 + softplus(1) = 2.31
    torch.testing.assert_close(network(*features).gain, _fixed(network, 2.3132617)(*features).gain)
    assert (network(*features).gain - before).abs().max() > 0.01


def _fixed(network: Network, nu: float) -> Network:
    """The same network with fixed ν and the same q."""
    fixed = Network(ModelConfig(**vars(network.config) | {"nu": nu})).eval()
    weights = network.state_dict()
    del weights["fusion.raw_nu"]
    fixed.load_state_dict(weights)
    return fixed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("learned")
    flags = ["--nu", "learned", "--compare", "true", "--fused", "--epochs", "2"]
    assert main(training_flags(write_store(root / "store"), root / "run", *flags)) == 0
    return root / "run"


def test_learned_values_are_in_log_metrics_and_report(run):
    keys = {"q_mean", "q_min", "q_max", "nu_image", "nu_event"}
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    fusion = [row for row in rows if row["model"] == "fusion"]
    assert all(keys <= row.keys() for row in fusion) and fusion[0]["q_min"] < fusion[0]["q_mean"] < fusion[0]["q_max"]
    metrics = json.loads((run / "metrics.json").read_text())
    learned = metrics["fusion"]["learned"]
    assert keys | {"by_epoch"} == learned.keys()
    assert learned["by_epoch"] == [{key: row[key] for key in ("epoch", *sorted(keys))} for row in fusion]
    assert learned["q_mean"] in [row["q_mean"] for row in fusion]
    report = (run / "report.html").read_text()
    assert 'id="learned"' in report and "ν, image" in report and f"{learned['nu_event']:.4f}" in report


def test_a_row_with_fixed_noise_stands_beside_the_learned_one(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert "fusion (q = 0.4)" in metrics and "q_mean" not in metrics["fusion (q = 0.4)"].get("learned", {})
    variant = next(variant for variant in Run.open(run).variants if variant.process_noise is not None)
    assert variant.apply(Run.open(run).config).process_noise == 0.4
    fixed = resolve(TrainConfig(compare=True, process_noise=0.1))
    assert not [variant for variant in Run(run, fixed).variants if "q =" in variant.name]


def test_a_run_of_an_earlier_version_goes_on_with_its_own_rate(run, tmp_path):
    """Its config.yaml has no rate for the scalars, and its state numbers the optimiser's entries by the model."""
    old = Run.open(run)
    text = (run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text("".join(line for line in text.splitlines(True) if "scalar_lr" not in line))
    config = load_config(tmp_path / "config.yaml")
    assert config.scalar_lr == config.lr
    again = Run.create(resolve(TrainConfig(**vars(old.config) | {"out": str(tmp_path), "resume": True})))
    assert again.config.scalar_lr == config.lr != old.config.scalar_lr

    trainer = Trainer(again, Variant("fusion", "fusion", "ief"), 0, dim=16)
    for parameter in trainer.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    trainer.optimizer.step()
    save_state(
        tmp_path / "state.safetensors",
        trainer.model,
        trainer.optimizer,
        Progress(epoch=1, best_epoch=1, best_rank=(0.5, 0.0), best=trainer.model.state_dict()),
    )
    tensors, metadata = read_tensors(tmp_path / "state.safetensors")
    numbers = {name: number for number, (name, _) in enumerate(trainer.model.named_parameters())}
    renamed = {}
    for entry, value in tensors.items():
        group, _, rest = entry.partition(".")
        name, _, key = rest.rpartition(".")
        renamed[f"optimizer.{numbers[name]}.{key}" if group == "optimizer" else entry] = value
    write_tensors(tmp_path / "old.safetensors", renamed, metadata)
    for file in ("state.safetensors", "old.safetensors"):
        other = Trainer(again, Variant("fusion", "fusion", "ief"), 1, dim=16)
        load_state(tmp_path / file, other.model, other.optimizer, torch.device("cpu"))
        for mine, theirs in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
            state, expected = other.optimizer.state[theirs], trainer.optimizer.state[mine]
            assert all(torch.equal(state[key], expected[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
