"""The web page of live detection: what it sends, to whom, and how it looks in a browser."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from iefvad.detection.announce import announcing
from iefvad.detection.config import DetectConfig
from iefvad.detection.live.channel import LiveAlarm, LiveScore
from iefvad.detection.page import board as boards
from iefvad.detection.page.board import Board, Seen
from iefvad.detection.page.server import PageServer, _Events
from iefvad.utils.advice import Advice
from iefvad.utils.errors import UserError
from iefvad.web.server import host_allowed, parse_address
from tests.helpers.browser import CHROMIUM, browser

NAMES = ["Entrance", "Yard <img src=x onerror=document.title=1> & 'gate' </script>"]


def channels() -> list[Any]:
    health = SimpleNamespace(dropped=3, lost=Counter())
    return [
        SimpleNamespace(
            name=name, rule=SimpleNamespace(threshold=0.5, low=0.4), trouble=None, fps=10.0,
            source=SimpleNamespace(state="live", health=health),
        )
        for name in NAMES
    ]  # fmt: skip


def score(number: int, value: float, camera: int = 0, kinds: tuple[str, ...] = ()) -> LiveScore:
    picture = np.full((60, 80, 3), 90, np.uint8)
    start, end = 1.6 * number, 1.6 * (number + 1)
    alarms = [
        LiveAlarm(kind, start, end, value, camera=NAMES[camera], number=1, threshold=0.5, picture=picture)
        for kind in kinds
    ]
    row = np.array([value, np.nan, np.nan, np.nan], np.float32)
    return LiveScore(NAMES[camera], number, start, end, row, alarms, 1.7e9, 0.025, picture)


@pytest.fixture
def board():
    return Board(channels(), "Cameras, model mine")


@contextlib.contextmanager
def serving(board: Board):
    server = PageServer(board, "127.0.0.1:0")
    try:
        yield server, int(server.url.rsplit(":", 1)[1].strip("/"))
    finally:
        server.close()


def get(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def events(port: int):
    """Yield the messages of a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    assert answer.getheader("content-type") == "text/event-stream"
    for line in answer:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


def test_the_board_sends_each_browser_what_it_has_not_seen(board):
    for number in range(3):
        board.add(score(number, 0.1 * number))
    seen = Seen()
    first = board.news(seen)
    assert [camera["name"] for camera in first["cameras"]] == NAMES and first["run"]
    assert [point[2] for point in first["cameras"][0]["scores"]] == [0.0, 0.1, 0.2]
    assert first["cameras"][0]["fps"] == 10.0 and first["cameras"][0]["dropped"] == 3
    assert board.news(seen) is None
    board.add(score(3, 0.7, kinds=("start",)))
    news = board.news(seen)
    assert [camera["camera"] for camera in news["cameras"]] == [0] and "run" not in news
    assert news["alarms"][0] | {"began": 0} == {
        "id": 1, "camera": 0, "start": 4.8, "end": 6.4, "began": 0, "peak": 0.7, "over": False, "picture": True,
    }  # fmt: skip
    board.add(score(4, 0.1, kinds=("end",)))
    assert board.news(seen)["alarms"][0]["over"] is True and board.news(seen) is None
    assert len(board.news(Seen())["alarms"]) == 1
    json.dumps(board.news(Seen()), allow_nan=False)


def test_the_board_stays_small(board):
    for number in range(2000):
        board.add(score(number, 0.7, number % 2, kinds=("end", "start")))
    assert all(len(kept) == boards.SCORES for kept in board._scores)
    assert len(board._alarms) == len(board._pictures) == boards.ALARMS
    news = board.news(Seen())
    assert news["total"] == 2000 and len(news["alarms"]) == boards.ALARMS
    assert len(json.dumps(news)) < 100_000
    assert board.picture(1) is None and board.picture(2000) is not None


def test_what_the_server_sends(board):
    board.add(score(0, 0.7, kinds=("start",)))
    with serving(board) as (server, port):
        assert not server.exposed
        status, headers, page = get(port, "/")
        assert status == 200 and b"Cameras, model mine" in page and b"<script src=" in page
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in headers
        assert b"http" not in page.replace(b"http-equiv", b""), "nothing of another place is asked for"
        status, headers, picture = get(port, "/pictures/1.jpg")
        assert (status, headers["content-type"], picture[:3]) == (200, "image/jpeg", b"\xff\xd8\xff")
        assert get(port, "/pictures/2.jpg")[0] == 404 and get(port, "/../../etc/passwd")[0] == 404
        for name in ("live.css", "live.js", "icon.svg"):
            assert get(port, f"/{name}")[0] == 200
        assert get(port, "/", Host="evil.example")[0] == 400 and get(port, "/events", Host="evil.example")[0] == 400
        assert get(port, "/", Host=f"localhost:{port}")[0] == 200
        messages = events(port)
        assert next(messages)["cameras"][1]["name"] == NAMES[1]
        board.add(score(1, 0.2))
        assert next(messages)["cameras"][0]["scores"] == [[1.6, 3.2, 0.2]]
        begin = time.monotonic()
    assert time.monotonic() - begin < 5, "a browser that listens must not delay the end"


def test_warnings_about_the_model_are_at_the_top(board):
    board.warnings = [Advice("It knows <rendered> scenes only.", "Train on your own footage.")]
    with serving(board) as (_, port):
        page, style = (get(port, path)[2].decode() for path in ("/", "/live.css"))
    assert ".link.on" in style  # what all served pages share
    box = page[page.index("<aside") : page.index("</aside>")]
    assert "It knows &lt;rendered&gt; scenes only." in box and "Train on your own footage." in box
    board.warnings = []
    with serving(board) as (_, port):
        assert "<aside" not in get(port, "/")[2].decode()


def test_the_page_of_a_watch_has_the_warnings_of_its_detector():
    warning = Advice("It knows rendered scenes only.", "Train on your own footage.")
    detector = SimpleNamespace(folder=None, standing_advice=lambda: [warning])
    said: list[str] = []
    with announcing(SimpleNamespace(channels=[], detector=detector), DetectConfig(serve="127.0.0.1:0"), said.append):
        port = int(said[0].rsplit(":", 1)[1].strip("/"))
        assert warning.cause in get(port, "/")[2].decode()


def test_a_stuck_browser_delays_nobody(board):
    """It takes nothing from its connection; scores go on, and another browser is served."""
    with serving(board) as (_, port):
        stuck = socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", port))
        stuck.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        begin = time.monotonic()
        for number in range(3000):
            board.add(score(number, 0.7, kinds=("end", "start")))
        assert time.monotonic() - begin < 5
        assert next(events(port))["total"] == 3000
        stuck.close()


def test_addresses():
    assert parse_address("127.0.0.1:8000") == ("127.0.0.1", 8000) and parse_address("[::1]:80") == ("::1", 80)
    for wrong in ("8000", "127.0.0.1", "http://127.0.0.1:8000", "::1:80", "h:99999", ""):
        with pytest.raises(UserError, match="--serve must be HOST:PORT"):
            parse_address(wrong)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot be opened"):
        PageServer(Board([], ""), f"127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize(
    ("header", "host", "allowed"),
    [
        ("127.0.0.1:8000", "127.0.0.1", True),
        ("localhost:9", "127.0.0.1", True),
        ("[::1]:8000", "::1", True),
        ("evil.example:8000", "127.0.0.1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("127.0.0.1@evil.example", "127.0.0.1", False),
        ("192.168.1.7:8000", "127.0.0.1", False),
        ("", "127.0.0.1", False),
        ("192.168.1.7:8000", "0.0.0.0", True),
        ("evil.example", "0.0.0.0", False),
        ("cameras.lan:8000", "cameras.lan", True),
        (socket.gethostname(), "0.0.0.0", True),
    ],
)
def test_which_names_are_served(header, host, allowed):
    assert host_allowed(header, host) is allowed


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(board, tmp_path):
    """Script, style and pictures work under the policy, a name stays text, and the page finds a server that is back."""
    for number in range(20):
        board.add(score(number, 0.7 if number in (8, 9) else 0.2, kinds=("start",) if number == 8 else ()))
    with browser(tmp_path) as page:
        with serving(board) as (server, port):
            page.open(server.url, width=390)
            page.wait_for("document.querySelectorAll('.thumbs img').length == 1")
            page.wait_for("document.querySelector('.thumbs img').naturalWidth == 80")
            texts = page.evaluate("[...document.querySelectorAll('.camera h3')].map((title) => title.textContent)")
            assert texts == NAMES and page.evaluate("document.title") == "Cameras, model mine"
            assert page.evaluate("document.getElementById('tile-live').textContent") == "2 of 2"
            points = page.evaluate("document.querySelector('.score').getAttribute('points')")
            assert len(points.split()) == 40
            widths = page.evaluate("[...document.querySelectorAll('.over')].map((box) => box.getAttribute('width'))")
            assert widths == ["6.00"], "two segments side by side are one stretch"
            assert page.evaluate("document.querySelector('.camera .state').textContent") == "live"
            assert "going on" in page.evaluate("document.querySelector('figcaption').textContent")
            assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing sticks out"
            board.add(score(20, 0.6, kinds=("end",)))
            page.wait_for("document.querySelector('.camera b').textContent == '0.60'")
            assert "going on" not in page.evaluate("document.querySelector('figcaption').textContent")
            assert page.evaluate("document.querySelector('.camera').classList.contains('flagged')")
            assert page.complaints == []
        page.wait_for("document.getElementById('link').classList.contains('off')")
        again = Board(channels()[:1], "Cameras")
        again.add(score(0, 0.3))
        server = PageServer(again, f"127.0.0.1:{port}")
        page.wait_for("document.querySelectorAll('.camera').length == 1")
        server.close()


def test_visitors_cannot_use_up_descriptors(board, monkeypatch):
    monkeypatch.setattr("iefvad.web.server._SILENT", 0.5)
    with serving(board) as (_, port), contextlib.ExitStack() as stack:
        visitors = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(100)]
        refused = sum(_ended(visitor, 0.01) for visitor in visitors)
        assert 100 - 64 <= refused < 100
        assert all(_ended(visitor, 5.0) for visitor in visitors)  # silent ones are given up
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200


def test_a_browser_that_takes_nothing_is_given_up(board, monkeypatch):
    monkeypatch.setattr("iefvad.detection.page.server._STUCK", 0.01)

    async def receive() -> dict[str, str]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    async def visit() -> None:
        await asyncio.wait_for(_Events(board, lambda: False)({}, receive, send), 10)

    asyncio.run(visit())


def _ended(visitor: socket.socket, seconds: float) -> bool:
    visitor.settimeout(seconds)
    try:
        return visitor.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False
