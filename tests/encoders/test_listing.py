"""`iefvad encoders`: what can be named, what is in the cache, and speed."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from iefvad.cli.encoders import main
from iefvad.encoders.timm_models import timm_tower, width_of
from tests.encoders.test_hub import COMMIT


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    assert main(list(arguments)) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_everything_that_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    title, *found = rows(capsys)
    assert title == ["model", "weights", "width", "here", "source"]
    by_name = {(row[0], row[1]): row[2:] for row in found}
    assert by_name["descriptor", "-"][:2] == ["128", "yes"]
    assert by_name["efficientnet-lite0", "-"][0] == "1280"
    assert by_name["ViT-L-14", "openai"] == ["768", "no", "timm/vit_large_patch14_clip_224.openai"]
    assert by_name["ViT-L-14", "laion2b_s32b_b82k"][0] == "768"


def test_what_is_in_the_cache(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    folder = cache / "models--laion--CLIP-ViT-L-14-laion2B-s32B-b82K"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "snapshots" / COMMIT / "open_clip_model.safetensors").touch()
    _, row = rows(capsys, "s32b_b82k", "--cached")
    assert row[:4] == ["ViT-L-14", "laion2b_s32b_b82k", "768", "yes"]


def test_timm_and_speed(capsys: pytest.CaptureFixture[str]) -> None:
    title, *found = rows(capsys, "timm:test_resnet", "--measure", "--device", "cpu")
    assert title[3] == "frames/s"
    assert found[0][:3] == ["timm:test_resnet.r160_in1k", "-", "96"] and float(found[0][3]) > 0
    network = timm_tower({"architecture": "test_resnet"}, "test_resnet").eval()
    assert width_of(network, (160, 160)) == 96
    _, row = rows(capsys, "descriptor", "--measure", "--device", "cpu")
    assert float(row[3]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["zzz"], "no encoder has zzz in its name"), (["--measure"], "at most 8 models"), (["--mesure"], "--mesure")],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    try:
        assert main(arguments) == 2
    except SystemExit as error:
        assert error.code == 2
    assert message in capsys.readouterr().err
