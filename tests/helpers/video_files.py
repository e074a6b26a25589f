"""For the tests of extraction: small real video files, a small encoder, and the content of folders."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import safetensors.torch
import torch

from ief_kernels import event_synthesis
from iefvad.encoders.towers import _open_clip_tower


def make_video(
    path: Path, frames: int = 40, size: tuple[int, int] = (96, 64), seed: int = 0, codec: str = "mpeg4"
) -> Path:
    """Write a real compressed video of a bright square that moves over noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    width, height = size
    background = generator.integers(0, 120, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10 if codec == "mpeg4" else 25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            image = background.copy()
            left = (seed * 7 + index * 2) % (width - 16)
            image[20:36, left : left + 16] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def event_maps_of(frames: np.ndarray, *, carry: bool = True) -> torch.Tensor:
    """Return reference event maps (T, H, W) of resized frames (16 T, H, W, 3), 17 frames each with `carry`."""
    pixels = torch.from_numpy(frames)
    starts = range(0, len(frames), 16)
    parts = [pixels[max(0, start - carry) : start + 16] for start in starts]
    return torch.stack([event_synthesis(part, backend="reference") for part in parts])


def content(root: Path) -> dict[str, bytes]:
    """Return {relative path: content} of the files below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def small_vit(folder: Path) -> str:
    """Write an open_clip model that needs about a millisecond per frame. Returns its name for --image-model."""
    vision = {"image_size": 224, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32}
    model = {"embed_dim": 48, "vision_cfg": vision}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        safetensors.torch.save_file(_open_clip_tower(model, torch.float32).state_dict(), folder / "model.safetensors")
    return f"local-dir:{folder}"
