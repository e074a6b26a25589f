"""Metrics against hand-computed values and scikit-learn, undefined cases, score files, intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from iefvad.scoring import metrics, video_scores
from iefvad.scoring.metrics import evaluate
from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.errors import UserError


def video(name="v", classes=(), scores=(0.5,), truth=None, segments_truth=None, fps=30.0, **more):
    if segments_truth is not None:
        truth = np.repeat(np.asarray(segments_truth, dtype=np.uint8), 16)
    return VideoScores(name, classes, fps, truth, np.asarray(scores, dtype=np.float32), **more)


def random_videos(seed, count=7, ties=False):
    random = np.random.default_rng(seed)
    result = []
    for i in range(count):
        t = int(random.integers(1, 40))
        truth = (random.random(16 * t) < 0.3).astype(np.uint8) if i % 2 else np.zeros(16 * t, np.uint8)
        scores = random.random(t).astype(np.float32)
        if ties:
            scores = np.round(scores * 4) / 4
        w = random.random(t)
        result.append(video(f"v{i}", ("a",) if i % 2 else (), scores, truth, w_img=w, w_evt=1 - w, gain=w / 2))
    return result


def test_hand_computed_auc_and_ap():
    # Positives score .9 and .4, negatives .8 and .1: 3 of 4 pairs in order. AP = 1/2*1 + 1/2*2/3.
    scores, truth = [0.9, 0.8, 0.4, 0.1], [1, 0, 1, 0]
    assert metrics.roc_auc(scores, truth) == pytest.approx(0.75)
    assert metrics.average_precision(scores, truth) == pytest.approx(0.5 + 0.5 * 2 / 3)
    # A tie of a positive and a negative counts half; both enter precision at once.
    assert metrics.roc_auc([0.5, 0.5], [1, 0]) == pytest.approx(0.5)
    assert metrics.average_precision([0.5, 0.5, 0.1], [1, 0, 0]) == pytest.approx(0.5)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_frame_metrics_equal_sklearn_on_repeated_scores(seed, ties):
    videos = random_videos(seed, ties=ties)
    frames = np.concatenate([video_scores.to_frames(v.scores) for v in videos])
    truth = np.concatenate([v.truth for v in videos])
    found = evaluate(videos)
    # Same sums in another order, float64.
    assert found["auc"] == pytest.approx(roc_auc_score(truth, frames), abs=1e-12)
    assert found["ap"] == pytest.approx(average_precision_score(truth, frames), abs=1e-12)
    assert found["brier"] == pytest.approx(np.mean((frames.astype(np.float64) - truth) ** 2), abs=1e-12)
    assert found["frames"] == frames.size and found["abnormal_frames"] == truth.sum()
    abnormal = [v for v in videos if v.classes]
    expected = roc_auc_score(
        np.concatenate([v.truth for v in abnormal]),
        np.concatenate([video_scores.to_frames(v.scores) for v in abnormal]),
    )
    assert found["ano_auc"] == pytest.approx(expected, abs=1e-12)
    curve = metrics.curves(videos)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(found["auc"], abs=1e-12)
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)


def test_to_frames_repeats_each_segment_and_keeps_dtype():
    frames = video_scores.to_frames(np.array([1, 2], dtype=np.int16), segment=3)
    assert frames.dtype == np.int16 and frames.tolist() == [1, 1, 1, 2, 2, 2]
    assert video_scores.to_frames(np.zeros((0,), np.float32)).shape == (0,)


def test_per_class_counts_multi_label_videos_in_each_class():
    videos = [
        video("x", ("fire",), [0.9, 0.1], segments_truth=[1, 0]),
        video("y", ("fire", "riot"), [0.2, 0.8], segments_truth=[1, 0]),
        video("z", (), [0.95], segments_truth=[0]),
    ]
    found = evaluate(videos)
    assert found["per_class"]["riot"] == {"auc": 0.0, "ap": 0.5, "videos": 1}
    # fire: positives .9 .2, negatives .1 .8, the normal video plays no part: 3 of 4 pairs in order.
    assert found["per_class"]["fire"]["auc"] == pytest.approx(0.75)
    assert found["per_class"]["fire"]["videos"] == 2
    assert found["ano_auc"] == pytest.approx(0.75)
    # With the normal video's .95 above both positives: 3 of 6.
    assert found["auc"] == pytest.approx(0.5)
    assert found["abnormal_videos"] == 2


def test_weights_split_at_half_of_a_segments_frames():
    truth = np.zeros(48, np.uint8)
    truth[:8] = 1  # exactly half: abnormal
    truth[16:23] = 1  # seven of sixteen: normal
    found = evaluate([video(scores=[0.1, 0.2, 0.3], truth=truth, w_img=[0.2, 0.4, 0.6], w_evt=[0.8, 0.6, 0.4])])
    assert found["weights"]["w_img"] == pytest.approx({"overall": 0.4, "abnormal": 0.2, "normal": 0.5})
    assert found["weights"]["w_evt"] == pytest.approx({"overall": 0.6, "abnormal": 0.8, "normal": 0.5})
    assert "gain" not in found["weights"]


@pytest.mark.parametrize(
    ("videos", "reason"),
    [
        ([video(scores=[0.1, 0.2])], "no such video has frame-level truth"),
        ([video(scores=[0.1, 0.2], segments_truth=[0, 0])], "every frame is normal"),
        ([video(classes=("a",), scores=[0.1], segments_truth=[1])], "every frame is abnormal"),
        ([video(scores=[], segments_truth=[])], "no video has a segment"),
    ],
)
def test_undefined_metrics_are_none_with_a_reason(videos, reason):
    found = evaluate(videos, bootstrap=10)
    assert found["auc"] is None and found["ap"] is None and found["auc_ci"] is None
    assert any(reason in note for note in found["notes"])
    json.dumps(found, allow_nan=False)


def test_result_is_plain_json_and_videos_without_truth_are_named_in_number():
    videos = [*random_videos(0), video("weak", ("b",), [0.3, 0.4])]
    found = evaluate(videos, bootstrap=20)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["per_class"]["b"] == {"auc": None, "ap": None, "videos": 0}
    assert any("1 of 8 videos have no frame-level truth" in note for note in found["notes"])
    assert found["weights"].keys() == {"w_img", "w_evt", "gain"}


def test_scores_that_are_no_probabilities_have_no_brier_score():
    found = evaluate([video(scores=[3.0, -1.0], segments_truth=[1, 0])])
    assert found["auc"] == 1.0 and found["brier"] is None and found["ece"] is None
    assert any("not probabilities" in note for note in found["notes"])


def test_hand_computed_calibration():
    # 16 frames at 0.1 without, 32 frames at 0.95 with 24 abnormal ones: (16·0.1 + 32·(0.95 − 0.75)) / 48.
    truth = np.repeat([0, 1, 1, 0], [16, 16, 8, 8])
    videos = [video(scores=[0.1, 0.95, 0.95], truth=truth), video(scores=[0.5])]
    assert evaluate(videos)["ece"] == pytest.approx(8 / 48, abs=1e-7)  # scores are float32
    found = metrics.reliability(videos)
    assert found.score == pytest.approx([0.1, 0.95]) and found.abnormal.tolist() == [0, 0.75]
    assert found.frames.tolist() == [16, 32]
    # Scores that say what happens have no error: a quarter of the frames at 0.25 is abnormal.
    assert evaluate([video(scores=[0.25], truth=np.repeat([0, 1], [12, 4]))])["ece"] == 0
    # A bin holds its lower edge, and the last one 1 also.
    edges = metrics.reliability([video(scores=[0.0, 0.5, 1.0], truth=np.zeros(48))], bins=2)
    assert edges.frames.tolist() == [16, 32] and edges.score.tolist() == [0, 0.75]
    assert metrics.reliability([video(scores=[0.5])]) is None


@pytest.mark.parametrize("seed", range(3))
def test_calibration_equals_a_loop_over_bins_of_frames(seed):
    videos = random_videos(seed)
    scores = np.concatenate([video_scores.to_frames(v.scores) for v in videos]).astype(np.float64)
    truth = np.concatenate([v.truth for v in videos])
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (scores >= low) & (scores < low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(scores[inside].mean() - truth[inside].mean())
    assert evaluate(videos)["ece"] == pytest.approx(error, abs=1e-12)  # sums in another order, float64


def test_bad_input_is_named():
    with pytest.raises(UserError, match=r"gate.*1 of 2 scores"):
        video("gate", scores=[0.1, math.nan])
    with pytest.raises(UserError, match=r"gate.*w_img"):
        video("gate", scores=[0.1], w_img=[math.inf])
    with pytest.raises(UserError, match=r"gate.*31 frame labels.*need 32"):
        video("gate", scores=[0.1, 0.2], truth=np.zeros(31))
    with pytest.raises(ValueError, match="shape"):
        video(scores=[[0.1]])
    with pytest.raises(ValueError, match="fps"):
        video(fps=0.0)
    with pytest.raises(UserError, match="no test videos"):
        evaluate([])


def test_prediction_kl():
    assert metrics.prediction_kl([0.5, 0.25], [0.5, 0.25]) == 0.0
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert metrics.prediction_kl([0.5], [0.25]) == pytest.approx(expected)
    assert metrics.prediction_kl([video(scores=[0.5])], [video(scores=[0.25])]) == pytest.approx(expected)
    assert math.isfinite(metrics.prediction_kl([0.0, 1.0], [1.0, 0.0]))
    assert metrics.prediction_kl([], []) is None
    with pytest.raises(ValueError, match="differ"):
        metrics.prediction_kl([0.5], [0.5, 0.5])


def test_robustness_row_has_the_columns_of_the_paper():
    videos = random_videos(1)
    row = metrics.robustness_row("image", 0.3, videos, videos)
    assert row["kl"] == 0.0 and row["masked"] == "image" and row["ratio"] == 0.3
    assert {"auc", "ap", "brier", "ece", "w_img", "w_img_abnormal", "w_img_normal", "w_evt_normal"} <= row.keys()


def test_bootstrap_interval_is_seeded_and_holds_the_estimate():
    videos = random_videos(3, count=20)
    low, high = metrics.bootstrap_auc(videos, seed=4)
    assert (low, high) == metrics.bootstrap_auc(videos, seed=4)
    assert low < evaluate(videos)["auc"] < high
    assert metrics.bootstrap_auc(videos[:4]) is None


def test_scores_csv_round_trip(tmp_path):
    videos = [*random_videos(5, count=3), video('comma, "quote"\nline', scores=[1 / 3], fps=23.976)]
    videos.append(video("dir/na\udcffme", scores=[0.1, 0.2], fps=29.97))  # a file name that is no UTF-8
    path = tmp_path / "new" / "scores.csv"
    video_scores.write_scores_csv(path, videos)
    assert path.read_bytes().split(b"\n", 1)[0] == b"video,segment,start s,end s,score,w_img,w_evt,gain"
    back = video_scores.read_scores_csv(path)
    assert [v.name for v in back] == [v.name for v in videos]
    assert [v.fps for v in back] == pytest.approx([v.fps for v in videos], abs=1e-3)
    for a, b in zip(videos, back, strict=True):
        for field in ("scores", "w_img", "w_evt", "gain"):
            x, y = getattr(a, field), getattr(b, field)
            assert (x is None and y is None) or np.array_equal(x, y)  # to the bit
    assert list(tmp_path.glob("new/*")) == [path]


def test_scores_csv_times_and_empty_cells(tmp_path):
    video_scores.write_scores_csv(tmp_path / "s.csv", [video("a", scores=[0.5, 0.25], fps=32.0)])
    assert (tmp_path / "s.csv").read_text().splitlines()[1:] == ["a,0,0.0,0.5,0.5,,,", "a,1,0.5,1.0,0.25,,,"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a score file"),
        ("a,b\n", "not a score file"),
        ("video,segment,start s,end s,score,w_img,w_evt,gain\nv,0,0,1,x,,,\n", "not a number"),
        ("video,segment,start s,end s,score,w_img,w_evt,gain\nv,0,0,1\n", "4 cells"),
        ("video,segment,start s,end s,score,w_img,w_evt,gain\nv,1,0,1,0.5,,,\n", "expected segment 0"),
        ("video,segment,start s,end s,score,w_img,w_evt,gain\nv,0,0,1,nan,,,\n", "not finite"),
    ],
)
def test_bad_scores_csv_is_one_clear_error(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        video_scores.read_scores_csv(tmp_path / "s.csv")
    with pytest.raises(UserError, match="cannot read"):
        video_scores.read_scores_csv(tmp_path / "none.csv")


def spans(scores, threshold, **more):
    found = video_scores.intervals_above(scores, 16.0, threshold, **more)  # at 16 fps a segment lasts a second
    return [(round(a, 6), round(b, 6), round(p, 6)) for a, b, p in found]


def test_intervals_above_hysteresis():
    scores = [0.4, 0.9, 0.4, 0.1, 0.4, 0.4, 0.1, 0.6]
    assert spans(scores, 0.5) == [(1, 2, 0.9), (7, 8, 0.6)]
    # The run of .4 alone never reaches .5; the first run grows on both sides.
    assert spans(scores, 0.5, low=0.3) == [(0, 3, 0.9), (7, 8, 0.6)]
    assert spans(scores, 0.9) == [(1, 2, 0.9)]  # at the threshold counts
    assert spans(scores, 0.0) == [(0, 8, 0.9)]
    assert spans(scores, 0.95) == [] and spans([], 0.5) == [] and spans([0.7], 0.5) == [(0, 1, 0.7)]


def test_intervals_above_merge():
    scores = [0.9, 0.1, 0.8, 0.1, 0.1, 0.7]
    assert spans(scores, 0.5, merge_gap_s=0.5) == [(0, 1, 0.9), (2, 3, 0.8), (5, 6, 0.7)]
    assert spans(scores, 0.5, merge_gap_s=1) == [(0, 3, 0.9), (5, 6, 0.7)]
    assert spans(scores, 0.5, merge_gap_s=2) == [(0, 6, 0.9)]
    assert video_scores.intervals_above([0.9], 25.0, 0.5, segment=5) == [(0.0, pytest.approx(0.2), pytest.approx(0.9))]


@pytest.mark.parametrize("more", [{"low": 0.6}, {"merge_gap_s": -1.0}, {"low": math.nan}])
def test_intervals_above_refuses_nonsense(more):
    with pytest.raises(UserError):
        spans([0.1, 0.9], 0.5, **more)
    with pytest.raises(UserError, match="frame rate"):
        video_scores.intervals_above([0.1], 0.0, 0.5)
    with pytest.raises(UserError, match="NaN"):
        video_scores.intervals_above([math.nan], 25.0, 0.5)


def test_times_of_segments_replace_the_count_of_frames(tmp_path):
    """A variable rate: three segments of 1, 4 and 1 s, then a hole of 2 s before the last one."""
    starts, ends = np.array([0.0, 1.0, 5.0, 8.0]), np.array([1.0, 5.0, 6.0, 9.0])
    timed = video_scores.VideoScores("v", (), 16.0, None, [0.9, 0.1, 0.8, 0.7], starts=starts, ends=ends)
    counted = video_scores.VideoScores("v", (), 16.0, None, [0.9, 0.1, 0.8, 0.7])
    assert counted.starts.tolist() == [0, 1, 2, 3] and counted.ends.tolist() == [1, 2, 3, 4]
    assert (timed.seconds, counted.seconds) == (7.0, 4.0) and timed.peak[1] == 0.0
    assert timed.edges.tolist() == [0, 1, 5, 8, 9]

    def found(**more):
        return [
            interval[:2]
            for interval in video_scores.intervals_above(timed.scores, 16.0, 0.5, starts=starts, ends=ends, **more)
        ]

    assert found() == [(0, 1), (5, 9)], "segments that follow each other are one interval, whatever lies between"
    assert found(merge_gap_s=4) == [(0, 9)] and found(merge_gap_s=3) == found()
    assert found(min_length_s=2) == [(5, 9)]
    path = tmp_path / "s.csv"
    video_scores.write_scores_csv(path, [timed])
    [back] = video_scores.read_scores_csv(path)
    assert back.starts.tolist() == starts.tolist() and back.ends.tolist() == ends.tolist()
    assert back.fps == pytest.approx(16 * 4 / 9, abs=1e-3)
    for wrong in ({"starts": starts[::-1]}, {"ends": starts - 1}, {"starts": starts[:2]}):
        with pytest.raises(ValueError, match=r"scores|order"):
            video_scores.VideoScores("v", (), 16.0, None, timed.scores, **({"starts": starts, "ends": ends} | wrong))
