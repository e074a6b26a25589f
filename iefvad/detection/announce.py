"""Tells the world outside about live input while it is watched: a web service and a web page."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from iefvad.detection.config import DetectConfig
from iefvad.detection.live.channel import LiveScore
from iefvad.detection.live.watch import Watch


@contextlib.contextmanager
def announcing(
    session: Watch, config: DetectConfig, report: Callable[[str], None]
) -> Iterator[Callable[[LiveScore], None]]:
    """Open what `--webhook` and `--serve` ask for, and close it at the end of the block.

    At the end, alarms that go on are over, and the web service is told so.

    Args:
        session: What is watched.
        config: The settings.
        report: Called, by any thread, with a line about the page, or about an alarm that could not be delivered.

    Yields:
        A function that takes each `LiveScore`. It never waits.

    Raises:
        UserError: the address of one of them is wrong or cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        webhook = board = None
        if config.webhook is not None:
            from iefvad.detection.webhook import Webhook

            webhook = Webhook(config.webhook, report=report)
            stack.callback(webhook.close)
        if config.serve is not None:
            from iefvad.detection.page.board import Board
            from iefvad.detection.page.server import PageServer

            folder = session.detector.folder
            title = "Cameras" if folder is None else f"Cameras, model {folder.name}"
            board = Board(session.channels, title, session.detector.standing_advice())
            server = PageServer(board, config.serve)
            stack.callback(server.close)
            report(f"page: {server.url}")
            if server.exposed:
                report("warning: other machines can reach this page, and it asks for no password")

        def announce(scored: LiveScore) -> None:
            if board is not None:
                board.add(scored)
            if webhook is not None:
                for alarm in scored.alarms:
                    webhook.post(alarm)

        yield announce
        if webhook is not None:
            for channel in session.channels:
                for alarm in channel.finish():
                    webhook.post(alarm)
