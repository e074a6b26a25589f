"""`iefvad report`: a run's page from its files, and the page that compares several runs."""

from __future__ import annotations

import json
import re
import shutil
import time

import numpy as np
import pytest

from iefvad.cli.compare import main as compare
from iefvad.cli.report import main
from iefvad.report.compare_page import comparable
from iefvad.report.run_folder import RunFolder
from iefvad.scoring import seeds
from iefvad.scoring.score_files import read_all_scores, write_all_scores
from iefvad.scoring.score_files import test_set as digest
from iefvad.utils.errors import UserError
from tests.helpers.browser import CHROMIUM, browser
from tests.helpers.runs import videos, write_run
from tests.report.test_run_page import check

CLASSES = ["Abuse", "Arrest", "Arson", "Assault", "Burglary", "Explosion", "Fighting", "RoadAccidents", "Robbery"]
CLASSES += ["Shooting", "Shoplifting", "Stealing", "Vandalism", "AbandonedObjectOnTheWay"]
MODELS = ["fusion", "image", "event", "fusion (q = 0.4)", "fusion (paper)", "fusion (released)"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    few = CLASSES[:4]
    write_run(root / "a", models=["fusion", "image"], seeds=[0, 1, 2, 3], classes=few, settings={"nu": 8, "same": 5})
    write_run(root / "b", models=["fusion"], seeds=[1, 2, 3], classes=few, quality=2.0, settings={"nu": 4, "same": 5})
    write_run(root / "c", models=["rtfm"], seeds=[0], classes=few, test=5, settings={"same": 5}, name="other data")
    return root


def test_metrics_are_means_and_keep_every_seed(runs):
    found = json.loads((runs / "a" / "metrics.json").read_text())["fusion"]
    values = found["seeds"]["auc"]["values"]
    assert len(set(values)) == 4 and found["auc"] == pytest.approx(np.mean(values))
    assert found["seeds"]["auc"]["std"] == pytest.approx(np.std(values, ddof=1))
    for path in (("brier",), ("per_class", "Arson", "auc"), ("weights", "w_img", "abnormal")):
        value, spread = found, found["seeds"]
        for key in path:
            value, spread = value[key], spread[key]
        assert value == pytest.approx(np.mean(spread["values"])) and len(set(spread["values"])) > 1, path
    assert found["seeds"]["list"] == [0, 1, 2, 3]
    assert found["seeds"]["epoch"] == [3, 4, 5, 6] and found["seeds"]["threshold"] == [0.5] * 4
    assert found["epoch"] == 3 and isinstance(found["per_class"]["Arson"]["videos"], int)


def test_a_run_makes_its_page_again_from_its_files(runs, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(runs / "a", folder)
    expected = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert main([str(folder)]) == 0
    assert (folder / "report.html").read_text() == expected
    assert main([str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == expected
    assert "page.html" in capsys.readouterr().out


def test_what_is_no_run_or_not_finished_is_one_clear_error(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.yaml").write_text("lr: 1\n")
    old = tmp_path / "old"
    shutil.copytree(runs / "a", old)
    (old / "scores.npz").unlink()
    for arguments, message in (
        ([tmp_path / "none"], "is not a run folder: give a folder that `iefvad train`"),
        ([runs / "a", tmp_path / "empty"], "it has no metrics.json"),
        ([runs / "a", tmp_path / "stopped"], "--resume"),
        ([old], "`iefvad evaluate"),
        ([runs / "a", runs / "a"], "named twice"),
    ):
        assert main([*map(str, arguments), "--out", str(tmp_path / "x.html")]) == 2
        assert message in capsys.readouterr().err, arguments
    (old / "scores.npz").write_bytes(b"not a file of arrays")
    assert main([str(old)]) == 2 and "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_comparison_has_differences_over_common_seeds_and_what_differs(runs, tmp_path):
    assert main([*(str(runs / name) for name in "abc"), "--out", str(tmp_path / "c.html")]) == 0
    text, page = check(tmp_path / "c.html")
    a, b = (json.loads((runs / name / "metrics.json").read_text())["fusion"]["seeds"]["auc"]["values"] for name in "ab")
    difference = np.array(b) - np.array(a[1:])
    assert f"{difference.mean():+.4f} ± {difference.std(ddof=1):.4f}" in page.text
    for mean, std in ((np.mean(a), np.std(a, ddof=1)), (np.mean(b), np.std(b, ddof=1))):
        assert f"{mean:.4f} ± {std:.4f}" in page.text
    apart = "Not comparable, because the test sets differ: a, b on made up (16 test videos); c on other data"
    assert apart in page.text
    assert {"group0", "group1", "runs", "settings"} <= set(page.ids)
    settings = text[text.index('id="settings"') :]
    assert ">nu<" in settings and ">same<" not in settings and ">out<" not in settings
    groups = comparable({name: RunFolder.open(runs / name) for name in "abc"})
    assert [list(group) for group in groups] == [["a", "b"], ["c"]]


def test_a_run_without_its_scores_is_compared_without_curves(runs, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(runs / "b", old)
    for name in ("scores.npz", "report.json"):
        (old / name).unlink()
    document = json.loads((old / "metrics.json").read_text())
    del document["run"]["test_set"]
    (old / "metrics.json").write_text(json.dumps(document))
    assert main([str(runs / "a"), str(old), "--out", str(tmp_path / "c.html")]) == 0
    _, page = check(tmp_path / "c.html")
    assert "old was made by an earlier version" in page.text and "Not comparable" not in page.text


def test_all_scores_come_back(tmp_path):
    first = {m: {s: videos(["x", "y"], s + i, 1.0) for s in (0, 4)} for i, m in enumerate(("fusion", "image"))}
    first["fusion"][0][1].truth = None
    for other in (first["fusion"][4], first["image"][0], first["image"][4]):
        other[1].truth = None
        for video in other:
            video.w_img = video.w_evt = None
    write_all_scores(tmp_path / "s.npz", first)
    data = (tmp_path / "s.npz").read_bytes()
    time.sleep(0.01)
    write_all_scores(tmp_path / "s.npz", first)
    assert (tmp_path / "s.npz").read_bytes() == data
    found = read_all_scores(tmp_path / "s.npz")
    assert {m: list(s) for m, s in found.items()} == {m: list(s) for m, s in first.items()}
    for model, by_seed in first.items():
        for seed, expected in by_seed.items():
            for mine, one in zip(found[model][seed], expected, strict=True):
                assert (mine.name, mine.classes, mine.fps) == (one.name, one.classes, one.fps)
                for field in ("scores", "truth", "w_img", "w_evt", "gain", "starts", "ends"):
                    np.testing.assert_array_equal(getattr(mine, field), getattr(one, field))
    with pytest.raises(ValueError, match="other videos"):
        write_all_scores(tmp_path / "s.npz", {"a": {0: first["fusion"][0]}, "b": {0: first["fusion"][0][:3]}})
    with pytest.raises(UserError, match="cannot be read"):
        read_all_scores(tmp_path / "none.npz")


def test_the_test_set_is_told_by_names_sizes_and_truth():
    sets = [videos(["x", "y"], 0, 1.0), videos(["x", "y"], 9, 2.0), videos(["x", "y"], 0, 1.0, test=1)]
    assert digest(sets[0]) == digest(sets[1]) != digest(sets[2])
    assert digest(sets[0][:-1]) != digest(sets[0])


def test_paired_differences():
    found = seeds.paired({0: 0.5, 1: 0.6, 2: 0.8, 9: 0.1}, {2: 0.9, 1: 0.8, 0: 0.6, 5: 1.0})
    # Differences 0.1, 0.2, 0.1: mean 2/15, deviation 1/sqrt(300), t = 4 with 2 degrees of freedom.
    assert found.pairs == 3 and found.mean == pytest.approx(2 / 15) and found.std == pytest.approx(300**-0.5)
    assert found.p == pytest.approx(1 - 4 / np.sqrt(18))
    assert seeds.paired({0: 1.0}, {0: 2.0}) == (1.0, None, 1, None)
    assert seeds.paired({0: 1.0}, {1: 2.0}) is None
    assert seeds.paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.5, 1: 2.5, 2: 3.5}).p is None


_OVERLAPS = """(() => {
  const found = [];
  document.querySelectorAll('#classes svg, #group0 svg').forEach(svg => {
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([a, p], i) => boxes.slice(0, i).forEach(([b, q]) => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 1 && high > 3 && a.trim() && b.trim()) found.push(a + ' | ' + b);
    }));
  });
  return found.join('; ');
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
def test_ten_seeds_fit_1400_pixels(tmp_path):
    write_run(tmp_path / "one", models=MODELS, seeds=list(range(10)), classes=CLASSES)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert main([str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "c.html")]) == 0
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    with browser(tmp_path / "profile") as page:
        for file in (tmp_path / "one" / "report.html", tmp_path / "c.html"):
            page.open(f"file://{file}", width=1400)
            page.wait_for("document.readyState == 'complete' && document.querySelector('footer') != null")
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            found = page.evaluate(f"{wide}.map(e => e.closest('section').id + e.innerText.slice(0, 60)).join(', ')")
            assert found == "", file
            assert page.evaluate(_OVERLAPS) == "", file
            deviations = "[...document.querySelectorAll('td small')].filter(e => e.textContent.startsWith('±')).length"
            assert page.evaluate(deviations) >= 7 * 5, file
            page.open(f"file://{file}", width=400)
            page.wait_for("document.readyState == 'complete' && document.querySelector('footer') != null")
            assert page.evaluate("document.documentElement.scrollWidth <= 400"), file
        assert page.complaints == []


def test_compare_prints_what_differs_and_writes_the_same_page(runs, tmp_path, capsys):
    folders = [str(runs / name) for name in "abc"]
    assert compare([*folders, "--out", str(tmp_path / "one.html")]) == 0
    printed = capsys.readouterr().out
    assert main([*folders, "--out", str(tmp_path / "two.html")]) == 0
    assert (tmp_path / "one.html").read_text() == (tmp_path / "two.html").read_text()
    settings, _, rest = printed.partition("\n\n")
    assert re.search(r"^nu +8 +4 +", settings, re.MULTILINE) and "same" not in settings
    assert "Not comparable" in rest and "other data" in rest
    assert len(re.findall(r"^[ab] +fusion +0\.\d{4} ± 0\.\d{4}", rest, re.MULTILINE)) == 2
    found = [
        json.loads((runs / name / "metrics.json").read_text())["fusion"]["seeds"]["auc"]["values"] for name in "ab"
    ]
    difference = np.array(found[1]) - np.array(found[0][1:])
    less = rest.partition("less a, over common seeds\n")[2].splitlines()[2]
    assert less.split()[:3] == ["b", "fusion", "3"] and f"{difference.mean():.4f}" in less


def test_compare_needs_two_runs(runs, tmp_path, capsys):
    for given, message in (([runs / "a"], "at least two runs"), ([runs / "a", runs / "a"], "named twice")):
        assert compare([*map(str, given), "--out", str(tmp_path / "c.html")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "c.html").exists()
