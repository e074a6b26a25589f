"""Hostile names: escape sequences, markup, formulas, mathematics and odd letters, at every place that takes a name.

Looked at are the terminal (no letter that it obeys, no forged line), CSV (no formula), HTML and SVG (no element and no
attribute from a name), LaTeX (no command from a name), JSON, and whether names come back as they were.
"""

from __future__ import annotations

import csv
import html.parser
import json
import random
import re
import shutil
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

from iefvad.cli.main import main
from iefvad.data.lists import classes_of
from iefvad.features.store import FeatureStore
from iefvad.scoring.video_scores import read_scores_csv
from iefvad.utils.csv_text import CsvRows
from iefvad.utils.text import readable
from tests.fuzz.case import Case, Ended, Outcome, judged
from tests.helpers.detecting import small_model, write_video
from tests.helpers.stores import training_flags, write_store

NAMES = (
    '\x1b[2J\x1b[31mred', 'a\nFORGED 1 of 1', '=1+1', '<img src=x onerror=alert(1)>', '$\\frac{$', 'x\u202egnp.exe',
    'Stra\udcdfe', '\x1b]0;title\x07', '+SUM(A1)', '"\'><svg onload=alert(1)>', 'a\rFORGED', 'zero\u200bwidth',
    '-1+cmd', '@SUM(A1)', 'a\tb', '\\input{x}', '\x9b31m', '<script>alert(1)', '<!--', '{{ 7*7 }}{% x %}', '%s%n%0A',
    '=HYPERLINK("http:x","y")', '$(id)`id`', 'a,b;c"d"', '動画 🎬', 'café', "n" * 120, "'=1", ' =1', '~tilde^',
    '[x](y)|`z`', '\u2066rtl', '\ufeffbom', '\x7f', 'a\u2028FORGED', '&lt;b&gt;&amp;', 'nan', 'null', 'true', '1e5',
    '-0.5', 'javascript:alert(1)', "' onfocus=alert(1) autofocus='", ']]>', '\uff1d1+1', '# head', 'a\\b',
    '_under_*star*',
    '__proto__', '..x', '*?[a-z]', '\x1b[A\x1b[K', '\x08\x08\x08ok', 'x\x1b', '\xad\xa0', '\u0430dmin', '\u200f\u0627',
    '\U000e0041tag', '%1B[31m', '"', "'", '\\', '{', '}', '$', '&', '<', '#', '^', 'x\x85y', '0', '-', '--', '--help',
)  # fmt: skip
LABELS = (
    "</script><script>alert(1)</script>",
    "</title><body onload=alert(1)>",
    "a/b",
    "=1/2",
)
FLAGS = ["--epochs", "1", "--batch", "4", "--heads", "2", "--layers", "1", "--refine-steps", "1", "--device", "cpu"]

_ELEMENTS = frozenset(
    [
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "header",
            "div",
            "p",
            "h1",
            "h2",
            "h3",
            "h4",
            "nav",
            "a",
            "main",
        ),
        *(
            "section",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "ul",
            "li",
            "small",
            "b",
            "i",
            "span",
            "figure",
            "img",
        ),
        *(
            "article",
            "aside",
            "figcaption",
            "footer",
            "pre",
            "code",
            "details",
            "summary",
            "svg",
            "g",
            "path",
            "defs",
            "use",
            "clippath",
        ),
        *("a", "rect", "text", "tspan", "line", "circle", "polyline", "polygon", "br", "strong", "em"),
    ]
)


_INSIDE = r"#|data:image/|((figures|tables)/[\w.-]+|\.\./given/[\w.~%-]+(#t=[\d.]+)?|[\w.~%-]+\.html)$"
"""Addresses that our pages have: of their own parts, of the given videos, and of pages beside them."""


def prepare(stock: Path) -> None:
    """Make a store, a trained network, a model for videos, and a video."""
    store = write_store(stock / "store", train=8, test=4)
    assert main(["train", *training_flags(store, stock / "run")[:-4], *FLAGS]) == 0
    small_model().save_pretrained(stock / "model")
    write_video(stock / "clip.mp4", frames=32)
    (stock / "broken.mp4").write_bytes(b"not a video")


def case(number: int, random: random.Random, stock: Path) -> Case:
    """Return a case: a place for the name, and the name."""
    kind = KINDS[number % len(KINDS)]
    # Each turn through the places takes other names, and no place the same name again before it had all of them.
    turn, place = divmod(number, len(KINDS))
    names = NAMES if kind.file else (*NAMES, *LABELS)
    name = names[(turn * 7 + place * 11) % len(names)] if turn < len(names) else _mixed(random)
    if kind.file:
        name = name.replace("/", "_").replace("\0", "")
    return _placed(kind, name, stock)


def unchanged(stock: Path) -> list[Case]:
    """Return each place that a command reads without an error, with a plain name."""
    return [_placed(kind, "plain", stock) for kind in KINDS if not kind.refused]


def _placed(kind: Kind, name: str, stock: Path) -> Case:
    act, arrange, judge = kind.make(name, stock)

    def judged_here(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        if outcome not in ("fine", "refused"):
            return outcome
        problems = [*terminal(ended, name), *files(folder)]
        if ended.status in (0, 1):  # 1: some of the videos could not be read
            problems += judge(folder, ended)
        if problems:
            ended.__dict__["err"] = ended.err + "\n".join(["", "JUDGE:", *problems])
        return "silent" if problems else outcome

    return Case(f"{kind.title}: {name!r}"[:150], arrange, act, judged_here)


def _mixed(random: random.Random) -> str:
    return "".join(random.choice(random.sample(NAMES, 2))[:12] for _ in range(2))


# What is looked at after every case


def terminal(ended: Ended, name: str = "") -> list[str]:
    """Return what is wrong with the output of a command."""
    # A progress bar starts with \r, and an empty text wipes it out.
    bars = re.sub(r"\r(?=([\w ]+(\(seed \d+\))?: )? *\d+%\||\s*\r|\s*$)", "", ended.err)
    bars = bars if "\r" in name else bars.replace("\r", "")
    found = sorted({letter for letter in ended.out + bars if letter != "\n" and not letter.isprintable()})
    problems = [f"letters that a terminal obeys or does not show: {found}"] if found else []
    if "\ufffd" in ended.out + ended.err:
        problems.append("bytes that are not UTF-8")
    if any(line.startswith("FORGED") for line in re.split("[\n\r\u2028]", ended.out + "\n" + ended.err)):
        problems.append("a line from a name")
    return problems


def files(folder: Path) -> list[str]:
    """Return what is wrong with the files that a command has written."""
    problems: list[str] = []
    checks: dict[str, Callable[[Path], list[str]]] = {
        ".csv": formulas, ".html": markup, ".svg": drawing, ".tex": latex, ".json": document, ".md": markdown,
    }  # fmt: skip
    for path in sorted(folder.rglob("*")):
        if path.suffix in checks and path.is_file() and "given" not in path.relative_to(folder).parts:
            problems += [f"{readable(path.name)}: {what}" for what in checks[path.suffix](path)]
    return problems


def formulas(path: Path) -> list[str]:
    """Return the cells of a CSV file that a spreadsheet may take for a formula."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    return [f"formula {cell!r}" for cell in cells if _is_formula(cell)]


def _is_formula(cell: str) -> bool:
    try:
        float(cell)
        return False
    except ValueError:
        return cell[:1] in ("\t", "\r", "\n") or cell.lstrip('\0\ufeff\u200b \t\r\n"')[:1] in tuple(
            "=+-@\uff1d\uff0b\uff0d\uff20"
        )


class Markup(html.parser.HTMLParser):
    """Finds elements and attributes that no page of ours has."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _ELEMENTS:
            self.problems.append(f"element {tag}")
        for key, value in attrs:
            outside = key in ("href", "src") and not re.match(_INSIDE, value or "")
            if key.startswith("on") or key in ("autofocus", "srcdoc") or outside:
                self.problems.append(f"attribute {key}={value!r}")

    def handle_comment(self, data: str) -> None:
        self.problems.append(f"comment {data[:40]!r}")


def markup(path: Path) -> list[str]:
    """Return the elements and attributes of a page that come from a name, and letters that reorder text."""
    text = path.read_text(encoding="utf-8")
    parser = Markup()
    parser.feed(text)
    odd = sorted({letter for letter in text if not letter.isprintable() and letter not in "\n\t"})
    return parser.problems + ([f"letters {odd}"] if odd else [])


def drawing(path: Path) -> list[str]:
    """Return whether an SVG file is not XML, or runs something."""
    tags = {element.tag.rpartition("}")[2] for element in xml.etree.ElementTree.parse(path).iter()}
    return [f"element {tag}" for tag in tags & {"script", "foreignObject", "image", "a"}]


def latex(path: Path) -> list[str]:
    """Return commands of a LaTeX file that come from a name."""
    return ["a command from a name"] if re.search(r"\\(input|frac)", path.read_text(encoding="utf-8")) else []


def document(path: Path) -> list[str]:
    """Return nothing for JSON; what is not JSON raises."""
    json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
    return []


def markdown(path: Path) -> list[str]:
    """Return elements of a Markdown file outside code that come from a name."""
    text = re.sub(r"\\.|(`+).*?\1", "", path.read_text(encoding="utf-8"))
    return [f"element {tag}" for tag in re.findall(r"<(?!/?(?:details|summary)>)[a-z!/]\S*", text)]


# The places


Judge = Callable[[Path, Ended], list[str]]
Made = tuple[Callable[[], int | None], Callable[[Path], None], Judge]


class Kind:
    """A place for a name: `make` returns what a case does, what it needs, and what it looks at."""

    def __init__(self, title: str, make: Callable[[str, Path], Made], *, file: bool, refused: bool) -> None:
        self.title, self.make, self.file, self.refused = title, make, file, refused


KINDS: list[Kind] = []


def place(
    title: str, *, file: bool = False, refused: bool = False
) -> Callable[[Callable[[str, Path], Made]], Callable[[str, Path], Made]]:
    """Register a place. With `file`, the name is that of a file or folder. With `refused`, no name is right there."""

    def register(make: Callable[[str, Path], Made]) -> Callable[[str, Path], Made]:
        KINDS.append(Kind(title, make, file=file, refused=refused))
        return make

    return register


def _no_more(folder: Path, ended: Ended) -> list[str]:
    return []


def _nothing(folder: Path) -> None:
    pass


def _linked(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(target, path)


Rename = Callable[[str, str], tuple[str, str]]


def _store(folder: Path, stock: Path, rename: Rename = lambda n, c: (n, c)) -> Path:
    """Copy the store; `rename` gives each listed video another name and class."""
    shutil.copytree(stock / "store", folder)
    for split in ("train", "test"):
        with open(folder / f"{split}.csv", newline="") as file:
            head, *rows = csv.reader(file)
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([head, *(rename(*row) for row in rows)])
    return folder


def _scored(run: Path) -> list[str]:
    """Return whether the videos of scores.csv are not those of the store."""
    names = [video.name for video in read_scores_csv(run / "scores.csv")]
    return [] if names == [f"test{i:03d}" for i in range(4)] else [f"scores.csv has the videos {names}"]


EXTRACT = ["--image-model", "descriptor", "--crops", "1", "--device", "cpu", "--workers", "0"]


@place("extract, name of a video", file=True)
def _extract_file(name: str, stock: Path) -> Made:
    def arrange(folder: Path) -> None:
        _linked(folder / "given" / f"{name}.mp4", stock / "clip.mp4")

    def judge(folder: Path, ended: Ended) -> list[str]:
        names = [sidecar.name for sidecar in FeatureStore(folder / "out").sidecars()]
        return [] if names == [readable(name)] else [f"stored as {names}"]

    return lambda: main(["extract", "given", "--out", "out", *EXTRACT]), arrange, judge


@place("detect, name of a video", file=True)
def _detect_file(name: str, stock: Path) -> Made:
    def arrange(folder: Path) -> None:
        _linked(folder / "given" / f"{name}.mp4", stock / "clip.mp4")

    def judge(folder: Path, ended: Ended) -> list[str]:
        (path,) = (path for path in (folder / "out").glob("*.csv") if not path.name.endswith("_intervals.csv"))
        (video,) = read_scores_csv(path)
        return [] if video.name == path.stem == readable(name) else [f"{path.name} has scores of {video.name!r}"]

    return lambda: main(["detect", str(stock / "model"), "given", "--out", "out", "--device", "cpu"]), arrange, judge


@place("train, class of a list")
def _train_label(name: str, stock: Path) -> Made:
    def arrange(folder: Path) -> None:
        _store(folder / "given", stock, lambda n, c: (n, name if c == "Run" else c))

    def judge(folder: Path, ended: Ended) -> list[str]:
        metrics = json.loads((folder / "out" / "metrics.json").read_text())
        return _scored(folder / "out") + _classes(metrics, name)

    return lambda: main(["train", "--features", "given", "--preset", "synth", "--out", "out", *FLAGS]), arrange, judge


def _classes(metrics: dict[str, object], label: str) -> list[str]:
    text = json.dumps(metrics)
    return [
        f"class {kind!r} is not in metrics.json" for kind in classes_of(label) if json.dumps(kind)[1:-1] not in text
    ]


@place("train, folder of the features", file=True)
def _train_folder(name: str, stock: Path) -> Made:
    return (
        lambda: main(["train", "--features", f"given/{name}", "--preset", "synth", "--out", "out", *FLAGS]),
        lambda folder: void(_store(folder / "given" / name, stock)),
        lambda folder, ended: _scored(folder / "out"),
    )


@place("train, run folder", file=True)
def _train_out(name: str, stock: Path) -> Made:
    return (
        lambda: main(["train", f"--features={stock / 'store'}", "--preset", "synth", f"--out=./{name}", *FLAGS]),
        _nothing,
        lambda folder, ended: _scored(folder / name),
    )


@place("evaluate, class of a list")
def _evaluate_label(name: str, stock: Path) -> Made:
    def judge(folder: Path, ended: Ended) -> list[str]:
        return _scored(folder / "out") + _classes(json.loads((folder / "out" / "metrics.json").read_text()), name)

    return (
        lambda: main(["evaluate", str(stock / "run"), "--features", "given", "--out", "out", "--device", "cpu"]),
        lambda folder: void(_store(folder / "given", stock, lambda n, c: (n, name if c == "Run" else c))),
        judge,
    )


@place("features import, class of a list, then features info")
def _import_label(name: str, stock: Path) -> Made:
    def judge(folder: Path, ended: Ended) -> list[str]:
        text = (folder / "out" / "packed.json").read_text()
        return [f"class {kind!r} is not stored" for kind in classes_of(name) if json.dumps(kind)[1:-1] not in text]

    return (
        lambda: main(["features", "import", "given", "--out", "out"]) or main(["features", "info", "out"]),
        lambda folder: void(_store(folder / "given", stock, lambda n, c: (n, name if c == "Run" else c))),
        judge,
    )


@place("data check, class of a list, with a report")
def _check_label(name: str, stock: Path) -> Made:
    return (
        lambda: main(["data", "check", "given", "--out", "report.md", "--names", "0"]),
        lambda folder: void(_store(folder / "given", stock, lambda n, c: (n, name if c == "Run" else c))),
        _no_more,
    )


@place("data check, name of a video in a list, with a report")
def _check_name(name: str, stock: Path) -> Made:
    return (
        lambda: main(["data", "check", "given", "--out", "report.md", "--names", "0"]),
        lambda folder: void(
            _store(folder / "given", stock, lambda n, c: (f"{name}.mp4" if n == "test001.mp4" else n, c))
        ),
        _no_more,
    )


@place("train, name of a video in a list that is not stored", refused=True)
def _train_missing(name: str, stock: Path) -> Made:
    return (
        lambda: main(["train", "--features", "given", "--preset", "synth", "--out", "out", *FLAGS]),
        lambda folder: void(
            _store(folder / "given", stock, lambda n, c: (f"{name}.mp4" if n == "test001.mp4" else n, c))
        ),
        _no_more,
    )


@place("extract, broken video, twice", file=True, refused=True)
def _extract_broken(name: str, stock: Path) -> Made:
    def judge(folder: Path, ended: Ended) -> list[str]:
        with open(folder / "out" / "failed.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(CsvRows(file))
        return [] if [row[0] for row in rows] == ["name", readable(name)] else [f"failed.csv has {rows}"]

    call = ["extract", "given", "--out", "out", *EXTRACT]
    return (
        lambda: main(call) and main(call),
        lambda f: _linked(f / "given" / f"{name}.mp4", stock / "broken.mp4"),
        judge,
    )


@place("extract, folder of a video and folder of the store", file=True)
def _extract_folder(name: str, stock: Path) -> Made:
    return (
        lambda: main(["extract", "given", f"--out=./{name}", *EXTRACT]),
        lambda folder: _linked(folder / "given" / name / "a.mp4", stock / "clip.mp4"),
        _no_more,
    )


@place("detect, broken video, folder of the results", file=True, refused=True)
def _detect_broken(name: str, stock: Path) -> Made:
    def arrange(folder: Path) -> None:
        _linked(folder / "given" / f"{name}.mp4", stock / "broken.mp4")
        _linked(folder / "given" / "good.mp4", stock / "clip.mp4")

    return (
        lambda: main(["detect", str(stock / "model"), "given", f"--out=./{name}", "--device", "cpu"]),
        arrange,
        _no_more,
    )


@place("calibrate, name of a video", file=True)
def _calibrate(name: str, stock: Path) -> Made:
    def arrange(folder: Path) -> None:
        _linked(folder / "given" / f"{name}.mp4", stock / "clip.mp4")
        shutil.copytree(stock / "model", folder / name)

    return lambda: main(["calibrate", f"./{name}", "given", "--device", "cpu"]), arrange, _no_more


@place("report, two run folders", file=True)
def _report(name: str, stock: Path) -> Made:
    def arrange(folder: Path) -> None:
        shutil.copytree(stock / "run", folder / f"{name}x")
        shutil.copytree(stock / "run", folder / "other")

    return lambda: main(["report", f"./{name}x", "other", "--out", "page.html"]), arrange, _no_more


@place("report, words of a run folder")
def _report_words(name: str, stock: Path) -> Made:
    def arrange(folder: Path) -> None:
        shutil.copytree(stock / "run", folder / "run")
        path = folder / "run" / "metrics.json"
        document = json.loads(path.read_text())
        document["dataset"] = name if isinstance(document.get("dataset"), str) else document.get("dataset")
        text = json.dumps(document).replace('"Run"', json.dumps(name))
        path.write_text(text)

    return lambda: main(["report", "run"]), arrange, _no_more


@place("an option's word", refused=True)
def _option(name: str, stock: Path) -> Made:
    calls = ("train", "evaluate", "sweep", "extract", "detect", "report", "data", "features", "encoders")
    call = calls[len(name) % len(calls)]
    return (
        lambda: max(_status([call, f"--preset={name}"]), _status([call, name]), _status([name])) and 2,
        _nothing,
        _no_more,
    )


def _status(call: list[str]) -> int:
    try:
        return main(call) or 0
    except SystemExit as end:
        return int(end.code or 0)


@place("sweep, seeds and folder of the results", file=True, refused=True)
def _sweep(name: str, stock: Path) -> Made:
    return (
        lambda: main(
            ["sweep", "--features", str(stock / "store"), "--preset", "synth", f"--out=./{name}", "--seeds", name]
        ),
        _nothing,
        _no_more,
    )


@place("address of a camera and of a webhook", refused=True)
def _address(name: str, stock: Path) -> Made:
    def judge(folder: Path, ended: Ended) -> list[str]:
        return ["a password is shown"] if "s3cret" in ended.out + ended.err else []

    call = ["detect", str(stock / "model"), f"tcp://user:s3cret@127.0.0.1:9/{name}", "--device", "cpu", "--out", "out"]
    return (
        lambda: main([*call, "--retries", "1", "--timeout", "1", f"--webhook=http://u:s3cret@127.0.0.1:9/{name}"]),
        _nothing,
        judge,
    )


@place("data gt, name of a video")
def _gt(name: str, stock: Path) -> Made:
    def arrange(folder: Path) -> None:
        (folder / "given").mkdir()
        with open(folder / "given" / "test.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([("path", "label"), (f"{name}.mp4", "Normal"), ("b.mp4", "Fight")])
        with open(folder / "given" / "frames.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([("name", "frames"), (name, 32), ("b", 32)])
        (folder / "given" / "annotations.txt").write_text("b.mp4  Fight  3  9  -1  -1\n")

    files = ["--annotations", "given/annotations.txt", "--test-list", "given/test.csv", "--lengths", "given/frames.csv"]
    return lambda: main(["data", "gt", *files, "--out", "gt.npy"]), arrange, _no_more


def void(_: object) -> None:
    """Ignore a result."""
