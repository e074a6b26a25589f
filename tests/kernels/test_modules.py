from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ief_kernels import KalmanScan, PrecisionFusion, Refinement
from tests.helpers.kernel_checks import BACKENDS


class Chain(nn.Module):
    """All three operators in a row, every learned variant on."""

    def __init__(self, backend: str, dim: int = 8) -> None:
        super().__init__()
        self.fusion = PrecisionFusion(nu="learned", backend=backend)
        self.scan = KalmanScan(dim, "learned", nu=4.0, backend=backend)
        self.refinement = Refinement(dim, 6, 3, checkpoint_every=2, backend=backend)

    def forward(self, tensors: list[Tensor], lengths: Tensor) -> tuple[Tensor, Tensor]:
        fusion, terms = self.fusion.with_terms(*tensors, lengths)
        scan = self.scan(fusion.mean, fusion.var, lengths)
        return self.refinement(scan.mean), sum(terms) + scan.gain.sum() + scan.state[0].sum()


def run(call: nn.Module, module: nn.Module, tensors: list[Tensor], lengths: Tensor) -> list[Tensor]:
    refined, scalar = call(tensors, lengths)
    return [refined, scalar, *torch.autograd.grad(refined.square().sum() + scalar, [*tensors, *module.parameters()])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_as_one_graph(backend: str, autocast: bool) -> None:
    torch.manual_seed(0)
    module = Chain(backend)
    tensors = [torch.randn(2, 5, 8, requires_grad=True) for _ in range(4)]
    lengths = torch.tensor([5, 3])
    torch.compiler.reset()
    # aot_eager traces forward and backward like inductor does, without waiting for a C++ compiler
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = run(module, module, tensors, lengths)
        result = run(compiled, module, tensors, lengths)
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_backends_agree() -> None:
    torch.manual_seed(0)
    modules = [Chain("auto"), Chain("reference")]
    modules[1].load_state_dict(modules[0].state_dict())
    tensors = [torch.randn(3, 7, 8, requires_grad=True) for _ in range(4)]
    lengths = torch.tensor([7, 0, 4])
    for got, want in zip(*(run(module, module, tensors, lengths) for module in modules), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)  # float32 through three operators


@pytest.mark.parametrize(("gain", "variance"), [(0.6, 1.0), (0.2, 0.4), (0.9, 3.0)])
def test_learned_noise_starts_at_the_asked_gain(gain: float, variance: float) -> None:
    module = KalmanScan(5, "learned", initial_gain=gain, unit_variance=variance)
    scan = module(torch.randn(1, 200, 5), torch.full((1, 200, 5), variance))
    torch.testing.assert_close(scan.gain[0, -1], torch.full((5,), gain), rtol=1e-4, atol=0)
    scan.mean.square().sum().backward()
    assert module.raw_noise is not None and module.raw_noise.grad is not None
    assert (module.raw_noise.grad != 0).all()


def test_learned_nu_starts_where_told_and_differs_per_modality() -> None:
    module = PrecisionFusion(nu="learned", initial_nu=5.0)
    torch.testing.assert_close(torch.stack(module.nu()), torch.full((2,), 5.0))
    tensors = [torch.randn(2, 3, 4) for _ in range(4)]
    fixed = PrecisionFusion(nu=5.0)
    torch.testing.assert_close(tuple(module(*tensors)), tuple(fixed(*tensors)))
    module(*tensors).mean.square().sum().backward()
    assert module.raw_nu is not None and module.raw_nu.grad is not None
    assert (module.raw_nu.grad != 0).all() and module.raw_nu.grad[0] != module.raw_nu.grad[1]
    assert not list(fixed.parameters()) and fixed.nu() == (5.0, 5.0)
    assert PrecisionFusion(nu=None).nu() == (None, None)


def test_fixed_noise_has_no_parameters() -> None:
    module = KalmanScan(5, 0.25)
    assert not list(module.parameters()) and module.process_noise() == 0.25


@pytest.mark.parametrize("shared", [False, True])
def test_refinement_is_initialised_like_linear_layers(shared: bool) -> None:
    torch.manual_seed(0)
    module = Refinement(400, 100, 3, shared=shared)
    blocks = 1 if shared else 3
    assert module.w1.shape == (blocks, 100, 400) and module.w2.shape == (blocks, 400, 100)
    for weight, fan_in in ((module.w1, 400), (module.b1, 400), (module.w2, 100), (module.b2, 100)):
        bound = fan_in**-0.5
        assert weight.abs().max() <= bound and weight.abs().max() > 0.95 * bound
        assert abs(weight.std().item() / bound - 3**-0.5) < 0.1
    assert module(torch.randn(2, 400)).shape == (2, 400)


def test_refinement_of_no_steps() -> None:
    z = torch.randn(2, 4)
    assert torch.equal(Refinement(4, steps=0)(z), z)
    assert torch.equal(Refinement(4, steps=0, shared=True)(z), z)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="'learned'"):
        PrecisionFusion(nu="auto")
    with pytest.raises(ValueError, match="above 1"):
        PrecisionFusion(nu="learned", initial_nu=1.0)
    with pytest.raises(ValueError, match="positive"):
        PrecisionFusion(nu=-2.0)
    with pytest.raises(ValueError, match="'learned'"):
        KalmanScan(3, "auto")
    with pytest.raises(ValueError, match="negative"):
        KalmanScan(3, -1.0)
    with pytest.raises(ValueError, match="gain"):
        KalmanScan(3, "learned", initial_gain=1.0)
    with pytest.raises(ValueError, match="steps"):
        Refinement(3, steps=-1)
