"""The web server of the page, in a thread of its own: starlette and uvicorn, with server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
import socket
import threading
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from iefvad.detection.page.board import Board, Seen
from iefvad.report.page import render
from iefvad.report.pictures import jpeg
from iefvad.utils.errors import UserError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

_POLL = 0.25  # seconds between two looks for news
_HEARTBEAT = 10.0  # seconds after which a connection without news gets a sign of life
_STUCK = 20.0  # seconds after which a browser that takes nothing is given up
_SILENT = 10.0  # seconds after which a connection without a request is given up
_CONNECTIONS = 64
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class PageServer:
    """Serves the page until it is closed.

    Attributes:
        url: Address of the page.
        exposed: Whether other machines can reach it.
    """

    def __init__(self, board: Board, address: str) -> None:
        """Open the port and start the thread.

        Args:
            board: What the page shows.
            address: HOST:PORT; with port 0 a free one is chosen.

        Raises:
            UserError: starlette or uvicorn is not installed, or the address cannot be opened.
        """
        try:
            import uvicorn
        except ImportError as error:
            raise UserError("--serve needs starlette and uvicorn: pip install 'iefvad[serve]'.") from error
        host, port = parse_address(address)
        self._socket = _listen(host, port, address)
        port = self._socket.getsockname()[1]
        self.exposed = not _is_loopback(host)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        self._closing = threading.Event()
        self._server = uvicorn.Server(
            uvicorn.Config(
                application(board, host, self._closing.is_set),
                lifespan="off",
                loop="asyncio",
                http=_limited_protocol(),
                ws="none",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="page", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the server and its connections."""
        self._closing.set()
        self._server.should_exit = True
        self._thread.join(5.0)
        self._socket.close()


def _limited_protocol() -> type[asyncio.Protocol]:
    """Return uvicorn's protocol of HTTP, which takes no more connections than `_CONNECTIONS`, and no silent ones.

    Otherwise visitors could use up the descriptors of the process that watches the cameras.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Limited(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > _CONNECTIONS:
                transport.abort()
            # A connection without a request ends, like one whose requests are over.
            self.timeout_keep_alive_task = self.loop.call_later(_SILENT, self.timeout_keep_alive_handler)

    return Limited


def application(board: Board, host: str, ending: Callable[[], bool]) -> ASGIApp:
    """Return the page as an ASGI application.

    Args:
        board: What it shows.
        host: Host that it is served on; other names in a request's Host header are refused.
        ending: Function that tells whether the server is being closed.
    """
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    texts = _texts(board.title)

    def text(kind: str, name: str) -> Any:
        return lambda request: Response(texts[name], media_type=kind)

    def picture(request: Request) -> Response:
        found = board.picture(request.path_params["number"])
        if found is None:
            return PlainTextResponse("there is no such picture", 404)
        return Response(jpeg(found), media_type="image/jpeg")

    starlette: Starlette = Starlette(
        routes=[
            Route("/", text("text/html", "live.html")),
            Route("/live.css", text("text/css", "live.css")),
            Route("/live.js", text("text/javascript", "live.js")),
            Route("/icon.svg", text("image/svg+xml", "icon.svg")),
            Route("/pictures/{number:int}.jpg", picture),
            Route("/events", _Events(board, ending)),
        ]
    )
    refusal = PlainTextResponse("this name is not served here: open the page by the address that iefvad printed", 400)

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        if scope["type"] != "http":
            return
        given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        # A page of another site could otherwise make its own name point here and read everything (DNS rebinding).
        await (starlette if host_allowed(given, host) else refusal)(scope, receive, with_headers)

    return guarded


class _Events:
    """The stream of server-sent events: everything first, then what is new."""

    def __init__(self, board: Board, ending: Callable[[], bool]) -> None:
        self._board, self._ending = board, ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def put(data: str) -> None:
            body = {"type": "http.response.body", "body": data.encode(), "more_body": True}
            # It waits while the browser takes nothing, so that no more than one message is held for it.
            await asyncio.wait_for(send(body), _STUCK)

        headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_until_gone(receive))
        seen, silent = Seen(), 0.0
        try:
            await put("retry: 1000\n\n")
            while not gone.done() and not self._ending():
                news = self._board.news(seen)
                if news is not None:
                    await put(f"data: {json.dumps(news, allow_nan=False)}\n\n")
                    silent = 0.0
                elif silent >= _HEARTBEAT:
                    await put(": \n\n")
                    silent = 0.0
                await asyncio.wait({gone}, timeout=_POLL)
                silent += _POLL
            if not gone.done():
                await asyncio.wait_for(send({"type": "http.response.body", "body": b""}), _STUCK)
        except (asyncio.TimeoutError, OSError):
            return  # uvicorn closes the connection of an answer that is not complete
        finally:
            gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def parse_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 address is written in brackets.

    Raises:
        UserError: it is something else.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]/\s]+)):(\d{1,5})", address)
    if match is None or int(match[3]) > 65535:
        raise UserError(f"--serve must be HOST:PORT such as 127.0.0.1:8000, not {address}.")
    return match[1] or match[2], int(match[3])


def host_allowed(header: str, host: str) -> bool:
    """Tell whether a request's Host header names this server, and not another site that points here.

    Args:
        header: The header: name or IP address, perhaps with a port.
        host: The host that the page is served on.
    """
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::\d+)?", header.strip())
    if match is None:
        return False
    name = (match[1] or match[2]).lower().rstrip(".")
    if name in ("localhost", host.lower()) or (_is_loopback(name) and _is_address(name)):
        return True
    if _is_loopback(host):
        return False
    # Rebinding needs a name; an address always is the one that the browser connects to.
    return _is_address(name) or name in (socket.gethostname().lower(), socket.getfqdn().lower())


def _is_address(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name.partition("%")[0]))
    return False


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


def _listen(host: str, port: int, address: str) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(place[:2], family=family, backlog=32)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--serve {address} cannot be opened: {reason}; choose another address or port.") from error


def _texts(title: str) -> dict[str, str]:
    folder = files("iefvad.detection.page") / "files"
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in ("live.css", "live.js", "icon.svg")}
    texts["live.css"] = render("palette.css") + render("style.css") + texts["live.css"]
    texts["live.html"] = render("live.html", title=title)
    return texts
