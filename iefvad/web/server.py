"""A web server in a thread of its own, for pages on this machine: starlette and uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from iefvad.report.page import render
from iefvad.utils.errors import UserError

if TYPE_CHECKING:
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send

_SILENT = 10.0  # seconds after which a connection without a request is given up
_CONNECTIONS = 64
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class WebServer:
    """Serves a page until it is closed.

    Attributes:
        url: Address of the page.
        port: Port of the page.
        exposed: Whether other machines can reach it.
        closing: Set when the server is being closed.
    """

    def __init__(self, make: Callable[[WebServer], ASGIApp], address: str, *, option: str = "--serve") -> None:
        """Open the port and start the thread.

        Args:
            make: Returns the application, which `guarded` wraps. It is called when the port is known.
            address: HOST:PORT; with port 0 a free one is chosen.
            option: Option that the address was given by, for messages.

        Raises:
            UserError: starlette or uvicorn is not installed, or the address cannot be opened.
        """
        try:
            import uvicorn
        except ImportError as error:
            raise UserError(f"{option} needs starlette and uvicorn: pip install 'iefvad[serve]'.") from error
        host, port = parse_address(address, option)
        self._socket = _listen(host, port, address, option)
        self.port = self._socket.getsockname()[1]
        self.exposed = not _is_loopback(host)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"
        self.closing = threading.Event()
        self._server = uvicorn.Server(
            uvicorn.Config(
                guarded(make(self), host),
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
        self.closing.set()
        self._server.should_exit = True
        self._thread.join(5.0)
        self._socket.close()


def _limited_protocol() -> type[asyncio.Protocol]:
    """Return uvicorn's protocol of HTTP, which takes no more connections than `_CONNECTIONS`, and no silent ones.

    Otherwise visitors could use up the descriptors of the process.
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


def guarded(application: ASGIApp, host: str) -> ASGIApp:
    """Return an application that answers only requests for this host, with a policy for browsers in every answer.

    Args:
        application: The application.
        host: Host that it is served on; other names in a request's Host header are refused.
    """
    from starlette.responses import PlainTextResponse

    refusal = PlainTextResponse("this name is not served here: open the page by the address that iefvad printed", 400)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        if scope["type"] != "http":
            return
        given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        # A page of another site could otherwise make its own name point here and read everything (DNS rebinding).
        await (application if host_allowed(given, host) else refusal)(scope, receive, with_headers)

    return answer


def page_routes(package: str, name: str, scripts: Sequence[str] = (), **context: Any) -> list[Route]:
    """Return the routes of a page: its HTML, style, scripts and icon, all read now.

    Args:
        package: Package whose folder `files` has NAME.css and NAME.js.
        name: Name of the page, whose template NAME.html is one of `iefvad.report`.
        scripts: Further scripts beside NAME.js.
        context: What the template names.
    """
    from starlette.responses import Response
    from starlette.routing import Route

    folder = files(package) / "files"
    css = (folder / f"{name}.css").read_text(encoding="utf-8")
    served, icon = (
        (files("iefvad.web") / "files" / file).read_text(encoding="utf-8") for file in ("served.css", "icon.svg")
    )
    texts = {
        "/": ("text/html", render(f"{name}.html", **context)),
        f"/{name}.css": ("text/css", render("palette.css") + render("style.css") + served + css),
        "/icon.svg": ("image/svg+xml", icon),
    }
    for script in (f"{name}.js", *scripts):
        texts[f"/{script}"] = ("text/javascript", (folder / script).read_text(encoding="utf-8"))

    def text(kind: str, content: str) -> Any:
        return lambda request: Response(content, media_type=kind)

    return [Route(path, text(*found)) for path, found in texts.items()]


def parse_address(address: str, option: str = "--serve") -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 address is written in brackets.

    Raises:
        UserError: it is something else.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]/\s]+)):(\d{1,5})", address)
    if match is None or int(match[3]) > 65535:
        raise UserError(f"{option} must be HOST:PORT such as 127.0.0.1:8000, not {address}.")
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


def _listen(host: str, port: int, address: str, option: str) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(place[:2], family=family, backlog=32)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{option} {address} cannot be opened: {reason}; choose another address or port.") from error
