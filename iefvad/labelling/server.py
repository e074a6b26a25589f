"""The page of `iefvad label`: what it serves, and to whom."""

from __future__ import annotations

import hmac
import math
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from iefvad.labelling.labels import ConflictError, Labels
from iefvad.labelling.lists import Lists
from iefvad.labelling.media import Media
from iefvad.utils.errors import UserError
from iefvad.utils.plain_json import parse_json
from iefvad.utils.text import readable
from iefvad.web.server import WebServer, page_routes

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

_LARGEST = 1 << 20  # bytes of a change


class LabelServer(WebServer):
    """Serves the page of labelling until it is closed. Only who knows its address with the token gets an answer.

    Attributes:
        address: Address of the page with the token.
    """

    def __init__(
        self, names: Sequence[str], labels: Labels, lists: Lists, media: Media, address: str, *, hint: str = ""
    ) -> None:
        """Open the port and start the thread.

        Args:
            names: The videos in their order on the page. A page knows them by their number.
            labels: What is marked.
            lists: What is written.
            media: The videos.
            address: HOST:PORT.
            hint: What comes after labelling, for the page.

        Raises:
            UserError: starlette or uvicorn is not installed, or the address cannot be opened.
        """
        token = secrets.token_urlsafe(24)
        site = _Site(list(names), labels, lists, media, hint)
        super().__init__(lambda server: _only_with(token, server, site), address, option="the page (--host, --port)")
        self.address = f"{self.url}?token={token}"


def _only_with(token: str, server: WebServer, site: _Site) -> ASGIApp:
    """Return the application behind its token: the first address sets a cookie, which every other request needs.

    A change also needs the page's own origin, so that no other site can send one.
    """
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, RedirectResponse

    cookie = f"iefvad-label-{server.port}"  # cookies know no ports
    application = site.application()
    refusal = PlainTextResponse("open the page by the address that iefvad printed, with its token", 403)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope)
        if request.method == "GET" and request.url.path == "/" and "token" in request.query_params:
            response: Response = refusal
            if _same(request.query_params["token"], token):
                response = RedirectResponse("/", 303)
                response.set_cookie(cookie, token, httponly=True, samesite="strict", path="/")
            await response(scope, receive, send)
        elif not _same(request.cookies.get(cookie, ""), token):
            await refusal(scope, receive, send)
        elif request.method not in ("GET", "HEAD") and not _from_here(request):
            await PlainTextResponse("another site may not change labels", 403)(scope, receive, send)
        else:
            await application(scope, receive, send)

    return answer


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _from_here(request: Request) -> bool:
    """Tell whether the page itself sends a request: a form of another site can have neither of both."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    return json and origin == f"http://{host}"


class _Site:
    """Answers requests. Handlers that are no coroutines run in threads of starlette."""

    def __init__(self, names: list[str], labels: Labels, lists: Lists, media: Media, hint: str) -> None:
        self._names, self._labels, self._lists, self._media, self._hint = names, labels, lists, media, hint
        self._run = secrets.token_hex(4)  # tells a page that the command was started again

    def application(self) -> ASGIApp:
        from starlette.applications import Starlette
        from starlette.routing import Route

        number = "/videos/{number:int}"
        return Starlette(
            routes=[
                *page_routes("iefvad.labelling", "label", ("player.js", "timeline.js"), title="Label videos"),
                Route("/state", self._state),
                Route("/classes", self._class, methods=["POST"]),
                Route(number, self._about),
                Route(number, self._change, methods=["POST"]),
                Route(number + "/side", self._side, methods=["POST"]),
                Route(number + "/file", self._file),
                Route(number + "/frame.jpg", self._frame),
            ]
        )

    def _state(self, request: Request) -> Response:
        """Everything, or what is new since a revision."""
        from starlette.responses import JSONResponse, Response

        since = request.query_params.get("since", "")
        known = (
            int(since) if since.isdecimal() and len(since) < 12 and request.query_params.get("run") == self._run else -1
        )
        if known >= self._labels.revision:
            return Response(status_code=204)
        return JSONResponse(self._news(known))

    def _news(self, since: int) -> dict[str, Any]:
        with self._labels.lock:
            news = self._labels.news(since)
            changed, number = news.pop("videos"), {name: place for place, name in enumerate(self._names)}
            news["videos"] = {number[name]: found for name, found in changed.items() if name in number}
            news["sides"] = [self._lists.sides.get(name) for name in self._names]
            sources = [self._lists.source(name) for name in self._names]
            news["fixed"] = [self._labels.sides.get(source) for source in sources]
            news |= {"note": self._lists.note, "run": self._run, "hint": self._hint}
            if since < 0:
                news["names"] = [readable(name) for name in self._names]
                news["sources"] = [readable(source.removeprefix("alone ")) for source in sources]
                news["folder"] = readable(self._labels.folder)
            news["problems"] = [self._media.problem(name) for name in self._names]
        return news

    def _about(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        def about(name: str) -> Response:
            timeline = self._media.timeline(name)
            frames = len(timeline.times)
            return JSONResponse(
                {"frames": frames, "end": timeline.end, "rate": timeline.rate, "browser": timeline.browser}
            )

        return self._for_video(request, about)

    def _frame(self, request: Request) -> Response:
        from starlette.responses import Response

        def frame(name: str) -> Response:
            try:
                seconds = float(request.query_params.get("t", "0"))
            except ValueError:
                seconds = math.nan
            if not math.isfinite(seconds):
                raise UserError("t is a time in seconds")
            return Response(self._media.picture(name, seconds), media_type="image/jpeg")

        return self._for_video(request, frame)

    def _file(self, request: Request) -> Response:
        """The file itself, in ranges as the browser asks for."""
        from starlette.responses import FileResponse

        def file(name: str) -> Response:
            if not self._media.timeline(name).browser:  # so also that it is a regular file with a video in it
                raise UserError("browsers do not play this file")
            return FileResponse(self._media.paths[name], media_type=self._media.kind(name))

        return self._for_video(request, file)

    def _for_video(self, request: Request, answer: Callable[[str], Response]) -> Response:
        from starlette.responses import JSONResponse, PlainTextResponse

        number = request.path_params["number"]
        if not 0 <= number < len(self._names):
            return PlainTextResponse("there is no such video", 404)
        try:
            return answer(self._names[number])
        except (UserError, MemoryError, ValueError) as error:
            return JSONResponse({"error": readable(error) or type(error).__name__}, 422)

    async def _change(self, request: Request) -> Response:
        def change(name: str, wanted: Any) -> None:
            self._labels.change(name, wanted, lambda: self._media.timeline(name))

        return await self._changed(request, change)

    async def _side(self, request: Request) -> Response:
        def change(name: str, wanted: Any) -> None:
            side = wanted.get("side", "") if isinstance(wanted, dict) else ""
            self._labels.set_side(self._lists.source(name), side)

        return await self._changed(request, change)

    async def _class(self, request: Request) -> Response:
        def change(name: str, wanted: Any) -> None:
            self._labels.add_class(wanted.get("name") if isinstance(wanted, dict) else None)

        return await self._changed(request, change)

    async def _changed(self, request: Request, change: Callable[[str, Any], None]) -> Response:
        """Make a change in a thread, and answer with what is new since the revision that the page knows."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse

        data = b""
        async for part in request.stream():
            data += part
            if len(data) > _LARGEST:
                return JSONResponse({"error": "this is too long"}, 413)
        number, since = request.path_params.get("number", 0), -1

        def work() -> tuple[int, str]:
            nonlocal since
            try:
                content = parse_json(data)
                since = content.get("since", -1) if isinstance(content, dict) else -1
                since = since if type(since) is int else -1
                if not 0 <= number < len(self._names):
                    return 404, "there is no such video"
                change(self._names[number], content)
            except ConflictError as error:
                return 409, str(error)
            except (UserError, ValueError, MemoryError) as error:
                return 422, readable(error)
            return 200, ""

        status, problem = await run_in_threadpool(work)
        news = await run_in_threadpool(self._news, since)
        return JSONResponse(news | ({"error": problem} if problem else {}), status)
