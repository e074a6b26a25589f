"""The page of a run: complete, self-contained and escaped, whatever the run contains."""

from __future__ import annotations

import errno
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from iefvad.features.videos import Video
from iefvad.model.config import ModelConfig
from iefvad.model.network import Network
from iefvad.report import images, plots
from iefvad.report.run_page import choose_videos, write_report
from iefvad.report.style import PALETTE
from iefvad.scoring.metrics import evaluate
from iefvad.scoring.robustness import over_seeds, robustness
from iefvad.scoring.seeds import summaries, with_means
from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.errors import UserError
from iefvad.utils.provenance import made_here

NASTY = "<script>alert('x')</script>\"&$a_{b$"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Collects tags, ids, references and text, and checks the nesting of elements."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.references, self.stack, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.stack, f"left open: {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"event handler {name}"
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.references.append(value)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def check(path):
    """Parse a page and check what must hold for every page."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert all(r.startswith(("#", "data:image/")) for r in page.references), page.references
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert len(page.ids) == len(set(page.ids))
    anchors = {r[1:] for r in page.references if r.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert anchors <= set(page.ids)
    assert path.stat().st_size < 3_000_000
    return text, page


def scores(name, classes, t, seed=0, fps=25.0, truth=True, weights=True):
    random = np.random.default_rng(seed)
    labels = None
    if truth:
        labels = np.zeros(16 * t, np.uint8)
        if classes:
            labels[4 * t : 9 * t] = 1
    w = 0.5 + 0.02 * random.normal(size=t) if weights else None
    value = random.random(t)
    return VideoScores(
        name, classes, fps, labels, value, w, None if w is None else 1 - w, value / 2 if weights else None
    )


def damaged(scored):
    """Rows of two seeds of a network that knows nothing."""
    random = np.random.default_rng(0)
    features = {v.name: random.normal(size=(2, len(v.scores), 8)).astype(np.float32) for v in scored}
    stored = [
        Video(v.name, v.classes, len(v.scores), v.fps, 0, v.truth, reader=lambda _, name=v.name: tuple(features[name]))
        for v in scored
    ]
    network = Network(ModelConfig(dim=8, heads=2, refine_steps=1))
    return over_seeds({s: robustness(network, stored, ratios=(0.05, 0.5), draws=2, seed=s) for s in (0, 1)})


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "sub" / "report.html"
    kinds = [("fight",), (), (NASTY,), ("fight", "_hidden")]
    videos = {
        model: [scores(f"{NASTY} {i}", kinds[i % 4], 5 + 3 * i, seed=i + 10 * j, weights=j == 0) for i in range(8)]
        for j, model in enumerate(["fusion", "image", "event", NASTY])
    }
    found = {model: evaluate(v) for model, v in videos.items()}
    json.dumps(found, allow_nan=False)
    rows = damaged(videos["fusion"])
    history = [
        {"model": m, "epoch": e, "loss": 2.0 / e, "loss_cls": 1.0 / e, "val_auc": None if e == 1 else 0.5 + e / 10}
        for m in ("fusion", "image")
        for e in (1, 2, 3)
    ]
    history.append({"model": "fusion", "epoch": 4, "loss": float("nan")})
    write_report(
        path,
        title=f"run {NASTY}",
        metrics=found,
        videos=videos,
        config={"preset": NASTY, "train": {"lr": 1e-3, "milestones": [4, 8]}, "array": np.arange(3)},
        notes=["Features come from a fixed descriptor, not a pretrained encoder.", NASTY],
        history=history,
        robustness=rows,
        command=f"python -m iefvad.train --name '{NASTY}'",
    )
    return (*check(path), found)


def test_report_has_every_section(full):
    text, page, found = full
    for anchor in (
        "results",
        "curves",
        "calibration",
        "classes",
        "timelines",
        "weights",
        "robustness",
        "training",
        "reproduce",
    ):
        assert anchor in page.ids and f'href="#{anchor}"' in text
    assert f"{found['fusion']['auc']:.4f}" in page.text
    assert "fixed descriptor" in page.text and "train.milestones" in page.text and "[4, 8]" in page.text
    assert "python -m iefvad.train" in page.text
    # Two curves, bars, radar, robustness, training, and one per timeline.
    timelines = page.tags.count("h3") - 1  # one heading is that of the direction test
    assert text.count("<svg") == 7 + timelines and timelines >= 5
    assert text.index('id="results"') < text.index('id="curves"') < text.index('id="timelines"')


def test_report_escapes_every_name(full):
    text, page, _ = full
    assert "<script" not in text
    assert page.text.count(NASTY) >= 8  # title, heading, notes, settings, command, classes, legends: as it was given


def test_report_follows_the_theme(full):
    text, _, _ = full
    assert "@media (prefers-color-scheme: dark)" in text
    body = text[text.index("<body") :]
    for token, (light, _) in PALETTE.items():
        assert light not in body, f"{token} is fixed to its light colour"


@pytest.mark.parametrize("model", ["image", "event"])
def test_single_modality_alone(tmp_path, model):
    videos = {model: [scores(f"v{i}", ("a",) * (i % 2), 6, seed=i, weights=False) for i in range(4)]}
    path = tmp_path / "r.html"
    write_report(
        path, title="t", metrics={model: evaluate(videos[model])}, videos=videos, config={}, notes=[], history=[]
    )
    _, page = check(path)
    assert "weights" not in page.ids and "robustness" not in page.ids and "training" not in page.ids
    assert f"The {model} model" in page.text and "single modality" not in page.text


@pytest.mark.parametrize("t", [0, 1, 6])
def test_no_truth_at_all_and_one_tiny_video(tmp_path, t):
    videos = {"fusion": [scores("only", (), t, truth=False)]}
    path = tmp_path / "r.html"
    write_report(path, title="t", metrics={"fusion": evaluate(videos["fusion"])}, videos=videos, config={})
    _, page = check(path)
    assert "allow no frame-level AUC" in page.text and "no such video has frame-level truth" in page.text
    assert ("timelines" in page.ids) == (t > 0)
    assert not {"curves", "classes"} & set(page.ids)


def test_metrics_without_scores_and_fusion_below_a_single_modality(tmp_path):
    base = {"ap": 0.5, "ano_auc": None, "brier": 0.1, "per_class": {}, "weights": {}, "videos": 3, "notes": []}
    found = {"fusion": base | {"auc": 0.7}, "image": base | {"auc": 0.75}}
    path = tmp_path / "r.html"
    write_report(path, title="t", metrics=found, videos={}, config={})
    _, page = check(path)
    assert "0.050 below the better single modality (image, 0.750)" in page.text


def test_several_seeds_are_shown_as_mean_and_deviation(tmp_path):
    videos = {m: [scores(f"v{i}", ("a",) * (i % 2), 6, seed=i) for i in range(8)] for m in ("fusion", "density")}
    found = {model: evaluate(v) for model, v in videos.items()}
    each = [{"auc": v, "brier": 0.1, "per_class": {"a": {"auc": v - 0.25}}} for v in (0.8, 0.9, 0.955)]
    summarised = summaries(each, ("auc", "brier", "per_class"))
    found["fusion"] = with_means(found["fusion"], summarised) | {"seeds": {"list": [0, 1, 7]} | summarised}
    others = [scores(f"v{i}", ("a",) * (i % 2), 6, seed=i + 50) for i in range(8)]
    seeds = {"fusion": [videos["fusion"], others, others], "density": [videos["density"]]}
    path = tmp_path / "r.html"
    write_report(path, title="t", metrics=found, videos=videos, config={}, seeds=seeds)
    _, page = check(path)
    assert "AUC of 0.885 (mean of 3 seeds)" in page.text and "fusion: frame-level AUC ± 0.079" in page.text
    for expected in ("0.8850 ± 0.0786", "0.6350 ± 0.0786", "0.1000 ± 0.0000", "0.8000", "0.9550"):
        assert expected in page.text, expected
    assert "over the seeds 0, 1, 7" in page.text and f"{found['density']['auc']:.4f}" in page.text
    curves = [evaluate(v)["auc"] for v in seeds["fusion"]]
    assert f"fusion, AUC {np.mean(curves):.3f} ± {np.std(curves, ddof=1):.3f}" in page.text


def test_when_where_and_how_long(tmp_path):
    videos = {"fusion": [scores("v", ("a",), 6)]}
    path = tmp_path / "r.html"
    facts = {"train": made_here(torch.device("cpu"), 12.4), "evaluate": {"date": "2026-01-02"}}
    write_report(path, title="t", metrics={"fusion": evaluate(videos["fusion"])}, videos=videos, config={}, made=facts)
    _, page = check(path)
    assert "made" in page.ids and "12 s" in page.text and "2026-01-02" in page.text
    for title in ("date", "version", "torch", "processor", "threads"):
        assert facts["train"][title] in page.text


def test_full_disk_is_one_clear_error_and_leaves_the_old_report(tmp_path, monkeypatch):
    def full_disk(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "r.html").write_text("old")
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(UserError, match="full"):
        write_report(tmp_path / "r.html", title="t", metrics={}, videos={}, config={})
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"] and (tmp_path / "r.html").read_text() == "old"


def test_choice_of_videos_is_informative_and_bounded():
    perfect = scores("best", ("a",), 8)
    perfect.scores = perfect.abnormal_segments.astype(np.float32)
    inverted = scores("worst", ("b",), 8)
    inverted.scores = 1 - inverted.abnormal_segments.astype(np.float32)
    loud = scores("loud", (), 8)
    loud.scores = np.full(8, 0.99, np.float32)
    rest = [scores(f"r{i}", ("c",) if i % 2 else (), 8, seed=i) for i in range(60)]
    for v in rest:
        v.scores = v.scores * 0.9
    chosen = choose_videos([*rest, perfect, inverted, loud])
    assert [v.name for v, _ in chosen[:3]] == ["best", "worst", "loud"]
    assert {"a", "b", "c"} <= {c for v, _ in chosen for c in v.classes}
    assert len({v.name for v, _ in chosen}) == len(chosen)
    many = [scores(f"m{i}", (f"k{i}",), 4, seed=i) for i in range(30)]
    assert len(choose_videos(many)) == 12 and len(choose_videos(many, limit=3)) == 3
    assert choose_videos([]) == []


def test_line_of_a_long_video_keeps_single_peaks():
    values = np.zeros(20_001)
    values[12_345], values[777] = 1.0, -1.0
    x, y = plots.line_points(values, 0.5 * np.arange(20_002))
    assert x.size <= 900 and y.max() == 1.0 and y.min() == -1.0
    assert abs(x[y.argmax()] - 12_345 * 0.5) < 20_001 * 0.5 / 400
    x, y = plots.line_points(np.array([0.2, 0.7]), np.array([0.0, 2.0, 4.0]))
    assert x.tolist() == [0, 2, 2, 4] and y.tolist() == [0.2, 0.2, 0.7, 0.7]


def test_truth_intervals_in_seconds():
    truth = np.zeros(32, np.uint8)
    truth[:4] = truth[30:] = 1
    assert plots.truth_intervals(VideoScores("v", (), 2.0, truth, np.zeros(2))) == [(0.0, 2.0), (15.0, 16.0)]


def test_files_of_a_figure(tmp_path):
    figure = plots.timeline(scores("v", ("a",), 4))
    images.save(figure, tmp_path / "a.png")
    images.save(figure, tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
