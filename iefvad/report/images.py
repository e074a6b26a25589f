"""Figures as files and as part of a page: PNG, SVG, data URIs, inline SVG that follows the page's theme."""

from __future__ import annotations

import base64
import io
import re
import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from iefvad.report.style import PALETTE
from iefvad.utils.files import write_bytes


def _bytes(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "iefvad"}):
        # A class name in a script that matplotlib's font lacks: the browser that shows the SVG has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as PNG."""
    return _bytes(figure, "png", dpi=dpi)


def svg(figure: Figure) -> bytes:
    """The figure as a stand-alone SVG file, in the light colours, with text as text."""
    return _bytes(figure, "svg", metadata={"Date": None})


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as a data URI of media type `kind`, e.g. "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure to PATH.png or PATH.svg."""
    write_bytes(Path(path), svg(figure) if str(path).endswith(".svg") else png(figure))


def _short(path: str) -> str:
    return " ".join(re.sub(r"(\.\d\d)\d+", r"\1", path).split())


def _themed(style: str) -> str:
    for token, (light, _) in PALETTE.items():
        style = style.replace(light, f"var(--{token})")
    return style


def inline_svg(figure: Figure, label: str, prefix: str) -> str:
    """The figure as an <svg> element for an HTML page: colours follow the page's theme, text its font.

    label: what a screen reader says, escaped. prefix: unique on the page (letters and digits), put before every id.
    """
    text = svg(figure).decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.S)
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None  # matplotlib always writes one
    body = text[text.index(">") + 1 :]
    body = re.sub(r'(<(?:g|text)) id="[^"]*"', r"\1", body)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-").replace('xlink:href="#', f'href="#{prefix}-')
    body = re.sub(
        r"font: (?:(\d+) )?([\d.]+px) [^;\"]*", lambda m: f"font-size: {m[2]}; font-weight: {m[1] or 400}", body
    )
    body = re.sub(r'style="[^"]*"', lambda m: _themed(m[0]), body)
    # A hundredth of a point is finer than any screen.
    body = re.sub(r' d="([^"]*)"', lambda m: f' d="{_short(m[1])}"', body)
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{label}">{body.strip()}'
