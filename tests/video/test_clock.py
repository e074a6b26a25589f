"""The times of frames and segments: what a player shows, lost frames, assumed rates, joined recordings."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from iefvad.utils.errors import UserError
from iefvad.video import ClockReport, FrameClock, Segments, probe, timed_frames
from iefvad.video.clock import JUMP

RATE = 25


def write(
    path: Path,
    frames: int | list[int] = 96,
    *,
    codec: str = "libx264",
    rate: int = RATE,
    stamp: Callable[[int], int] | None = None,
    offset: int = 0,
    form: str | None = None,
    options: dict[str, str] | None = None,
    sound: float | None = None,
) -> Path:
    """Write a small moving picture. `stamp` gives the pts in 1/`rate` s, `sound` the start of silent sound in s."""
    noise = np.random.default_rng(0).integers(0, 60, (64, 96, 3), dtype=np.uint8)
    numbers = list(range(frames)) if isinstance(frames, int) else frames
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "25", **(options or {})})
        stream.width, stream.height = 96, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        audio = None if sound is None else container.add_stream("aac", rate=8000)
        for number in numbers:
            picture = noise.copy()
            picture[8:40, number * 2 % 60 : number * 2 % 60 + 24] = 220
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (stamp(number) if stamp else number) + offset, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            for block in range(8):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.time_base = 8000, Fraction(1, 8000)
                silence.pts = round((sound or 0) * 8000) + 1024 * block
                container.mux(audio.encode(silence))
            container.mux(audio.encode())
    return path


def times_of(path: Path, mode: str = "error") -> tuple[list[float], list[float], ClockReport]:
    """Return starts and ends of the segments of 16 frames, to the millisecond, and where they come from."""
    segments = Segments(path, on_truncated=mode)
    assert sum(1 for _ in segments) == len(segments.starts) == len(segments.ends)
    starts, ends = ([round(time, 3) for time in times] for times in (segments.starts, segments.ends))
    return starts, ends, segments.clock


def regular(count: int, each: float = 0.64, first: float = 0.0) -> list[float]:
    return [round(first + each * number, 3) for number in range(count)]


# --- files whose clock is simple


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("a.mp4", {}),
        ("bframes.mp4", {"options": {"bf": "3"}}),
        ("bframes.mkv", {"options": {"bf": "3"}}),
        ("bframes.ts", {"options": {"bf": "3"}}),
        ("a.flv", {}),
        ("a.mpg", {"codec": "mpeg2video"}),
        ("a.avi", {"codec": "mpeg4"}),
        ("large.ts", {"offset": RATE * 90_000}),  # 25 hours: close to where 33 bits end
        ("large.mkv", {"offset": RATE * 3600}),
        ("negative.nut", {"offset": -50, "form": "nut"}),
        ("negative.ts", {"offset": -10}),
    ],
)
def test_a_constant_rate_gives_even_times_from_0(tmp_path: Path, name: str, more: dict) -> None:
    starts, ends, report = times_of(write(tmp_path / name, **more))
    tolerance = 0.0011 if name.endswith((".mkv", ".flv")) else 1e-9  # their stamps are whole milliseconds
    np.testing.assert_allclose(starts, regular(6), atol=tolerance)
    np.testing.assert_allclose(ends, regular(6, first=0.64), atol=tolerance)
    assert report.notes() == [] and report.origin == "stamps" and report.rate == RATE


def test_a_variable_rate_is_no_loss(tmp_path: Path) -> None:
    """A phone in the dark: 64 frames at 5 per second, then 48 at 25 per second, then 5 per second again."""
    path = write(
        tmp_path / "phone.mp4", 128, stamp=lambda i: 5 * min(i, 64) + min(max(i - 64, 0), 48) + 5 * max(i - 112, 0)
    )
    starts, ends, report = times_of(path)
    assert starts == [0.0, 3.2, 6.4, 9.6, 12.8, 13.44, 14.08, 14.72]
    assert ends == [*starts[1:], 17.92]
    assert report.lost == () and report.notes() == []
    held = write(tmp_path / "screen.mkv", 96, stamp=lambda i: i + 20 * (i // 4))  # a screen recording holds pictures
    assert times_of(held)[2].lost == ()


def test_the_picture_may_start_after_the_sound(tmp_path: Path) -> None:
    """A player's 0 is the start of the sound, so the first picture is shown later."""
    starts, _, _ = times_of(write(tmp_path / "late.mkv", 48, offset=RATE, sound=0.0))
    np.testing.assert_allclose(starts, regular(3, first=1.0), atol=0.002)
    starts, _, _ = times_of(write(tmp_path / "other_clock.mkv", 48, offset=RATE * 3600, sound=0.0))
    np.testing.assert_allclose(starts, regular(3), atol=0.002)


def test_an_edit_list_cuts_the_beginning(tmp_path: Path) -> None:
    """A trimmed mp4 holds frames that are never shown; a player begins with the first one shown."""
    path = write(tmp_path / "a.mp4", 64, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # version and flags, count, then: duration (ms), media time, rate
    scale = av.open(str(path)).streams.video[0].time_base.denominator
    skipped = int.from_bytes(data[at + 4 : at + 8], "big") + 16 * scale // RATE
    data[at : at + 8] = (1920).to_bytes(4, "big") + skipped.to_bytes(4, "big")
    path.write_bytes(data)
    starts, ends, report = times_of(path)
    assert (starts, ends) == (regular(3), regular(3, first=0.64)) and not report.notes()


def test_the_last_segment_ends_with_its_last_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 20)
    segments = Segments(path, tail="repeat")
    assert sum(1 for _ in segments) == 2
    assert segments.starts.tolist() == [0.0, 0.64]
    assert [round(time, 6) for time in segments.ends] == [0.64, 0.8]
    assert [round(time, 6) for _, time in timed_frames(path)] == [round(i / RATE, 6) for i in range(20)]


# --- lost frames

LOST = [i for i in range(160) if not 40 <= i < 90]


@pytest.mark.parametrize("name", ["gap.ts", "gap.mkv", "gap.mp4"])
def test_a_jump_in_the_stamps_names_the_lost_frames(tmp_path: Path, name: str) -> None:
    """Frames that a network lost are no damage of the file: it is scored, with honest times and a note."""
    starts, ends, report = times_of(write(tmp_path / name, LOST))
    np.testing.assert_allclose(starts, [0, 0.64, 1.28, 3.92, 4.56, 5.2], atol=0.0011)
    np.testing.assert_allclose(ends, [0.64, 1.28, 3.92, 4.56, 5.2, 5.84], atol=0.0011)
    (loss,) = report.lost
    assert (loss.frame, loss.frames) == (40, 50)
    assert (loss.start, loss.end) == pytest.approx((1.6, 3.6), abs=0.0011)
    assert report.notes() == [
        "the time stamps jump: about 50 frames lost from 0:00:01.6 to 0:00:03.6; later times are those of the stamps"
    ]
    assert ClockReport.from_dict(report.as_dict()).notes() == report.notes()


def zeroed(path: Path, start: float, end: float) -> Path:
    """Overwrite a part of the bytes with zeros, as a broken download or a bad disk leaves it."""
    data = bytearray(path.read_bytes())
    first, last = round(len(data) * start), round(len(data) * end)
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("start", "end"), [(0.3, 0.6), (0.1, 0.5), (0.55, 0.8)])
@pytest.mark.parametrize(("codec", "options"), [("libx264", {}), ("libx264", {"bf": "0"}), ("mpeg2video", {})])
def test_a_hole_in_a_transport_stream_is_damage(
    tmp_path: Path, start: float, end: float, codec: str, options: dict
) -> None:
    path = zeroed(write(tmp_path / "hole.ts", 200, codec=codec, options=options), start, end)
    with pytest.raises(UserError, match=r"damaged.*frames lost from 0:00:0.* to 0:00:0.*--on-truncated keep"):
        times_of(path)
    segments = Segments(path, on_truncated="keep")
    assert sum(1 for _ in segments) and segments.truncated
    assert segments.clock.lost and segments.clock.lost[-1].frames > 10
    shown = [time for _, time in timed_frames(path, on_truncated="keep")]
    assert shown[-1] == pytest.approx(199 / RATE), "what follows the hole has its own time"


# --- assumed rates


@pytest.mark.parametrize(
    ("name", "codec", "rate", "assumed"),
    [
        ("a.mjpeg", "mjpeg", 25.0, True),  # states nothing
        ("a.h264", "libx264", 10.0, False),  # states a rate in its pictures, but no times
        ("a.m2v", "mpeg2video", 24.0, False),
        ("bframes.avi", "libx264", 10.0, False),  # AVI has no presentation times
    ],
)
def test_an_assumed_rate_is_said(tmp_path: Path, name: str, codec: str, rate: float, assumed: bool) -> None:
    form = {"m2v": "mpeg2video"}.get(name.split(".")[-1])
    path = write(tmp_path / name, 48, codec=codec, rate=10 if assumed else int(rate), form=form)
    starts, ends, report = times_of(path)
    assert (starts, ends) == (regular(3, round(16 / rate, 6)), regular(3, round(16 / rate, 6), 16 / rate))
    assert report.origin == ("assumed" if assumed else "rate") and report.rate == probe(path).fps == rate
    assert probe(path).assumed is assumed
    (note,) = report.notes()
    assert note.startswith(f"assumed {rate:g} frames per second")


# --- stamps that do not increase


def test_joined_recordings_go_on_where_the_first_one_ends(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{n}.ts", n, options={"bf": "3"}) for n in (80, 48))
    (tmp_path / "joined.ts").write_bytes(first.read_bytes() + second.read_bytes())
    starts, ends, report = times_of(tmp_path / "joined.ts")
    assert (starts, ends) == (regular(8), regular(8, first=0.64))
    assert report.restarts == pytest.approx((3.2,), abs=0.041) and "start again at 0:00:03" in report.notes()[0]


def test_joined_recordings_with_a_pause_are_not_damaged(tmp_path: Path) -> None:
    """Two parts of one camera's recording: the second has the camera's clock, 20 s later."""
    plain = {"options": {"bf": "0"}}
    first, second = write(tmp_path / "1.ts", 80, **plain), write(tmp_path / "2.ts", 48, offset=500, **plain)
    (tmp_path / "joined.ts").write_bytes(first.read_bytes() + second.read_bytes())
    starts, ends, report = times_of(tmp_path / "joined.ts")
    assert starts == [*regular(5), *regular(3, first=20)] and ends[-1] == 21.92
    assert [loss.frames for loss in report.lost] == [420]


def test_lost_packets_of_a_transport_stream_are_damage(tmp_path: Path) -> None:
    """A recorder wrote what a network left over: whole packets of 188 bytes are missing, within pictures."""
    path = write(tmp_path / "udp.ts", 200, options={"bf": "0"})
    data, size = path.read_bytes(), 188
    packets = len(data) // size
    path.write_bytes(data[: packets * 3 // 10 * size] + data[packets * 6 // 10 * size :])
    with pytest.raises(UserError, match=r"damaged.*frames lost"):
        times_of(path)


def test_stamps_that_pass_33_bits(tmp_path: Path) -> None:
    """The clock of a transport stream ends after 26.5 hours and starts again at 0."""
    last = 2**33 // (90_000 // RATE)
    starts, ends, report = times_of(write(tmp_path / "wrap.ts", 96, offset=last - 60, options={"bf": "0"}))
    np.testing.assert_allclose(starts, regular(6), atol=0.04)
    np.testing.assert_allclose(ends, regular(6, first=0.64), atol=0.04)
    assert not report.lost


def feed(stamps: list[float | None], **more) -> tuple[list[float], ClockReport]:
    clock = FrameClock(RATE, **more)
    return [round(clock.feed(stamp), 3) for stamp in stamps], clock.report()


def test_missing_and_equal_stamps_count_frames() -> None:
    even = [round(i / RATE, 3) for i in range(40)]
    for stamps in ([None] * 40, [0.0] * 40, [7.0, *[None] * 39]):
        times, report = feed(stamps)
        assert times == even and report.origin == "rate"
        assert feed(stamps, assumed=True)[1].origin == "assumed"
    some = [i / RATE if i % 5 == 0 else None for i in range(40)]
    assert feed(some)[0] == even
    pairs = [i // 2 * 2 / RATE for i in range(40)]  # each stamp twice
    assert feed(pairs)[0] == even and feed(pairs)[1].origin == "stamps"


def test_one_wrong_stamp_does_not_move_the_clock() -> None:
    stamps: list[float | None] = [10 + i / RATE for i in range(40)]
    stamps[20] = 3.0
    times, report = feed(stamps)
    assert times == [round(i / RATE, 3) for i in range(40)] and report.notes() == []
    back = [10 + i / RATE for i in range(20)] + [2 + i / RATE for i in range(20)]
    times, report = feed(back)
    assert times == [round(i / RATE, 3) for i in range(40)] and len(report.restarts) == 1


def test_times_never_decrease_whatever_the_stamps_are() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        stamps = random.choice([0.0, 0.04, 1.0, 5.0, -3.0, 1e5], 60) + np.arange(60) * random.choice([0.0, 0.04])
        times, report = feed([None if random.random() < 0.2 else float(stamp) for stamp in stamps])
        assert all(later >= earlier for earlier, later in pairwise(times))
        assert all(np.isfinite(times)) and report.rate == RATE


def test_what_counts_as_a_jump() -> None:
    def lost(*intervals: float) -> list[int]:
        return [loss.frames for loss in feed(np.cumsum([0.0, *intervals]).tolist())[1].lost]

    usual = [0.04] * 20
    assert lost(*usual, 0.04 * JUMP, *usual) == [], "three lost frames are within the play of a slow recorder"
    assert lost(*usual, 0.04 * (JUMP + 1), *usual) == [4]
    assert lost(*usual, 2.0, 0.04) == [49], "close to the end"
    assert lost(0.04, 2.0, *usual) == [49], "close to the beginning"
    assert lost(*usual, 2.0, *usual[:5], 1.0, *usual) == [49, 24], "bursts of loss"
    assert lost(*usual, *[0.2] * 20) == lost(*[0.2] * 20, *usual) == [], "another rate"
    assert lost(*usual, *[0.2] * 2) == []
    assert lost(*np.random.default_rng(0).uniform(0.01, 0.4, 200)) == [], "no rhythm"
    assert lost(*[0.04, 0.04, 0.04, 0.8] * 20) == [], "a screen recording holds pictures"


# --- the files of the reports


@pytest.mark.parametrize(
    ("name", "start", "end"), [("cfr.mp4", 9.9, 12.8), ("vfr.mp4", 35.5, 38.4), ("gap.ts", 9.9, 12.8)]
)
def test_one_event_has_the_time_of_a_player_in_three_files(
    shared_data: Path, name: str, start: float, end: float
) -> None:
    path = shared_data / "reports" / "times" / name
    if not path.is_file():
        pytest.skip("the file is not among the data")
    missing = 100 if name == "gap.ts" else 0
    times = [time for _, time in timed_frames(path)]
    segments = Segments(path, tail="repeat")
    assert sum(1 for _ in segments) == (14 if missing else 20)
    # The event is in frames 247 to 320 of the whole.
    assert times[247 - missing] == pytest.approx(start, abs=0.05)
    assert segments.ends[-1] == pytest.approx(end, abs=1e-3)
    assert [loss.frames for loss in segments.clock.lost] == ([100] if missing else [])


def test_a_hole_is_an_error_that_names_the_loss(shared_data: Path) -> None:
    path = shared_data / "reports" / "damage" / "hole.ts"
    if not path.is_file():
        pytest.skip("the file is not among the data")
    with pytest.raises(UserError, match=r"about 100 frames lost from 0:00:04\.0 to 0:00:08\.0"):
        times_of(path)
    assert times_of(path, "keep")[1][-1] == pytest.approx(12.32)
