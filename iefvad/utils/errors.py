"""The exception that is meant for the user of the package."""

from __future__ import annotations


class UserError(Exception):
    """A mistake or a limit that the user can correct.

    The message says in one or two sentences what is wrong and what to do. Commands print it without a traceback and end
    with exit status 2.
    """
