"""Options that have no effect beside others are refused in one line that names both and the remedy."""

from __future__ import annotations

import pytest
import yaml

from iefvad.cli.main import main
from iefvad.cli.sweep import parse_sweep
from iefvad.cli.train import parse_train
from iefvad.training.settings import save_config
from iefvad.utils.errors import UserError

OWN = ["--features", "anywhere", "--train-list", "a.csv", "--test-list", "b.csv", "--gt", "gt.npy"]

# What the user wrote, and the words of the message: the option without effect, and its reason.
TRAIN = [
    ("--method released --process-noise 0.1", "--process-noise has no effect with --temporal none, which --method"),
    ("--protocol released --process-noise learned", "--process-noise has no effect with --temporal none"),
    ("--temporal none --process-noise 0.1", "--process-noise has no effect with --temporal none: add --temporal"),
    ("--noise gaussian --nu 4 --compare false", "--nu has no effect with --noise gaussian"),
    ("--refine-steps 0 --attenuation 0.3", "--attenuation has no effect with --refine-steps 0"),
    ("--refine-steps 0 --refinement guided", "--refinement has no effect with --refine-steps 0"),
    ("--fixed-noise 0.2 --compare false", "--fixed-noise has no effect without --compare true"),
    ("--compare true --process-noise 0.1 --fixed-noise 0.2", "--fixed-noise has no effect with --process-noise 0.1"),
    ("--modality image --lambda-reg 0.5", "--lambda-reg has no effect with --modality image"),
    ("--modality event --lambda-cos 0.5", "--lambda-cos has no effect with --modality event"),
    ("--modality event --image-part 0.5", "--image-part has no effect with --modality event"),
    ("--modality event --robustness segments", "--robustness has no effect with --modality event"),
    ("--lambda-reg 0 --lambda-norm 1", "--lambda-norm has no effect with --lambda-reg 0"),
    ("--process-noise 0.1 --scalar-lr 0.2 --compare false", "--scalar-lr has no effect where nothing"),
    ("--mask-ratio 0.5", "--mask-ratio has no effect without --mask-clips"),
    ("--mask-damage both", "--mask-damage has no effect without --mask-clips"),
    ("--mask-clips 0.5 --lambda-mask 1 --cuda-graph", "--cuda-graph has no effect with --lambda-mask"),
    ("--select last --select-metric ap", "--select-metric has no effect with --select last"),
    ("--select last --select-every 64", "--select-every has no effect with --select last"),
    ("--protocol paper --reload-best true", "--reload-best has no effect with --select last, which --protocol paper"),
    ("--epochs 3 --milestones 4 8", "--milestones has no effect with --epochs 3"),
    ("--epochs 3 --factor 0.5", "--factor has no effect with --epochs 3"),
    ("--image-folder rgb2", "--image-folder has no effect on the embedded benchmark"),
    ("--test-list a.csv", "--test-list has no effect on the embedded benchmark"),
    ("OWN --synth-seed 4", "--synth-seed has no effect on your own data"),
    ("OWN --cache here", "--cache has no effect on your own data"),
    ("OWN --verify false", "--verify has no effect on .npy files"),
    ("OWN --annotations a.txt", "--annotations has no effect beside --gt"),
    ("--model rtfm --members 2", "--members has no effect with --model rtfm"),
    ("--model rtfm --scalar-lr 2", "--scalar-lr has no effect with --model rtfm"),
    ("--model concat --fixed-noise 0.4", "--fixed-noise has no effect with --model concat"),
]


def words(line: str) -> list[str]:
    return [word for part in line.split() for word in (OWN if part == "OWN" else [part])]


@pytest.mark.parametrize(("line", "message"), TRAIN, ids=[line for line, _ in TRAIN])
def test_an_option_of_training_without_effect_is_refused(line, message):
    with pytest.raises(UserError) as refused:
        parse_train(words(line))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert any(remedy in str(refused.value) for remedy in ("leave", "give one", "add ", "name your own"))


@pytest.mark.parametrize(
    "line",
    [
        "--method released",
        "--protocol released --compare true --process-noise 0.1",  # for the rows of the other methods
        "--noise gaussian",
        "--temporal none",
        "--mask-clips 0.5 --mask-ratio 0.5",
        "--epochs 3",
        "--model rtfm",
        "--compare true --fixed-noise 0.2",
        "--epochs 3 --milestones 1 8",
        "--fused --model concat",  # the word of earlier versions is always accepted
    ],
)
def test_what_has_an_effect_is_accepted_with_all_defaults(line, tmp_path, capsys):
    settings = parse_train(words(line))
    with pytest.raises(SystemExit):  # all defaults in a file do not contradict, neither before nor after `resolve`
        main(["train", *words(line), "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    save_config(tmp_path / "config.yaml", settings)
    for file in ("printed.yaml", "config.yaml"):
        parse_train(["--config", str(tmp_path / file)])


def test_what_a_file_says_counts_as_written(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"temporal": "none", "process_noise": 0.1}))
    with pytest.raises(UserError, match="--process-noise has no effect with --temporal none: "):
        parse_train(["--config", str(path)])
    assert parse_train(["--config", str(path), "--temporal", "kalman"]).process_noise == 0.1


def test_a_sweep_refuses_what_has_no_effect_in_any_of_its_trainings():
    for line, message in {
        "--vary process-noise=0,0.1 --method released": "--process-noise has no effect",
        "--vary lr=1e-3,1e-4 --method released --process-noise 0.1": "--process-noise has no effect",
        "--vary lr=1e-3,1e-4 --ray-address ray://h:1": "--ray-address has no effect without --engine ray",
        "--vary lr=1e-3,1e-4 --grid": "--grid has no effect with fewer than two --vary",
        "--vary lr=1e-3,1e-4 --device cpu --jobs-per-gpu 2": "--jobs-per-gpu has no effect with --device cpu",
    }.items():
        with pytest.raises(UserError, match=message):
            parse_sweep(line.split())
    parse_sweep(["--vary", "method=ief,released", "--process-noise", "0.1"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate RUN --robustness false --draws 3", "--draws has no effect with --robustness false"),
        ("evaluate RUN --gt a.npy --annotations b.txt", "--annotations has no effect beside --gt"),
        ("evaluate RUN --noise gaussian --nu 3", "--nu has no effect with --noise gaussian"),
        ("detect RUN VIDEO --retries 3", "--retries has no effect on files"),
        ("detect RUN VIDEO --fps 25", "--fps has no effect on video files"),
        ("detect RUN rtsp://host/a --overlay", "--overlay has no effect on cameras"),
        ("calibrate RUN VIDEO --fps 25", "--fps has no effect on video files"),
        ("extract VIDEO --out s --fps 25", "--fps has no effect on video files"),
        ("extract VIDEO --out s --ray-actors 2", "--ray-actors has no effect without --engine ray"),
        ("extract VIDEO --out s --engine ray --workers 2", "--workers has no effect with --engine ray"),
        ("extract VIDEO --out s --quick-gelu yes", "--quick-gelu has no effect with --image-model descriptor"),
        ("encoders --precision float16", "--precision has no effect without --measure"),
        ("reproduce table1 --ray-address ray://h:1", "--ray-address has no effect without --engine ray"),
        ("reproduce table1 --mask-ratio 0.5", "--mask-ratio has no effect without --mask-clips"),
    ],
)
def test_other_commands(line, message, tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"")
    given = [{"RUN": str(tmp_path), "VIDEO": str(tmp_path / "a.mp4")}.get(word, word) for word in line.split()]
    assert main(given) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
