"""Alarms posted to a web service: what is sent, what is tried again, and that nobody waits for it."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import threading
import time

import numpy as np
import pytest

from iefvad.detection import webhook
from iefvad.detection.live.channel import LiveAlarm
from iefvad.detection.webhook import Webhook
from iefvad.utils.errors import UserError


class Service:
    """A web service that answers with the given statuses, the last one for ever, and keeps what it gets."""

    def __init__(self, *statuses: int, wait: float = 0.0) -> None:
        self.got: list[tuple[str, dict[str, str], dict]] = []
        self.times: list[float] = []
        left = list(statuses or (200,))
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.got.append((self.path, dict(self.headers), body))
                service.times.append(time.monotonic())
                time.sleep(wait)
                with contextlib.suppress(OSError):
                    self.send_response(left.pop(0) if len(left) > 1 else left[0])
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *arguments) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Service:
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def alarm(kind: str = "start", number: int = 1) -> LiveAlarm:
    picture = np.full((90, 120, 3), 200, np.uint8)
    return LiveAlarm(
        kind, 10.0, 12.5, 0.875, camera="yard", address="rtsp://host/s", number=number, threshold=0.5, began=1.7e9,
        until=1.7e9 + 2.5, picture=picture,
    )  # fmt: skip


def test_an_alarm_is_posted():
    said: list[str] = []
    with Service() as service:
        hook = Webhook(f"http://me:s%40cret@{service.address}/T0/hidden?token=x", report=said.append)
        hook.post(alarm())
        hook.post(alarm("end"))
        hook.close()
    [(path, headers, body), (_, _, ended)] = service.got
    assert path == "/T0/hidden?token=x" and headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"me:s@cret").decode()
    assert headers["Host"] == service.address
    assert (body["event"], ended["event"]) == ("start", "end")
    assert {key: body[key] for key in ("camera", "address", "alarm", "start", "end", "peak", "threshold")} == {
        "camera": "yard", "address": "rtsp://host/s", "alarm": 1, "start": 10.0, "end": 12.5, "peak": 0.875,
        "threshold": 0.5,
    }  # fmt: skip
    assert body["start_time"].startswith("2023-11-1") and body["end_time"] > body["start_time"]
    kind, _, data = body["picture"].partition(",")
    assert kind == "data:image/jpeg;base64" and base64.b64decode(data)[:3] == b"\xff\xd8\xff"
    assert said == []


def test_a_failure_is_tried_again_with_longer_waits():
    with Service(500, 429, 503, 204) as service:
        hook = Webhook(f"http://{service.address}/", retry_seconds=0.05, report=print)
        hook.post(alarm())
        until = time.monotonic() + 10
        while len(service.got) < 4 and time.monotonic() < until:
            time.sleep(0.02)
        hook.close()
    waits = np.diff(service.times)
    assert len(waits) == 3 and all(waits >= [0.05, 0.1, 0.2])


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (302, 1), (500, webhook._ATTEMPTS)])
def test_a_failure_is_one_line_without_secrets(status, attempts):
    said: list[str] = []
    with Service(status) as service:
        hook = Webhook(f"http://me:s3cr3t@{service.address}/s3cr3t", retry_seconds=0.001, report=said.append)
        hook.post(alarm(number=7))
        until = time.monotonic() + 10
        while not said and time.monotonic() < until:
            time.sleep(0.01)
        hook.close()
    [line] = said
    assert f"webhook http://{service.address}: start of alarm 7 of yard not sent: HTTP status {status}" in line
    assert len(service.got) == attempts and "s3cr3t" not in line


def test_nobody_waits_for_a_service_that_hangs():
    """Posting returns at once, what waits is bounded, and the end of detection is not delayed for long."""
    said: list[str] = []
    with Service(wait=1.5) as service:
        hook = Webhook(f"http://{service.address}/", timeout=0.3, retry_seconds=0.01, report=said.append)
        begin = time.monotonic()
        for number in range(webhook._ROOM + 50):
            hook.post(alarm(number=number))
        assert time.monotonic() - begin < 1.0
        assert len(hook._waiting) <= webhook._ROOM
        hook.close(wait=0.5)
        assert time.monotonic() - begin < 3.0
    assert sum("100 alarms wait already" in line for line in said) >= 49
    assert any("starts and ends of alarms not sent: detection ended" in line for line in said)


@pytest.mark.parametrize("url", ["ftp://h/s3cr3t", "file:///etc/s3cr3t", "h/s3cr3t", "https://", "http://h:s3cr3t/"])
def test_only_web_addresses(url):
    with pytest.raises(UserError, match="--webhook must be an address such as https://host/path") as caught:
        Webhook(url)
    assert "s3cr3t" not in str(caught.value)
