"""The loss of each baseline against values computed by hand, one number after the other."""

from __future__ import annotations

import math

import pytest
import torch

from iefvad.model.baselines.config import BaselineConfig
from iefvad.model.baselines.method import Found, highest, ranking
from iefvad.model.baselines.mgfn import contrastive_loss
from iefvad.model.baselines.network import BaselineNetwork
from iefvad.model.baselines.ur_dmu import latent_kl, magnitude_loss, memory_loss, triplet_loss

LABELS = torch.tensor([1.0, 0.0])
VALID = torch.tensor([[True, True, True], [True, True, False]])
SCORES = torch.tensor([[0.2, 0.9, 0.6], [0.3, 0.5, 0.99]])  # the last one is padding


def parts(name: str, **found: torch.Tensor):
    network = BaselineNetwork(BaselineConfig(name, 8))
    return network.method.loss(Found(SCORES.logit(), torch.zeros(2, 3, 1), found), LABELS, VALID)


def test_sultani():
    loss = parts("sultani")
    assert float(loss.cls) == pytest.approx(1 - 0.9 + 0.5)
    assert float(loss.reg) == pytest.approx(8e-5 * (0.7**2 + 0.3**2) + 8e-5 * (0.2 + 0.9 + 0.6))


def test_ranking_is_the_mean_over_all_pairs():
    found = ranking(torch.tensor([2.0, 9.0, 0.5]), torch.tensor([9.0, 1.5, 9.0]), torch.tensor([1.0, 0.0, 1.0]), 1.0)
    assert float(found) == pytest.approx((0.5 + 2.0) / 2)  # 1 − 2 + 1.5 and 1 − 0.5 + 1.5


def test_rtfm():
    magnitudes = torch.tensor([[3.0, 8.0, 4.0], [2.0, 6.0, 99.0]])
    loss = parts("rtfm", magnitudes=magnitudes)
    abnormal = -(math.log(0.2) + math.log(0.9) + math.log(0.6)) / 3
    normal = -(math.log(0.7) + math.log(0.5)) / 2
    assert float(loss.cls) == pytest.approx((abnormal + normal) / 2)
    gap = 100 - (3 + 8 + 4) / 3 + (2 + 6) / 2
    penalty = 8e-4 * (0.7**2 + 0.3**2) + 8e-3 * (0.2 + 0.9 + 0.6)
    assert float(loss.reg) == pytest.approx(1e-4 * gap + penalty)


def test_rtfm_chooses_the_largest_magnitudes():
    values = torch.tensor([[1.0, 5.0, 2.0, 4.0, 3.0]])
    assert highest(values, torch.ones(1, 5, dtype=torch.bool), 3).tolist() == [[False, True, False, True, True]]


def test_mgfn():
    loss = parts("mgfn", magnitudes=torch.tensor([[30.0, 80.0, 40.0], [20.0, 60.0, 990.0]]))
    abnormal, normal = (0.2 + 0.9 + 0.6) / 3, (0.3 + 0.5) / 2
    assert float(loss.cls) == pytest.approx(-(math.log(abnormal) + math.log(1 - normal)) / 2)
    contrast = 200 - ((30 + 80 + 40) / 3 - (20 + 60) / 2)
    penalty = 8e-4 * (0.7**2 + 0.3**2) + 8e-3 * (0.2 + 0.9 + 0.6)
    assert float(loss.reg) == pytest.approx(1e-3 * contrast + penalty)


def test_mgfn_chooses_by_magnitude_not_by_score():
    scores = torch.tensor([[0.9, 0.1, 0.2, 0.3]])
    found = Found(scores.logit(), torch.zeros(1, 4, 1), {"magnitudes": torch.tensor([[1.0, 2.0, 3.0, 4.0]])})
    loss = BaselineNetwork(BaselineConfig("mgfn", 8)).method.loss(found, torch.ones(1), torch.ones(1, 4).bool())
    assert float(loss.cls) == pytest.approx(-math.log((0.1 + 0.2 + 0.3) / 3))


def test_mgfn_contrasts_magnitudes():
    magnitudes = torch.tensor([10.0, 300.0, 16.0, 50.0, 110.0])
    found = contrastive_loss(magnitudes, torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0]))
    within = 6 + (250 + 190 + 60) / 3
    between = (0 + 0 + 160 + 166 + 100 + 106) / 6
    assert float(found) == pytest.approx(within + between)


@pytest.mark.parametrize("name", ["vadclip", "concat", "cross-attention"])
def test_cross_entropy_of_the_highest_segment(name: str):
    loss = parts(name)
    assert float(loss.cls) == pytest.approx(-(math.log(0.9) + math.log(0.5)) / 2)
    assert float(loss.reg) == float(loss.kl) == 0


NORMAL_MATCH = torch.tensor([[0.8, 0.1, 0.2], [0.4, 0.7, 0.9]])
ABNORMAL_MATCH = torch.tensor([[0.3, 0.6, 0.5], [0.1, 0.2, 0.9]])


def test_ur_dmu_memories():
    expected = -(math.log(0.8) + math.log(0.7) + math.log(0.6) + math.log(1 - 0.2))
    assert float(memory_loss(NORMAL_MATCH, ABNORMAL_MATCH, LABELS, VALID)) == pytest.approx(expected, rel=1e-5)


def test_ur_dmu_triplet_and_magnitude():
    normal = torch.zeros(2, 3, 2)
    abnormal = torch.zeros(2, 3, 2)
    normal[0, 0] = torch.tensor([3.0, 4.0])  # the abnormal video's best match with the normal memory
    normal[1, 1] = torch.tensor([0.0, 2.0])  # that of the normal video
    abnormal[0, 1] = torch.tensor([5.0, 0.0])
    found = {"normal": normal, "abnormal": abnormal, "normal_match": NORMAL_MATCH, "abnormal_match": ABNORMAL_MATCH}
    near = math.hypot(0.6, 0.8 - 1)
    far = math.hypot(1, 1)
    assert float(triplet_loss(found, LABELS, VALID)) == pytest.approx(near - far + 1, abs=1e-5)
    mean = torch.zeros(2, 3, 2)
    mean[1, 1] = torch.tensor([6.0, 8.0])
    assert float(magnitude_loss(found | {"mean": mean}, LABELS, VALID)) == pytest.approx(100 - 5 + 10)


def test_ur_dmu_kl_is_that_of_normal_segments():
    mean, logvar = torch.full((2, 3, 2), 9.0), torch.full((2, 3, 2), 9.0)
    mean[1, 0], mean[1, 1] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    logvar[1, :2] = 0.0
    logvar[1, 1, 0] = math.log(2.0)
    first, second = 0.5 * 1.0, 0.5 * (4.0 + 2.0 - 1 - math.log(2.0))
    assert float(latent_kl(mean, logvar, LABELS, VALID)) == pytest.approx((first + second) / 2)


def test_ur_dmu_weighs_its_terms():
    zeros = torch.zeros(2, 3, 2)
    found = {"normal": zeros + 1, "abnormal": zeros + 1, "mean": zeros + 1, "logvar": zeros}
    loss = parts("ur-dmu", normal_match=NORMAL_MATCH, abnormal_match=ABNORMAL_MATCH, **found)
    assert float(loss.cls) == pytest.approx(-(math.log(0.9) + math.log(0.5)) / 2)
    assert float(loss.kl) == pytest.approx(1e-3 * 1.0)
    memories = float(memory_loss(NORMAL_MATCH, ABNORMAL_MATCH, LABELS, VALID))
    assert float(loss.reg) == pytest.approx(0.1 * memories + 0.1 * 1.0 + 1e-4 * 100, rel=1e-5)
