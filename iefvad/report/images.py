"""Figures as images: PNG and SVG files, data URIs, and inline SVG that follows the theme of a page."""

from __future__ import annotations

import base64
import io
import re
import warnings
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from iefvad.report.style import PALETTE
from iefvad.utils.files import write_bytes
from iefvad.utils.text import readable


def _bytes(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "iefvad"}):
        # matplotlib's font may lack the script of a class name. The browser that shows the SVG has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def png(figure: Figure, dpi: int = 120) -> bytes:
    """Return the figure as a PNG file of `dpi` dots per inch."""
    return _bytes(figure, "png", dpi=dpi)


def svg(figure: Figure) -> bytes:
    """Return the figure as a stand-alone SVG file in the light colours. Text stays text."""
    return _bytes(figure, "svg", metadata={"Date": None})


def pdf(figure: Figure) -> bytes:
    """Return the figure as a PDF file in the light colours."""
    return _bytes(figure, "pdf", metadata={"CreationDate": None})


def data_uri(data: bytes, kind: str) -> str:
    """Return bytes as a data URI of media type `kind`, such as "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure to a .png, .svg or .pdf file.

    Raises:
        UserError: the file cannot be written.
    """
    kinds = {".svg": svg, ".pdf": pdf}
    write_bytes(Path(path), kinds.get(Path(path).suffix, png)(figure))


def _short(path: str) -> str:
    return " ".join(re.sub(r"(\.\d\d)\d+", r"\1", path).split())


def _themed(style: str) -> str:
    for token, (light, _) in PALETTE.items():
        style = style.replace(light, f"var(--{token})")
    return style


def inline_svg(figure: Figure, label: str, prefix: str) -> Markup:
    """Turn a figure into an <svg> element for a page. Its colours follow the page's theme, its text the page's font.

    Args:
        figure: A figure drawn in the light colours of `PALETTE`.
        label: What a screen reader says, as plain text.
        prefix: Letters and digits that are unique on the page. It is put before every id.

    Returns:
        The element. It refers to no style sheet and to nothing outside the page.
    """
    text = svg(figure).decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S)
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
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box[1], readable(label))
    return head + Markup(body.strip())
