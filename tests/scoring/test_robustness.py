"""Damage to one modality: what is damaged, draws, masks, several seeds, and the direction test."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import stats

from iefvad.data.datasets import load_store
from iefvad.model.config import ModelConfig
from iefvad.model.network import Network
from iefvad.scoring.direction import direction, paired_test
from iefvad.scoring.metrics import evaluate
from iefvad.scoring.robustness import explain, over_seeds, robustness
from iefvad.scoring.scorer import score_videos
from iefvad.utils.errors import UserError
from tests.helpers.stores import DIM, write_store

CHUNK = 8  # some videos are longer


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return load_store(write_store(tmp_path_factory.mktemp("store"))).test


def network(seed=0, **choices):
    torch.manual_seed(seed)
    model = Network(ModelConfig(dim=DIM, heads=2, refine_steps=2, **choices)).eval()
    for name in model.statistics:
        model.set_statistics(name, torch.randn(50, DIM) + 3)
    return model


def changed(video, image=None, event=None):
    """A video of other features."""
    pair = [t.numpy() if given is None else given for t, given in zip(video.features(0), (image, event), strict=True)]
    return type(video)(**{**video.__dict__, "reader": lambda crop: tuple(pair)})


@pytest.mark.parametrize("standardize", [False, True])
def test_a_draw_masks_the_same_dimensions_in_all_videos(videos, standardize):
    """A draw by hand, also for videos that are longer than one chunk."""
    model = network(standardize=standardize)
    rows = robustness(model, videos, chunk=CHUNK, ratios=[0.3], draws=3, seed=7)
    assert [row["mask"] for row in rows] == ["mean" if standardize else "zero"] * 3
    assert any(v.segments > CHUNK for v in videos) and any(v.segments <= CHUNK for v in videos)
    for draw in range(3):
        order = torch.randperm(DIM, generator=torch.Generator().manual_seed(7 + draw))
        masked = order[: round(0.3 * DIM)]
        centre = model.statistics["event"].centre[masked] if standardize else torch.zeros(len(masked))
        damaged = []
        for video in videos:
            features = video.features(0)[1].clone()
            features[:, masked] = centre
            damaged.append(changed(video, event=features.numpy()))
        expected = evaluate(score_videos(model, damaged, chunk=CHUNK))
        values = {key: value[0][draw] for key, value in rows[2]["values"].items()}
        # The same sums in batches of other sizes, float32.
        assert values["brier"] == pytest.approx(expected["brier"], abs=1e-5)
        assert values["w_evt_normal"] == pytest.approx(expected["weights"]["w_evt"]["normal"], abs=1e-5)


def test_a_draw_scales_other_time_steps_in_each_video(videos):
    model = network()
    [_, row, _] = robustness(model, videos, chunk=CHUNK, ratios=[0.5], draws=2, seed=3, damage="segments")
    generator = torch.Generator().manual_seed(4)  # the second draw
    damaged = []
    for video in videos:
        features = video.features(0)[0].clone()
        features[torch.randperm(video.segments, generator=generator)[: round(0.5 * video.segments)]] *= 0.01
        damaged.append(changed(video, image=features.numpy()))
    expected = evaluate(score_videos(model, damaged, chunk=CHUNK))
    assert row["values"]["brier"][0][1] == pytest.approx(expected["brier"], abs=1e-5)
    assert row["values"]["w_img"][0][1] == pytest.approx(expected["weights"]["w_img"]["overall"], abs=1e-5)


def test_time_steps_move_to_the_mean_of_a_standardising_network(videos):
    """With every step damaged and the centre as the features, nothing changes; zero is far from the centre."""
    model = network(standardize=True)
    centre = model.statistics["image"].centre.numpy()
    flat = [changed(v, image=np.tile(centre, (v.segments, 1))) for v in videos]
    rows = {
        mask: robustness(model, flat, ratios=[1.0], draws=1, damage="segments", mask=mask) for mask in ("mean", "zero")
    }
    assert rows["mean"][1]["kl"] < 1e-9 < 1e-4 < rows["zero"][1]["kl"]


def test_draws_differ_and_their_mean_and_deviation_are_kept(videos):
    rows = robustness(network(), videos, chunk=CHUNK, draws=4, progress=False)
    assert len(rows) == 11 and json.loads(json.dumps(rows, allow_nan=False)) == rows
    clean = rows[0]
    assert (clean["masked"], clean["kl"], clean["std"]["auc"], clean["draws"]) == ("none", 0, None, 1)
    for row in rows[1:]:
        values = row["values"]["auc"]
        assert len(values) == 1 and len(set(values[0])) > 1
        assert row["auc"] == pytest.approx(np.mean(values)) and row["std"]["auc"] == pytest.approx(
            np.std(values, ddof=1)
        )
        weight = "w_img" if row["masked"] == "image" else "w_evt"
        assert row["shift_abnormal"] == pytest.approx(row[f"{weight}_abnormal"] - clean[f"{weight}_abnormal"])
    again = robustness(network(), videos, chunk=CHUNK, draws=4, progress=False)
    assert again == rows
    # More draws begin with those of fewer, whatever else is measured. Batches differ, so float32 rounding does too.
    one = robustness(network(), videos, chunk=CHUNK, draws=1, ratios=[0.5], progress=False)
    assert one[1]["values"]["brier"][0][0] == pytest.approx(rows[5]["values"]["brier"][0][0], abs=1e-6)
    assert one[1]["std"]["auc"] is None
    assert "1 draw" in explain(one) and "become zero" in explain(one)


def test_rows_of_several_seeds_are_averaged_over_seeds(videos):
    by_seed = {seed: robustness(network(seed), videos, ratios=[0.5], draws=3, progress=False) for seed in (0, 4)}
    rows = over_seeds(by_seed)
    assert [row["seeds"] for row in rows] == [[0, 4]] * 3
    means = [found[1]["auc"] for found in by_seed.values()]
    assert rows[1]["auc"] == pytest.approx(np.mean(means)) and rows[1]["std"]["auc"] == pytest.approx(
        np.std(means, ddof=1)
    )
    assert rows[1]["std_draws"]["auc"] == pytest.approx(
        np.sqrt(np.mean([f[1]["std"]["auc"] ** 2 for f in by_seed.values()]))
    )
    assert np.shape(rows[1]["values"]["auc"]) == (2, 3) and len(rows[1]["videos_test"]) == 2
    assert over_seeds({0: by_seed[0]})[1] == by_seed[0][1] | {"seeds": [0]}
    with pytest.raises(ValueError, match="different settings"):
        over_seeds({0: by_seed[0], 1: robustness(network(), videos, ratios=[0.1], draws=3, progress=False)})
    assert len(direction(rows)["event"]["by_network"]) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"draws": 0}, "--draws must be 1 or more"),
        ({"ratios": [0.5, 1.5]}, "--ratios must be fractions"),
        ({"ratios": []}, "--ratios must be fractions"),
        ({"mask": "mean"}, "does not standardise"),
    ],
)
def test_wrong_settings_are_explained(videos, wrong, message):
    with pytest.raises(UserError, match=message):
        robustness(network(), videos, **wrong)


def test_the_paired_test_is_students():
    values = np.random.default_rng(0).normal(0.1, 1, 30)
    found = paired_test(values)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert paired_test([0.5]) == {"mean": 0.5, "p": None} and paired_test([])["mean"] is None
    assert paired_test([0.0, 0.0])["p"] == 1 and paired_test([0.25, 0.25])["p"] == 0
    assert paired_test([1e-8, 1.1e-8, 1e-8])["p"] == 1, "the rounding of float32 is no shift"


def rows_of(*networks):
    """Rows with given shifts: per network the shifts of the draws and of the videos."""
    draws = [list(shifts) for shifts, _ in networks]
    clean = {"masked": "none", "ratio": 0.0, "w_img": 0.5}
    row = {"masked": "image", "damage": "features", "mask": "zero", "draws": len(draws[0]), "videos": 3}
    row["videos_test"] = [paired_test(videos) for _, videos in networks]
    half = row | {"ratio": 0.5, "values": {"shift": draws}}
    for part in ("", "_abnormal", "_normal"):
        half |= {f"shift{part}": float(np.mean(draws))}
    half["std"] = dict.fromkeys(("shift", "shift_abnormal", "shift_normal"), 0.25)
    small = half | {"ratio": 0.1, "values": {"shift": [[-value for value in shifts] for shifts in draws]}}
    return [clean, half, small]  # the largest ratio counts, wherever it is


LEAVES = ((-0.2, -0.21, -0.19), (-0.3, -0.31, -0.29))
NOISE = ((-0.2, 0.2, 0.01), (-0.3, 0.3, 0.01))


@pytest.mark.parametrize(
    ("networks", "verdict"),
    [
        ([LEAVES], "leave"),
        ([[[-value for value in part] for part in LEAVES]], "towards"),
        ([NOISE], "none"),
        ([(LEAVES[0], NOISE[1])], "none"),  # the draws agree, the videos do not
        ([(NOISE[0], LEAVES[1])], "none"),
        ([(LEAVES[0], [0.3, 0.31, 0.29])], "none"),  # they contradict each other
        ([(LEAVES[0][:1], LEAVES[1])], "undecided"),
        ([LEAVES, LEAVES], "leave"),
        ([LEAVES, NOISE], "mixed"),
    ],
)
def test_verdicts(networks, verdict):
    found = direction(rows_of(*networks))
    assert list(found) == ["image"] and found["image"]["verdict"] == verdict
    assert found["image"]["ratio"] == 0.5 and [row["ratio"] for row in found["image"]["by_ratio"]] == [0.5, 0.1]
    json.dumps(found, allow_nan=False)
    if verdict == "leave":
        assert "the weights leave the damaged stream" in found["image"]["text"]
        assert "Mean w_img 0.5000, shift -0.2000 ± 0.2500" in found["image"]["text"]


def test_weights_that_follow_the_features_are_seen_to_leave(videos):
    """A network whose image variance falls with the size of the features leaves the masked image, and not the event."""
    model = network()
    with torch.no_grad():
        for name, sign in (("image", -1.0), ("event", 1.0)):
            encoder = model.encoders[name]
            encoder.layers = torch.nn.ModuleList()
            encoder.whiten = torch.nn.Identity()
            encoder.logvar.weight.fill_(sign)
            encoder.logvar.bias.zero_()
    bright = [
        changed(v, *(np.abs(np.random.default_rng(i).normal(0.1, 0.01, (2, v.segments, DIM)))).astype(np.float32))
        for i, v in enumerate(videos)
    ]
    found = direction(robustness(model, bright, draws=3, progress=False))
    assert (found["image"]["verdict"], found["event"]["verdict"]) == ("leave", "towards")
    assert found["image"]["by_ratio"][-1]["shift"] < found["image"]["by_ratio"][0]["shift"] < 0


def test_a_network_without_weights_has_no_direction(videos):
    from iefvad.model.baselines.config import BaselineConfig
    from iefvad.model.networks import make_network

    torch.manual_seed(0)
    rows = robustness(make_network(BaselineConfig(model="concat", dim=DIM, heads=2)), videos, draws=2, progress=False)
    assert direction(rows) == {} and rows[1]["std"]["auc"] is not None
