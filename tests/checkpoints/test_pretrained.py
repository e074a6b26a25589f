"""Saving and loading trained networks: every form comes back the same, and what is none is explained."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch

from iefvad.checkpoints.convert import convert_checkpoint
from iefvad.checkpoints.files import save_model
from iefvad.checkpoints.hub import IEFVAD, load_model, load_pretrained
from iefvad.cli.convert import main as convert
from iefvad.encoders.weights import quickgelu_model
from iefvad.model.config import ModelConfig
from iefvad.training.run import Run
from iefvad.training.settings import TrainConfig, resolve
from iefvad.utils.errors import UserError
from tests.helpers.released import Published, vary

SMALL = ModelConfig(dim=16, heads=2, refine_steps=2)
PROVENANCE = {
    "encoder": {"image_encoder": "ViT-B-32", "dim": 16, "crops": [0, 5]},
    "threshold": 0.7250000238418579,
    "epoch": 3,
    "seed": 1,
    "chunk": 32,
    "test_crops": "all",
    "method": "ief",
}
VARIANTS = {
    "ief": SMALL,
    "paper": dataclasses.replace(SMALL, process_noise=0.0),
    "no scan, no steps": dataclasses.replace(SMALL, temporal="none", refine_steps=0),
    "learned": dataclasses.replace(SMALL, nu="learned", standardize=True, window=2, hidden=24),
    "image": dataclasses.replace(SMALL, modality="image"),
    "released": dataclasses.replace(SMALL, temporal="none", process_noise=0.0, released=True),
}


def build(config: ModelConfig = SMALL, **provenance: object) -> IEFVAD:
    torch.manual_seed(0)
    model = vary(IEFVAD(config))
    assert isinstance(model, IEFVAD)
    model.provenance = PROVENANCE | provenance
    return model


def assert_same(found: IEFVAD, model: IEFVAD) -> None:
    assert found.config == model.config
    assert not found.training
    image, event = torch.randn(2, 2, 9, model.config.dim)
    lengths = torch.tensor([9, 4])
    with torch.inference_mode():
        assert torch.equal(found(image, event, lengths).logits, model(image, event, lengths).logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_folder_comes_back_the_same(name, tmp_path):
    model = build(VARIANTS[name])
    assert model.save_pretrained(tmp_path / "deep" / "saved") is None
    names = sorted(path.name for path in (tmp_path / "deep" / "saved").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    found = IEFVAD.from_pretrained(tmp_path / "deep" / "saved")
    assert_same(found, model)
    assert found.provenance == PROVENANCE
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_a_folder_to_share_tells_no_paths(tmp_path):
    model = build(encoder={"image_weights": "/home/someone/clip.safetensors", "event_weights": r"C:\w\evt.safetensors"})
    model.save_pretrained(tmp_path)
    encoder = load_pretrained(tmp_path).provenance["encoder"]
    assert encoder == {"image_weights": "clip.safetensors", "event_weights": "evt.safetensors"}
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"someone" not in written and rb"C:" not in written
    assert model.provenance["encoder"]["image_weights"].startswith("/home"), "the model itself is left alone"


def test_a_copy_keeps_weights_and_provenance():
    model = build()
    copied = copy.deepcopy(model)
    assert_same(copied, model)
    assert copied.provenance == PROVENANCE and copied.provenance is not model.provenance


def test_saving_is_reproducible_to_the_byte(tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "a")
    found = IEFVAD.from_pretrained(tmp_path / "a")
    found.provenance = dict(reversed(found.provenance.items()))  # the order of what is known does not show
    found.save_pretrained(tmp_path / "b")
    for name in ("README.md", "config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_card_names_the_paper_and_an_own_card_is_kept(tmp_path):
    build().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "arxiv.org/abs/2505.02393" in card and "IEFVAD.from_pretrained" in card and "ViT-B-32" in card
    assert huggingface_hub.ModelCard(card).data.library_name == "iefvad"
    (tmp_path / "README.md").write_text("mine")
    build().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_config_json_can_be_edited_and_the_weights_alone_suffice(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["attenuation"] == 0.5 and document["provenance"] == PROVENANCE
    (tmp_path / "config.json").write_text(json.dumps({**document, "attenuation": 0.25}))
    assert IEFVAD.from_pretrained(tmp_path).refinement.attenuation == 0.25
    (tmp_path / "config.json").unlink()
    assert_same(IEFVAD.from_pretrained(tmp_path), model)
    assert_same(IEFVAD.from_pretrained(tmp_path / "model.safetensors"), model)


def write_run(folder: Path, model: IEFVAD | None) -> Path:
    run = Run.create(resolve(TrainConfig(features="store", out=str(folder), test_crops="all")))
    if model is not None:
        save_model(run.checkpoint(run.variants[0]), model, model.provenance)
    return folder


def test_a_run_folder_gives_its_main_checkpoint(tmp_path):
    model = build()
    found = load_pretrained(str(write_run(tmp_path / "run", model)))
    assert_same(found, model)
    assert found.provenance == PROVENANCE
    assert load_pretrained(tmp_path / "run", backend="reference").refinement.backend == "reference"
    with pytest.raises(UserError, match="continue it with"):
        load_pretrained(write_run(tmp_path / "unfinished", None))


def test_checkpoints_of_earlier_versions_load(tmp_path):
    """The header as it was first written: keys unsorted, fields absent that came later, no provenance of the model."""
    model = build()
    config = {name: value for name, value in dataclasses.asdict(SMALL).items() if name not in ("window", "released")}
    header = {"config": config, "extra": {"threshold": 0.5, "chunk": 256}}
    path = tmp_path / "checkpoint.safetensors"
    safetensors.torch.save_file(model.state_dict(), path, {"iefvad": json.dumps(header)})
    found = load_model(path)
    assert_same(found, model)
    assert found.provenance == {"threshold": 0.5, "chunk": 256}
    save_model(path, found, found.provenance | {"epoch": 2})
    assert load_model(path).provenance == {"threshold": 0.5, "chunk": 256, "epoch": 2}


def test_loading_draws_no_random_number_and_half_precision_becomes_float32(tmp_path):
    model = build().half()
    save_model(tmp_path / "half.safetensors", model, model.provenance)
    before = torch.random.get_rng_state()
    found = load_pretrained(tmp_path / "half.safetensors")
    assert torch.equal(before, torch.random.get_rng_state())
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32}


# Published formats.


def published_formats(network: Published) -> dict[str, dict[str, object]]:
    state = dict(network.state_dict())
    module = {f"module.{name}": value for name, value in state.items()}
    return {
        "raw": state,
        "state_dict": {"state_dict": module, "epoch": 7, "best_auc": 0.88},
        "model": {"model": state, "epoch": torch.tensor(7)},
    }


@pytest.mark.parametrize("name", ["raw", "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_released_models_convert_and_load(name, suffix, tmp_path, capsys):
    network = vary(Published(32, 2, 8, 3, 48))
    source, converted = tmp_path / f"model{suffix}", tmp_path / "model.safetensors"
    torch.save(published_formats(network)[name], source)
    with pytest.raises(UserError, match="iefvad convert"):
        load_pretrained(source)
    assert convert([str(source), str(converted)]) == 0
    printed = capsys.readouterr().out
    assert "a released IEF-VAD model: 32 wide, 2 attention layers, 3 refinement steps of hidden width 48" in printed
    assert f"iefvad evaluate {converted} --features ROOT" in printed
    image, event = torch.randn(2, 2, 11, 32)
    for arguments in ({"nu": 8.0, "attenuation": 0.5}, {"nu": 5.0, "attenuation": 0.3}, {"nu": None}):
        options = {key: value for key, value in arguments.items() if value is not None}
        if arguments["nu"] is None:
            options["noise"] = "gaussian"
        found = IEFVAD.from_pretrained(converted, **options)
        with torch.inference_mode():
            expected, weight = network(image, event, **arguments)
            output = found(image, event)
        # docs/specification.md#released-checkpoints promises 1e-5: only the order of float32 operations differs.
        torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.w_img, weight, rtol=1e-5, atol=1e-5)
    assert found.provenance["method"] == "released"
    found.save_pretrained(tmp_path / "saved")
    assert_same(IEFVAD.from_pretrained(tmp_path / "saved"), found)


def test_a_released_model_with_other_tensors_is_refused_at_conversion(tmp_path, capsys):
    state = {f"module.{name}": value for name, value in Published(16, 1, 8, 2, 16).state_dict().items()}
    state["module.temporal.adapter.weight"] = torch.zeros(2)
    state["module.clip.logit_scale"] = torch.zeros(())
    del state["module.temporal.event_mu.bias"]
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    assert convert([str(tmp_path / "model.pth"), str(tmp_path / "model.safetensors")]) == 2
    printed = capsys.readouterr().err
    for name in ("missing: temporal.event_mu.bias", "clip.logit_scale", "temporal.adapter.weight", "model.pth"):
        assert name in printed
    assert not (tmp_path / "model.safetensors").exists()


def openai_state(
    width: int = 32, layers: int = 2, dim: int = 24, patch: int = 16, grid: int = 3
) -> dict[str, torch.Tensor]:
    """Tensors with the names and shapes of OpenAI's CLIP (a ViT of toy size), float16 as published."""
    shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (grid * grid + 1, width),
        "visual.proj": (width, dim),
        "visual.conv1.weight": (width, 3, patch, patch),
        "text_projection": (width, dim),
        "positional_embedding": (7, width),
        "token_embedding.weight": (50, width),
        "logit_scale": (),
    }
    for name in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for tower in ("visual.transformer", "transformer"):
        for layer in range(layers):
            block = f"{tower}.resblocks.{layer}"
            shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
            shapes |= {f"{block}.attn.out_proj.weight": (width, width), f"{block}.attn.out_proj.bias": (width,)}
            shapes |= {f"{block}.mlp.c_fc.weight": (4 * width, width), f"{block}.mlp.c_fc.bias": (4 * width,)}
            shapes |= {f"{block}.mlp.c_proj.weight": (width, 4 * width), f"{block}.mlp.c_proj.bias": (width,)}
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


SCALARS = {name: torch.tensor(48) for name in ("input_resolution", "context_length", "vocab_size")}


def encoder_formats() -> dict[str, object]:
    state = openai_state()
    query = {f"encoder_q.{name}": torch.zeros_like(value) for name, value in state.items()}
    return {
        "openai": {**state, **SCALARS},
        "event": {"checkpoint": {f"encoder_k.{name}": value for name, value in state.items()} | query},
        "event of several GPUs": {
            "checkpoint": {f"module.encoder_k.{name}": value for name, value in state.items()},
            "epoch": 12,
        },
    }


@pytest.mark.parametrize("name", encoder_formats())
def test_encoder_checkpoints_convert_to_their_visual_tower(name, tmp_path, capsys):
    torch.save(encoder_formats()[name], tmp_path / "encoder.pt")
    assert convert([str(tmp_path / "encoder.pt"), str(tmp_path / "encoder.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "such as ViT-L-14-quickgelu" in printed and "released" not in printed  # no known model is so small
    stored = safetensors.torch.load_file(tmp_path / "encoder.safetensors")
    expected = {name: value for name, value in openai_state().items() if name.startswith("visual.")}
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], value) for name, value in expected.items())
    assert "text 30" in printed  # 12 tensors in each of two blocks, and 6 more
    assert ("encoder_q 62" in printed) == (name == "event")
    with pytest.raises(UserError, match="contains an encoder, not an IEF-VAD model"):
        load_pretrained(tmp_path / "encoder.safetensors")


@pytest.mark.parametrize("name", encoder_formats())
def test_an_encoder_with_other_tensors_is_refused_at_conversion(name, tmp_path, capsys):
    checkpoint = encoder_formats()[name]
    state = checkpoint.get("checkpoint", checkpoint)
    prefix = next(iter(state)).removesuffix("visual.class_embedding")
    state[f"{prefix}visual.adapter.weight"] = torch.zeros(3)
    del state[f"{prefix}visual.transformer.resblocks.0.ln_1.bias"]
    state[f"{prefix}visual.ln_pre.bias"] = torch.zeros(5)
    torch.save(checkpoint, tmp_path / "encoder.pt")
    assert convert([str(tmp_path / "encoder.pt"), str(tmp_path / "encoder.safetensors")]) == 2
    printed = capsys.readouterr().err
    for part in (
        "missing: transformer.resblocks.0.ln_1.bias",
        "unexpected: adapter.weight",
        "of another shape: ln_pre.bias (5,) instead of (32,)",
    ):
        assert part in printed
    assert printed.count("\n") == 1 and not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14"])
def test_conversion_names_the_model_of_the_published_sizes(name, tmp_path):
    layers = {"ViT-B-32": 12, "ViT-L-14": 24}[name]
    sizes = {"ViT-B-32": (768, 512, 32, 7), "ViT-L-14": (1024, 768, 14, 16)}[name]
    width, dim, patch, grid = sizes
    # The header alone tells sizes: the file has the tensors that are looked at, and one byte an element.
    tensors = {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": (grid * grid + 1, width),
        "visual.proj": (width, dim),
    } | {f"visual.transformer.resblocks.{layer}.attn.in_proj_weight": (1, 1) for layer in range(layers)}
    zeros = {key: torch.zeros(shape, dtype=torch.uint8) for key, shape in tensors.items()}
    safetensors.torch.save_file(zeros, tmp_path / "tower.safetensors")
    assert quickgelu_model(str(tmp_path / "tower.safetensors")) == f"{name}-quickgelu"


def test_a_damaged_checkpoint_is_explained_however_it_is_damaged(tmp_path):
    random, path = np.random.default_rng(0), tmp_path / "model.pt"
    refused = 0
    for old in (False, True):
        torch.save(Published(8, 1, 8, 1, 8).state_dict(), path, _use_new_zipfile_serialization=not old)
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for trial in range(40):
            damaged = data[: random.integers(len(data))].copy() if trial % 2 else data.copy()
            if len(damaged):
                damaged[random.integers(len(damaged), size=5)] = random.integers(256, size=5, dtype=np.uint8)
            path.write_bytes(damaged.tobytes())
            try:
                convert_checkpoint(path, tmp_path / "model.safetensors")
            except UserError:
                refused += 1
    assert refused >= 40  # a changed value among the weights cannot be seen


def test_tensors_that_share_memory_convert(tmp_path):
    state = {name: value.float() for name, value in openai_state().items()}
    whole = torch.arange(64.0)
    state["visual.ln_pre.bias"], state["visual.ln_post.bias"] = whole[:32], whole[32:]
    state["visual.ln_pre.weight"] = state["visual.ln_post.weight"]
    torch.save(state, tmp_path / "encoder.pt")
    assert convert([str(tmp_path / "encoder.pt"), str(tmp_path / "encoder.safetensors")]) == 0
    stored = safetensors.torch.load_file(tmp_path / "encoder.safetensors")
    assert torch.equal(stored["visual.ln_post.bias"], whole[32:])
    assert torch.equal(stored["visual.ln_pre.weight"], stored["visual.ln_post.weight"])


# What is no model.


def no_models(folder: Path) -> dict[str, tuple[str | Path, str]]:
    """What is given, and a part of what is said."""
    model = build()
    for name in ("weights missing", "extra", "shape", "truncated", "old config", "bad config", "no heads", "foreign"):
        model.save_pretrained(folder / name)
    (folder / "weights missing" / "model.safetensors").unlink()
    # Copies, because load_file maps a file and older safetensors write into the same file.
    stored = safetensors.torch.load_file(folder / "extra" / "model.safetensors")
    tensors = {name: value.clone() for name, value in stored.items()}
    safetensors.torch.save_file({**tensors, "extra.weight": torch.zeros(1)}, folder / "extra" / "model.safetensors")
    changed = {name: value for name, value in tensors.items() if name != "scan.raw_noise"}
    changed["classifier.weight"] = torch.zeros(1, 5)
    safetensors.torch.save_file(changed, folder / "shape" / "model.safetensors")
    data = (folder / "truncated" / "model.safetensors").read_bytes()
    (folder / "truncated" / "model.safetensors").write_bytes(data[: len(data) // 2])
    (folder / "cut.safetensors").write_bytes(data[:-7])
    (folder / "empty.safetensors").touch()
    (folder / "pickled.safetensors").write_bytes(pickled(folder))
    document = json.loads((folder / "old config" / "config.json").read_text())
    for name, change in (
        ("old config", {"colour": "blue"}),
        ("bad config", {"dim": "wide"}),
        ("no heads", {"heads": 0}),
        ("foreign", {"model_type": "clip"}),
    ):
        (folder / name / "config.json").write_text(json.dumps(document | change))
    (folder / "no json").mkdir()
    (folder / "no json" / "config.json").write_text("{")
    shutil.copy(folder / "extra" / "model.safetensors", folder / "no json")
    (folder / "bare").mkdir()
    (folder / "bin").mkdir()
    (folder / "bin" / "pytorch_model.bin").write_bytes(pickled(folder))
    (folder / "bin" / "config.json").write_text("{}")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, folder / "other.safetensors")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, folder / "header.safetensors", {"iefvad": "{"})
    (folder / "text.txt").write_text("a model")
    return {
        "an absent folder": (folder / "nowhere", "there is no model"),
        "an absent file": (folder / "nowhere.safetensors", "there is no file"),
        "an absent pickled file": (folder / "nowhere.pt", "iefvad convert"),
        "a name": ("mine", "there is no model mine"),
        "an empty folder": (folder / "bare", "contains no model"),
        "no weights": (folder / "weights missing", "has config.json but no model.safetensors"),
        "another tensor": (folder / "extra", "unexpected: extra.weight"),
        "a missing tensor": (folder / "shape", "missing: scan.raw_noise"),
        "another shape": (folder / "shape", "of another shape: classifier.weight (1, 5) instead of (1, 16)"),
        "half a file": (folder / "truncated", "damaged"),
        "a cut file": (folder / "cut.safetensors", "damaged"),
        "an empty file": (folder / "empty.safetensors", "damaged"),
        "a pickled file by another name": (folder / "pickled.safetensors", "pickled_converted.safetensors"),
        "a pickled folder": (folder / "bin", "pytorch_model.bin is a pickled file"),
        "an unknown setting": (folder / "old config", "colour"),
        "a wrong setting": (folder / "bad config", "dim"),
        "an impossible setting": (folder / "no heads", "configuration"),
        "another kind of model": (folder / "foreign", "not the configuration of an IEF-VAD model"),
        "damaged JSON": (folder / "no json", "config.json cannot be read as JSON"),
        "other tensors": (folder / "other.safetensors", "neither a model of this package nor a released"),
        "a damaged header": (folder / "header.safetensors", "damaged header"),
        "a text": (folder / "text.txt", "text.txt"),
    }


def pickled(folder: Path) -> bytes:
    torch.save(build().state_dict(), folder / "weights.pt")
    return (folder / "weights.pt").read_bytes()


def test_what_is_no_model_is_explained_in_one_line(tmp_path):
    for case, (source, message) in no_models(tmp_path).items():
        with pytest.raises(UserError) as error:
            load_pretrained(source)
        assert message in str(error.value), case
        assert "\n" not in str(error.value), case


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        build().save_pretrained(tmp_path / "file")


# The Hugging Face hub, without a network.


def cached(cache: Path, name: str, folder: Path) -> None:
    """Lay a folder out as a download would leave it in the hub's cache."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_hub_model_comes_from_the_cache_when_offline(offline, tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "saved")
    cached(tmp_path / "cache", "owner/vad", tmp_path / "saved")
    for options in ({}, {"local_files_only": True}, {"revision": "main"}):
        found = IEFVAD.from_pretrained("owner/vad", cache_dir=tmp_path / "cache", **options)
        assert_same(found, model)
        assert found.provenance == PROVENANCE


def test_a_hub_model_that_is_nowhere_is_explained(offline, tmp_path):
    with pytest.raises(UserError, match="cannot be reached or is switched off, and there is no file or folder a/b"):
        IEFVAD.from_pretrained("a/b", cache_dir=tmp_path)


def test_an_unreachable_hub_is_asked_once(monkeypatch, tmp_path):
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(UserError, match="cannot be reached"):
        IEFVAD.from_pretrained("a/b", cache_dir=tmp_path)
    assert len(asked) == 1


def test_a_local_folder_goes_before_a_hub_model(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    model = build()
    model.save_pretrained("owner/vad")
    assert_same(IEFVAD.from_pretrained("owner/vad"), model)


def test_push_to_hub_uploads_a_folder_that_loads(tmp_path, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, **options):
            pass

        def create_repo(self, repo_id, **options):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **options):
            uploaded[repo_id] = shutil.copytree(folder_path, tmp_path / "hub")
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    model = build()
    assert model.push_to_hub("owner/vad") == "https://hub/commit"
    found = IEFVAD.from_pretrained(uploaded["owner/vad"])
    assert_same(found, model)
    assert found.provenance == PROVENANCE
