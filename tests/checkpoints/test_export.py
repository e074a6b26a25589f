"""Exported networks: the same scores as the network gives, chunk by chunk, without this package."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ief_kernels import KalmanScan, kalman_scan
from iefvad.checkpoints import export
from iefvad.checkpoints.export import export_model
from iefvad.checkpoints.hub import IEFVAD, Baseline
from iefvad.cli.export import main
from iefvad.model.baselines.config import BaselineConfig
from iefvad.model.config import ModelConfig
from iefvad.model.portable import START, PortableNetwork, PortableScan
from iefvad.scoring.scorer import Scorer
from iefvad.utils.errors import UserError
from tests.helpers.released import vary

CHUNK = 8
SMALL = ModelConfig(dim=16, heads=2, layers=1, refine_steps=2)
VARIANTS = {
    "default": dataclasses.replace(SMALL, nu="learned", standardize=True, window=4, projection=8),
    "members": dataclasses.replace(SMALL, members=2, process_noise=0.0),
    "no recursion": dataclasses.replace(SMALL, temporal="none"),
    "image": dataclasses.replace(SMALL, modality="image", layers=0),
    "crossed": dataclasses.replace(SMALL, fusion="cross-attention", refinement="guided"),
    "gated": dataclasses.replace(SMALL, fusion="gated", refinement="shared"),
    "surprise": dataclasses.replace(SMALL, surprise=True, standardize=True),
    "repair": dataclasses.replace(SMALL, repair=True, standardize=True),
    "low rank": dataclasses.replace(SMALL, covariance_rank=2),
    "released": dataclasses.replace(SMALL, released=True, temporal="none", process_noise=0.0),
}
# Float32 on both sides; sums in another order differ by some units in the last place of scores below 1.
CLOSE = {"rtol": 0.0, "atol": 2e-6}


def build(config: ModelConfig) -> IEFVAD:
    torch.manual_seed(0)
    model = vary(IEFVAD(config)).eval()
    assert isinstance(model, IEFVAD)
    if config.standardize:
        for stream in model.encoders:
            model.set_statistics(stream, 2 * torch.randn(100, config.dim) + 1)
    weights = "/somewhere/of/mine/weights.safetensors"
    model.provenance = {"chunk": CHUNK, "threshold": 0.625, "encoder": {"dim": 16, "image_weights": weights}}
    return model


Call = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def tensors_call(run: Any, metadata: dict[str, Any]) -> Call:
    def call(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = run(*(torch.from_numpy(given[name]) for name in metadata["inputs"]))
        return {name: value.numpy() for name, value in zip(metadata["outputs"], found, strict=True)}

    return call


def in_chunks(call: Call, metadata: dict[str, Any], image: np.ndarray, event: np.ndarray, size: int) -> np.ndarray:
    """Score videos (B, T, D) as docs/export.md does it."""
    state = {
        name: np.full((len(image), metadata["inputs"][name][1]), value, np.float32)
        for name, value in metadata["start"].items()
    }
    rows = []
    for start in range(0, image.shape[1], size):
        given = {"image": image[:, start : start + size], "event": event[:, start : start + size], **state}
        found = call({name: np.ascontiguousarray(given[name]) for name in metadata["inputs"]})
        if state:
            state = {"state_mean": found["next_mean"], "state_var": found["next_var"]}
        rows.append(found["scores"])
    return np.concatenate(rows, 1)


def scores(model: IEFVAD, image: torch.Tensor, event: torch.Tensor) -> np.ndarray:
    pairs = zip(image, event, strict=True)
    return np.stack([Scorer(model, chunk=CHUNK).feed(one[None], other[None])[:, 0] for one, other in pairs])


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("spread", [0.0, 8.0])
def test_the_scan_without_a_loop_is_the_scan(initial: bool, spread: float) -> None:
    torch.manual_seed(0)
    scan = KalmanScan(6, process_noise=0.0 if spread else "learned", backend="reference")
    x, var = torch.randn(2, 50, 6), (spread * torch.randn(2, 50, 6)).exp()
    start = (torch.randn(2, 6), torch.rand(2, 6)) if initial else tuple(torch.full((2, 6), value) for value in START)
    noise = scan.process_noise()
    wide = noise.double() if isinstance(noise, torch.Tensor) else noise
    # Without a state the first variance is that of the first segment, and from one that knows nothing eps more.
    state = tuple(part.double() for part in start) if initial or spread else None
    wanted = kalman_scan(x.double(), var.double(), process_noise=wide, initial_state=state, backend="reference")
    portable = PortableScan(scan, 64)
    with torch.no_grad():
        found = portable(x, var, initial_state=start)
        for part, other in zip((*found[:3], *found.state), (*wanted[:3], *wanted.state), strict=True):
            # Every number is a product or a mean of positive terms: 6 doublings and a few roundings each.
            torch.testing.assert_close(part.double(), other, rtol=2e-5, atol=2e-6)
        longer = portable(torch.randn(1, 70, 6), torch.ones(1, 70, 6), initial_state=[part[:1] for part in start])
    assert longer.mean[:, 64:].isnan().all() and not longer.mean[:, :64].isnan().any()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_portable_network_gives_the_scores_of_the_network(name: str) -> None:
    model = build(VARIANTS[name])
    network = PortableNetwork(model, CHUNK)
    metadata = export.describe(model, network, CHUNK)
    image, event = torch.randn(2, 3, 16 if model.config.released else 21, 16)
    found = in_chunks(tensors_call(network, metadata), metadata, image.numpy(), event.numpy(), CHUNK)
    np.testing.assert_allclose(found, scores(model, image, event), **CLOSE)


@pytest.mark.parametrize("name", ["default", "repair"])
def test_a_torch_export_program_is_read_again(name: str, tmp_path: Path) -> None:
    model = build(VARIANTS[name])
    path = tmp_path / "model.pt2"
    metadata = export_model(model, path, "torch-export")
    extra = {"iefvad.json": ""}
    program = torch.export.load(path, extra_files=extra)
    assert json.loads(extra["iefvad.json"]) == metadata
    image, event = torch.randn(2, 3, 21, 16)
    call = tensors_call(program.module(), metadata)
    for batch in (3, 1):
        found = in_chunks(call, metadata, image[:batch].numpy(), event[:batch].numpy(), CHUNK)
        np.testing.assert_allclose(found, scores(model, image[:batch], event[:batch]), **CLOSE)
    call({key: np.zeros((1, 1, 16) if key in ("image", "event") else (1, shape[1]), np.float32)
          for key, shape in metadata["inputs"].items()})  # fmt: skip
    content = path.read_bytes()
    assert str(Path(export.__file__).parent).encode() not in content and b"/somewhere" not in content


@pytest.mark.parametrize("name", ["default", pytest.param("members", marks=pytest.mark.long)])
def test_onnx_runtime_gives_the_same_scores(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'iefvad[export]'")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'iefvad[export]'")
    model = build(VARIANTS[name])
    path = tmp_path / "model.onnx"
    metadata = export_model(model, path, "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["iefvad"]) == metadata
    assert [item.name for item in session.get_inputs()] == list(metadata["inputs"])
    assert [[*item.shape] for item in session.get_inputs()] == list(metadata["inputs"].values())
    names = [item.name for item in session.get_outputs()]
    assert names == list(metadata["outputs"])
    image, event = torch.randn(2, 3, 21, 16)
    for batch, size in ((3, CHUNK), (1, CHUNK)):
        found = in_chunks(
            lambda given: dict(zip(names, session.run(None, given), strict=True)),
            metadata,
            image[:batch].numpy(),
            event[:batch].numpy(),
            size,
        )
        np.testing.assert_allclose(found, scores(model, image[:batch], event[:batch]), rtol=0, atol=1e-4)
    content = path.read_bytes()
    assert b"site-packages" not in content and b"/somewhere" not in content and b".py" not in content


@pytest.mark.long
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="needs a C++ compiler")
def test_a_compiled_package_gives_the_same_scores(tmp_path: Path) -> None:
    model = build(VARIANTS["default"])
    path = tmp_path / "model.pt2"
    metadata = export_model(model, path, "aoti")
    package = torch._inductor.aoti_load_package(str(path))
    assert json.loads(package.get_metadata()["iefvad"]) == metadata
    assert [item.name for item in tmp_path.iterdir()] == ["model.pt2"]
    image, event = torch.randn(2, 2, 21, 16)
    for batch in (2, 1):
        found = in_chunks(
            tensors_call(package, metadata), metadata, image[:batch].numpy(), event[:batch].numpy(), CHUNK
        )
        np.testing.assert_allclose(found, scores(model, image[:batch], event[:batch]), **CLOSE)


def test_what_the_metadata_say(tmp_path: Path) -> None:
    model = build(VARIANTS["default"])
    found = export.describe(model, PortableNetwork(model, CHUNK), CHUNK)
    assert found["inputs"] == {
        "image": ["batch", "segments", 16],
        "event": ["batch", "segments", 16],
        "state_mean": ["batch", 8],
        "state_var": ["batch", 8],
    }
    assert list(found["outputs"]) == ["scores", "image_weight", "next_mean", "next_var"]
    expected = {"width": 16, "chunk": CHUNK, "window": 4, "standardize": True, "threshold": 0.625}
    assert expected.items() <= found.items()
    assert found["classes"] == ["abnormal"] and found["start"] == {"state_mean": 0.0, "state_var": 1e30}
    assert found["encoder"] == {"dim": 16, "image_weights": "weights.safetensors"}  # no folder
    alone = build(VARIANTS["image"])
    assert next(iter(export.describe(alone, PortableNetwork(alone, CHUNK), CHUNK)["inputs"])) == "image"
    released = build(VARIANTS["released"])
    assert export.describe(released, PortableNetwork(released, CHUNK), CHUNK)["inputs"] == {
        "image": ["batch", CHUNK, 16],
        "event": ["batch", CHUNK, 16],
    }


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError, match="a Baseline network cannot be exported: only IEF-VAD networks"):
        export_model(Baseline(BaselineConfig(model="sultani", dim=16)), path, "onnx")
    robust = build(dataclasses.replace(SMALL, temporal="robust-kalman"))
    with pytest.raises(UserError, match=r"robust-kalman.*Train it with --temporal kalman"):
        export_model(robust, path, "torch-export")
    monkeypatch.setattr(export, "_PACKAGES", ())
    for name, reason in (("repair", "--repair"), ("low rank", "--covariance-rank")):
        with pytest.raises(UserError, match=rf"{reason}.*use --to torch-export or aoti"):
            export_model(build(VARIANTS[name]), path, "onnx")
    monkeypatch.setattr(export, "_PACKAGES", ("no_such_package",))
    with pytest.raises(UserError, match=re.escape("needs no_such_package: pip install 'iefvad[export]'")):
        export_model(build(SMALL), path, "onnx")
    monkeypatch.setattr(export.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no compiler was found"):
        export_model(build(SMALL), path, "aoti")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(VARIANTS["no recursion"]).save_pretrained(tmp_path / "model")
    out = tmp_path / "new" / "model.pt2"
    assert main([str(tmp_path / "model"), "--to", "torch-export", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "inputs:  image (batch, segments, 16), event (batch, segments, 16)\n" in said
    assert f"up to {CHUNK} segments per call; threshold 0.625" in said and out.is_file()
    for words, message in (
        (["--to", "onnx", "--out", str(out)], "--to onnx writes a .onnx file, not model.pt2: rename --out."),
        (["--to", "tflite", "--out", str(out)], "--to"),
        (["--to", "torch-export", "--out", str(out), "--device", "cuda"], "error"),
    ):
        try:
            assert main([str(tmp_path / "model"), *words]) == 2
        except SystemExit as error:
            assert error.code == 2
        assert message in capsys.readouterr().err
