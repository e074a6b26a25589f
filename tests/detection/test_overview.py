"""The index of a detection run, pictures that differ, and a detection as text and in a notebook."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import torch

from iefvad.cli.detect import main
from iefvad.detection.detect import detect
from iefvad.detection.outputs import Names
from iefvad.detection.overview import Overview, address
from iefvad.detection.result import Collector, Detection, Timing, alike
from iefvad.detection.threshold import Rule
from iefvad.report import index_page
from iefvad.scoring.video_scores import VideoScores
from tests.helpers.browser import CHROMIUM, browser
from tests.helpers.detecting import small_model, write_video
from tests.report.test_run_page import Page

HOSTILE = "a b#1?%20&'\"<img src=x onerror=alert(1)>.mp4"
RULE = Rule(0.5, 0.5, 0.0, 0.0)


def picture(kind: int) -> np.ndarray:
    image = np.full((60, 80, 3), 90, np.uint8)
    image[20:40, 10 * (kind % 7) : 10 * (kind % 7) + 10] = 200
    return image


def detection(path: Path, values: list[float] | np.ndarray, pictures: list[tuple[float, np.ndarray]] = ()) -> Detection:
    scores = VideoScores(path.stem, (), 16.0, None, np.asarray(values), source=path.name)
    return Detection(path, scores, RULE.intervals(scores), list(pictures), RULE, Timing())


def overview_of(folder: Path, detections: list[Detection], failed: tuple[str, ...] = ()) -> tuple[str, Page]:
    overview = Overview(folder, "runs/x", RULE, "flagged where the score reaches 0.5")
    for one in detections:
        overview.add(one, folder / f"{one.scores.name}.html")
    for message in failed:
        overview.fail(message)
    path = overview.write()
    assert path is not None
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_index_is_sorted_and_links_to_the_page_and_to_the_moment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    videos = tmp_path / "my videos"
    low = detection(videos / "low.mp4", [0.1, 0.2, 0.1])
    high = detection(videos / HOSTILE, [0.1, 0.1, 0.9, 0.1, 0.6, 0.1], [(2.0, picture(1)), (4.0, picture(3))])
    text, page = overview_of(out, [low, high], ("bad.mp4: <b>cannot</b> be read",))
    assert "<img src=x" not in text and "<b>cannot" not in text and "script" not in page.tags
    assert page.text.index(HOSTILE) < page.text.index("low.mp4")
    links = [r for r in page.references if not r.startswith(("#", "data:"))]
    assert all(re.fullmatch(r"[\w./%~-]+(#t=\d+\.\d)?", link) for link in links), links
    moments = [link for link in links if "#t=" in link and "low" not in link]
    assert [link.partition("#t=")[2] for link in moments] == ["2.0", "2.0", "4.0"], "the peak, then each interval"
    for link in moments:
        target = os.path.normpath(out / os.fsdecode(unquote_to_bytes(link.partition("#")[0])))
        assert target == str(videos / HOSTILE)
    pages = [unquote_to_bytes(link).decode() for link in links if link.endswith(".html")]
    assert pages == [f"{Path(HOSTILE).stem}.html", "low.html"]
    assert page.tags.count("img") == 2 and "1 of 2 videos" in page.text and "cannot" in page.text


def test_addresses_are_bytes_of_names(tmp_path: Path) -> None:
    assert address(tmp_path / "javascript:x.mp4", tmp_path) == "javascript%3Ax.mp4"
    assert address(tmp_path / os.fsdecode(b"caf\xe9.mp4"), tmp_path / "out") == "../caf%E9.mp4"


def test_five_hundred_videos_are_a_page_that_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_page, "PICTURES", 200_000)
    random = np.random.default_rng(0)
    noise = [random.integers(0, 255, (120, 160, 3), dtype=np.uint8) for _ in range(4)]
    found = []
    for number in range(500):
        values = random.random(150)
        # Every second interval has a picture, and far more intervals than are listed.
        shots = [(float(t), noise[t % 4]) for t in range(0, 150, 2)]
        found.append(detection(tmp_path / f"v{number}.mp4", values, shots[:40]))
    text, page = overview_of(tmp_path, found)
    assert len(text) < 12_000_000 and page.tags.count("article") == 500
    pictures = re.findall(r'<img src="data:image/jpeg;base64,([^"]*)"[^>]*loading="lazy"', text)
    assert 5 < len(pictures) == page.tags.count("img") and sum(map(len, pictures)) < 200_000 * 4 / 3 + 100
    assert max(text.count("moment", *span) for span in _articles(text)) <= index_page.LISTED + 3


def _articles(text: str) -> list[tuple[int, int]]:
    return [found.span() for found in re.finditer("<article.*?</article>", text, re.DOTALL)]


def test_one_video_has_no_index_and_its_name_is_never_taken(tmp_path: Path) -> None:
    overview = Overview(tmp_path, "m", RULE, "")
    assert overview.write() is None
    overview.add(detection(tmp_path / "a.mp4", [0.9]), tmp_path / "a.html")
    assert overview.write() is None
    names = Names(tmp_path)
    assert names.of(tmp_path / "Index.mp4") == "Index_mp4" and names.fresh("index") == "index_2"


def test_the_command_and_the_function_write_the_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, name in enumerate(("index", "b")):
        write_video(videos / f"{name}.mp4", frames=64, seed=number, burst=range(1, 3))
    (videos / "broken.mp4").write_text("nothing")
    model = small_model()
    run = tmp_path / "run"
    model.save_pretrained(run)
    assert main([str(run), str(videos), "--device", "cpu", "--threshold", "0", "--out", str(tmp_path / "o")]) == 1
    text = (tmp_path / "o" / "index.html").read_text()
    assert "broken.mp4" in text and "index_mp4.html" in text and "../videos/b.mp4#t=0.0" in text
    assert "index of the videos" in capsys.readouterr().out
    own = (tmp_path / "o" / "b.html").read_text()
    assert 'href="../videos/b.mp4#t=' in own
    (videos / "broken.mp4").unlink()
    detect(run, videos, device="cpu", out=str(tmp_path / "p"))
    assert (tmp_path / "p" / "index.html").is_file()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_index_in_a_browser(tmp_path: Path) -> None:
    """No page is wider than the window, and a picture is a link to the moment of the video."""
    shots = [(float(t), picture(t)) for t in range(0, 40, 3)]
    name = "x" * 180 + ".mp4"
    found = [detection(tmp_path / name, [0.9, 0.1, 0.1] * 13, shots), detection(tmp_path / "b.mp4", [0.1] * 4)]
    overview_of(tmp_path, found)
    with browser(tmp_path / "profile") as page:
        for width in (1400, 390):
            page.open((tmp_path / "index.html").as_uri(), width=width)
            page.wait_for(
                "document.querySelector('.moment img') && document.querySelector('.moment img').naturalWidth > 0"
            )
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelector('.moment').href").endswith(".mp4#t=0.0")
        assert not page.complaints


def segment(index: int, image: np.ndarray) -> SimpleNamespace:
    features = torch.zeros(1, 4)
    times = {"start": 0.5 * index, "end": 0.5 * index + 0.5}
    return SimpleNamespace(index=index, **times, thumbnail=image, image=features, event=features)


def collected(scores: list[float], images: list[np.ndarray], most: int) -> tuple[Collector, VideoScores]:
    collector = Collector(most)
    for index, (score, image) in enumerate(zip(scores, images, strict=True)):
        row = np.array([[score, 0.5, 0.5, 0.5]], np.float32)
        collector.add([segment(index, image)], row)
    return collector, collector.scores("v", 32.0, "v.mp4")


def test_pictures_differ_and_every_flagged_interval_has_one() -> None:
    # One long flagged interval of high scores, a short one of a lower peak, and normal segments around.
    values = [0.1] * 8 + [0.9] * 16 + [0.1] * 8 + [0.6] * 2 + [0.1] * 8
    images = [picture(t // 4) for t in range(len(values))]
    collector, scores = collected(values, images, 4)
    chosen = collector.pictures(RULE.intervals(scores))
    times = [start for start, _ in chosen]
    assert any(4 <= t < 12 for t in times) and any(16 <= t < 17 for t in times), times
    assert all(abs(a - b) >= 2 for n, a in enumerate(times) for b in times[:n])
    assert not any(alike(a, b) for n, (_, a) in enumerate(chosen) for _, b in chosen[:n])
    assert len(chosen) == 4

    still, scores = collected(values, [picture(0)] * len(values), 4)
    assert len(still.pictures(RULE.intervals(scores))) == 1, "a still camera shows one picture"
    assert collected(values, images, 0)[0].pictures([]) == []


def test_the_highest_segments_are_kept_out_of_many_and_memory_is_bounded() -> None:
    random = np.random.default_rng(1)
    values = random.random(2000).tolist()
    values[1500] = 1.5
    collector, _ = collected(values, [picture(t) for t in range(2000)], 2)
    assert collector.pictures([])[0][0] == 750.0 and len(collector._moments) <= 14


def test_pictures_are_alike_unless_a_part_of_them_changes() -> None:
    noisy = (
        (picture(0).astype(int) + np.random.default_rng(0).integers(-6, 7, (60, 80, 3))).clip(0, 255).astype(np.uint8)
    )
    assert alike(picture(0), noisy) and not alike(picture(0), picture(1))


def test_a_detection_is_one_short_line(tmp_path: Path) -> None:
    one = detection(tmp_path / "street.mp4", [0.1, 0.9, 0.1, 0.7] * 5, [(0.0, picture(0))])
    text = repr(one)
    assert text.startswith("Detection('street.mp4', 0:00:20, peak 0.900 at 0:00:01.0, 10 intervals flagged: 0:00:01.0-")
    assert "array" not in text and len(text) < 200 and "\n" not in text
    assert repr(detection(tmp_path / "a.mp4", [])) == "Detection('a.mp4', no score)"
    assert "nothing flagged" in repr(detection(tmp_path / "a.mp4", [0.1]))


@pytest.mark.parametrize("values", [[], [0.5], [0.2, 0.9, 0.3] * 2000])
def test_a_notebook_shows_the_timeline(tmp_path: Path, values: list[float]) -> None:
    one = detection(tmp_path / HOSTILE, values)
    text = one._repr_html_()
    page = Page(text)
    assert page.tags.count("svg") == 1 and "script" not in page.tags and not page.references and not page.ids
    assert HOSTILE in page.text and len(text) < 40_000
    assert not re.search(r"url\(|@import|https?://|<style", text)
    assert ("and 1990 more" in page.text) == (len(values) > 10)
