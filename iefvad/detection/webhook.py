"""Alarms to a web service: a thread posts each as JSON, and scoring never waits for it."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from datetime import datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from iefvad.detection.live.channel import LiveAlarm
from iefvad.report.pictures import jpeg
from iefvad.utils.addresses import origin
from iefvad.utils.errors import UserError

_ROOM = 100  # alarms that may wait; of more, the oldest is dropped
_ATTEMPTS = 5
_LONGEST_WAIT = 30.0  # seconds between two attempts
_TRY_AGAIN = {408, 425, 429}  # besides all from 500


class Webhook:
    """Posts alarms to an address, one after another, each up to five times.

    Attributes:
        shown: Protocol and host of the address. The path may be a secret.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 10.0,
        retry_seconds: float = 1.0,
        report: Callable[[str], None] = print,
    ) -> None:
        """Check the address and start the thread.

        Args:
            url: An http or https address; it may contain user and password.
            timeout: Seconds without an answer after which an attempt has failed.
            retry_seconds: Seconds before the second attempt; each further wait is twice as long, at most 30 s.
            report: Called, by the thread, with one line for each alarm that could not be delivered.

        Raises:
            UserError: the address is not one of http or https.
        """
        self.shown = origin(url)
        self._url, self._headers = _request_parts(url)
        self._timeout, self._retry_seconds, self._report = timeout, retry_seconds, report
        self._waiting: deque[LiveAlarm] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._deadline = float("inf")
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def post(self, alarm: LiveAlarm) -> None:
        """Hand an alarm over. Returns at once; where too many wait, the oldest is dropped."""
        with self._change:
            dropped = self._waiting.popleft() if len(self._waiting) >= _ROOM else None
            self._waiting.append(alarm)
            self._change.notify_all()
        if dropped is not None:
            self._fail(dropped, f"{_ROOM} alarms wait already")

    def close(self, wait: float = 5.0) -> None:
        """Let the thread deliver what waits, at most for `wait` seconds, and end it."""
        with self._change:
            self._closing, self._deadline = True, time.monotonic() + wait
            self._change.notify_all()
        self._thread.join(wait)
        with self._change:
            left = list(self._waiting)
            self._waiting.clear()
        if left:
            self._report(f"webhook {self.shown}: {len(left)} starts and ends of alarms not sent: detection ended")

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._closing:
                    self._change.wait()
                if not self._waiting:
                    return
                alarm = self._waiting.popleft()
            try:
                reason = self._deliver(alarm)
            except Exception as error:  # one alarm must not end the thread
                reason = type(error).__name__
            if reason:
                self._fail(alarm, reason)

    def _deliver(self, alarm: LiveAlarm) -> str:
        """Post one alarm. Returns an empty text, or why it failed."""
        body = json.dumps(describe(alarm)).encode()
        for attempt in range(_ATTEMPTS):
            request = urllib.request.Request(self._url, body, self._headers, method="POST")
            try:
                self._opener.open(request, timeout=self._timeout).close()
                return ""
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"HTTP status {error.code}"
                if error.code < 500 and error.code not in _TRY_AGAIN:
                    return reason + (" (redirects are not followed)" if 300 <= error.code < 400 else "")
            except (OSError, HTTPException, ValueError) as error:
                reason = self._reason(error)
            wait = min(_LONGEST_WAIT, self._retry_seconds * 2**attempt)
            if attempt + 1 < _ATTEMPTS and not self._pause(wait):
                return f"{reason}, and detection ended"
        return f"{reason} (attempts: {_ATTEMPTS})"

    def _pause(self, seconds: float) -> bool:
        """Wait for the next attempt. Returns False where there is no time for another one."""
        until = time.monotonic() + seconds
        with self._change:
            while (left := until - time.monotonic()) > 0:
                if until > self._deadline:
                    return False
                self._change.wait(left)
        return True

    def _reason(self, error: Exception) -> str:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            return f"no answer within {self._timeout:g} s"
        # Never the whole message, because it may repeat the address.
        return getattr(cause, "strerror", None) or type(cause).__name__

    def _fail(self, alarm: LiveAlarm, reason: str) -> None:
        self._report(f"webhook {self.shown}: {alarm.kind} of alarm {alarm.number} of {alarm.camera} not sent: {reason}")


def describe(alarm: LiveAlarm) -> dict[str, Any]:
    """Return what is posted for an alarm, as described in `docs/videos.md`."""
    picture = None if alarm.picture is None else base64.b64encode(jpeg(alarm.picture)).decode()
    return {
        "format": 1,
        "event": alarm.kind,
        "camera": alarm.camera,
        "address": alarm.address,
        "alarm": alarm.number,
        "start": round(alarm.start, 3),
        "end": round(alarm.end, 3),
        "start_time": _iso(alarm.began),
        "end_time": _iso(alarm.until),
        "peak": round(alarm.peak, 6),
        "threshold": alarm.threshold,
        "picture": None if picture is None else f"data:image/jpeg;base64,{picture}",
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")


def _request_parts(url: str) -> tuple[str, dict[str, str]]:
    """Return the address without user and password, and the headers that carry them."""
    headers = {"Content-Type": "application/json", "User-Agent": "iefvad"}
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = None, None
    if parts is None or parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in url):
        raise UserError("--webhook must be an address such as https://host/path, of http or https.")
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")), headers


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: they would turn a POST into a GET, perhaps to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None
