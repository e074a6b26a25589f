"""Padding is left out of what treats each segment alone, and nothing but the time is different."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from iefvad.checkpoints.hub import IEFVAD
from iefvad.model.losses import LossWeights, total_loss
from iefvad.model.padding import Layout, ValidRows, _wide, lay_out, split
from tests.model.test_network import VARIANTS

CPU = torch.device("cpu")


def rows_of(lengths: list[int], segments: int) -> ValidRows | None:
    return ValidRows.of(torch.tensor(lengths), segments, CPU)


def test_valid_rows_are_those_before_each_length():
    rows = rows_of([2, 0, 9, 1], 4)
    assert rows is not None
    assert rows.index.tolist() == [0, 1, 8, 9, 10, 11, 12] and rows.count == 7


@pytest.mark.parametrize("lengths", [[4, 4], [0, 0], [9, 4], []])
def test_all_rows_are_computed_where_none_can_be_left_out(lengths):
    assert rows_of(lengths, 4) is None


def test_lengths_elsewhere_are_not_looked_at():
    assert ValidRows.of(torch.tensor([1, 4], device="meta"), 4, CPU) is None


@pytest.mark.parametrize("padding", [False, True])
def test_full_clips_need_neither_mask_nor_rows(padding):
    """torch has faster attention for what has no mask."""
    options = {"window": None, "padding": padding, "dropout": 0.0}
    assert lay_out((2, 4), torch.tensor([4, 4]), CPU, **options) == (None, Layout())
    valid, layout = lay_out((2, 4), torch.tensor([4, 3]), CPU, **options)
    assert valid is not None and (layout.mask is None) is padding


def test_the_numbers_of_rows_repeat():
    """Few numbers between a power of two and the next, none much larger than need be, small ones exact."""
    counts = {}
    for valid in range(1, 4097):
        rows = rows_of([valid], 8192)
        assert rows is not None and valid <= rows.count <= valid * 33 / 32
        counts[valid] = rows.count
    assert all(counts[valid] == valid for valid in range(1, 65))
    assert len({count for count in counts.values() if 2048 < count <= 4096}) == 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trailing", [(), (5,), (2, 8)])
def test_take_and_place_are_each_others_inverse(dtype, trailing):
    lengths = [100, 3, 0, 78]
    rows = rows_of(lengths, 128)
    assert rows is not None and rows.count > sum(lengths), "no row is added to round the number up"
    valid = torch.arange(128) < torch.tensor(lengths)[:, None]
    padded = torch.randn(4, 128, *trailing).to(dtype)
    padded[~valid] = torch.nan
    taken = rows.take(padded)
    assert taken.shape == (rows.count, *trailing) and taken.dtype == dtype
    assert (taken[181:] == 0).all()
    placed = rows.place(taken)
    assert torch.equal(placed[valid], padded[valid]) and (placed[~valid] == 0).all()
    strided = padded.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(rows.take(strided), taken, rtol=0, atol=0)


def test_gradients():
    rows = rows_of([5, 0, 2, 70], 96)
    assert rows is not None and rows.count > 77
    padded = torch.randn(4, 96, 2, dtype=torch.float64, requires_grad=True)
    taken = torch.randn(rows.count, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rows.take, padded, fast_mode=True)
    assert torch.autograd.gradcheck(rows.place, taken, fast_mode=True)


@pytest.mark.parametrize("width", [3, 8])
@pytest.mark.parametrize("left_out", [False, True])
def test_split_is_place_and_unbind(left_out, width):
    """Bit for bit, forward and backward, for gradients of any layout; (3, d = 3) rows are not whole 16-byte numbers."""
    rows = rows_of([5, 0, 2, 70], 96) if left_out else None
    shape = (4, 96) if rows is None else (rows.count,)
    qkv = torch.randn(*shape, 3, 2, width, requires_grad=True)
    placed = qkv if rows is None else rows.place(qkv)
    expected = placed.permute(2, 0, 3, 1, 4).unbind(0)
    found = split(qkv, rows)
    together = torch.randn(4, 96, 3, 2, width).permute(2, 0, 3, 1, 4).unbind(0)
    apart = [
        torch.randn(4, 96, 2, width).transpose(1, 2),
        torch.randn(4, 2, 96, width),
        torch.randn(4, 2, width, 96).mT,
    ]
    for grads in (together, apart):
        wanted = torch.autograd.grad(expected, qkv, grads, retain_graph=True)[0]
        got = torch.autograd.grad(found, qkv, grads, retain_graph=True)[0]
        valid = slice(None) if rows is None else slice(len(rows.index))
        assert torch.equal(got[valid], wanted[valid]) and (got[len(wanted) :] == 0).all()
        assert rows is None or (got[len(rows.index) :] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_rows_move_as_16_byte_numbers():
    """On a GPU an index_put of 2-byte numbers takes several times as long."""
    assert _wide(torch.zeros(4, 3, 8, dtype=torch.bfloat16)).shape == (4, 3)
    assert _wide(torch.zeros(4, 9)[:, 1:]).dtype == torch.float32  # rows that are not aligned
    assert _wide(torch.zeros(4, 12)[:, 4:]).shape == (4, 2)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_network_is_the_same_with_its_padding(name, window, context, monkeypatch):
    """Dropout, too: attention draws the same masks either way."""
    config = dataclasses.replace(VARIANTS[name], dropout=0.3, window=window)
    image, event = torch.randn(2, 4, 40, 24)
    lengths, labels = torch.tensor([40, 2, 0, 13]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    image[1, 2:] = torch.nan
    valid = torch.arange(40 - context) < (lengths - context)[:, None]
    found = []
    for left_out in (True, False):
        if not left_out:
            monkeypatch.setattr(ValidRows, "of", lambda *arguments: None)
        torch.manual_seed(5)
        model = IEFVAD(config).train()
        out = model(image, event, lengths, context=context)
        loss = total_loss(out, labels, (lengths - context).clamp(min=0), LossWeights())
        loss.total.backward()
        grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        found.append((out.logits[valid], out.fused[valid], loss.total, grads))
    # The products have other numbers of rows, and may be summed in another order.
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_padding_is_not_computed():
    def operations(lengths: torch.Tensor | None) -> int:
        model = IEFVAD(dataclasses.replace(VARIANTS["ief"], dim=64), backend="reference").train()
        image, event = torch.randn(2, 8, 48, 64)
        with FlopCounterMode(display=False) as counter:
            model(image, event, lengths).logits.sum().backward()
        return counter.get_total_flops()

    padded, left_out = operations(None), operations(torch.tensor([48, *[6] * 7]))
    # A quarter of the rows is valid; attention, a sixth of the whole here, is on all of them.
    assert left_out < 0.45 * padded
    assert operations(torch.full((8,), 48)) == padded
