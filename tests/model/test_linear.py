"""Linear layers of the encoders: the same as torch's own, however their products are computed."""

from __future__ import annotations

import pytest
import torch

from ief_kernels import _products
from iefvad.model import linear
from iefvad.model.linear import Linear

ONEDNN = _products._product() is not None


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products go the way of large ones."""
    monkeypatch.setattr(_products, "SMALLEST", 1)


@pytest.mark.parametrize("shape", [(5, 7, 12), (1, 12), (3, 0, 12)])
def test_linear_is_torchs(always, shape):
    torch.manual_seed(0)
    ours, theirs = Linear(12, 20), torch.nn.Linear(12, 20)
    theirs.load_state_dict(ours.state_dict())
    x, upstream = torch.randn(shape), torch.randn(*shape[:-1], 20)
    found = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        found.append((y, *torch.autograd.grad(y, [leaf, layer.weight, layer.bias], upstream)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.skipif(not ONEDNN, reason="MKL serves this processor")
def test_large_float32_products_are_onednns_and_others_are_not(always, monkeypatch):
    a, b = torch.randn(4, 3), torch.randn(5, 3).t()
    assert _products.served(a, b)
    assert not _products.served(a.double(), b.double()) and not _products.served(a.bfloat16(), b.bfloat16())
    layer = Linear(3, 5)
    calls = []
    monkeypatch.setattr(linear, "product", lambda *arguments: calls.append(1) or _products.product(*arguments))
    layer(a).sum().backward()
    assert len(calls) == 2, "forward, and the weight's gradient"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(a).dtype == torch.bfloat16


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_products_of_views(always, transposed, relu):
    a = torch.randn(9, 6).t() if transposed else torch.randn(6, 9)
    b = torch.randn(9, 4) if transposed else torch.randn(4, 9).t()
    bias = torch.randn(4)
    expected = a @ b + bias
    torch.testing.assert_close(_products.product(a, b, bias, relu=relu), expected.relu() if relu else expected)
    torch.testing.assert_close(_products.product(a, b), a @ b)
