"""Findings of `iefvad data check`: artificial data sets with one error each, and the four real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iefvad.cli.data import main
from iefvad.data.check.all_checks import check_data_set
from iefvad.data.check.findings import Finding, Report
from iefvad.data.check.recognise import DataSet, find_data_sets
from iefvad.data.check.render import as_markdown, as_text
from iefvad.utils.errors import UserError
from tests.helpers.stores import write_store

TRAIN = [("a0", "Normal"), ("a1", "Abuse")]
TEST = [("t0", "Normal"), ("t1", "Abuse"), ("t2", "Fire")]
ANNOTATIONS = "t0.mp4 Normal -1 -1\nt1.mp4 Abuse 3 20\nt2.mp4 Fire 0 16 20 30\n"


def rows(videos: list[tuple[str, str]], crops: int, folder: str = "/data/rgb") -> str:
    lines = [f"{folder}/{label}/{name}__{crop}.npy,{label}" for name, label in videos for crop in range(crops)]
    return "\n".join(["path,label", *lines]) + "\n"


def write(root: Path, **changes: str | None) -> Path:
    """A correct small data set. A keyword replaces the text of a file, or removes the file."""
    files: dict[str, str | None] = {
        "train_csv": rows(TRAIN, 10),
        "test_csv": rows(TEST, 1),
        "annotations_txt": ANNOTATIONS,
        "map_json": '{"Normal": "normal", "Abuse": "abuse", "Fire": "fire"}',
    }
    root.mkdir(parents=True, exist_ok=True)
    for name, text in {**files, **changes}.items():
        if text is not None:
            (root / ".".join(name.rsplit("_", 1))).write_text(text)
    return root


def report(root: Path, features: Path | None = None) -> Report:
    (data_set,) = find_data_sets([root])
    return check_data_set(data_set, features=features)


def one(given: Report, text: str) -> Finding:
    found = [finding for finding in given.findings if text in finding.text]
    assert len(found) == 1, [finding.text for finding in given.findings]
    return found[0]


def levels(given: Report) -> dict[str, int]:
    return {level: sum(finding.level == level for finding in given.findings) for level in ("problem", "note", "good")}


def test_a_sound_data_set(tmp_path: Path) -> None:
    given = report(write(tmp_path))
    assert given.problems == []
    assert one(given, "none of the 3 test videos of annotations.txt and test.csv is in train.csv").level == "good"
    assert one(given, "the classes in annotations.txt agree with test.csv").level == "good"
    assert given.classes == {
        "train (train.csv)": {"Abuse": 1, "normal": 1},
        "test (test.csv)": {"Abuse": 1, "Fire": 1, "normal": 1},
    }
    shown = {row.file: (row.what, row.videos, row.abnormal, row.intervals) for row in given.files}
    assert shown == {
        "annotations.txt": ("annotations", 3, 2, 3),
        "test.csv": ("test list, crop 0", 3, 2, None),
        "train.csv": ("train list, 10 crops", 2, 1, None),
    }
    assert given.verdict[0] == "train.csv and test.csv have no video in common."


def test_test_videos_that_are_trained_on(tmp_path: Path) -> None:
    given = report(write(tmp_path, train_csv=rows([*TRAIN, TEST[1]], 10)))
    finding = one(given, "1 of the 3 test videos of annotations.txt and test.csv are in train.csv")
    assert (finding.level, finding.names) == ("problem", ("t1",))
    assert "take them out of the training list" in finding.why
    assert "test.csv cannot be trusted after training on train.csv: 1 video of it" in given.verdict[0]


def test_a_longer_test_list_is_trained_on(tmp_path: Path) -> None:
    extra = ("t3", "Fire")
    root = write(tmp_path, train_csv=rows([*TRAIN, extra], 10), vadclip_test_csv=rows([*TEST, extra], 1))
    given = report(root)
    finding = one(given, "1 of the 4 test videos of vadclip_test.csv are in train.csv")
    assert finding.names == ("t3",)
    assert "test.csv (3 videos) leaves them out" in finding.why
    assert "But 1 of the 4 videos of the longer list are trained on." in given.verdict


def test_videos_annotated_in_parts(tmp_path: Path) -> None:
    parts = "a1_0.mp4 Abuse 1 2\na1_1.mp4 Abuse 5 9\nt2_0.mp4 Fire 0 16\nt2_1.mp4 Fire 20 30\n"
    text = ANNOTATIONS.replace("t2.mp4 Fire 0 16 20 30\n", parts)
    given = report(write(tmp_path, annotations_txt=text))
    finding = one(given, "annotations.txt names 1 test video in 2 parts, and train.csv trains on it")
    assert (finding.level, finding.names) == ("problem", ("a1",))
    assert one(given, "they are joined where truth is made").names == ("t2",)


def test_names_that_differ(tmp_path: Path) -> None:
    test = [("Videos_3_x264", "Normal"), ("Videos_33_x264", "Abuse"), ("Kitchen_t2", "Fire"), ("Stairs7", "Fire")]
    text = "Videos_3 Normal -1 -1\nVideos_33 Abuse 1 2\nkitchen_T2.avi Fire 1 2\nStiars7 Fire 1 2\n"
    given = report(write(tmp_path, test_csv=rows(test, 1), annotations_txt=text))
    cut = one(given, "annotations.txt writes 2 names without the ending '_x264' of test.csv")
    assert (cut.level, cut.names) == ("note", ("Videos_3", "Videos_33"))
    spelled = one(given, "annotations.txt spells 2 videos otherwise than test.csv")
    assert (spelled.level, spelled.names) == ("problem", ("kitchen_T2 for Kitchen_t2", "Stiars7 for Stairs7"))


def test_names_that_differ_in_a_number_are_other_videos(tmp_path: Path) -> None:
    text = ANNOTATIONS.replace("t1.mp4", "t11.mp4")
    given = report(write(tmp_path, annotations_txt=text))
    assert one(given, "annotations.txt lacks 1 video of test.csv").names == ("t1",)
    assert one(given, "annotations.txt lacks 1 video of test.csv").level == "problem"
    assert one(given, "annotations.txt names 1 video that test.csv lacks").names == ("t11",)


def test_another_order(tmp_path: Path) -> None:
    given = report(write(tmp_path, test_list_txt="t1\nt0\nt2\n"))
    assert (
        "a gt.npy belongs to the order" in one(given, "test_list.txt names the videos of test.csv in another order").why
    )


@pytest.mark.parametrize(
    ("changes", "text", "level", "names"),
    [
        ({"annotations_txt": ANNOTATIONS.replace("3 20", "5 5")}, "1 interval of length zero", "note", ("t1 5 5",)),
        ({"annotations_txt": ANNOTATIONS.replace("3 20", "20 3")}, "end before they start", "problem", ("t1 20 3",)),
        ({"annotations_txt": ANNOTATIONS.replace("Fire 0", "smoke 0")}, "the class smoke", "note", ()),
        (
            {"annotations_txt": ANNOTATIONS.replace("Fire 0", "Abuse 0")},
            "1 of 3 videos other classes",
            "note",
            ("t2 (Abuse; listed as Fire)",),
        ),
        (
            {"annotations_txt": ANNOTATIONS.replace("Normal -1 -1", "Normal 4 9")},
            "disagree whether 1 video are abnormal",
            "problem",
            ("t0",),
        ),
        ({"train_csv": rows([*TRAIN, TRAIN[1]], 10)}, "train.csv lists 10 rows twice", "problem", None),
        ({"train_csv": rows(TRAIN, 10).rsplit("\n", 2)[0]}, "1 video with fewer than ten", "problem", ("a1 (9)",)),
        (
            {"train_csv": "video,label,crops\na0,Normal,10\na1,Abuse,7\n"},
            "fewer than ten crops",
            "problem",
            ("a1 (7)",),
        ),
        (
            {"train_csv": rows(TRAIN, 10).replace("a1__3.npy,Abuse", "a1__3.npy,Fire")},
            "several labels",
            "problem",
            ("a1",),
        ),
        ({"train_csv": rows([("a0", "1"), ("a1", "1")], 10)}, "all 20 rows of train.csv", "problem", ()),
        ({"test_csv": rows(TEST, 1, "D:\\x\\rgb").replace("/", "\\")}, "test.csv has 3 Windows paths", "note", None),
        ({"test_csv": rows(TEST, 1, "../../rgb")}, "3 paths with a '..' part", "problem", None),
        ({"event_test_csv": rows(TEST, 1, "/data/ev_10")}, "(--event-folder ev_10)", "note", ()),
        ({"event_test_csv": rows(TEST[::-1], 1, "/data/event")}, "rows of test.csv in another order", "note", ()),
        ({"event_test_csv": rows(TEST[:2], 1, "/data/event")}, "differs from test.csv: 1 video", "problem", ("t2",)),
        (
            {"event_test_csv": rows([("t0", "1"), ("t1", "1"), ("t2", "1")], 1, "/data/event")},
            "labels 3 of 3 videos otherwise",
            "problem",
            ("t0", "t1", "t2"),
        ),
        ({"train_csv": None}, "there is no training list", "note", ()),
        ({"more_train_csv": rows(TRAIN[:1], 10)}, "lacks 1 training video", "note", ("a1",)),
    ],
)
def test_findings(
    tmp_path: Path, changes: dict[str, str | None], text: str, level: str, names: tuple[str, ...] | None
) -> None:
    finding = one(report(write(tmp_path, **changes)), text)
    assert finding.level == level
    assert names is None or finding.names == names


def test_truth_and_lengths(tmp_path: Path) -> None:
    root = write(tmp_path)
    t1, t2 = np.zeros(32, np.uint8), np.zeros(16, np.uint8)
    t1[3:20], t2[:16] = 1, 1
    np.savez(root / "frames.npz", t0=np.zeros(48, np.uint8), t1=t1, t2=t2)
    given = report(root)
    exact = one(given, "annotations.txt gives the frame truth of frames.npz exactly (3 videos, 96 frames, 33 abnormal)")
    assert exact.level == "good"
    assert one(given, "whose intervals go beyond the end (the lengths in frames.npz), by 14 frames").names == (
        "t2 (ends at 30, video at 16)",
    )
    t1[20] = 1
    np.savez(root / "frames.npz", t0=np.zeros(48, np.uint8), t1=t1, t2=np.append(t2, np.zeros(40, np.uint8)))
    finding = one(report(root), "annotations.txt differs from frames.npz in 2 of 3 videos")
    assert finding.names == (
        "t1: frame 20 abnormal only in the frame truth",
        "t2: frames 20 to 29 abnormal only in the annotation",
    )
    assert "one frame is at the end" in finding.why and "not of one version" in finding.why


def test_inclusive_ends_are_recognised(tmp_path: Path) -> None:
    root = write(tmp_path)
    t1, t2 = np.zeros(32, np.uint8), np.zeros(31, np.uint8)
    t1[3:21], t2[:17], t2[20:31] = 1, 1, 1
    np.savez(root / "frames.npz", t0=np.zeros(48, np.uint8), t1=t1, t2=t2)
    finding = one(report(root), "annotations.txt leaves out the last frame of each interval in frames.npz: 3 of 46")
    assert "--inclusive" in finding.why
    assert len(finding.names) == 2


def test_gt_without_lengths(tmp_path: Path) -> None:
    root = write(tmp_path)
    gt = np.zeros(16 * 7, np.uint8)
    gt[16 * 2 + 3 : 16 * 2 + 20] = 1  # t0 has 2 segments, t1 3, t2 2
    gt[16 * 5 : 16 * 5 + 16] = 1
    gt[16 * 5 + 20 : 16 * 5 + 30] = 1
    np.save(root / "gt.npy", gt)
    given = report(root)
    assert "(3 videos, 112 frames, 43 abnormal)" in one(given, "gt.npy is exactly what annotations.txt gives").text
    assert "can be rebuilt: gt.npy is exactly what annotations.txt gives" in given.verdict[-1]
    gt[16 * 5 + 29] = 0
    np.save(root / "gt.npy", gt)
    finding = one(report(root), "gt.npy is not what annotations.txt gives in the order of test.csv")
    assert finding.level == "problem"
    assert "do not say the same" in report(root).verdict[-1]
    np.save(root / "gt.npy", gt[:50])
    assert one(report(root), "gt.npy has 50 frames, no multiple of 16").level == "problem"


def test_features(tmp_path: Path) -> None:
    root, features = write(tmp_path / "lists", train_csv=None), tmp_path / "features"
    for name, label in TEST:
        (features / label).mkdir(parents=True, exist_ok=True)
        np.save(features / label / f"{name}__0.npy", np.zeros((2, 4), np.float16))
    np.save(root / "gt.npy", np.zeros(96))
    given = report(root, features)
    assert one(given, "all 3 files of test.csv are below").level == "good"
    assert one(given, "gt.npy (96 frames) fits the features of test.csv").level == "good"
    np.save(features / "Fire" / "t2__0.npy", np.zeros((3, 4)))
    assert one(report(root, features), "does not fit the features of test.csv (112 frames)").level == "problem"
    (features / "Fire" / "t2__0.npy").write_bytes(b"no")
    assert one(report(root, features), "1 file of test.csv cannot be read as features").level == "problem"
    (features / "Fire" / "t2__0.npy").unlink()
    assert one(report(root, features), "1 of 3 files of test.csv are not below").names == ("/data/rgb/Fire/t2__0.npy",)
    write(root, train_csv=None, test_csv=rows(TEST, 1, "../rgb"))
    with pytest.raises(UserError, match=r"'\.\.' part"):
        report(root, features)


def test_folders_are_searched_and_grouped(tmp_path: Path) -> None:
    write(tmp_path / "ucf" / "rgb" / "vitl")
    (tmp_path / "ucf" / "ucf_test_list.txt").write_text("t0\nt1\nt2\n")
    write(tmp_path / "mine")
    (tmp_path / "mine" / "README.txt").write_text("a b c d e\n")
    (tmp_path / "mine" / "index.csv").write_text("name,frames\n")
    (tmp_path / "mine" / "config.json").write_text('{"a": 1}')
    (tmp_path / "mine" / "x__0.npy").write_bytes(b"features are not looked at")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden")
    found = {data_set.name: data_set for data_set in find_data_sets([tmp_path])}
    assert sorted(found) == ["UCF-Crime", "mine"]
    assert {source.label for source in found["UCF-Crime"].sources} >= {"ucf_test_list.txt", "rgb/vitl/test.csv"}
    assert found["mine"].skipped == ["README.txt", "config.json", "index.csv"]
    assert found["mine"].unreadable == {}
    for empty in (tmp_path / "nothing", tmp_path / "absent"):
        if empty.name == "nothing":
            empty.mkdir()
        with pytest.raises(UserError, match=r"no lists|not a folder"):
            find_data_sets([empty])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("more.csv", "a__0.npy,Normal\n", "must begin with the header"),
        ("more.csv", "path,label\n", "lists no videos"),
        ("more.csv", "", "must begin with the header"),
        ("more.txt", "a.mp4 Abuse 3 4 5\n", "line 1: a has 3 frame numbers"),
        ("more.txt", "a.mp4 Abuse 3 4\n# a comment about it 5 6\n", "line 2"),
        ("more.txt", "", "names no video"),
        ("more.json", "[1, 2]", "another shape"),
        ("more.json", "{", "line 1"),
        ("gt_segment.json", "[[[1, 2]]]", "put their classes beside it"),
    ],
)
def test_damaged_files_end_with_status_2(
    tmp_path: Path, name: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path)
    (root / name).write_text(text)
    assert main(["check", str(root)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and name in printed.err
    assert f"{name} cannot be read" in " ".join(printed.out.split())
    assert "none of the 3 test videos" in printed.out  # the rest was checked


def test_pickled_arrays_end_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path)
    for name in ("gt.npy", "frames.npz"):
        pickled = np.array([{}], object)
        np.save(root / name, pickled) if name.endswith("npy") else np.savez(root / name, a=pickled)
        assert main(["check", str(root)]) == 2
        assert "pickled objects" in capsys.readouterr().err
        (root / name).unlink()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "set", train_csv=rows([*TRAIN, TEST[1]], 10))
    assert main(["check", str(root), "--out", str(tmp_path / "report.md")]) == 0
    text = capsys.readouterr().out
    assert "! 1 of the 3 test videos" in text
    assert max(len(line) for line in text.splitlines()) <= 130
    markdown = (tmp_path / "report.md").read_text()
    assert "**problem:** 1 of the 3 test videos" in markdown and "- `t1`" in markdown
    assert main(["check", str(root), "--out", str(tmp_path / "report.json"), "--strict"]) == 1
    (document,) = json.loads((tmp_path / "report.json").read_text())
    assert any(finding["names"] == ["t1"] for finding in document["findings"] if finding["level"] == "problem")
    sound = write(tmp_path / "sound")
    assert main(["check", str(sound), "--strict"]) == 0
    files = {"--train-list": "train.csv", "--test-list": "test.csv", "--annotations": "annotations.txt"}
    capsys.readouterr()
    assert main(["check", *(part for flag, name in files.items() for part in (flag, str(sound / name)))]) == 0
    assert "none of the 3 test videos of annotations.txt and test.csv is in train.csv" in " ".join(
        capsys.readouterr().out.split()
    )
    for wrong, message in (
        (["check"], "nothing to check"),
        (["check", str(root), "--out", str(tmp_path / "report.pdf")], ".md, .json or .txt"),
        (["check", "--annotations", str(root / "absent.txt")], "does not exist"),
        (["check", str(root), "--features", str(tmp_path / "absent")], "is not a folder"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["chec"])
    assert ended.value.code == 2
    assert "'chec' does not exist. Did you mean check?" in capsys.readouterr().err
    assert main([]) == 0
    assert "write the frame labels" in capsys.readouterr().out


@pytest.fixture(scope="module")
def real(shared_data: Path) -> dict[str, tuple[DataSet, Report]]:
    found = find_data_sets([shared_data / "annotations"])
    return {data_set.name: (data_set, check_data_set(data_set)) for data_set in found}


def test_real_files_are_all_recognised(real: dict[str, tuple[DataSet, Report]]) -> None:
    counts = {
        name: (len(data_set.sources), data_set.skipped, data_set.unreadable) for name, (data_set, _) in real.items()
    }
    assert counts == {
        "MSAD": (7, [], {}),
        "ShanghaiTech": (10, [], {}),
        "UCF-Crime": (23, [], {}),
        "XD-Violence": (14, [], {}),
    }
    problems = {name: len(given.problems) for name, (_, given) in real.items()}
    assert problems == {"MSAD": 0, "ShanghaiTech": 1, "UCF-Crime": 0, "XD-Violence": 2}


def test_the_documentation_shows_what_is_printed(real: dict[str, tuple[DataSet, Report]]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    for name, (_, given) in real.items():
        assert f"```text\n{as_text([given])}```" in page, name


def test_real_overlap(real: dict[str, tuple[DataSet, Report]]) -> None:
    xd, shang = real["XD-Violence"][1], real["ShanghaiTech"][1]
    finding = one(xd, "47 of the 800 test videos")
    assert len(finding.names) == 47 and "several classes" in finding.why
    assert "rgb_vitl_test.csv" in one(xd, "none of the 753 test videos").text
    finding = one(shang, "2 test videos in 6 parts")
    assert finding.names == ("04_0012", "05_0023") and "199 videos" in finding.why
    for name, count in (("UCF-Crime", 290), ("MSAD", 241), ("ShanghaiTech", 197)):
        assert one(real[name][1], f"none of the {count} test videos").level == "good"


def test_real_truth(real: dict[str, tuple[DataSet, Report]]) -> None:
    ucf, xd, shang, msad = (real[name][1] for name in ("UCF-Crime", "XD-Violence", "ShanghaiTech", "MSAD"))
    exact = one(ucf, "exactly (290 videos, 1,109,680 frames, 84,128 abnormal)").text
    assert all(name in exact for name in ("ucf_annotations.txt", "vadclip_Temporal", "vadclip_gt_segment_ucf.json"))
    assert "vadclip_annotations.txt" in one(xd, "exactly (800 videos, 2,330,384 frames, 537,805 abnormal)").text
    assert "xd_annotation.txt" in one(xd, "exactly (753 videos, 2,241,312 frames, 500,217 abnormal)").text
    differing = one(xd, "differ from frame_gt_per_video.npz in 5 of 800 videos").names
    assert sum(": frame " in name for name in differing) == 4
    assert "v=38GQ9L2meyE__#1_label_B6-0-0: frames 4511 to 4639 abnormal only in the annotation" in differing
    assert one(shang, "78 of 7,962 abnormal frames of 44 videos").level == "note"
    for given, frames in ((shang, "139,568 frames, 7,245"), (msad, "144,144 frames, 33,248")):
        assert frames in one(given, "gt.npy is exactly what").text
    assert "for all 41 videos" in one(shang, "16·⌊frames/16⌋ of test_frame_mask.npz").text


def test_real_intervals_and_labels(real: dict[str, tuple[DataSet, Report]]) -> None:
    ucf, xd, shang, msad = (real[name][1] for name in ("UCF-Crime", "XD-Violence", "ShanghaiTech", "MSAD"))
    assert one(shang, "2 intervals of length zero").names == ("01_0028 330 330", "08_0077 401 401")
    for given, text in (
        (ucf, "7 videos whose intervals go beyond the end"),
        (msad, "69 videos whose"),
        (shang, "3 videos whose"),
    ):
        assert one(given, text).level == "note"
    beyond = [finding.text for finding in xd.findings if "beyond the end" in finding.text]
    assert [text.split(" videos whose")[0].rsplit(" ", 1)[1] for text in beyond] == ["71", "72", "70"]
    assert one(xd, "event_vitl_train_head.csv labels 20 of 20 videos").level == "problem"
    assert "'Fighting' for 'B1-0-0'" in one(xd, "write the labels of rgb_vitl_test.csv otherwise").text
    assert one(ucf, "writes 290 names without the ending '_x264'").level == "note"
    assert one(shang, "the class push").level == "note"
    assert "(--event-folder thr_10)" in one(ucf, "becomes `thr_10`").text


def test_intervals_with_one_row_per_video_fit_a_list_with_a_row_per_crop(tmp_path: Path) -> None:
    rows = [f"rgb/{name}__{crop}.npy,{label}" for name, label in (("a", "Fire"), ("b", "Normal")) for crop in (0, 5)]
    (tmp_path / "test.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    (tmp_path / "gt_segment.json").write_text("[[[3, 9]], [[0, 32]]]")
    (tmp_path / "gt_label.json").write_text('[["Fire"], ["A"]]')
    assert main(["check", str(tmp_path)]) == 0


def test_names_are_no_markdown() -> None:
    hostile = "<img src=x>|[a](b)`c\n# d"
    report = Report(hostile, verdict=[hostile], findings=[Finding("problem", hostile, (hostile,))])
    text = as_markdown([report])
    assert text.count(r"\<img src=x>\|\[a](b)\`c%0A# d") == 3
    assert "- `` <img src=x>|[a](b)`c%0A# d ``" in text


def test_what_a_store_keeps_is_not_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "store")
    (store / "holiday.json").write_text("{}")
    main(["check", str(store)])
    printed = capsys.readouterr().out
    assert "not recognised: holiday.json\n" in printed
