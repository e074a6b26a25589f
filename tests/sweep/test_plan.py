"""What a sweep trains: the texts of its options, and clear errors before anything is trained."""

from __future__ import annotations

import dataclasses

import pytest

from iefvad.sweep.plan import plan, read_folds, read_variation
from iefvad.sweep.trainings import Training
from iefvad.training.settings import TrainConfig, resolve
from iefvad.utils.errors import UserError
from iefvad.utils.seeds import read_seeds

BASE = TrainConfig(features="store", preset="synth")


def shown(entries):
    """(setting, value) of each point, in order, and whether it is the base."""
    points = {}
    for entry in entries:
        points.setdefault((entry.point.setting, entry.point.value), entry.point.base)
    return points


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["0..9"], list(range(10))),
        (["0-3"], [0, 1, 2, 3]),
        (["0", "1", "2"], [0, 1, 2]),
        (["0,1,2"], [0, 1, 2]),
        (["5", "0..1,7"], [5, 0, 1, 7]),
    ],
)
def test_seeds(words, seeds):
    assert read_seeds(words) == seeds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["0..x"], "not a seed; write --seeds 0..9"),
        (["-1"], "not a seed"),
        (["3..1"], "write --seeds 1..3"),
        (["0", "0..1"], "names 0 twice"),
        ([","], "needs at least one number"),
    ],
)
def test_seeds_that_cannot_be_read(words, message):
    with pytest.raises(UserError, match=message):
        read_seeds(words)


def test_values_have_the_types_of_the_settings():
    assert read_variation("nu=2,learned").values == ((2.0,), ("learned",))
    assert read_variation("--refine-steps=0,10").values == ((0,), (10,))
    assert read_variation("fused=true,false").values == ((True,), (False,))
    assert read_variation("milestones=4 8,2").values == (([4, 8],), ([2],))
    both = read_variation("lambda-reg,lambda_kl = 0,0; 1,0.5")
    assert both.names == ("lambda_reg", "lambda_kl") and both.values == ((0.0, 0.0), (1.0, 0.5))
    assert both.label == "lambda-reg, lambda-kl" and both.texts == ("0, 0", "1, 0.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nu", "write NAME=VALUE,VALUE"),
        ("nu=", "write NAME=VALUE,VALUE"),
        ("mu=1", "has no setting --mu; see `iefvad train --help`"),
        ("nu=2,x", '"x" is not a value of nu, which takes {F,learned}'),
        ("refine-steps=1.5", "which takes N"),
        ("noise=cauchy", "which takes {student-t,gaussian}"),
        ("fused=maybe", "which takes true or false"),
        ("nu=2,4,2.0", "2.0 occurs twice"),
        ("nu,nu=1,2", "named twice"),
        ("lambda-reg,lambda-kl=0;1,0", '"0" has 1 values for 2 settings'),
        ("seeds=1,2", "give them by --seeds"),
        ("compare=true", "vary --method instead"),
    ],
)
def test_variations_that_cannot_be_read(text, message):
    with pytest.raises(UserError) as caught:
        read_variation(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("vary", "base", "message"),
    [
        (["nu=-1,2"], {}, "--vary nu=-1: --nu must be greater than 0"),
        (["nu=2", "nu=4"], {}, "names nu twice"),
        (["validation=0"], {}, "--validation 0 holds no video out"),
        (["model=ief-vad,rtfm"], {"nu": 2.0}, "--vary model=rtfm: --nu has no meaning"),
        (["nu=2"], {"compare": True}, "--compare true trains several"),
        (["nu=2"], {"modality": "all"}, "--vary modality=fusion,image,event"),
        (["method=ief,paper", "method,nu=paper,8"], {}, "names method twice"),
    ],
)
def test_what_resolve_refuses_is_refused_before_training(vary, base, message):
    with pytest.raises(UserError) as caught:
        plan(dataclasses.replace(BASE, **base), vary, [0])
    assert message in str(caught.value)


def test_one_setting_changes_at_a_time_and_the_base_is_shared():
    entries = plan(BASE, ["nu=2,4,8,16", "refine-steps=0,20"], [0, 1])
    assert shown(entries) == {
        ("nu", "2"): False,
        ("nu", "4"): False,
        ("nu", "8"): True,
        ("nu", "16"): False,
        ("refine-steps", "0"): False,
        ("refine-steps", "10"): True,  # not asked for, but the others are compared with it
        ("refine-steps", "20"): False,
    }
    assert len(entries) == 14 and len({entry.training.key for entry in entries}) == 12
    for entry in entries:
        assert entry.training.seed == entry.seed
        assert (entry.point.setting == "nu") or entry.training.settings.nu == 8.0


def test_a_grid_is_every_combination():
    entries = plan(BASE, ["nu=2,4", "refine-steps=0,20"], [0], grid=True)
    assert list(shown(entries)) == [
        ("nu, refine-steps", value) for value in ("8, 10", "2, 0", "2, 20", "4, 0", "4, 20")
    ]
    assert shown(entries)["nu, refine-steps", "8, 10"]


def test_settings_that_change_together_and_models():
    entries = plan(BASE, ["lambda-reg,lambda-kl=0,0;0.1,0.1", "model=ief-vad,concat", "protocol=clean,released"], [3])
    found = {(entry.point.setting, entry.point.value): entry.training.settings for entry in entries}
    assert found["lambda-reg, lambda-kl", "0, 0"].lambda_kl == 0
    assert [point for point, base in shown(entries).items() if base] == [
        ("lambda-reg, lambda-kl", "0.1, 0.1"),
        ("model", "ief-vad"),
        ("protocol", "clean"),
    ]
    # A protocol brings all that belongs to it.
    assert found["protocol", "released"].select == "test" and found["protocol", "released"].method == "released"


def test_keys_follow_what_changes_the_result():
    settings = resolve(dataclasses.replace(BASE, modality="fusion", compare=False))

    def key(**changes):
        return Training(dataclasses.replace(settings, **changes)).key

    assert key(nu=8) == key(nu=8.0) == key(out="elsewhere", device="cuda", resume=True, explicit=["nu"])
    assert len({key(), key(nu=2), key(seeds=[1]), key(features="other"), key(modality="image"), key(lr=1e-4)}) == 6
    for changes in ({"seeds": [0, 1]}, {"compare": True}, {"modality": "all"}):
        with pytest.raises(UserError, match="one network"):
            Training(dataclasses.replace(settings, **changes))


def test_folds(tmp_path):
    for name in ("fold10", "fold2"):
        (tmp_path / name).mkdir()
        for file in ("train.csv", "test.csv", "annotations.txt"):
            (tmp_path / name / file).touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / "fold2" / "gt.npy").touch()
    folds = read_folds(str(tmp_path), BASE)
    assert [fold.name for fold in folds] == ["fold2", "fold10"]
    assert folds[0].lists["annotations"] is None and folds[1].lists["gt"] is None
    entries = plan(BASE, ["nu=2,8"], [0, 1], lists=str(tmp_path))
    assert [(entry.point.value, entry.fold, entry.seed) for entry in entries[:4]] == [
        ("2", "fold2", 0),
        ("2", "fold2", 1),
        ("2", "fold10", 0),
        ("2", "fold10", 1),
    ]
    assert len({entry.training.key for entry in entries}) == 8
    assert entries[0].training.settings.gt and not entries[2].training.settings.gt
    with pytest.raises(UserError, match="leave --gt out"):
        read_folds(str(tmp_path), dataclasses.replace(BASE, gt="x"))
    (tmp_path / "fold2" / "test.csv").unlink()
    with pytest.raises(UserError, match=r"fold2 has no test\.csv"):
        read_folds(str(tmp_path), BASE)
    with pytest.raises(UserError, match="contains no folds"):
        read_folds(str(tmp_path / "notes"), BASE)
