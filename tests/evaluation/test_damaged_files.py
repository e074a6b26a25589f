"""Damaged and hostile files of runs and models: one line with cause, remedy and the file's name, in every command."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from iefvad.checkpoints.hub import load_trained
from iefvad.cli.main import main
from iefvad.utils.tensors import read_tensors, write_tensors
from tests.helpers.released import Published
from tests.helpers.stores import training_flags, write_store

MORE = ("--epochs", "2", "--modality", "fusion", "--compare", "false", "--layers", "1")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a run on it, and the run as a saved model, all written with an umask of 027."""
    folder = tmp_path_factory.mktemp("stock")
    before = os.umask(0o027)
    try:
        store = write_store(folder / "store", train=16, test=4)
        assert main(["train", *training_flags(store, folder / "run", *MORE)]) == 0
        load_trained(folder / "run").save_pretrained(folder / "saved")
        torch.save(Published(dim=16, layers=1, heads=1, steps=2, hidden=8).state_dict(), folder / "released.pth")
        assert main(["convert", str(folder / "released.pth"), str(folder / "released.safetensors")]) == 0
    finally:
        os.umask(before)
    return folder


@pytest.fixture
def run(stock: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stock / "run", tmp_path / "run"))


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Run a command that must end with one line, and return it."""
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) < 700, error
    return error


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change the JSON or YAML of a file."""
    read, write = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    value = read(path.read_text())
    change(value)
    path.write_text(write(value))


def edit_header(path: Path, key: str, change: Callable[[Any], object]) -> None:
    """Change JSON in the header of a safetensors file, which gets the right checksums."""
    tensors, metadata = read_tensors(path)
    value = json.loads(metadata[key])
    change(value)
    write_tensors(path, tensors, {key: json.dumps(value)})


SIZES = [("dim", 2**40), ("layers", 10**6), ("layers", 1000), ("members", 1000), ("heads", 0), ("eps", float("nan")),
         ("refine_steps", 10**9), ("hidden", -1), ("nu", "lerned"), ("dropout", 1.0), ("window", 0)]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), SIZES)
def test_impossible_sizes_of_a_model_are_refused_before_anything_is_allocated(stock, run, capsys, name, value):
    edit_header(run / "checkpoint.safetensors", "iefvad", lambda content: content["config"].update({name: value}))
    assert str(run / "checkpoint.safetensors") in refused(capsys, "evaluate", run)
    saved = Path(shutil.copytree(stock / "saved", run.parent / "saved"))
    edit(saved / "config.json", lambda content: content.update({name: value}))
    error = refused(capsys, "evaluate", saved, "--features", stock / "store")
    assert str(saved) in error


@pytest.mark.parametrize(
    ("name", "value"),
    [("chunk", "abc"), ("chunk", 2**40), ("threshold", "0.5"), ("test_crops", "99"), ("epoch", -1), ("seed", "a"),
     ("encoder", [1]), ("encoder", {"clamp": 1e9}), ("method", 5)],
)  # fmt: skip
def test_impossible_provenance_is_refused(run, capsys, name, value):
    edit_header(run / "checkpoint.safetensors", "iefvad", lambda content: content["extra"].update({name: value}))
    error = refused(capsys, "evaluate", run)
    assert "checkpoint.safetensors is damaged" in error and name in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_segments": "abc"}, "max_segments must be a whole number, not 'abc'"),
        ({"layers": 10**6}, "layers must be at most 1024"),
        ({"eps": float("nan")}, "eps must be a finite number"),
        ({"seeds": [[0]]}, "seeds must be a list"),
        ({"lr": {"a": 1}}, "lr must be a number"),
        ({"max_segments": 31}, "(chunk 31 and 32)"),
        ({"test_crops": "0"}, "(test_crops 0 and 5)"),
        ({"seeds": [3]}, "(seed 3 and 0)"),
    ],
)
def test_impossible_settings_of_a_run_are_refused(run, capsys, change, message):
    edit(run / "config.yaml", lambda content: content.update(change))
    error = refused(capsys, "evaluate", run)
    assert str(run / "config.yaml") in error and message in error


def test_a_state_that_is_not_one_is_refused(stock, run, capsys):
    (run / "metrics.json").unlink()
    state = run / "trainer_state" / "fusion_seed0.safetensors"
    original = state.read_bytes()
    resume = ("train", "--config", run / "config.yaml", "--out", run, "--resume")

    def without(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
        return {name: value for name, value in tensors.items() if not name.startswith(part)}

    tensors, metadata = read_tensors(state)
    moment = next(name for name in tensors if name.endswith(".exp_avg"))
    for changed, status in (
        (without(tensors, "best."), metadata),
        (without(tensors, moment), metadata),
        (tensors | {moment: torch.zeros(3)}, metadata),
        (tensors | {"what.is": torch.zeros(1)}, metadata),
        (tensors, {"status": metadata["status"].replace('"epoch": 2', '"epoch": "2"', 1)}),
        (tensors, {"status": "[" * 9999}),
        (tensors, {}),
    ):
        write_tensors(state, changed, status)
        capsys.readouterr()
        assert main([*map(str, resume)]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{state} is not a state of this training" in error and "delete it" in error
    state.write_bytes(original)
    assert main([*map(str, resume)]) == 0


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "odd rows"])
def test_a_log_costs_itself_alone(run, what):
    log = run / "log.jsonl"
    rows = log.read_text()
    log.unlink()
    if what == "pipe":
        os.mkfifo(log)
    elif what == "device":
        log.symlink_to("/dev/zero")
    elif what == "folder":
        log.mkdir()
    else:
        log.write_text(rows.replace('"epoch"', '"epoche"'))
    assert main(["evaluate", str(run), "--robustness", "false", "--out", str(run.parent / "out")]) == 0


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("metrics.json", lambda content: content["fusion"].update(per_class=5)),
        ("metrics.json", lambda content: content["fusion"].update(auc="high")),
        ("report.json", lambda content: content.update(protocol=[1])),
        ("report.json", lambda content: content.update(made={"train": 5})),
    ],
)
def test_the_page_of_damaged_results_is_refused(run, tmp_path, capsys, file, change):
    edit(run / file, change)
    assert file in refused(capsys, "report", run, "--out", tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_released_checkpoints_that_lie_are_refused(stock, tmp_path, capsys):
    tensors = torch.load(stock / "released.pth", weights_only=True)
    name = "temporal.classifier.weight"
    for value in (torch.zeros(1).expand(1, 2**40), tensors[name].to_sparse(), tensors[name].to(torch.complex64)):
        torch.save(tensors | {name: value}, tmp_path / "a.pth")
        assert name in refused(capsys, "convert", tmp_path / "a.pth", tmp_path / "a.safetensors")
    data = bytearray((stock / "released.pth").read_bytes())
    with zipfile.ZipFile(stock / "released.pth") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    data[largest.header_offset + 200] ^= 0x40
    (tmp_path / "a.pth").write_bytes(data)
    error = refused(capsys, "convert", tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert "changed since it was written" in error
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(80 << 20))
    assert "when it is unpacked" in refused(capsys, "convert", tmp_path / "a.pth", tmp_path / "a.safetensors")


def test_weights_that_are_no_numbers_are_refused(run, capsys):
    path = run / "checkpoint.safetensors"
    tensors, metadata = read_tensors(path)
    for value, message in ((torch.nan, "NaN or infinity"), (3, "not floating-point")):
        changed = torch.full_like(tensors["classifier.weight"], value, dtype=torch.int64 if value == 3 else None)
        write_tensors(path, tensors | {"classifier.weight": changed}, metadata)
        error = refused(capsys, "evaluate", run)
        assert str(path) in error and message in error and "classifier.weight" in error


def test_calibrations_are_checked(tmp_path):
    from iefvad.checkpoints.calibration import Calibration
    from iefvad.utils.errors import UserError

    good = Calibration(
        0.5, 0.4, 2.0, 0.0, 1.0, 0.0, 3.0, 1.0, 8, 0, "abc", [{"path": "a", "segments": 1, "flagged": 0}]
    )
    path = tmp_path / "calibration.json"
    good.write(path)
    assert Calibration.read(path) == good
    for name, value in (("threshold", "0.5"), ("threshold", 2**31), ("low", 0.6), ("hop", 0), ("merge_gap", -1),
                        ("videos", [{}]), ("model", None)):  # fmt: skip
        good.write(path)
        edit(path, lambda content, name=name, value=value: content.update({name: value}))
        with pytest.raises(
            UserError, match=rf"calibration\.json is damaged: .*{'low|path|' if name in ('low', 'videos') else name}"
        ):
            Calibration.read(path)


def test_descriptions_of_encoders_are_checked(tmp_path, capsys):
    clip = {"model_type": "clip_vision_model", "hidden_size": 32, "num_attention_heads": 4}
    own = {"embed_dim": 16, "vision_cfg": {"image_size": 28, "layers": 1, "width": 16, "patch_size": 14}}
    timm = {"architecture": "resnet18"}
    cases: list[tuple[str, Any, str]] = [
        ("open_clip_config.json", own | {"embed_dim": 2**40}, "embed_dim"),
        ("open_clip_config.json", own | {"vision_cfg": own["vision_cfg"] | {"layers": 10**6}}, "layers"),
        ("open_clip_config.json", own | {"vision_cfg": own["vision_cfg"] | {"width": "abc"}}, "width"),
        ("open_clip_config.json", own | {"vision_cfg": own["vision_cfg"] | {"image_size": 10**5}}, "image_size"),
        ("open_clip_config.json", {"model_cfg": own, "preprocess_cfg": {"std": [0, 1, 1]}}, "std"),
        ("config.json", clip | {"num_attention_heads": 0}, "num_attention_heads"),
        ("config.json", clip | {"hidden_size": 33}, "heads do not divide"),
        ("config.json", clip | {"layer_norm_eps": None}, "layer_norm_eps"),
        ("config.json", timm | {"model_args": {"depth": 10**6}}, "depth"),
        ("config.json", timm | {"pretrained_cfg": {"input_size": [3, 10**5, 10**5]}}, "size"),
        ("config.json", timm | {"pretrained_cfg": {"mean": [1, 2]}}, "mean"),
        ("config.json", timm | {"model_args": []} | {"model_args": [1]}, "does not describe a model of timm"),
    ]
    (tmp_path / "a.mp4").write_bytes(b"")
    for number, (name, content, message) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_text(json.dumps(content))
        (folder / "model.safetensors").write_bytes(b"")
        model = f"local-dir:{folder}"
        error = refused(capsys, "extract", tmp_path / "a.mp4", "--image-model", model, "--out", tmp_path / "out")
        assert str(folder / name) in error and message in error, (content, error)


def test_every_written_file_has_the_mode_of_the_umask(stock):
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in stock.rglob("*") if path.is_file()}
    assert {path.suffix for path in modes} >= {
        ".safetensors",
        ".json",
        ".yaml",
        ".csv",
        ".npz",
        ".jsonl",
        ".html",
        ".md",
    }
    assert {path: oct(mode) for path, mode in modes.items() if mode != 0o640} == {}
