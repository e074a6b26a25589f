"""The one exception that a person using the package is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake or a limit that the user can mend.

    The message is one clear sentence or two: what is wrong, and what to do. Commands print it
    without a traceback and end with exit status 2.
    """
