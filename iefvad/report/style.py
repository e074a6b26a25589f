"""The look of plots and pages: one palette for light and dark, one style sheet."""

from __future__ import annotations

# name → (light, dark). Plots are drawn in the light colours; inline SVG replaces each by var(--name), so every light
# value occurs once. Series follow Okabe and Ito's colour-blind safe set, darkened for contrast on white.
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

SERIES = ("fusion", "image", "event")
OTHERS = ("other0", "other1", "other2", "other3")


def token_of(model: str, models: list[str]) -> str:
    """Palette name of a model's colour: fixed for the three modalities, in order of appearance for all others."""
    if model in SERIES:
        return model
    rest = [m for m in models if m not in SERIES]
    return OTHERS[rest.index(model) % len(OTHERS)] if model in rest else OTHERS[0]


def _variables(dark: bool) -> str:
    return "".join(f"--{name}:{pair[dark]};" for name, pair in PALETTE.items())


CSS = (
    f":root{{color-scheme:light dark;{_variables(False)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(True)}}}}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header>div{max-width:1080px;margin:0 auto;padding:0 20px}
header{padding:34px 0 6px}
.kicker{color:var(--muted);font-size:12.5px;letter-spacing:.08em;text-transform:uppercase;margin:0 0 4px}
h1{font-size:27px;line-height:1.2;margin:0 0 10px;letter-spacing:-.01em;overflow-wrap:anywhere}
.lead{font-size:16.5px;color:var(--ink);margin:0 0 14px;max-width:84ch}
h2{font-size:19px;margin:0 0 4px;letter-spacing:-.005em}
h3{font-size:15px;margin:22px 0 2px;overflow-wrap:anywhere}
p{margin:6px 0 10px;max-width:80ch}
.sub{color:var(--muted);font-size:13.5px;margin:0 0 12px;max-width:110ch}
nav{display:flex;flex-wrap:wrap;gap:6px;margin:14px 0 4px}
nav a{color:var(--ink);text-decoration:none;font-size:13px;padding:4px 11px;border:1px solid var(--grid);
border-radius:99px;background:var(--card)}
nav a:hover,nav a:focus{border-color:var(--fusion);color:var(--fusion)}
section{background:var(--card);border:1px solid var(--grid);border-radius:12px;padding:20px 22px;margin:16px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:16px 0}
.tile{background:var(--card);border:1px solid var(--grid);border-radius:12px;padding:13px 16px}
.tile b{display:block;font-size:26px;line-height:1.2;font-weight:650;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:12.5px}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--muted);font-weight:600;font-size:12.5px;border-bottom-width:2px}
th:first-child,td:first-child,.text{text-align:left}
td.wrap{white-space:normal;overflow-wrap:anywhere}
tbody tr:last-child td{border-bottom:0}
td.best{font-weight:700}
tbody tr:hover td{background:var(--soft)}
.dot{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px}
.notes{margin:10px 0 0;padding:10px 14px 10px 30px;background:var(--soft);border-radius:8px;font-size:13.5px}
.notes li{margin:2px 0;overflow-wrap:anywhere}
figure{margin:10px 0 4px}
figcaption{color:var(--muted);font-size:13px;margin-top:2px;max-width:90ch;overflow-wrap:anywhere}
.plot svg{display:block;width:100%;height:auto;min-width:640px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:16px}
.pair .plot svg{min-width:0}
.plot svg *{stroke-linejoin:round;stroke-linecap:butt}
details{margin-top:8px}
summary{cursor:pointer;font-weight:600}
pre{background:var(--soft);border-radius:8px;padding:12px 14px;overflow-x:auto;font-size:13px;margin:8px 0}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.thumbs{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:14px;margin-top:10px}
.thumbs figure{margin:0}
.thumbs img{width:100%;height:auto;display:block;border-radius:8px;background:var(--soft)}
footer{color:var(--muted);font-size:12.5px;text-align:center;padding:10px 20px 34px}
@media (max-width:640px){body{font-size:14.5px}main,header>div{padding:0 12px}section{padding:15px 14px}
h1{font-size:22px}.tile b{font-size:22px}.tiles{grid-template-columns:repeat(2,1fr)}}
@media print{:root{color-scheme:light}section,.tile{break-inside:avoid}nav{display:none}}
"""
)
