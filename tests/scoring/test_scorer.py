"""Sliding windows over the features of a video: what must not depend on the pieces, and what the protocol fixes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iefvad.checkpoints.hub import IEFVAD
from iefvad.model.config import ModelConfig
from iefvad.scoring.scorer import Scorer, columns_of, score_batch
from iefvad.utils.errors import UserError

DIM, LENGTH = 16, 23
# Scores of one model for the same features in other pieces: sums in another order.
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def network(**config) -> IEFVAD:
    torch.manual_seed(1)
    return IEFVAD(ModelConfig(**{"dim": DIM, "heads": 2, "refine_steps": 2, **config})).eval()


def sequence(crops: int = 1, length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    image, event = torch.randn(2, crops, length, DIM, generator=generator)
    return image, event


def whole(model: IEFVAD, image: torch.Tensor, event: torch.Tensor) -> np.ndarray:
    lengths = torch.full((len(image),), image.shape[1])
    return score_batch(model, image, event, lengths, chunk=image.shape[1])[0].mean(0)


@pytest.mark.parametrize("config", [{}, {"window": 3}, {"released": True, "temporal": "none"}, {"modality": "event"}])
def test_a_hop_of_the_whole_chunk_is_the_protocol_of_evaluation(config):
    """Chunk after chunk, each seen alone, while the state of the recursion goes on."""
    model, (image, event) = network(**config), sequence()
    rows, state = [], None
    for start in range(0, LENGTH, 8):
        piece = slice(start, min(start + 8, LENGTH))
        lengths = torch.tensor([piece.stop - piece.start])
        numbers, state = score_batch(model, image[:, piece], event[:, piece], lengths, chunk=8, state=state)
        rows.append(numbers[0])
    expected = np.concatenate(rows)
    np.testing.assert_array_equal(Scorer(model, chunk=8).feed(image, event), expected)
    np.testing.assert_array_equal(Scorer(model, chunk=8, hop=8, context=0).feed(image, event), expected)


@pytest.mark.parametrize(("window", "hop"), [(1, 1), (1, 5), (2, 2), (2, 4), (3, 3), (4, 8)])
@pytest.mark.parametrize("temporal", ["kalman", "robust-kalman", "none"])
def test_with_local_attention_sliding_equals_the_whole_sequence(window, hop, temporal):
    """Hops of whole windows: every segment sees what it sees in the whole video, and the recursion goes on."""
    model, (image, event) = network(window=window, temporal=temporal), sequence(crops=2)
    np.testing.assert_allclose(Scorer(model, chunk=12, hop=hop).feed(image, event), whole(model, image, event), **CLOSE)


@pytest.mark.parametrize("hop", [1, 2, 3, 5])
def test_windows_lie_where_they_would_in_the_whole_video(hop):
    """Without recursion, a segment at the end of its window or piece has its score in the whole video."""
    window = 4
    model, (image, event) = network(window=window, temporal="none"), sequence()
    rows = Scorer(model, chunk=8, hop=hop).feed(image, event)
    expected = whole(model, image, event)
    complete = [
        t for t in range(LENGTH) if min((t // hop + 1) * hop, LENGTH) >= min((t // window + 1) * window, LENGTH)
    ]
    assert complete
    np.testing.assert_allclose(rows[complete], expected[complete], **CLOSE)


def test_context_is_seen_but_not_scored_again():
    """Hop 1 without windows: the last segment of a short video sees all of it, as in the whole sequence."""
    model, (image, event) = network(temporal="none"), sequence(length=8)
    rows = Scorer(model, chunk=8, hop=1).feed(image, event)
    assert rows.shape == (8, 4)
    np.testing.assert_allclose(rows[-1], whole(model, image, event)[-1], **CLOSE)
    blind = Scorer(model, chunk=8, hop=1, context=0).feed(image, event)
    np.testing.assert_allclose(blind[:1], rows[:1], **CLOSE)
    assert np.abs(blind[-1, 0] - rows[-1, 0]) > 1e-4


def test_state_is_continuous_over_hops():
    model, (image, event) = network(process_noise=0.0), sequence()
    gain = Scorer(model, chunk=8, hop=1).feed(image, event)[:, 3]
    assert gain[0] == pytest.approx(1.0)
    # Without process noise the state is a running mean: its gain falls about like 1/t.
    assert gain[-1] < 2.5 / LENGTH and (np.diff(gain[:8]) < 0).all()


@pytest.mark.parametrize("hop", [1, 3, 8])
def test_released_models_are_padded_and_have_no_gain(hop):
    model, (image, event) = network(released=True, temporal="none"), sequence()
    rows = Scorer(model, chunk=8, hop=hop).feed(image, event)
    assert np.isfinite(rows[:, :3]).all() and np.isnan(rows[:, 3]).all()
    last = slice(LENGTH - 8 if hop < 8 else 16, LENGTH)
    lengths = torch.tensor([last.stop - last.start])
    if hop != 3:
        expected = score_batch(model, image[:, last], event[:, last], lengths, chunk=8)[0][0]
        np.testing.assert_allclose(rows[-1, :3], expected[-1, :3], **CLOSE)


@pytest.mark.parametrize("hop", [1, 3, 8])
def test_how_features_arrive_does_not_matter(hop):
    """Features may come in pieces of the size of the hop, or all at once."""
    model, (image, event) = network(), sequence(crops=3)
    once = Scorer(model, chunk=8, hop=hop).feed(image, event)
    scorer = Scorer(model, chunk=8, hop=hop)
    parts = [scorer.feed(image[:, t : t + hop], event[:, t : t + hop]) for t in range(0, LENGTH, hop)]
    np.testing.assert_array_equal(np.concatenate(parts), once)
    assert scorer.feed(image[:, :0], event[:, :0]).shape == (0, 4)


def test_memory_of_the_past_is_bounded():
    model, (image, event) = network(), sequence()
    scorer = Scorer(model, chunk=8, hop=1, context=5)
    for t in range(LENGTH):
        scorer.feed(image[:, t : t + 1], event[:, t : t + 1])
        assert scorer._before is not None
        assert scorer._before[0].shape[1] == min(t + 1, 5)
        assert scorer._before[0].untyped_storage().nbytes() <= 5 * DIM * 4


@pytest.mark.parametrize(("hop", "context", "message"), [(0, None, "--hop"), (9, None, "--hop"), (4, 5, "--context")])
def test_what_does_not_fit_is_refused(hop, context, message):
    with pytest.raises(UserError, match=message):
        Scorer(network(), chunk=8, hop=hop, context=context)


def test_columns_that_a_network_lacks_are_none():
    rows = np.array([[0.5, 0.4, 0.6, np.nan]], np.float32)
    w_img, w_evt, gain = columns_of(rows)
    assert w_img is not None and w_evt is not None and gain is None
    assert columns_of(np.zeros((0, 4), np.float32)) == (None, None, None)
