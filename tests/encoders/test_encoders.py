"""Encoders compared with open_clip's models, weight files in every accepted form, and the fixed descriptor."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
import torchvision.transforms.functional as TF
from torch import Tensor

from iefvad.checkpoints.convert import convert_checkpoint
from iefvad.checkpoints.torchscript import read_torchscript
from iefvad.encoders import descriptor
from iefvad.encoders.encoder import Precision, build_encoder
from iefvad.utils.devices import resolve_device
from iefvad.utils.errors import UserError
from iefvad.utils.tensors import hash_tensors
from tests.helpers.released import Published

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
NAME = "iefvad-test-tiny"
QUICK = f"{NAME}-quickgelu"

MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    wide = {**TINY, "embed_dim": 48}
    full = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": 224, "patch_size": 32}}  # type: ignore[dict-item]
    for name, config in (
        (NAME, TINY),
        (QUICK, {**TINY, "quick_gelu": True}),
        (f"{NAME}-wide", wide),
        (f"{NAME}-224", full),
    ):
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    torch.manual_seed(7)
    return open_clip.create_model(QUICK).eval()


@pytest.fixture
def weights(model: open_clip.CLIP, tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.randint(0, 256, (5, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def maps() -> Tensor:
    return torch.randint(0, 11, (3, 224, 224), generator=torch.Generator().manual_seed(2)).float() / 10


def resized(pixels: Tensor) -> Tensor:
    return TF.resize(pixels, [64, 64], antialias=True)


def test_image_equals_open_clip(model: open_clip.CLIP, weights: Path, frames: Tensor) -> None:
    encoder = build_encoder(image_model=QUICK, image_weights=weights, device="cpu")
    got = encoder.encode_image(frames)
    with torch.no_grad():
        expected = model.encode_image((resized(frames.permute(0, 3, 1, 2) / 255) - MEAN) / STD)
    assert got.dtype == torch.float32 and encoder.dim == 32
    # The same float32 arithmetic in another order of scaling.
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_event_is_repeated_and_not_normalised(model: open_clip.CLIP, weights: Path, maps: Tensor) -> None:
    encoder = build_encoder(image_model=QUICK, image_weights=weights, device="cpu")
    with torch.no_grad():
        expected = model.encode_image(resized(maps[:, None].repeat(1, 3, 1, 1)))
    torch.testing.assert_close(encoder.encode_event(maps), expected, rtol=1e-4, atol=1e-5)


def test_full_size_input_is_not_resized(frames: Tensor, maps: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_encoder(image_model=f"{NAME}-224", image_weights="random:3", device="cpu")
    monkeypatch.setattr(torch.nn.functional, "interpolate", lambda *a, **k: pytest.fail("resized"))
    assert encoder.encode_image(frames).shape == (5, 32) and encoder.encode_event(maps).shape == (3, 32)


def published(model: open_clip.CLIP, prefix: str = "encoder_k.") -> dict[str, object]:
    state = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    other = {f"encoder_q.{key}": torch.zeros_like(value) for key, value in model.state_dict().items()}
    return {"checkpoint": {**state, **other, "queue": torch.zeros(4)}, "epoch": 3}


def in_every_form(model: open_clip.CLIP, tmp_path: Path) -> dict[str, tuple[str, Path | None]]:
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    visual = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    openai = {**state, "input_resolution": torch.tensor(64), "context_length": torch.tensor(8)}
    paths = {
        name: tmp_path / f"{name}.safetensors" for name in ("openai", "visual", "module", "published", "converted")
    }
    safetensors.torch.save_file(openai, paths["openai"])
    safetensors.torch.save_file(visual, paths["visual"])
    safetensors.torch.save_file({f"module.{key}": value for key, value in state.items()}, paths["module"])
    safetensors.torch.save_file({f"encoder_k.{key}": value for key, value in state.items()}, paths["published"])
    torch.save(published(model, "module.encoder_k."), tmp_path / "event.pt")
    report = convert_checkpoint(tmp_path / "event.pt", paths["converted"])
    assert report.kept == len(visual) and report.quickgelu and report.dropped > report.kept
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**TINY, "quick_gelu": True}}))
    shutil.copy(paths["openai"], folder / "open_clip_model.safetensors")
    return {**{name: (QUICK, path) for name, path in paths.items()}, "local-dir": (f"local-dir:{folder}", None)}


def test_every_form_of_weights_gives_the_same_features(
    model: open_clip.CLIP, tmp_path: Path, frames: Tensor, weights: Path
) -> None:
    reference = build_encoder(image_model=QUICK, image_weights=weights, device="cpu")
    expected = reference.encode_image(frames)
    for form, (name, path) in in_every_form(model, tmp_path).items():
        encoder = build_encoder(image_model=name, image_weights=path, device="cpu")
        assert torch.equal(encoder.encode_image(frames), expected), form
        same = encoder.settings["image_weights_hash"] == reference.settings["image_weights_hash"]
        assert same or form == "local-dir", form


def test_half_precision_file_loads_as_float32(model: open_clip.CLIP, tmp_path: Path, frames: Tensor) -> None:
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, path)
    encoder = build_encoder(image_model=QUICK, image_weights=path, device="cpu")
    assert encoder.encode_image(frames).isfinite().all()


def test_local_dir_uses_its_own_normalisation(model: open_clip.CLIP, tmp_path: Path, frames: Tensor) -> None:
    _, folder = in_every_form(model, tmp_path)["local-dir"][0].split(":", 1)
    config = {"model_cfg": {**TINY, "quick_gelu": True}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (Path(folder) / "open_clip_config.json").write_text(json.dumps(config))
    encoder = build_encoder(image_model=f"local-dir:{folder}", device="cpu")
    with torch.no_grad():
        expected = model.encode_image(resized(frames.permute(0, 3, 1, 2) / 255) * 2 - 1)
    torch.testing.assert_close(encoder.encode_image(frames), expected, rtol=1e-4, atol=1e-5)


def test_event_weights_of_their_own(model: open_clip.CLIP, tmp_path: Path, weights: Path, maps: Tensor) -> None:
    shared = build_encoder(image_model=QUICK, image_weights=weights, device="cpu")
    own = build_encoder(image_model=QUICK, image_weights=weights, event_weights="random:1", device="cpu")
    assert not torch.allclose(shared.encode_event(maps), own.encode_event(maps))
    assert shared.settings["image_weights_hash"] == shared.settings["event_weights_hash"]
    assert own.settings["image_weights_hash"] != own.settings["event_weights_hash"]
    assert own.weights == {"image_weights": str(weights.resolve()), "event_weights": "random:1"}


@pytest.mark.parametrize("form", ["openai", "published", "converted"])
def test_the_weights_decide_about_quickgelu(
    model: open_clip.CLIP, tmp_path: Path, weights: Path, frames: Tensor, form: str
) -> None:
    _, path = in_every_form(model, tmp_path)[form]
    expected = build_encoder(image_model=QUICK, image_weights=weights, device="cpu")
    encoder = build_encoder(image_model=NAME, image_weights=path, device="cpu")
    assert torch.equal(encoder.encode_image(frames), expected.encode_image(frames))
    assert encoder.settings == expected.settings and encoder.settings["image_encoder"] == QUICK
    with pytest.raises(UserError, match=r"trained with QuickGELU.*--quick-gelu no"):
        build_encoder(image_model=NAME, image_weights=path, quick_gelu="no", device="cpu")


def test_nothing_says_whether_it_is_quickgelu(weights: Path, frames: Tensor) -> None:
    with pytest.raises(UserError, match=r"does not say whether it was trained with QuickGELU.*--quick-gelu yes"):
        build_encoder(image_model=NAME, image_weights=weights, device="cpu")
    quick, plain, record = (
        build_encoder(image_model=NAME, image_weights=weights, device="cpu", **how)  # type: ignore[arg-type]
        for how in ({"quick_gelu": "yes"}, {"quick_gelu": "no"}, {"recorded": True})
    )
    named = build_encoder(image_model=QUICK, image_weights=weights, device="cpu")
    assert quick.settings == named.settings and torch.equal(quick.encode_image(frames), named.encode_image(frames))
    assert plain.settings["image_encoder"] == NAME and plain.settings == record.settings
    assert torch.equal(plain.encode_image(frames), record.encode_image(frames))
    assert not torch.allclose(plain.encode_image(frames), quick.encode_image(frames))
    with pytest.raises(UserError, match="--quick-gelu no"):
        build_encoder(image_model=QUICK, image_weights=weights, quick_gelu="no", device="cpu")
    with pytest.raises(UserError, match="auto, yes or no"):
        build_encoder(image_model=NAME, image_weights=weights, quick_gelu="maybe", device="cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("open_clip_config.json", {"model_cfg": {**TINY, "quick_gelu": True}}, QUICK),
        ("open_clip_config.json", {"model_cfg": TINY}, NAME),
        ("config.json", {"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu"}}, QUICK),
        ("config.json", {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}, NAME),
    ],
)
def test_the_configuration_beside_the_file_decides(
    weights: Path, name: str, content: dict[str, object], expected: str
) -> None:
    (weights.parent / name).write_text(json.dumps(content))
    encoder = build_encoder(image_model=NAME, image_weights=weights, device="cpu")
    assert encoder.settings["image_encoder"] == expected
    if expected == NAME:
        with pytest.raises(UserError, match=f"without QuickGELU.*--image-model {NAME}"):
            build_encoder(image_model=QUICK, image_weights=weights, device="cpu")


def test_mismatch_names_keys_and_hints(model: open_clip.CLIP, tmp_path: Path) -> None:
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    del state["visual.ln_post.bias"]
    state["visual.extra"] = torch.zeros(1)
    state["visual.proj"] = torch.zeros(64, 31)
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(UserError, match=r"missing: ln_post.bias.*unexpected: extra.*proj \(64, 31\).*quickgelu"):
        build_encoder(image_model=QUICK, image_weights=path, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_model": "ViT-B-32"}, "needs weights.*random:0"),
        ({"image_model": "ViT-Z-99", "image_weights": "random:0"}, "there is no encoder ViT-Z-99"),
        ({"image_model": "hf-hub:nothing"}, "OWNER/NAME"),
        ({"image_model": "timm:no_such_network"}, "timm has no model no_such_network"),
        ({"image_weights": "openai"}, "takes no weights.*with this tag.*RN50"),
        ({"image_model": NAME, "image_weights": "openai"}, "neither a file nor a pretrained tag.*belongs to"),
        ({"image_model": "ViT-B-32", "image_weights": "openia"}, "its tags are such as openai"),
        ({"image_model": NAME, "image_weights": "nothing"}, "it has no pretrained tags"),
        ({"image_model": "local-dir:nowhere"}, "not an open_clip model folder"),
        ({"image_model": NAME, "image_weights": "absent.safetensors"}, "does not exist"),
        ({"image_model": NAME, "image_weights": "model.pt"}, "iefvad convert"),
        ({"image_model": "descriptor", "image_weights": "random:0"}, "takes no weights"),
        ({"image_model": "descriptor", "event_model": NAME, "event_weights": "random:0"}, "128 features.*32"),
        ({"image_model": NAME, "image_weights": "random:0", "event_model": QUICK}, "--event-weights"),
        (
            {
                "image_model": NAME,
                "image_weights": "random:0",
                "event_model": f"{NAME}-wide",
                "event_weights": "random:0",
            },
            "32 features.*48",
        ),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "abacus"}, "abacus"),
        ({"precision": "float8"}, "float8"),
        ({"batch": 0}, "--batch"),
    ],
)
def test_mistakes_are_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_encoder(**{"device": "cpu", **arguments})  # type: ignore[arg-type]


def test_files_that_are_not_safetensors(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "text.safetensors").write_text("nothing of the kind")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:-100])
    for name in ("text", "cut"):
        with pytest.raises(UserError, match="not a safetensors file"):
            build_encoder(image_model=QUICK, image_weights=tmp_path / f"{name}.safetensors", device="cpu")


def test_random_weights_follow_the_seed_alone(frames: Tensor) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, again, other = (
        build_encoder(image_model=NAME, image_weights=f"random:{seed}", device="cpu") for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.encode_image(frames), again.encode_image(frames))
    assert first.settings == again.settings != other.settings
    assert "random weights of seed 0" in first.description and first.weights == {"image_weights": "random:0"}


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(weights: Path, frames: Tensor, half: Precision) -> None:
    full, low = (
        build_encoder(image_model=QUICK, image_weights=weights, device="cpu", precision=precision).encode_image(frames)
        for precision in ("float32", half)
    )
    assert low.dtype == torch.float32 and not torch.equal(full, low)
    # At least 8 bits of mantissa through two layers: a few percent of the features' size.
    assert (full - low).norm() < 0.05 * full.norm()


def test_batches_strides_and_empty_input(weights: Path, frames: Tensor, maps: Tensor) -> None:
    whole = build_encoder(image_model=QUICK, image_weights=weights, device="cpu")
    parts = build_encoder(image_model=QUICK, image_weights=weights, device="cpu", batch=2)
    strided = torch.empty(5, 230, 240, 3, dtype=torch.uint8)
    strided[:, 3:227, 8:232] = frames
    expected = whole.encode_image(frames)
    # Matrix products of another height may be summed in another order.
    torch.testing.assert_close(parts.encode_image(strided[:, 3:227, 8:232]), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.encode_event(maps), whole.encode_event(maps), rtol=1e-4, atol=1e-5)
    assert whole.encode_image(frames[:0]).shape == (0, 32) and whole.encode_event(maps[:0]).shape == (0, 32)
    with pytest.raises(ValueError, match="uint8"):
        whole.encode_image(frames.float())
    with pytest.raises(ValueError, match="floating point"):
        whole.encode_event(maps.to(torch.uint8))


def test_real_size_vit(frames: Tensor, maps: Tensor) -> None:
    encoder = build_encoder(image_model="ViT-B-32", image_weights="random:0", device="cpu")
    assert encoder.dim == 512
    assert encoder.encode_image(frames[:2]).shape == (2, 512) and encoder.encode_event(maps[:1]).shape == (1, 512)


def test_random_vit_needs_nothing(frames: Tensor) -> None:
    encoder = build_encoder(image_model="random-vit", device="cpu")
    assert encoder.encode_image(frames).shape == (5, encoder.dim) and not encoder.weights
    assert encoder.settings["image_encoder"] == "random-vit"


def test_hash_tells_names_shapes_and_values() -> None:
    base = {"a": torch.arange(6.0), "b": torch.ones(2)}
    variants = [
        base,
        {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)},
        {"a": torch.arange(6.0), "c": torch.ones(2)},
        {"a": torch.arange(6.0), "b": torch.tensor([1.0, 1.001])},
    ]
    assert len({hash_tensors(variant) for variant in variants}) == len(variants)
    assert hash_tensors(dict(reversed(base.items()))) == hash_tensors(base)
    assert hash_tensors({k: v.half() for k, v in base.items()}) == hash_tensors(base)


class _Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


def test_convert_runs_no_code(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "hostile.pt"
    torch.save({"checkpoint": {"visual.conv1.weight": torch.zeros(1)}, "args": _Hostile(marker)}, path)
    with pytest.raises(UserError, match="could run code"):
        convert_checkpoint(path, tmp_path / "out.safetensors")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Hostile(marker)))
    with pytest.raises(UserError):
        convert_checkpoint(tmp_path / "plain.pt", tmp_path / "out.safetensors")
    assert not marker.exists() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_convert_explains_what_it_cannot_read(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "script.pt").read_bytes()[:-300])
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "empty.pt").touch()
    out = tmp_path / "out.safetensors"
    for name, message in (
        ("script", "neither a CLIP visual tower"),
        ("cut", "not a checkpoint"),
        ("other", "layer.weight"),
        ("list", "no named tensors"),
        ("empty", "not a checkpoint"),
        ("absent", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            convert_checkpoint(tmp_path / f"{name}.pt", out)
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        convert_checkpoint(tmp_path / "other.pt", tmp_path / "out.pt")


class Archived(torch.nn.Module):
    """As OpenAI publishes CLIP: a traced module in half precision, with three integers beside the weights."""

    def __init__(self, model: open_clip.CLIP) -> None:
        super().__init__()
        self.visual = model.visual
        self.logit_scale = torch.nn.Parameter(torch.ones(()))
        for name, value in (("input_resolution", 64), ("context_length", 8), ("vocab_size", 64)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.visual(pixels) * self.logit_scale * self.input_resolution
        return features * self.context_length * self.vocab_size


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*[Tt]race")
def test_convert_reads_a_torchscript_archive(model: open_clip.CLIP, tmp_path: Path, frames: Tensor) -> None:
    archived = copy.deepcopy(Archived(model)).eval().half()
    script = torch.jit.trace(archived, torch.zeros(1, 3, 64, 64).half(), check_trace=False)
    torch.jit.save(script, tmp_path / "clip.pt")
    found, expected = read_torchscript(tmp_path / "clip.pt"), script.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    report = convert_checkpoint(tmp_path / "clip.pt", tmp_path / "clip.safetensors")
    assert report.quickgelu and report.kept == len(model.visual.state_dict())
    encoder = build_encoder(image_model=NAME, image_weights=tmp_path / "clip.safetensors", device="cpu")
    half = tmp_path / "half.safetensors"
    safetensors.torch.save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, half)
    same = build_encoder(image_model=QUICK, image_weights=half, device="cpu")
    assert encoder.settings == same.settings and torch.equal(encoder.encode_image(frames), same.encode_image(frames))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("target", [b"cposix\nsystem\n", b"cbuiltins\neval\n", b"ctorch.jit._pickle\nos\n"])
def test_a_hostile_torchscript_archive_runs_nothing(tmp_path: Path, target: bytes) -> None:
    marker, path = tmp_path / "marker", tmp_path / "hostile.pt"
    with zipfile.ZipFile(path, "w") as archive:
        command = f"touch {marker}".encode()
        archive.writestr(
            "hostile/data.pkl", b"\x80\x02" + target + b"X" + len(command).to_bytes(4, "little") + command + b"\x85R."
        )
        archive.writestr("hostile/constants.pkl", b"\x80\x02).")
    with pytest.raises(UserError, match="could run code"):
        convert_checkpoint(path, tmp_path / "out.safetensors")
    assert not marker.exists() and not (tmp_path / "out.safetensors").exists()


def test_convert_keeps_a_released_model_whole(tmp_path: Path) -> None:
    published = Published(16, 1, 2, 2, 16).state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in published.items()}}, tmp_path / "model.pth")
    report = convert_checkpoint(tmp_path / "model.pth", tmp_path / "model.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert set(stored) == set(published) and report.dropped == 0


def test_auto_device_of_the_descriptor_is_the_cpu() -> None:
    assert build_encoder().device == resolve_device("auto", cpu_only=True) == torch.device("cpu")


# The fixed descriptor.

GOLDEN = [1.415, 1.986, 17.119, 1.544, 1.241, 12.564]


@pytest.mark.parametrize("size", [(112, 112), (131, 120), (224, 224), (256, 340)])
def test_descriptor_sizes(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    images = descriptor.describe_images(torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, generator=generator))
    events = descriptor.describe_events(torch.rand((2, *size), generator=generator))
    for rows in (images, events):
        assert rows.shape == (2, descriptor.DIM) and rows.dtype == torch.float32 and rows.isfinite().all()


def test_descriptor_rows_stand_alone(frames: Tensor, maps: Tensor) -> None:
    images, events = descriptor.describe_images(frames), descriptor.describe_events(maps)
    assert torch.equal(descriptor.describe_images(frames[3:4]), images[3:4])
    assert torch.equal(descriptor.describe_events(maps[1:2]), events[1:2])
    wide = torch.zeros(5, 224, 448, 3, dtype=torch.uint8)
    wide[:, :, ::2] = frames
    assert torch.equal(descriptor.describe_images(wide[:, :, ::2]), images)
    assert (
        descriptor.describe_images(frames[:0]).shape
        == descriptor.describe_events(maps[:0]).shape
        == (0, descriptor.DIM)
    )


@pytest.mark.parametrize("value", [0, 255])
def test_descriptor_of_flat_input_is_finite_and_moderate(value: int) -> None:
    images = descriptor.describe_images(torch.full((1, 224, 224, 3), value, dtype=torch.uint8))
    events = descriptor.describe_events(torch.full((1, 224, 224), value / 255))
    assert images.abs().max() < 30 and events.abs().max() < 30


def test_a_burst_is_seen_wherever_it_is() -> None:
    maps = torch.zeros(3, 224, 224)
    maps[0, 32:64, 32:64] = 1
    maps[1, 160:192, 128:160] = 1
    here, there, nowhere = descriptor.describe_events(maps)
    assert (here == there).float().mean() > 0.5  # order statistics and what surrounds the peak
    assert (here - nowhere).norm() > 10 and not torch.equal(here, there)


@pytest.mark.parametrize("call", [descriptor.describe_images, descriptor.describe_events])
def test_descriptor_refuses_other_input(call: object) -> None:
    for bad in (torch.zeros(2, 224), torch.zeros(1, 224, 224, 3, dtype=torch.int32), torch.zeros(1, 224, 224).byte()):
        with pytest.raises(ValueError, match="must be"):
            call(bad)  # type: ignore[operator]
    with pytest.raises(ValueError, match="at least 112"):
        descriptor.describe_images(torch.zeros(1, 111, 224, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least 112"):
        descriptor.describe_events(torch.zeros(1, 224, 100))


def test_a_change_of_the_descriptor_needs_a_new_version() -> None:
    ramp = torch.arange(224 * 224 * 3, dtype=torch.int64)
    frames = (ramp * ramp // 4096 % 256).to(torch.uint8).view(1, 224, 224, 3)
    maps = (ramp[: 224 * 224] // 997 % 11).float().view(1, 224, 224) / 10
    rows = (descriptor.describe_images(frames)[0], descriptor.describe_events(maps)[0])
    found = [round(float(value), 3) for row in rows for value in (row.mean(), row.std(), row[::17].sum())]
    # Stores made by one version must be made of the same features: raise descriptor.VERSION and renew these numbers.
    assert descriptor.VERSION == 2
    assert found == pytest.approx(GOLDEN, abs=2e-3)
