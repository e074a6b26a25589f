"""What a person has marked, kept in labels.json after every change."""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iefvad.data.lists import classes_of
from iefvad.utils.errors import UserError
from iefvad.utils.files import read_regular, replacing_durably, storage_errors
from iefvad.utils.plain_json import parse_json
from iefvad.utils.text import readable, utf8
from iefvad.video.timeline import Timeline

FILE = "labels.json"
"""Name of the file with all marks. Everything else follows from it."""

FORMAT = 1
MOST_MARKS = 5000
"""Maximum number of marks per video."""
_MOST_CLASSES = 100
_SIDES = ("train", "test")


class ConflictError(UserError):
    """Another page changed what this change is about."""


@dataclass(frozen=True)
class Mark:
    """An abnormal interval.

    Attributes:
        start: Its beginning in seconds.
        end: Its end in seconds.
        first: Its first frame, from 0.
        last: The frame after its last one.
        kind: Its class.
    """

    start: float
    end: float
    first: int
    last: int
    kind: str


@dataclass
class Labelled:
    """What is known of one video.

    Attributes:
        file: Its name with a suffix, as lists have it.
        normal: Whether a person called the whole video normal.
        marks: Number of a mark → mark.
        version: Rises with every change.
        frames: Number of frames, once it is known.
    """

    file: str
    normal: bool = False
    marks: dict[int, Mark] = field(default_factory=dict)
    version: int = 0
    frames: int | None = None

    @property
    def label(self) -> str | None:
        """The class that most of its marked frames have, "Normal", or None while it is not labelled."""
        if self.normal:
            return "Normal"
        lengths: dict[str, int] = {}
        for mark in self.marks.values():
            lengths[mark.kind] = lengths.get(mark.kind, 0) + mark.last - mark.first
        return max(lengths, key=lambda kind: (lengths[kind], kind)) if lengths else None


class Labels:
    """All marks, in memory and on the disk. Methods may be called from several threads.

    A change that cannot be saved is not made.

    Args:
        folder: Folder of labels.json, which is read if it exists.
        files: Name of each video → its name with suffix. Videos that only labels.json has are kept.
        classes: Names of classes, which those of labels.json join.
        saved: Called after each change with the labels, to write what follows from them.

    Raises:
        UserError: labels.json is damaged, or a name of a class cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[str, str],
        classes: Iterable[str],
        saved: Callable[[Labels], None] | None = None,
    ) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.videos: dict[str, Labelled] = {}
        self.classes: list[str] = []
        self.sides: dict[str, str] = {}
        self.written: dict[str, list[str]] = {}
        self.revision = 0
        self._changed: dict[str, int] = {}
        self._saved = saved
        self._load()
        for name in classes:
            if name not in self.classes:
                self.classes.append(checked_class(name))
        for name, file in files.items():
            self.videos.setdefault(name, Labelled(file)).file = file

    def change(self, name: str, wanted: Any, timeline: Callable[[], Timeline]) -> None:
        """Make one change that a page asks for.

        Args:
            name: The video.
            wanted: {"do": "add", "start", "end", "class"}, {"do": "change", "id", "was", "start", "end", "class"},
                {"do": "delete", "id", "was"} or {"do": "set", "version", "normal", "marks": [{start, end, class}]}.
                Times are in seconds. `was` is the mark as the page knew it.
            timeline: Returns the times of the video's frames.

        Raises:
            ConflictError: Another page changed this mark, or with "set" this video, in the meantime.
            UserError: The change makes no sense, or cannot be saved.
        """
        if not isinstance(wanted, dict) or name not in self.videos:
            raise UserError("this change is not known; reload the page")
        # Who calls a video normal has seen it: one that cannot be read is refused here.
        labelling = wanted.get("do") in ("add", "change") or wanted.get("normal") or wanted.get("marks")
        times = timeline() if labelling else None
        with self.lock:
            before = self.videos[name]
            video = copy.deepcopy(before)
            self._apply(video, wanted, times)
            video.version += 1
            if times is not None:
                video.frames = len(times.times)
            self.videos[name] = video
            try:
                self._save(name)
            except BaseException:
                self.videos[name] = before
                raise

    def set_side(self, source: str, side: str | None) -> None:
        """Put all videos of a source on a side, "train" or "test"; None leaves it to the program.

        Raises:
            UserError: It is another side, or it cannot be saved.
        """
        if side not in (*_SIDES, None):
            raise UserError("a video is for train or for test")
        with self.lock:
            before = dict(self.sides)
            self.sides.pop(source, None)
            if side is not None:
                self.sides[source] = side
            try:
                self._save()
            except BaseException:
                self.sides = before
                raise

    def add_class(self, name: Any) -> str:
        """Add a class and return its name.

        Raises:
            UserError: The name cannot be used, or it cannot be saved.
        """
        with self.lock:
            kind = checked_class(name)
            if kind not in self.classes:
                if len(self.classes) >= _MOST_CLASSES:
                    raise UserError(f"there are {_MOST_CLASSES} classes already")
                self.classes.append(kind)
                try:
                    self._save()
                except BaseException:
                    self.classes.remove(kind)
                    raise
            return kind

    def news(self, since: int) -> dict[str, Any]:
        """Return what changed after a revision, ready for JSON; everything for a negative one."""
        with self.lock:
            videos = {
                name: shown(video)
                for name, video in self.videos.items()
                if since < 0 or self._changed.get(name, 0) > since
            }
            return {"revision": self.revision, "classes": list(self.classes), "videos": videos}

    def _apply(self, video: Labelled, wanted: dict[str, Any], times: Timeline | None) -> None:
        match wanted.get("do"):
            case "add":
                if len(video.marks) >= MOST_MARKS:
                    raise UserError(f"a video can have {MOST_MARKS} marks")
                video.marks[max(video.marks, default=0) + 1] = self._mark(wanted, times)
                video.normal = False
            case "change":
                number = self._known(video, wanted)
                video.marks[number] = self._mark(wanted, times)
            case "delete":
                del video.marks[self._known(video, wanted)]
            case "set":
                if wanted.get("version") != video.version:
                    raise ConflictError("another page changed this video: look at it, and do it again")
                marks = wanted.get("marks")
                if not isinstance(marks, list) or len(marks) > MOST_MARKS or not isinstance(wanted.get("normal"), bool):
                    raise UserError("this change is not known; reload the page")
                if wanted["normal"] and marks:
                    raise UserError("a normal video has no marks")
                video.normal = wanted["normal"]
                first = max(video.marks, default=0) + 1  # numbers do not come again: another page may still know one
                video.marks = {first + place: self._mark(mark, times) for place, mark in enumerate(marks)}
            case _:
                raise UserError("this change is not known; reload the page")

    def _known(self, video: Labelled, wanted: dict[str, Any]) -> int:
        """Return the number of the mark that a change is about."""
        number, was = wanted.get("id"), wanted.get("was")
        mark = video.marks.get(number) if isinstance(number, int) else None
        if mark is None or not isinstance(number, int):
            raise ConflictError("another page deleted this mark")
        if not isinstance(was, dict) or (was.get("start"), was.get("end"), was.get("class")) != _facts(mark):
            raise ConflictError("another page changed this mark: look at it, and do it again")
        return number

    def _mark(self, given: Any, times: Timeline | None) -> Mark:
        content = given if isinstance(given, dict) else {}
        if not _is_time(content.get("start")) or not _is_time(content.get("end")) or times is None:
            raise UserError("a mark needs a start and an end in seconds")
        if content.get("class") not in self.classes:
            raise UserError("a mark needs one of the classes; add it first")
        start, end = sorted((max(0.0, float(content["start"])), min(float(content["end"]), times.end)))
        first, last = times.frames(start, end)
        return Mark(round(times.seconds(first), 4), round(times.seconds(last), 4), first, last, content["class"])

    def _save(self, name: str | None = None) -> None:
        self.save()
        self.revision += 1
        if name is not None:
            self._changed[name] = self.revision
        if self._saved is not None:
            self._saved(self)

    def save(self) -> None:
        """Write labels.json, completely and onto the disk."""
        content = {
            "format": FORMAT,
            "classes": self.classes,
            "sides": self.sides,
            "videos": {name: _stored(video) for name, video in self.videos.items() if video.version},
            "written": self.written,
        }
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing_durably(self.folder / FILE) as file:
                file.write(utf8(json.dumps(content, indent=1, ensure_ascii=True) + "\n"))

    def note_written(self, contents: Mapping[str, str]) -> None:
        """Save the checksums of files that are written next, beside those of earlier contents.

        So lists that this command wrote are known as such after a kill at any moment.
        """
        new = {name: checksum(utf8(text)) for name, text in contents.items()}
        if any(self.written.get(name, [""])[-1] != found for name, found in new.items()):
            self.written |= {name: [*self.written.get(name, [])[-2:], found] for name, found in new.items()}
            self.save()

    def _load(self) -> None:
        path = self.folder / FILE
        try:
            content = parse_json(read_regular(path))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): restore it, or move it away to start anew") from None
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, and this version knows {FORMAT}")
            if not isinstance(content["classes"], list):
                raise ValueError("its classes are no list")
            self.classes = [checked_class(name) for name in content["classes"]]
            self.sides = {str(source): _one_of(side, _SIDES) for source, side in content["sides"].items()}
            self.written = {str(name): [str(one) for one in sums] for name, sums in content["written"].items()}
            self.videos = {str(name): _restored(video, self.classes) for name, video in content["videos"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            raise UserError(
                f"{path} is not a file of `iefvad label` ({error}): restore it, or choose another --out"
            ) from None


def checked_class(name: Any) -> str:
    """Return the name of a class after a look at whether annotations can have it.

    Raises:
        UserError: It is empty, has blanks, means normal, or has no letter.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 60:
        raise UserError("a class needs a name of at most 60 letters")
    name = str(name).strip()
    plain = name.isprintable() and not any(letter.isspace() or letter in ",;\"'<>&\\/" for letter in name)
    if not plain or not name[:1].isalnum() or not any(map(str.isalpha, name)) or classes_of(name) != (name,):
        raise UserError(
            f"{readable(name)!r} cannot be the name of a class: use letters, digits, '_' and '-', and not a word for"
            " normal"
        )
    return str(name)


def checksum(data: bytes) -> str:
    """Return the checksum by which a written file is known again."""
    return hashlib.sha256(data).hexdigest()


def shown(video: Labelled) -> dict[str, Any]:
    """Return a video's labels as pages know them, ready for JSON."""
    marks = [
        {"id": number, "start": mark.start, "end": mark.end, "first": mark.first, "last": mark.last, "class": mark.kind}
        for number, mark in sorted(video.marks.items(), key=lambda pair: (pair[1].first, pair[0]))
    ]
    return {"version": video.version, "normal": video.normal, "label": video.label, "marks": marks}


def _stored(video: Labelled) -> dict[str, Any]:
    return asdict(video) | {"marks": {str(number): asdict(mark) for number, mark in video.marks.items()}}


def _restored(content: Any, classes: list[str]) -> Labelled:
    marks = {int(number): Mark(**mark) for number, mark in content["marks"].items()}
    for mark in marks.values():
        counts = _is_count(mark.first) and _is_count(mark.last) and mark.first < mark.last
        if not counts or not _is_time(mark.start) or not _is_time(mark.end) or not mark.start < mark.end:
            raise ValueError(f"it has the mark {(mark.start, mark.end, mark.first, mark.last)}")
        if mark.kind not in classes:
            raise ValueError(f"it has a mark of the class {mark.kind!r}, which it does not list")
    file, normal, version, frames = (content[name] for name in ("file", "normal", "version", "frames"))
    if not isinstance(file, str) or not isinstance(normal, bool) or not _is_count(version):
        raise ValueError("a video needs a file, whether it is normal, and a version")
    if not (frames is None or _is_count(frames)) or any(mark.last > (frames or 0) for mark in marks.values()):
        raise ValueError("a mark is after the last frame of its video")
    if normal and marks:
        raise ValueError("a normal video has marks")
    return Labelled(file, normal, marks, version, frames)


def _facts(mark: Mark) -> tuple[float, float, str]:
    return mark.start, mark.end, mark.kind


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e9 < value < 1e9


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10**9


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {known}")
    return str(value)
