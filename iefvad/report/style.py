"""Colours of plots and pages: one palette for light and dark."""

from __future__ import annotations

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
}
"""Token → (light colour, dark colour). Pages define each token as a CSS custom property `--token`."""

SERIES = ("fusion", "image", "event")
"""Models that have their own colour; the token is the model's name."""

OTHERS = ("other0", "other1", "other2", "other3")
"""Tokens of all other models, in order of appearance."""


def token_of(model: str, models: list[str]) -> str:
    """Return the palette token of a model: its own for those of `SERIES`, by order of appearance for all others.

    Args:
        model: Name of the model.
        models: Names of all models that are shown together.
    """
    if model in SERIES:
        return model
    rest = [m for m in models if m not in SERIES]
    return OTHERS[rest.index(model) % len(OTHERS)] if model in rest else OTHERS[0]
