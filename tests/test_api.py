"""The Python API: light to import, right for type checkers, and every example of its page runs."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ief_kernels
import iefvad
from iefvad.checkpoints.files import save_model
from iefvad.checkpoints.hub import IEFVAD
from iefvad.encoders.encoder import build_encoder
from iefvad.features.store import FeatureStore
from iefvad.model.config import ModelConfig
from iefvad.training.run import Run
from iefvad.training.settings import TrainConfig, resolve
from tests.helpers.released import Published, vary

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "numpy", "open_clip", "av", "cv2", "sklearn", "huggingface_hub", "triton")
    python(
        "import sys, iefvad; names = dir(iefvad); iefvad.__version__; from iefvad import UserError;"
        f"found = [name for name in {heavy} if name in sys.modules]; assert not found, found;"
        "assert 'IEFVAD' in names and 'detect' in names"
    )


@pytest.mark.parametrize("name", iefvad.__all__)
def test_every_name_is_there(name):
    assert getattr(iefvad, name) is not None
    assert name in dir(iefvad)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        iefvad.fly  # noqa: B018
    with pytest.raises(ImportError, match="fly"):
        from iefvad import fly  # noqa: F401


def test_detect_is_a_function_and_a_command():
    python("from iefvad import detect; assert detect.__module__ == 'iefvad.detection.detect', detect")
    done = subprocess.run(
        [sys.executable, "-m", "iefvad.detect", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: iefvad detect")


@pytest.mark.parametrize(
    "first", ["import iefvad.detect", "from iefvad.detect import main", "from iefvad import detect", "import iefvad"]
)
def test_no_submodule_hides_an_exported_name(first):
    """The import system sets each submodule as an attribute of its package, over a function of the same name."""
    python(
        f"{first}\n"
        "import iefvad.train, iefvad.extract, iefvad.evaluate, iefvad.detect, inspect, sys, types\n"
        "from iefvad import detect\n"
        "assert inspect.isfunction(detect) and detect is iefvad.detect, detect\n"
        "assert list(inspect.signature(iefvad.detect).parameters) == ['model', 'videos', 'settings']\n"
        "for name in ('train', 'extract', 'evaluate'): assert inspect.ismodule(getattr(iefvad, name)), name\n"
        "assert sys.modules['iefvad.detect'].main is not detect\n"
        "import pydoc; text = pydoc.render_doc(iefvad, renderer=pydoc.plaintext)\n"
        "assert 'detect(model' in text, text"
    )


def test_each_command_of_one_file_runs_as_a_module():
    for name in ("train", "extract", "evaluate", "detect"):
        spec = importlib.util.find_spec(f"iefvad.{name}")
        assert spec is not None and spec.origin == str(ROOT / "iefvad" / f"{name}.py")


def test_the_former_name_of_load_released_still_serves():
    with pytest.warns(DeprecationWarning, match="load_released"):
        assert iefvad.load_official is iefvad.load_released


def test_names_are_the_same_objects_as_in_their_modules():
    assert iefvad.IEFVAD is IEFVAD
    assert iefvad.load_pretrained is importlib.import_module("iefvad.checkpoints.hub").load_pretrained


def test_version_is_the_packages():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None and declared[1] == iefvad.__version__ == ief_kernels.__version__
    assert "__version__ =" not in (ROOT / "iefvad" / "__init__.py").read_text(), "it is stated once, in pyproject.toml"


@pytest.mark.slow  # where mypy has no cache of torch yet
def test_type_checkers_see_the_real_types(tmp_path):
    (tmp_path / "user.py").write_text(
        "from iefvad import IEFVAD, detect, load_pretrained\n"
        "model: IEFVAD = IEFVAD.from_pretrained('runs/mine')\n"
        "other: IEFVAD = load_pretrained('runs/mine')\n"
        "peak: float = detect(model, ['video.mp4'])[0].intervals[0][2]\n"
        "wrong: int = IEFVAD.from_pretrained('runs/mine')\n"
        "detect(3)\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "user.py")]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250).stdout
    found = re.findall(r"user\.py:(\d+): error: .*\[(.+)\]", printed)
    assert {line for line, _ in found} == {"5", "6"}, printed
    assert ("5", "assignment") in found


# The page's examples.


def write_video(path: Path, frames: int = 80) -> None:
    random = np.random.default_rng(0)
    still = random.integers(0, 255, (64, 96, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(frames):
            picture = np.roll(still, 3 * index, 1) if index >= 32 else still
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_run(folder: Path, store: Path) -> None:
    """A run folder as training on features of the fixed descriptor leaves it, with weights that were not trained."""
    settings = {**build_encoder().settings, "crops": [0], "threshold": 10, "clamp": 10, "normalize": "clamp"}
    settings = FeatureStore(store, settings={**settings, "format": 1, "tail": "drop"}, create=True).settings
    torch.manual_seed(0)
    model = IEFVAD(ModelConfig(dim=settings["dim"], heads=1, refine_steps=2))
    model.provenance = {"encoder": settings, "threshold": 0.5, "epoch": 1, "seed": 0, "chunk": 32}
    run = Run.create(resolve(TrainConfig(features=str(store), out=str(folder))))
    save_model(run.checkpoint(run.variants[0]), model, model.provenance)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with everything that the page names."""
    folder = tmp_path_factory.mktemp("api")
    write_run(folder / "runs" / "mine", folder / "store")
    write_video(folder / "video.mp4")
    state = vary(Published(32, 2, 8, 2, 32)).state_dict()
    torch.save(state, folder / "model.pth")
    save_file(state, folder / "released.safetensors")
    return folder


def test_the_page_has_examples():
    assert len(EXAMPLES) == PAGE.count("```python") >= 8


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    names: dict[str, object] = {}
    exec(compile(EXAMPLES[number], f"docs/api.md, example {number + 1}", "exec"), names)
    printed = capsys.readouterr().out
    assert "print(" not in EXAMPLES[number] or printed
    if "UserError" in EXAMPLES[number]:
        assert "iefvad convert model.pth" in printed
    if "scores" in names:
        assert names["scores"].shape == (1, 100)
    if "again" in names:
        assert names["again"].provenance == names["model"].provenance
    if "detections" in names:
        assert all((workplace / path).is_file() for path in names["detections"][0].files)
