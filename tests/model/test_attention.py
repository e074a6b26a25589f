"""Attention with dropout on the CPU: the formula, value by value, however many videos are taken at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from iefvad.checkpoints.hub import IEFVAD
from iefvad.model import attention
from iefvad.model.attention import attention_with_dropout, serves
from iefvad.model.config import ModelConfig
from iefvad.model.encoder import SelfAttention
from iefvad.model.padding import Layout, lay_out

HEADS, WIDTH = 2, 4
SPANS = {
    "one": [(0, 7)],
    "back to back": [(0, 3), (3, 8), (8, 9), (9, 13)],
    "equal": [(0, 4), (4, 8), (8, 12), (12, 14)],
    "apart, one empty": [(0, 2), (6, 6), (12, 18)],
    "none": [],
}


def plain(qkv: torch.Tensor, spans: list[tuple[int, int]], masks: list[torch.Tensor], scale: float) -> torch.Tensor:
    """Row by row in the order of the spans, with given masks (H, T, T) of kept weights."""
    out = torch.zeros(qkv.shape[0], HEADS, WIDTH, dtype=qkv.dtype)
    for (start, end), mask in zip(spans, masks, strict=True):
        query, key, value = (part.transpose(0, 1) for part in qkv[start:end].unbind(1))
        weights = (query @ key.transpose(1, 2) / WIDTH**0.5).softmax(-1)
        out[start:end] = (weights * mask * scale @ value).transpose(0, 1)
    return out.flatten(1)


@pytest.mark.parametrize("together", [1, 1 << 19], ids=["a video at a time", "neighbours together"])
@pytest.mark.parametrize("name", SPANS)
def test_attention_with_dropout_is_the_formula(monkeypatch, name, together):
    """Against plain code with the same masks, values and gradients, in float64."""
    monkeypatch.setattr(attention, "WEIGHTS", together)
    spans, rows = SPANS[name], 18
    drawn: list[torch.Tensor] = []
    keep = attention._keep

    def kept(shape: tuple[int, ...], cut: int) -> torch.Tensor:
        drawn.append(keep(shape, cut))
        return drawn[-1]

    monkeypatch.setattr(attention, "_keep", kept)
    qkv = torch.randn(rows, 3, HEADS, WIDTH, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(rows, HEADS * WIDTH, dtype=torch.float64)
    found = attention_with_dropout(qkv, spans, 0.25)
    masks = [mask for run in drawn for mask in run]
    assert len(masks) == sum(end > start for start, end in spans)
    if name == "equal":
        assert len(drawn) == (4 if together == 1 else 2)
    expected = plain(qkv, [span for span in spans if span[1] > span[0]], masks, 1 / 0.75)
    torch.testing.assert_close(found, expected)
    if spans:
        gradients = [torch.autograd.grad(out, qkv, upstream)[0] for out in (found, expected)]
        torch.testing.assert_close(*gradients)


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(attention, "_keep", lambda shape, cut: torch.arange(shape[-1]) % 3 < 2)
    qkv = torch.randn(9, 3, HEADS, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention_with_dropout(x, [(0, 4), (5, 9)], 0.5), qkv)


def test_share_of_dropped_weights_and_their_seed():
    torch.manual_seed(0)
    first = attention._keep((64, 64, 101), round(0.1 * 65536))
    # Bernoulli of 413,696 draws: a standard deviation of 4.7e-4.
    assert first.float().mean() == pytest.approx(0.9, abs=2.5e-3)
    torch.manual_seed(0)
    assert torch.equal(first, attention._keep((64, 64, 101), round(0.1 * 65536)))
    assert not torch.equal(first, attention._keep((64, 64, 101), round(0.1 * 65536)))


def test_bfloat16_under_autocast_is_near_float32(monkeypatch):
    qkv = torch.randn(32, 3, HEADS, 8)
    monkeypatch.setattr(attention, "_keep", lambda shape, cut: torch.ones(shape, dtype=torch.bool))
    exact = attention_with_dropout(qkv, [(0, 16), (16, 32)], 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention_with_dropout(qkv.bfloat16(), [(0, 16), (16, 32)], 0.1)
    assert found.dtype == torch.bfloat16
    # bfloat16 has 8 bits; scores, weights and sums are each rounded once.
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("lengths", [None, [9, 4, 0], [9, 9, 8], [3, 1, 2]])
def test_without_dropping_the_layer_is_the_one_with_masks(monkeypatch, lengths):
    """A layer by spans, every weight kept, and the same layer by torch's attention with masks."""
    monkeypatch.setattr(attention, "_keep", lambda shape, cut: torch.ones(shape, dtype=torch.bool))
    torch.manual_seed(1)
    layer = SelfAttention(8, 2, dropout=2**-16).train()
    batch, segments = 3, 9
    given = None if lengths is None else torch.tensor(lengths)
    features = torch.randn(batch, segments, 8)
    found = []
    for dropout in (2**-16, 0.0):
        layer.dropout = dropout
        options = {"window": None, "padding": False, "dropout": dropout}
        valid, layout = lay_out((batch, segments), given, features.device, **options)
        assert (layout.spans is None) == (dropout == 0.0)
        values = features if layout.rows is None else layout.rows.take(features)
        out = layer(values, layout)
        out = out if layout.rows is None else layout.rows.place(out)
        found.append(out if valid is None else out[valid])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_where_it_serves():
    cpu = torch.device("cpu")
    assert serves(cpu, 0.1) and not serves(cpu, 0.0) and not serves(cpu, 1.0) and not serves(torch.device("meta"), 0.1)
    assert lay_out((2, 0), None, cpu, window=None, padding=False, dropout=0.1)[1].spans == [(0, 0), (0, 0)]
    kept = lay_out((2, 4), torch.tensor([4, 3]), cpu, window=2, padding=False, dropout=0.1)[1]
    assert kept.spans is None and kept.mask is not None


def test_the_published_variant_attends_to_padding():
    lengths = torch.tensor([5, 1])
    layout = lay_out((2, 5), lengths, torch.device("cpu"), window=None, padding=True, dropout=0.1)[1]
    assert layout == Layout(None, [(0, 5), (5, 10)], None)


def test_an_empty_batch():
    model = IEFVAD(ModelConfig(dim=8, heads=2, refine_steps=1)).train()
    for shape in ((0, 4, 8), (2, 0, 8)):
        out = model(torch.zeros(shape), torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64))
        assert out.logits.shape == shape[:2]


def test_torch_attention_is_what_a_layer_in_eval_calls(monkeypatch):
    calls = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(k) or original(*a, **k))
    model = IEFVAD(ModelConfig(dim=8, heads=2, refine_steps=1))
    features = torch.randn(2, 3, 8)
    model.eval()(features, features)
    assert [call["dropout_p"] for call in calls] == [0.0] * 4
    model.train()(features, features)
    assert len(calls) == 4
