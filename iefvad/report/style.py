"""Colours of plots and pages: one palette for light and dark."""

from __future__ import annotations

import zlib

# Plots are drawn in the light colours, and inline SVG replaces each by var(--name): so no light value occurs twice.
# Series follow Okabe and Ito's set, which colour-blind people can tell apart, darkened for contrast on white.
PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1b2430", "#e6ebf1"),
    "muted": ("#5b6877", "#9dabba"),
    "grid": ("#dfe5ec", "#2b3744"),
    "card": ("#ffffff", "#171e27"),
    "page": ("#f4f6f9", "#0f141b"),
    "soft": ("#eef2f6", "#1f2833"),
    "truth": ("#f8cfc2", "#5a2d22"),
    "flag": ("#f6c8a0", "#5c3a1a"),
    "strip": ("#e07b1f", "#e58b3a"),
    "alert": ("#b3261e", "#ff8d80"),
    "fusion": ("#0069a8", "#55b4ee"),
    "image": ("#c97700", "#f2b447"),
    "event": ("#008463", "#3dcaa2"),
    "other0": ("#a34a8a", "#e59fca"),
    "other1": ("#6a6f76", "#b3b9c1"),
    "other2": ("#7a5c2e", "#cdb085"),
    "other3": ("#3f51b5", "#a3aef5"),
    "other4": ("#c2255c", "#ff8fb1"),
    "other5": ("#5c8a12", "#b4dc6a"),
    "other6": ("#0e8ea0", "#6fd8e6"),
    "other7": ("#8a2be2", "#c9a0ff"),
    "other8": ("#d2452b", "#ff9a80"),
    "other9": ("#8d8600", "#ded54f"),
    "other10": ("#3c1f66", "#d8c9f5"),
}
"""Token → (light colour, dark colour). Pages define each token as a CSS custom property `--token`."""

SERIES = ("fusion", "image", "event")
"""Models that have their own colour; the token is the model's name."""

OTHERS = tuple(f"other{number}" for number in range(11))
"""Tokens of all other models."""

_KNOWN = {
    "paper": "other0",
    "event density": "other1",
    "linear probe": "other3",
    "released": "other2",
    "q": "other3",
    "concat": "other4",
    "rtfm": "other5",
    "sultani": "other6",
    "ur-dmu": "other7",
    "vadclip": "other8",
    "mgfn": "other9",
    "cross-attention": "other10",
}
"""Tokens of the models that `iefvad train` names; "paper", "released" and "q" are rows such as "fusion (paper)"."""


def token_of(model: str) -> str:
    """Return the palette token of a model. It depends on the name alone, so a model has one colour on all pages.

    The single streams of a baseline, such as "rtfm (image)", have the colours of the streams. A name that is not known
    gets one of `OTHERS`.
    """
    name, _, row = model.rstrip(")").partition(" (")
    for candidate in (model, row, row.partition(" = ")[0], name if not row else ""):
        if candidate in SERIES:
            return candidate
        if candidate in _KNOWN:
            return _KNOWN[candidate]
    return OTHERS[zlib.crc32(model.encode("utf-8", "surrogateescape")) % len(OTHERS)]
