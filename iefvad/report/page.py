"""Small building blocks of self-contained HTML pages. Everything that comes from outside is escaped here."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from iefvad.report.images import inline_svg
from iefvad.report.style import CSS, token_of
from iefvad.scoring.metrics import cell


def escape(value: Any) -> str:
    """Text safe inside an element or a quoted attribute; bytes that are no UTF-8 in a file name become "?"."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


def element(tag: str, text: Any, kind: str = "") -> str:
    """<tag class="kind">text</tag> with the text escaped; no class for an empty kind."""
    return f"{_open(tag, kind)}{escape(text)}</{tag}>"


def _open(tag: str, kind: str = "") -> str:
    return f'<{tag} class="{kind}">' if kind else f"<{tag}>"


def bullets(lines: Iterable[str]) -> str:
    """A list of notes; empty for none."""
    items = "".join(element("li", line) for line in lines)
    return f'<ul class="notes">{items}</ul>' if items else ""


def section(title: str, anchor: str, *parts: str, sub: str = "") -> str:
    """A titled card of the page; `parts` are HTML, `anchor` letters only, `sub` plain text under the title."""
    below = element("p", sub, "sub") if sub else ""
    return f'<section id="{anchor}">{element("h2", title)}{below}{"".join(parts)}</section>'


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Large numbers with a caption each: (number, caption)."""
    cards = "".join(f'<div class="tile">{element("b", n)}{element("span", c)}</div>' for n, c in values)
    return f'<div class="tiles">{cards}</div>'


def figure(plot: Figure, label: str, prefix: str, caption: str = "") -> str:
    """A plot inline, with what a screen reader says, an id prefix unique on the page and a caption in plain text."""
    below = element("figcaption", caption) if caption else ""
    return f'<figure><div class="scroll plot">{inline_svg(plot, escape(label), prefix)}</div>{below}</figure>'


def table(
    rows: Sequence[Mapping[str, Any]],
    *,
    models: Sequence[str] = (),
    best: Callable[[str], str | None] | None = None,
    across: Sequence[str] = (),
) -> str:
    """An HTML table; columns are all keys in order of appearance that are defined somewhere.

    models: where the first column names one of these, it gets the model's colour. best(column) is "max", "min" or
    None: which cell of a column is set in bold. across: columns compared within each row, the largest in bold.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = [key for key in keys if any(row.get(key) is not None for row in rows)]
    if not keys:
        return ""
    columns = {key: [row.get(key) for row in rows] for key in keys}
    wordy = {key for key in keys if any(_is_word(value) for value in columns[key])}
    winners = {key: _winner(columns[key], best(key)) if best and len(rows) > 1 else None for key in keys}
    head = "".join(element("th", key, "text" if key in wordy else "") for key in keys)
    body = []
    for row in rows:
        champion = _winner([row.get(key) for key in across], "max") if len(across) > 1 else None
        cells = []
        for i, key in enumerate(keys):
            text = cell(row.get(key))
            bold = text != "-" and (text == winners[key] or (key in across and text == champion))
            dot = ""
            if i == 0 and row.get(key) in models:
                dot = f'<i class="dot" style="background:var(--{token_of(str(row[key]), list(models))})"></i>'
            cells.append(f"{_open('td', 'text' if key in wordy else 'best' if bold else '')}{dot}{escape(text)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and not value[:1].isdigit() and value[:1] not in ("+", "-")


def _winner(values: Sequence[Any], rule: str | None) -> str | None:
    numbers = [v for v in values if isinstance(v, float)]
    if rule is None or not numbers:
        return None
    return cell(max(numbers) if rule == "max" else min(numbers))


def settings(config: Mapping[str, Any]) -> str:
    """A two-column table of nested settings, keys joined by dots."""
    pairs = (element("td", key) + element("td", value, "text wrap") for key, value in _flatten(config))
    return f'<div class="scroll"><table><tbody>{"".join(f"<tr>{pair}</tr>" for pair in pairs)}</tbody></table></div>'


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def page(title: str, kicker: str, lead: str, sections: Sequence[tuple[str, str, str]], *, top: str = "") -> str:
    """A complete document: sections are (anchor, short title for the contents, HTML); lead plain text, top HTML."""
    links = "".join(f'<a href="#{anchor}">{escape(short)}</a>' for anchor, short, _ in sections)
    # No request can leave the page, whatever a name in it tries.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">{element("title", title)}<style>{CSS}</style>'
    )
    heading = element("p", kicker, "kicker") + element("h1", title) + (element("p", lead, "lead") if lead else "")
    body = "\n".join(part for _, _, part in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n'
        f'<body><header><div>{heading}<nav aria-label="Contents">{links}</nav></div></header>\n'
        f"<main>{top}\n{body}\n</main><footer>IEF-VAD</footer></body></html>\n"
    )
