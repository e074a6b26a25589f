"""Densities of normal footage against plain references, the scale of their scores, and what they are fitted on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from iefvad.model.normality.config import MOST_ROWS, NormalityConfig
from iefvad.model.normality.densities import FLOOR, Gaussian, Neighbours, evenly
from iefvad.model.normality.fit import fit_normality
from iefvad.model.normality.tail import Tail, curve_of

KINDS = ["gaussian", "knn"]


def correlated(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(dim, dim)) * np.geomspace(0.1, 10, dim)
    return torch.from_numpy(random.normal(size=(count, dim)) @ mixing + 3.0)


def standardised(features: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = features.numpy()
    scale = np.sqrt(values.var(0) + FLOOR * values.var(0).mean())
    return values, values.mean(0), scale


@pytest.mark.parametrize(("count", "dim"), [(200, 6), (7, 24)])
def test_the_gaussian_is_the_mahalanobis_distance_with_ledoit_wolf(count, dim):
    features, seen = correlated(count, dim), correlated(5, dim, seed=1)
    values, centre, scale = standardised(features)
    covariance, _ = ledoit_wolf((values - centre) / scale, assume_centered=True)
    difference = (seen.numpy() - centre) / scale
    squared = np.einsum("nd,de,ne->n", difference, np.linalg.inv(covariance), difference)
    density = Gaussian(dim)
    density.fit(features)
    # Buffers are float32.
    np.testing.assert_allclose(density(seen).numpy(), np.log1p(squared / dim), rtol=2e-5)


def test_neighbours_are_the_nearest_segments():
    features, seen = correlated(60, 6), correlated(5, 6, seed=1)
    values, centre, scale = standardised(features)
    bank, z = (values - centre) / scale, (seen.numpy() - centre) / scale
    squared = np.sort(((z[:, None] - bank) ** 2).sum(-1), axis=1)[:, :5].mean(1)
    density = Neighbours(6, 60, 5)
    density.fit(features)
    np.testing.assert_allclose(density(seen).numpy(), np.log1p(squared / 6), rtol=2e-5)
    assert float(density(features[3])) < float(density(seen[0]))


def test_more_segments_than_are_stored_are_thinned_evenly():
    rows = torch.arange(1000.0).unsqueeze(1)
    assert evenly(rows, 10).flatten().tolist() == [100.0 * i for i in range(10)]
    assert len(evenly(rows[:7], 10)) == 7
    with pytest.raises(ValueError, match="rows"):
        NormalityConfig("knn", 4, rows=MOST_ROWS + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_constant_and_repeated_dimensions_have_finite_distances(kind):
    features = correlated(30, 4)
    features = torch.cat((features, features, torch.full((30, 2), 7.0)), 1)
    density = Gaussian(10) if kind == "gaussian" else Neighbours(10, 30, 5)
    density.fit(features)
    changed = features[:1].clone()
    changed[:, -1] += 5.0
    usual, odd = float(density(features[:1])), float(density(changed))
    assert math.isfinite(odd)
    assert odd > usual


def test_held_out_normal_footage_has_uniform_probabilities():
    random = np.random.default_rng(0)
    tail_of = curve_of(torch.from_numpy(random.normal(size=2000)))
    tail = Tail(len(tail_of.points))
    tail.fit(tail_of, per_hour=1000.0)
    fresh = np.sort(random.normal(size=20_000))
    probability = np.exp(-tail.surprisal(torch.from_numpy(fresh)).numpy())
    # Kolmogorov-Smirnov distance: of 2,000 values it is below 1.63/sqrt(2000) with 99% confidence.
    assert np.abs(probability - (1 - np.arange(20_000) / 20_000)).max() < 0.037
    # The tail, where the threshold of once per hour lies: 20 hours of 1,000 segments.
    alarms = (torch.sigmoid(tail(torch.from_numpy(fresh))) >= 0.5).sum().item()
    assert 5 <= alarms <= 60


@pytest.mark.parametrize("values", ["normal", "short tail", "heavy tail", "equal", "few"])
def test_scores_increase_and_do_not_saturate(values):
    random = np.random.default_rng(1)
    made = {
        "normal": random.normal(size=500),
        "short tail": random.random(500),
        "heavy tail": random.standard_t(1.5, size=500),
        "equal": np.zeros(50),
        "few": random.normal(size=8),
    }[values]
    curve = curve_of(torch.from_numpy(made))
    tail = Tail(len(curve.points))
    tail.fit(curve, per_hour=5625.0)
    spread = max(made.std(), 1e-6)
    u = torch.linspace(float(made.min() - 3 * spread), float(made.max() + 30 * spread), 2001, dtype=torch.float64)
    scores = torch.sigmoid(tail(u)).float()
    assert scores.min() >= 0
    assert scores.max() < 1
    assert (scores.diff() >= 0).all()
    assert (scores[u > made.max()].diff() > 0).all()  # beyond all footage, more unusual is still higher


def videos_of(lengths: list[int], *, noisy: float = 1.0, dim: int = 6, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Normal videos. The event features of each video have their own level, `noisy` times that of the image."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        level = torch.randn(1, 1, dim, generator=random)
        image = torch.randn(1, length, dim, generator=random) + level
        event = torch.randn(1, length, dim, generator=random) + noisy * level
        made.append({"image": image, "event": event})
    return made


def fitted(videos, **settings):
    usual = {"density": "knn", "modality": "fusion", "per_hour": 5625.0}
    return fit_normality(videos.__getitem__, [x["image"].shape[1] for x in videos], **usual | settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_is_scored_by_densities_that_have_not_seen_it(kind):
    videos = videos_of([20] * 10)
    videos[4] = {name: x + 20.0 for name, x in videos[4].items()}
    made = fitted(videos, density=kind)
    assert made.groups == 5
    assert not made.blocks
    means = [float(scores.mean()) for scores in made.held_out]
    assert means[4] > 1.5 * max(means[:4] + means[6:])
    # The final density has seen it, so to the nearest neighbours it is as usual as the others.
    seen = made.network(videos[4]["image"], videos[4]["event"]).scores
    if kind == "knn":
        assert float(seen.mean()) < 0.5 * means[4]


def test_the_weights_are_inverse_variances_of_held_out_distances():
    videos = videos_of([20] * 10, noisy=6.0)
    network = fitted(videos).network
    precisions = []
    for name in ("image", "event"):
        distances = []
        for group in range(0, 10, 2):
            rest = torch.cat([x[name][0] for x in videos[:group] + videos[group + 2 :]])
            density = Neighbours(6, len(rest), 5)
            density.fit(rest.double())
            distances += [density(x[name]).flatten() for x in videos[group : group + 2]]
        precisions.append(1 / torch.cat(distances).var(correction=0))
    torch.testing.assert_close(network.precisions, torch.stack(precisions).float())
    assert precisions[0] > 2 * precisions[1]  # the image differs less from video to video
    output = network(torch.zeros(1, 3, 6), torch.zeros(1, 3, 6))
    torch.testing.assert_close(output.w_img[0, :, 0].double(), (precisions[0] / sum(precisions)).expand(3))
    torch.testing.assert_close(output.w_img + output.w_evt, torch.ones(1, 3, 1))


def test_a_single_video_is_held_out_in_blocks():
    made = fitted(videos_of([23]))
    assert made.blocks
    assert made.groups == 5
    assert made.held_out[0].shape == (23,)
    assert made.network.config.rows == 23


def test_one_stream_needs_no_other():
    videos = [{"event": x["event"]} for x in videos_of([10, 12])]
    made = fit_normality(videos.__getitem__, [10, 12], density="gaussian", modality="event", per_hour=5625.0)
    output = made.network(None, videos[0]["event"])
    assert output.w_img is None
    assert output.scores.shape == (1, 10)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="7 normal segments of 16 frames are too few"):
        fitted(videos_of([3, 4]))
    still = videos_of([10, 10])
    for video in still:
        video["event"].fill_(0.25)
    with pytest.raises(ValueError, match="event features are the same in all"):
        fitted(still)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_and_batches_have_the_scores_of_the_whole(kind):
    videos = videos_of([12] * 6)
    network = fitted(videos, density=kind).network
    image, event = (torch.cat([x[name] for x in videos]) for name in ("image", "event"))
    whole = network(image, event).scores
    for start in range(0, 12, 5):
        piece = slice(start, start + 5)
        # A product of matrices may sum in another order. Its float64 rounding seldom reaches the float32 score.
        torch.testing.assert_close(network(image[:, piece], event[:, piece]).scores, whole[:, piece], rtol=3e-7, atol=0)
    later = network(image, event, torch.full((6,), 12), context=7)
    torch.testing.assert_close(later.scores, whole[:, 7:], rtol=3e-7, atol=0)
