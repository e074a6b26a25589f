"""The page of labelling: what its server answers, to whom, what it writes, and how it works in a browser."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iefvad.data.annotations import read_annotations
from iefvad.data.check.all_checks import check_all
from iefvad.data.lists import read_list
from iefvad.labelling import labels as kept
from iefvad.labelling.labels import ConflictError, Labels, checked_class
from iefvad.labelling.lists import Lists, unusable_names
from iefvad.labelling.media import Media
from iefvad.labelling.server import LabelServer
from iefvad.utils.errors import UserError
from iefvad.video.timeline import Timeline
from tests.helpers.browser import CHROMIUM, browser
from tests.helpers.video_files import make_video

NASTY = "=1+1, <img src=x onerror=document.title=1> 'a' %0A"


def timeline(frames: int = 100, rate: float = 10.0) -> Timeline:
    return Timeline([number / rate for number in range(frames)], frames / rate, rate)


def labels_of(folder: Path, names: list[str], **options: Any) -> tuple[Labels, Lists]:
    lists = Lists(folder, test_fraction=0.5, pattern=None, seed=0, **options)
    labels = Labels(folder, {name: f"{name}.mp4" for name in names}, ["Fight", "Fall"], lists.write)
    lists.require_own(labels)
    return labels, lists


def add(labels: Labels, name: str, start: float, end: float, kind: str = "Fight") -> None:
    labels.change(name, {"do": "add", "start": start, "end": end, "class": kind}, timeline)


def normal(labels: Labels, name: str) -> None:
    version = labels.videos[name].version
    labels.change(name, {"do": "set", "version": version, "normal": True, "marks": []}, timeline)


def was(labels: Labels, name: str, number: int) -> dict[str, Any]:
    mark = labels.videos[name].marks[number]
    return {"id": number, "was": {"start": mark.start, "end": mark.end, "class": mark.kind}}


def test_lists_are_what_training_reads(tmp_path):
    names = ["a", "b", "c", NASTY, "sub/e e", "f"]
    labels, lists = labels_of(tmp_path, names)
    for name in names[:3]:
        normal(labels, name)
    add(labels, NASTY, 1.0, 2.0)
    add(labels, NASTY, 1.5, 3.0)
    add(labels, NASTY, 5.0, 5.1, "Fall")
    add(labels, "sub/e e", 2.0, 1.0)
    train, test = (read_list(tmp_path / f"{side}.csv") for side in ("train", "test"))
    assert {entry.path for entry in train + test} == {f"{name}.mp4" for name in names[:5]}
    assert {entry.label for entry in train} == {entry.label for entry in test} == {"Normal", "Fight"}
    assert {entry.path.removesuffix(".mp4") for entry in test} == {
        n for n, side in lists.sides.items() if side == "test"
    }
    annotations = read_annotations(tmp_path / "annotations.txt")
    assert set(annotations) == {entry.name for entry in test}
    wanted = {NASTY: (((10, 30), (50, 51)), ("Fight", "Fall")), "e e": (((10, 20),), ("Fight",))}
    for name, annotation in annotations.items():
        assert (annotation.intervals, annotation.classes) == wanted.get(name, ((), ()))
    assert not any(report.problems for report in check_all([str(tmp_path)], [], features=None))


def test_marks_survive_a_new_start_and_a_kill_between_the_files(tmp_path, monkeypatch):
    labels, _ = labels_of(tmp_path, ["a", "b", "c", "d"])
    for name in "ab":
        normal(labels, name)
        add(labels, {"a": "c", "b": "d"}[name], 1, 2)
    before = (tmp_path / "train.csv").read_bytes()
    monkeypatch.setattr("iefvad.labelling.lists.write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        labels.change("a", {"do": "set", "version": 1, "normal": False, "marks": []}, timeline)
    monkeypatch.undo()
    assert (tmp_path / "train.csv").read_bytes() == before
    again, _ = labels_of(tmp_path, ["a", "b", "c", "d", "new"])  # its lists are known, old or new
    assert again.videos["c"].marks == labels.videos["c"].marks and again.videos["b"].normal
    assert again.videos["a"].label is None and again.videos["new"].label is None and again.classes == ["Fight", "Fall"]
    fewer, lists = labels_of(tmp_path, ["a"])
    normal(fewer, "a")
    assert set(lists.sides) == {"a", "b", "c", "d"}, "videos that are not given now stay in the lists"


def test_two_pages_lose_nothing_without_a_word(tmp_path):
    labels, _ = labels_of(tmp_path, ["a"])
    add(labels, "a", 1, 2)
    version = labels.videos["a"].version
    first = was(labels, "a", 1)
    add(labels, "a", 4, 5)  # the other page adds too: both stay
    assert len(labels.videos["a"].marks) == 2
    labels.change("a", {"do": "change", **first, "start": 1, "end": 3, "class": "Fall"}, timeline)
    for stale in ({"do": "delete", **first}, {"do": "change", **first, "start": 0, "end": 1, "class": "Fight"}):
        with pytest.raises(ConflictError, match="another page changed this mark"):
            labels.change("a", stale, timeline)
    with pytest.raises(ConflictError, match="another page changed this video"):
        labels.change("a", {"do": "set", "version": version, "normal": True, "marks": []}, timeline)
    labels.change("a", {"do": "delete", **was(labels, "a", 1)}, timeline)
    with pytest.raises(ConflictError, match="another page deleted this mark"):
        labels.change("a", {"do": "delete", **first}, timeline)
    assert [mark.first for mark in labels.videos["a"].marks.values()] == [40]


def test_lists_of_others_are_never_replaced(tmp_path):
    (tmp_path / "train.csv").write_text("path,label\nmine.mp4,Normal\n")
    with pytest.raises(UserError, match=r"train.csv exists, and `iefvad label` did not write it.*--overwrite"):
        labels_of(tmp_path, ["a"])
    (tmp_path / "train.csv").unlink()
    labels, lists = labels_of(tmp_path, ["a", "b"])
    normal(labels, "a")
    (tmp_path / "train.csv").write_text("path,label\nedited.mp4,Normal\n")
    add(labels, "b", 1, 2)
    assert "edited" in (tmp_path / "train.csv").read_text() and "changed by another program" in lists.note
    assert "Fight" in (tmp_path / kept.FILE).read_text(), "the marks are kept"
    with pytest.raises(UserError, match="or it was changed since"):
        labels_of(tmp_path, ["a", "b"])
    Lists(tmp_path, test_fraction=0.5, pattern=None, seed=0, overwrite=True).write(labels)
    assert "edited" not in (tmp_path / "train.csv").read_text()


def test_a_source_is_on_one_side_and_can_be_fixed(tmp_path):
    names = ["yard_000", "yard_001", "door_000", "door_001"]
    labels, lists = labels_of(tmp_path, names)
    normal(labels, "yard_000")
    add(labels, "yard_001", 1, 2)
    assert "one source" in lists.note and set(lists.sides.values()) == {"train"}
    assert not (tmp_path / "test.csv").exists()
    normal(labels, "door_000")
    add(labels, "door_001", 1, 2)
    assert lists.note == "" and lists.sides["yard_000"] == lists.sides["yard_001"] != lists.sides["door_000"]
    for side in ("train", "test"):
        labels.set_side("yard", side)
        assert lists.sides["yard_000"] == lists.sides["yard_001"] == side != lists.sides["door_001"]
    for name in names:
        labels.change(
            name, {"do": "set", "version": labels.videos[name].version, "normal": False, "marks": []}, timeline
        )
    assert not any((tmp_path / name).exists() for name in ("train.csv", "test.csv", "annotations.txt"))


def test_a_change_that_cannot_be_saved_is_not_made(tmp_path, monkeypatch):
    labels, _ = labels_of(tmp_path, ["a"])
    add(labels, "a", 1, 2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "replacing_durably", full)
    with pytest.raises(UserError, match="no space left"):
        add(labels, "a", 3, 4)
    with pytest.raises(UserError, match="no space left"):
        labels.add_class("New")
    assert len(labels.videos["a"].marks) == 1 and "New" not in labels.classes


@pytest.mark.parametrize(
    "wanted",
    [
        None, [], {}, {"do": "fly"}, {"do": "add"}, {"do": "add", "start": 1, "end": "2", "class": "Fight"},
        {"do": "add", "start": float("nan"), "end": 2, "class": "Fight"},
        {"do": "add", "start": True, "end": 2, "class": "Fight"},
        {"do": "add", "start": 1, "end": 2, "class": "Unknown"}, {"do": "set", "version": 0},
        {"do": "add", "start": 1, "end": 2, "class": ["Fight"]},
        {"do": "set", "version": 0, "normal": 1, "marks": []},
        {"do": "set", "version": 0, "normal": False, "marks": [1]},
        {"do": "set", "version": 0, "normal": True, "marks": [{"start": 1, "end": 2, "class": "Fight"}]},
        {"do": "delete", "id": "1", "was": {}}, {"do": "change", "id": [], "start": 1, "end": 2, "class": "Fight"},
    ],
)  # fmt: skip
def test_nonsense_is_refused(tmp_path, wanted):
    labels, _ = labels_of(tmp_path, ["a"])
    with pytest.raises(UserError):
        labels.change("a", wanted, timeline)
    assert labels.videos["a"].version == 0


@pytest.mark.parametrize(
    "name", ["", "a b", "Normal", "normal", "0", "12", "A-B1", "-x", "=x", "x\ty", "a,b", None, "x" * 61]
)
def test_classes_that_annotations_cannot_have(name):
    with pytest.raises(UserError):
        checked_class(name)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "classes": [1]}', "\0"])
def test_damaged_labels_are_one_message(tmp_path, text):
    (tmp_path / kept.FILE).write_text(text)
    with pytest.raises(UserError, match=r"labels.json .*: restore it"):
        labels_of(tmp_path, ["a"])


def test_names_that_lists_cannot_carry(tmp_path):
    names = ["plain", NASTY, "a.mp4 b", "x\\y", "end ", "one/same", "two/same", "crop__3", "tab%09", "ü 1 2", "v.avi"]
    found = unusable_names({name: f"{name}.mp4" for name in names}, tmp_path)
    assert set(found) == {"x\\y", "one/same", "two/same"} | ({"end "} & set(found)) | ({"crop__3"} & set(found))


# The server


@contextlib.contextmanager
def serving(folder: Path, paths: dict[str, Path]):
    files = {name: name + path.suffix for name, path in paths.items()}
    lists = Lists(folder, test_fraction=0.5, pattern=None, seed=0)
    labels = Labels(folder, files, ["Fight", "Fall"], lists.write)
    media = Media(paths, None, {})
    server = LabelServer(list(paths), labels, lists, media, "127.0.0.1:0", hint="iefvad data check labels")
    try:
        yield server
    finally:
        server.close()
        media.close()


def ask(server: LabelServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    cookie = f"iefvad-label-{server.port}={server.address.partition('token=')[2]}"
    given = {"Cookie": cookie, "Origin": server.url.rstrip("/"), "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    connection.request(method, path, data, {name: value for name, value in given.items() if value})
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    """One that browsers play, one that they do not, one that is broken, one that is empty, one with a strange name."""
    root = tmp_path_factory.mktemp("videos")
    found = {
        "plays": make_video(root / "plays.mp4", 60, codec="libx264"),
        "old": make_video(root / "old.avi", 30, seed=1),
    }
    (root / "broken.mp4").write_bytes(b"not a video")
    (root / "empty.mp4").write_bytes(b"")
    nasty = root / f"{NASTY.replace('/', '')}.mp4"
    nasty.write_bytes(found["plays"].read_bytes())
    return found | {"broken": root / "broken.mp4", "empty": root / "empty.mp4", NASTY: nasty}


def test_who_is_served_and_what(tmp_path, videos):
    with serving(tmp_path, videos) as server:
        for path in ("/", "/state", "/label.js", "/videos/0/file", "/?token=wrong"):
            assert ask(server, "GET", path, Cookie="")[0] == 403
        status, headers, _ = ask(server, "GET", server.address.partition(str(server.port))[2], Cookie="")
        assert (
            status == 303 and "HttpOnly" in headers["set-cookie"] and "samesite=strict" in headers["set-cookie"].lower()
        )
        status, headers, page = ask(server, "GET", "/")
        policy = headers["content-security-policy"]
        assert status == 200 and "unsafe" not in policy and "default-src 'none'" in policy and b"http:" not in page
        assert ask(server, "GET", "/", Host="evil.example")[0] == 400
        for path in ("/label.css", "/label.js", "/player.js", "/timeline.js", "/icon.svg"):
            assert ask(server, "GET", path)[0] == 200
        for path in ("/videos/9", "/videos/9/file", "/videos/x", "/../../etc/passwd", "/files/plays.mp4"):
            assert ask(server, "GET", path)[0] == 404
        change = {"do": "add", "start": 0.4, "end": 1.0, "class": "Fight"}
        for wrong in ({"Origin": "http://evil.example"}, {"Origin": ""}, {"Content_Type": "text/plain"}):
            assert ask(server, "POST", "/videos/0", change, **wrong)[0] == 403
        assert ask(server, "POST", "/videos/0", change, Cookie="")[0] == 403
        for body in (b"", b"{", b"\xff", b"[" * 100_000, {"do": "add"}):
            assert ask(server, "POST", "/videos/0", body)[0] == 422
        assert ask(server, "POST", "/videos/0", b" " * (2 << 20))[0] == 413
        assert ask(server, "POST", "/videos/7", change)[0] == 404
        normal = {"do": "set", "version": 0, "normal": True, "marks": []}
        for unseen in (change, normal):
            assert ask(server, "POST", "/videos/2", unseen)[0] == 422, "a broken video cannot be labelled"
        status, _, body = ask(server, "POST", "/videos/0", change)
        news = json.loads(body)
        assert status == 200 and news["videos"]["0"]["marks"][0]["first"] == 10
        assert ask(server, "GET", f"/state?since={news['revision']}&run={news['run']}")[0] == 204
        assert json.loads(ask(server, "GET", "/state?since=-1")[2])["names"] == list(videos)
        assert ask(server, "POST", "/classes", {"name": "a b"})[0] == 422
        assert "Theft" in json.loads(ask(server, "POST", "/classes", {"name": "Theft"})[2])["classes"]
        assert json.loads(ask(server, "POST", "/videos/0/side", {"side": "test"})[2])["sides"][0] == "test"
        for wrong in ({"side": "moon"}, {}, {"side": ["test"]}):
            assert ask(server, "POST", "/videos/0/side", wrong)[0] == 422


def test_videos_in_ranges_and_as_pictures(tmp_path, videos):
    with serving(tmp_path, videos) as server:
        facts = json.loads(ask(server, "GET", "/videos/0")[2])
        assert facts == {"frames": 60, "end": pytest.approx(2.4), "rate": 25.0, "browser": True}
        status, headers, part = ask(server, "GET", "/videos/0/file", Range="bytes=100-199")
        assert (
            status == 206 and part == videos["plays"].read_bytes()[100:200] and headers["content-type"] == "video/mp4"
        )
        assert ask(server, "GET", "/videos/0/file", Range="bytes=99999999-")[0] == 416
        assert json.loads(ask(server, "GET", "/videos/1")[2])["browser"] is False
        assert ask(server, "GET", "/videos/1/file")[0] == 422
        pictures = [ask(server, "GET", f"/videos/1/frame.jpg?t={time}") for time in (2.0, 0.0, 1.0, 2.0, 99.0)]
        assert all(status == 200 and body[:3] == b"\xff\xd8\xff" for status, _, body in pictures)
        assert pictures[0][2] == pictures[3][2] != pictures[1][2]
        assert ask(server, "GET", "/videos/1/frame.jpg?t=nan")[0] == ask(server, "GET", "/videos/2/frame.jpg")[0] == 422
        for number, reason in ((2, "cannot be opened as a video"), (3, "empty")):
            status, _, body = ask(server, "GET", f"/videos/{number}")
            assert status == 422 and reason in json.loads(body)["error"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_labelling_in_a_browser(tmp_path, videos):
    """Intervals by keys and by a drag, whole videos, a normal one by pictures: the files have what was clicked."""
    with serving(tmp_path / "labels", videos) as server, browser(tmp_path / "profile") as page:
        page.open(server.address)
        page.wait_for("facts !== null && document.getElementById('video').readyState >= 2")
        texts = page.evaluate("[...document.querySelectorAll('#videos .what')].map((one) => one.textContent)")
        assert texts == list(videos) and page.evaluate("document.title") == "Label videos"
        press(page, "2")  # Fall
        page.evaluate("player.seek(0.4)")
        page.wait_for("Math.abs(player.video.currentTime - 0.4) < 0.001 && !player.video.seeking")
        press(page, "i")
        page.evaluate("player.seek(0.8)")
        page.wait_for("Math.abs(player.video.currentTime - 0.8) < 0.001 && !player.video.seeking")
        press(page, "o")
        page.wait_for("video().marks.length == 1")
        press(page, "1")
        drag(page, 0.5, 0.75)
        page.wait_for("video().marks.length == 2")
        marks = page.evaluate("video().marks.map((mark) => [mark.class, mark.first, mark.last])")
        assert marks[0] == ["Fall", 10, 21] and marks[1][0] == "Fight"
        assert abs(marks[1][1] - 30) <= 1 and abs(marks[1][2] - 45) <= 1
        assert page.evaluate("document.querySelectorAll('#track .mark').length") == 2
        # The edge of a mark by its field, then a mistake that is taken back.
        page.evaluate("{const f = document.querySelector('#marks input'); f.value = '0:00:00.20';"
                      " f.dispatchEvent(new Event('change'))}")  # fmt: skip
        page.wait_for("video().marks[0].first == 5")
        press(page, "n")
        page.wait_for("video().normal")
        press(page, "u")
        page.wait_for("video().marks.length == 2 && !video().normal")
        press(page, "j")
        page.wait_for("current == 1 && facts !== null && document.getElementById('still').naturalWidth == 96")
        page.evaluate("player.play()")
        page.wait_for("player.clock > 0.5 && document.getElementById('still').naturalWidth == 96")
        page.evaluate("player.pause()")
        press(page, "n")
        page.wait_for("video().normal")
        page.evaluate("open(2)")
        page.wait_for("document.getElementById('trouble').textContent.includes('cannot be opened')")
        page.evaluate("open(4)")
        page.wait_for("facts !== null")
        assert page.evaluate("document.getElementById('name').textContent") == NASTY
        press(page, "w")
        page.wait_for("video().marks.length == 1")
        # Another page has changed something, and this one learns it.
        ask(server, "POST", "/videos/0", {"do": "add", "start": 0, "end": 0.1, "class": "Fall"})
        page.wait_for("videos.get(0).marks.length == 3")
        first = page.evaluate("videos.get(0).marks.map((mark) => [mark.first, mark.last])")
        page.evaluate("window.before = true; location.reload()")
        page.wait_for("typeof before == 'undefined'")
        page.wait_for("document.readyState == 'complete' && typeof videos !== 'undefined' && videos.size == 5")
        assert page.evaluate("videos.get(0).marks.map((mark) => [mark.first, mark.last])") == first
        page.open(server.url, width=390, dark=True)
        page.wait_for("facts !== null || document.getElementById('trouble').textContent.includes('cannot be')")
        assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing sticks out"
        assert "labelled" in page.evaluate("document.getElementById('progress-text').textContent")
        assert [text for text in page.complaints if "422" not in text] == []
    rows = {
        entry.path: entry.label
        for side in ("train", "test")
        if (tmp_path / "labels" / f"{side}.csv").exists()
        for entry in read_list(tmp_path / "labels" / f"{side}.csv")
    }
    assert rows == {"plays.mp4": "Fall", "old.avi": "Normal", f"{NASTY}.mp4": "Fight"}
    content = json.loads((tmp_path / "labels" / kept.FILE).read_text())["videos"]
    assert [[mark["first"], mark["last"]] for mark in content[NASTY]["marks"].values()] == [[0, 60]]
    assert sorted([mark["first"], mark["last"]] for mark in content["plays"]["marks"].values()) == first


def press(page: Any, key: str) -> None:
    page.evaluate(f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: {key!r}, bubbles: true}}))")


def drag(page: Any, start: float, end: float) -> None:
    page.evaluate("document.getElementById('track').scrollIntoView()")
    box = page.evaluate("(({x, y, width, height}) => ({x, y, width, height}))"
                        "(document.getElementById('track').getBoundingClientRect())")  # fmt: skip
    y = box["y"] + box["height"] / 2
    places = [box["x"] + box["width"] * part for part in (start, (start + end) / 2, end)]
    mouse = {"button": "left", "y": y, "clickCount": 1}
    page._call("Input.dispatchMouseEvent", type="mousePressed", x=places[0], **mouse)
    for place in places[1:]:
        page._call("Input.dispatchMouseEvent", type="mouseMoved", x=place, buttons=1, **mouse)
    page._call("Input.dispatchMouseEvent", type="mouseReleased", x=places[-1], **mouse)


def test_the_command_resumes_and_ends_with_ctrl_c(tmp_path, videos):
    command = [
        sys.executable,
        "-m",
        "iefvad",
        "label",
        str(videos["plays"]),
        "--port",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # fmt: skip
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        address = re.search(r"http://127.0.0.1:(\d+)/\?token=(\S+)", lines[1])
        assert address is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=20)
        headers = {"Cookie": f"iefvad-label-{address[1]}={address[2]}", "Content-Type": "application/json"}
        headers["Origin"] = f"http://127.0.0.1:{address[1]}"
        change = {"do": "add", "start": 0.2, "end": 1, "class": "Anomaly"}
        connection.request("POST", "/videos/0", json.dumps(change), headers)
        assert connection.getresponse().status == 200
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2 and "wait until it ends" in second.stderr
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        assert process.returncode in (0, 130) and "1 of 1 videos are labelled" in out
    finally:
        process.kill()
    assert (tmp_path / "out" / "train.csv").read_text() == "path,label\nplays.mp4,Anomaly\n"
    assert not (tmp_path / "out" / "test.csv").exists() and os.listdir(tmp_path / "out")


@pytest.mark.parametrize("time", [10**400, -(10**400), 1e300])
def test_a_number_that_is_no_time_is_refused(tmp_path, time):
    labels, _ = labels_of(tmp_path, ["a"])
    with pytest.raises(UserError, match="in seconds"):
        add(labels, "a", 0, time)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("classes",), "Fight"), (("videos", "a", "normal"), True), (("videos", "a", "normal"), "no"),
        (("videos", "a", "file"), ["a.mp4"]), (("videos", "a", "version"), -1), (("videos", "a", "frames"), 5),
        (("videos", "a", "marks", "1", "first"), 0.5), (("videos", "a", "marks", "1", "end"), 10**400),
        (("videos", "a", "marks", "1", "end"), 0.0), (("videos", "a", "marks", "1", "kind"), "Other"),
    ],
)  # fmt: skip
def test_edited_labels_never_mean_something_else(tmp_path, place, value):
    labels, _ = labels_of(tmp_path, ["a"])
    add(labels, "a", 1.0, 2.0)
    content = json.loads((tmp_path / kept.FILE).read_text())
    parent = content
    for name in place[:-1]:
        parent = parent[name]
    parent[place[-1]] = value
    (tmp_path / kept.FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"labels\.json is not a file of"):
        labels_of(tmp_path, ["a"])
