"""The web server of the page of live detection, with server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from iefvad.detection.page.board import Board, Seen
from iefvad.report.pictures import jpeg
from iefvad.web.server import WebServer, page_routes

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

_POLL = 0.25  # seconds between two looks for news
_HEARTBEAT = 10.0  # seconds after which a connection without news gets a sign of life
_STUCK = 20.0  # seconds after which a browser that takes nothing is given up


class PageServer(WebServer):
    """Serves the page of live detection until it is closed. It has no request that changes anything."""

    def __init__(self, board: Board, address: str) -> None:
        """Open the port and start the thread.

        Args:
            board: What the page shows.
            address: HOST:PORT; with port 0 a free one is chosen.

        Raises:
            UserError: starlette or uvicorn is not installed, or the address cannot be opened.
        """
        super().__init__(lambda server: application(board, server.closing.is_set), address)


def application(board: Board, ending: Callable[[], bool]) -> ASGIApp:
    """Return the page as an ASGI application.

    Args:
        board: What it shows.
        ending: Function that tells whether the server is being closed.
    """
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    def picture(request: Request) -> Response:
        found = board.picture(request.path_params["number"])
        if found is None:
            return PlainTextResponse("there is no such picture", 404)
        return Response(jpeg(found), media_type="image/jpeg")

    return Starlette(
        routes=[
            *page_routes("iefvad.detection.page", "live", title=board.title, warnings=board.warnings),
            Route("/pictures/{number:int}.jpg", picture),
            Route("/events", _Events(board, ending)),
        ]
    )


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
