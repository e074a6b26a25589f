"""Encoders by name: fetched from a hub on the loopback, found in its cache, and what goes wrong on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from iefvad.encoders.encoder import Encoder, build_encoder
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from tests.helpers.hub import COMMIT, FakeHub, Files, fake_hub
from tests.helpers.video_files import make_video

VISION = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TINY: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": VISION,
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
NAME = "iefvad-test-hub"
QUICK = f"{NAME}-quickgelu"
TIMM = "test_resnet"
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    (folder / f"{NAME}.json").write_text(json.dumps(TINY))
    (folder / f"{QUICK}.json").write_text(json.dumps({**TINY, "quick_gelu": True}))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    torch.manual_seed(7)
    return open_clip.create_model(QUICK).eval()


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    constants = huggingface_hub.constants
    with fake_hub() as served:
        template = served.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield served


def packed(tensors: dict[str, Tensor]) -> bytes:
    return bytes(safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()}))


def open_clip_files(model: open_clip.CLIP, **config: object) -> Files:
    content = {"model_cfg": {**TINY, "quick_gelu": True}, **config}
    return {
        "open_clip_config.json": json.dumps(content).encode(),
        "open_clip_model.safetensors": packed(model.state_dict()),
        "open_clip_pytorch_model.bin": b"a pickle",
        "README.md": b"",
    }


def transformers_files(model: open_clip.CLIP, activation: str | None = "quick_gelu") -> Files:
    """The model as transformers stores it: other names, and separate projections of the attention."""
    tensors: dict[str, Tensor] = {"logit_scale": torch.ones(()), "text_model.final_layer_norm.bias": torch.zeros(4)}
    for name, value in model.visual.state_dict().items():
        parts = name.split(".")
        if name == "proj":
            tensors["visual_projection.weight"] = value.T
        elif parts[0] != "transformer":
            renamed = {
                "class_embedding": "embeddings.class_embedding",
                "positional_embedding": "embeddings.position_embedding.weight",
                "conv1.weight": "embeddings.patch_embedding.weight",
            }.get(name) or name.replace("ln_pre", "pre_layrnorm").replace("ln_post", "post_layernorm")
            tensors[f"vision_model.{renamed}"] = value
        else:
            layer, rest = f"vision_model.encoder.layers.{parts[2]}", ".".join(parts[3:])
            if rest.startswith("attn.in_proj"):
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    tensors[f"{layer}.self_attn.{letter}_proj.{rest.rpartition('_')[2]}"] = part
            else:
                for old, new in (
                    ("attn.", "self_attn."),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    rest = rest.replace(old, new)
                tensors[f"{layer}.{rest}"] = value
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    vision = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    }
    if activation is not None:
        vision["hidden_act"] = activation  # type: ignore[assignment]
    config = {"model_type": "clip", "projection_dim": 32, "vision_config": vision}
    return {
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps({f"image_{k}": v for k, v in PREPROCESS.items()}).encode(),
        "model.safetensors": packed(tensors),
    }


def timm_files(seed: int = 3) -> Files:
    torch.manual_seed(seed)
    network = timm.create_model(TIMM, num_classes=7)
    config = {
        "architecture": TIMM,
        "num_classes": 7,
        "pretrained_cfg": {**PREPROCESS, "input_size": [3, 96, 96], "classifier": "fc"},
    }
    return {"config.json": json.dumps(config).encode(), "model.safetensors": packed(network.state_dict())}


def write(files: Files, folder: Path) -> str:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return f"local-dir:{folder}"


def build(**arguments: Any) -> Encoder:
    return build_encoder(device="cpu", **arguments)


def again(encoder: Encoder) -> Encoder:
    """Build the encoder from what a store records of it, as detection does."""
    record = {**encoder.settings, **encoder.weights}
    keys = ("image_encoder", "image_weights", "event_encoder", "event_weights")
    image, weights, event, event_weights = (record.get(key) for key in keys)
    return build(
        image_model=image, image_weights=weights, event_model=event, event_weights=event_weights, recorded=True
    )


# Names that work.


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "quick": {"hf_hub": "someone/tagged/", "quick_gelu": True, **PREPROCESS},
        "plain": {"hf_hub": "someone/tagged/"},
        "nowhere": {"url": "https://example.org/weights.pt"},
        "file": {"hf_hub": "someone/file/pytorch_model.bin"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, known)


@pytest.mark.usefixtures("tagged")
def test_a_pretrained_tag(hub: FakeHub, model: open_clip.CLIP, frames: Tensor) -> None:
    hub.repositories["someone/tagged"] = open_clip_files(model)
    encoder = build(image_model=NAME, image_weights="quick")
    assert hub.fetched() == ["open_clip_model.safetensors"]
    assert encoder.settings["image_encoder"] == encoder.settings["event_encoder"] == QUICK
    origin = encoder.weights["image_weights_origin"]
    assert encoder.weights["image_weights"] == f"hf-hub:someone/tagged@{COMMIT}"
    assert (origin["repository"], origin["revision"], origin["file"]) == (
        "someone/tagged",
        COMMIT,
        "open_clip_model.safetensors",
    )
    assert len(origin["sha256"]) == 64
    mean, std = (torch.tensor(PREPROCESS[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    small = torch.nn.functional.interpolate(frames.permute(0, 3, 1, 2) / 255, (64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = model.encode_image((small - mean) / std)
    # The same float32 arithmetic in another order of scaling.
    torch.testing.assert_close(encoder.encode_image(frames), expected, rtol=1e-4, atol=1e-5)

    plain = build(image_model=NAME, image_weights="plain")  # the same file; another tag says it has no QuickGELU
    assert plain.settings["image_encoder"] == NAME
    assert not torch.allclose(plain.encode_image(frames), encoder.encode_image(frames))
    with pytest.raises(UserError, match="the tag quick was trained with QuickGELU"):
        build(image_model=NAME, image_weights="quick", quick_gelu="no")

    asked = len(hub.requests)
    reopened = again(encoder)
    assert reopened.settings == encoder.settings and reopened.weights == encoder.weights
    assert torch.equal(reopened.encode_image(frames), encoder.encode_image(frames))
    assert len(hub.requests) == asked  # a commit in the cache is not asked for again


@pytest.mark.usefixtures("tagged")
def test_tags_that_cannot_be_fetched(hub: FakeHub) -> None:
    with pytest.raises(
        UserError, match=r"no repository on the hub for nowhere.*example.org/weights.pt.*iefvad convert"
    ):
        build(image_model=NAME, image_weights="nowhere")
    hub.repositories["someone/file"] = {"pytorch_model.bin": b"a pickle"}
    with pytest.raises(UserError, match=r"pickled files only \(pytorch_model.bin\).*iefvad convert"):
        build(image_model=NAME, image_weights="file")
    assert not hub.fetched()
    hub.repositories["someone/file"]["pytorch_model.safetensors"] = packed({"visual.proj": torch.zeros(1)})
    with pytest.raises(UserError, match=r"pytorch_model\.safetensors does not fit the visual tower"):
        build(image_model=NAME, image_weights="file")


@pytest.mark.parametrize("layout", ["open_clip", "transformers", "timm"])
def test_every_layout_on_the_hub_and_in_a_folder(
    hub: FakeHub, model: open_clip.CLIP, frames: Tensor, tmp_path: Path, layout: str
) -> None:
    files = {
        "open_clip": lambda: open_clip_files(model, preprocess_cfg=PREPROCESS),
        "transformers": lambda: transformers_files(model),
        "timm": timm_files,
    }[layout]()
    hub.repositories["some/model"] = files
    remote, local = build(image_weights="hf-hub:some/model"), build(image_model=write(files, tmp_path / "folder"))
    assert remote.settings["image_encoder"] == "hf-hub:some/model"
    assert remote.settings["image_weights_hash"] == local.settings["image_weights_hash"]
    assert remote.weights["image_weights"] == f"hf-hub:some/model@{COMMIT}" and not local.weights
    assert not any(name.endswith(".bin") for name in hub.fetched())
    features = remote.encode_image(frames)
    assert torch.equal(features, local.encode_image(frames))
    for same in (
        again(remote),
        again(local),
        build(image_model="hf-hub:some/model@main"),
        build(image_weights=f"hf-hub:some/model@{COMMIT}"),
        build(image_weights=f"local-dir:{tmp_path / 'folder'}"),
    ):
        assert torch.equal(same.encode_image(frames), features)
        assert same.settings["image_weights_hash"] == remote.settings["image_weights_hash"]

    mean, std = (torch.tensor(PREPROCESS[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    side = 96 if layout == "timm" else 64
    pixels = torch.nn.functional.interpolate(
        frames.permute(0, 3, 1, 2) / 255, (side, side), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        if layout == "timm":
            torch.manual_seed(3)
            network = timm.create_model(TIMM, num_classes=7).eval()
            expected = network.forward_head(network.forward_features((pixels - mean) / std), pre_logits=True)
        else:
            expected = model.encode_image((pixels - mean) / std)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)  # the reason above


@pytest.mark.parametrize(("activation", "quick"), [("quick_gelu", True), (None, True), ("gelu", False)])
def test_the_activation_of_transformers(
    hub: FakeHub, model: open_clip.CLIP, frames: Tensor, activation: str | None, quick: bool
) -> None:
    """Its configuration without an activation means QuickGELU, the default of CLIPVisionConfig."""
    hub.repositories["some/model"] = transformers_files(model, activation)
    encoder = build(image_weights="hf-hub:some/model")
    named = build(image_model=NAME, image_weights="hf-hub:some/model")
    assert named.settings["image_encoder"] == (QUICK if quick else NAME)
    assert torch.equal(encoder.encode_image(frames), named.encode_image(frames))
    with pytest.raises(UserError, match="QuickGELU, and --quick-gelu"):
        build(image_weights="hf-hub:some/model", quick_gelu="no" if quick else "yes")


def test_names_of_timm(hub: FakeHub, frames: Tensor) -> None:
    hub.repositories["timm/test_resnet.r160_in1k"] = timm_files()
    hub.repositories["owner/own"] = timm_files()
    tagged, default, own = (
        build(image_weights=f"timm:{name}") for name in ("test_resnet.r160_in1k", "test_resnet", "owner/own")
    )
    assert tagged.settings["image_encoder"] == "timm:test_resnet.r160_in1k"
    assert tagged.weights["image_weights"] == f"timm:test_resnet.r160_in1k@{COMMIT}"
    for other in (default, own, again(tagged)):
        assert torch.equal(other.encode_image(frames), tagged.encode_image(frames))
    with pytest.raises(UserError, match="a model of timm, not one of open_clip"):
        build(image_model=NAME, image_weights="timm:test_resnet")


def test_event_weights_by_name(hub: FakeHub, model: open_clip.CLIP) -> None:
    hub.repositories["some/image"] = open_clip_files(model)
    hub.repositories["some/event"] = transformers_files(model)
    encoder = build(image_weights="hf-hub:some/image", event_weights="hf-hub:some/event")
    assert encoder.settings["event_encoder"] == "hf-hub:some/event"
    assert encoder.weights["event_weights"] == f"hf-hub:some/event@{COMMIT}"
    maps = torch.rand(2, 224, 224)
    assert torch.equal(again(encoder).encode_event(maps), encoder.encode_event(maps))


# What goes wrong.


def test_a_broken_download_is_resumed(hub: FakeHub, model: open_clip.CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    # huggingface_hub counts what it has in chunks of this size, which are larger than this model.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    hub.repositories["some/model"] = open_clip_files(model)
    hub.breaks = 1
    build(image_weights="hf-hub:some/model")
    size = len(hub.repositories["some/model"]["open_clip_model.safetensors"])
    ranges = [wanted for method, path, wanted in hub.requests if method == "GET" and path.endswith("model.safetensors")]
    assert ranges[0] is None and ranges[1] is not None
    assert 0 < int(ranges[1].removeprefix("bytes=").split("-")[0]) <= size // 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:some/absent", "no repository some/absent.*HF_TOKEN"),
        ("hf-hub:some/model@v9", "some/model on the Hugging Face hub has no revision v9"),
        (
            "hf-hub:some/pickles",
            r"pickled files only \(open_clip_pytorch_model.bin\).*which can run code.*iefvad convert",
        ),
        ("hf-hub:some/empty", "neither open_clip_config.json nor config.json"),
        ("hf-hub:some/bare", "some/bare has no model.safetensors.*local-dir"),
        ("hf-hub:some/other", "type bert, and only CLIP"),
        ("hf-hub:some/damaged", "cannot be read as JSON"),
        ("timm:some/unknown", "installed timm cannot build"),
    ],
)
def test_mistakes_are_explained_in_one_line(hub: FakeHub, model: open_clip.CLIP, name: str, message: str) -> None:
    files = open_clip_files(model)
    hub.repositories |= {
        "some/model": files,
        "some/pickles": {key: data for key, data in files.items() if not key.endswith(".safetensors")},
        "some/empty": {"README.md": b""},
        "some/bare": {"config.json": json.dumps({"model_type": "clip"}).encode()},
        "some/other": {"config.json": json.dumps({"model_type": "bert"}).encode(), "model.safetensors": b""},
        "some/damaged": {"config.json": b"{", "model.safetensors": b""},
        "some/unknown": {
            "config.json": json.dumps({"architecture": "no_net"}).encode(),
            "model.safetensors": packed({}),
        },
    }
    with pytest.raises(UserError, match=message) as caught:
        build(image_weights=name)
    assert "\n" not in str(caught.value)
    assert not any(file.endswith(".bin") for file in hub.fetched())


def test_without_the_hub(
    hub: FakeHub, model: open_clip.CLIP, frames: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.repositories["some/model"] = open_clip_files(model)
    expected = build(image_weights="hf-hub:some/model").encode_image(frames)
    asked = len(hub.requests)
    place = str(tmp_path / "cache" / "models--some--absent")
    for offline in (True, False):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        if not offline:
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
        assert torch.equal(build(image_weights="hf-hub:some/model").encode_image(frames), expected)
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        with pytest.raises(
            UserError, match=f"some/absent is not in the cache.*{why}.*{place}.*FILE.safetensors"
        ) as caught:
            build(image_weights="hf-hub:some/absent")
        assert "\n" not in str(caught.value)
    assert len(hub.requests) == asked


def test_the_command_fetches_and_resumes_a_store(
    hub: FakeHub, model: open_clip.CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes of their own, with the variables that people set."""
    hub.repositories["some/model"] = open_clip_files(model)
    make_video(tmp_path / "a.mp4")
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    command = [sys.executable, "-m", "iefvad.extract", str(tmp_path), "--out", str(tmp_path / "store"), "--quiet"]
    command += ["--device", "cpu", "--image-weights", "hf-hub:some/model"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    settings = FeatureStore(tmp_path / "store").settings
    assert settings["image_weights_origin"]["revision"] == COMMIT

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    failed = subprocess.run([*command[:-1], "hf-hub:other/model"], capture_output=True, text=True, timeout=120)
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert line.startswith("iefvad extract: error: other/model is not in the cache")
