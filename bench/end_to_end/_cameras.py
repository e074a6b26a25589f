"""Cameras for a benchmark: `python -m bench.end_to_end._cameras VIDEO FPS` serves motion JPEG without an end.

It prints its port. `/N` is camera N, which plays the video again and again, each camera from another place on.
`/begun` answers, as JSON, when each camera sent its first frame, as `time.monotonic()` of this machine gives it. Frame
n is due n / FPS seconds after it. The process ends when its standard input is closed.
"""

from __future__ import annotations

import http.server
import json
import sys
import threading
import time

import av
import cv2

_STEP = 7  # frames of the video between the beginnings of two cameras


def main(video: str, fps: float) -> None:
    """Serve the cameras."""
    with av.open(video) as container:
        pictures = [
            cv2.imencode(".jpg", frame.to_ndarray(format="bgr24"))[1].tobytes() for frame in container.decode(video=0)
        ]
    begun: dict[str, float] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/begun":
                answer = json.dumps(begun).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            first, number = _STEP * int(self.path[1:]), 0
            begun[self.path[1:]] = begin = time.monotonic()
            try:
                while True:
                    time.sleep(max(0.0, begin + number / fps - time.monotonic()))
                    picture = pictures[(first + number) % len(pictures)]
                    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
                    self.wfile.write(head + picture + b"\r\n")
                    number += 1
            except OSError:  # nobody looks any more
                self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
