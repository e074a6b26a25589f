"""A Hugging Face hub on the loopback, with the few requests that fetching a model needs."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Files = dict[str, bytes]


@dataclass
class FakeHub:
    """Repositories by name, and what was asked of them.

    `breaks` says how many connections are still cut in the middle of a safetensors file.
    """

    repositories: dict[str, Files] = field(default_factory=dict)
    address: str = ""
    breaks: int = 0
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """Return the names of the files whose content was asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve a hub on the loopback until the end of the block."""
    hub = FakeHub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                files = hub.repositories.get(match[1])
                if files is None:
                    return self.fail("RepoNotFound")
                if match[2] not in (None, "main", COMMIT):
                    return self.fail("RevisionNotFound")
                siblings = [{"rfilename": name} for name in files]
                content = {"_id": "0", "id": match[1], "modelId": match[1], "sha": COMMIT, "siblings": siblings}
                return self.send(json.dumps(content).encode(), {"Content-Type": "application/json"}, body=body)
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if match is None:
                return self.fail("EntryNotFound")
            if match[1] not in hub.repositories:
                return self.fail("RepoNotFound")
            data = hub.repositories[match[1]].get(match[3])
            if data is None:
                return self.fail("EntryNotFound")
            headers = {
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            return self.send(data, headers, body=body, breakable=match[3].endswith(".safetensors"))

        def send(self, data: bytes, headers: dict[str, str], *, body: bool, breakable: bool = False) -> None:
            begin = 0
            if (wanted := self.headers.get("Range")) is not None:
                begin = int(wanted.removeprefix("bytes=").split("-")[0])
                headers = {**headers, "Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
            self.send_response(206 if wanted else 200)
            for name, value in {**headers, "Content-Length": str(len(data) - begin)}.items():
                self.send_header(name, value)
            self.end_headers()
            if not body:
                return
            if breakable and hub.breaks:
                hub.breaks -= 1
                self.wfile.write(data[begin : begin + (len(data) - begin) // 2])
                self.wfile.flush()
                self.close_connection = True
                return
            self.wfile.write(data[begin:])

        def fail(self, code: str) -> None:
            self.send_response(404)
            for name, value in (("X-Error-Code", code), ("X-Error-Message", code), ("Content-Length", "0")):
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
