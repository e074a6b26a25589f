"""The released network in plain PyTorch, and data in the layout of the released lists and features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

CHUNK = 256
CROPS = 10


class Published(nn.Module):
    """The released network, from its description (`docs/specification.md#released-checkpoints`).

    It has the released names and order of operations, and its attention sees the padding.
    """

    def __init__(self, dim: int, layers: int, heads: int, steps: int, hidden: int) -> None:
        super().__init__()
        temporal = nn.Module()
        for name in ("image", "event"):
            attention = [nn.MultiheadAttention(dim, heads, dropout=0.1, batch_first=True) for _ in range(layers)]
            setattr(temporal, f"{name}_attn_layers", nn.ModuleList(attention))
            setattr(temporal, f"{name}_norms", nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers)))
            setattr(temporal, f"whiten_{name}", nn.LayerNorm(dim))
            setattr(temporal, f"{name}_mu", nn.Linear(dim, dim))
            setattr(temporal, f"{name}_logvar", nn.Linear(dim, dim))
        temporal.refinement_blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)) for _ in range(steps)
        )
        temporal.classifier = nn.Linear(dim, 1)
        self.temporal = temporal

    def forward(
        self, image: Tensor, event: Tensor, *, nu: float | None = 8.0, attenuation: float = 0.5
    ) -> tuple[Tensor, Tensor]:
        """(B, T, D) features, padding and all → logits (B, T) and the image stream's weight (B, T, D)."""
        parts = {}
        for name, x in (("image", image), ("event", event)):
            t = self.temporal
            attentions, norms = getattr(t, f"{name}_attn_layers"), getattr(t, f"{name}_norms")
            for attend, norm in zip(attentions, norms, strict=True):
                x = norm(x + attend(x, x, x)[0])
            x = getattr(t, f"whiten_{name}")(x)
            mu, logvar = getattr(t, f"{name}_mu")(x), getattr(t, f"{name}_logvar")(x)
            factor = 1.0 if nu is None else (nu + 1) / nu
            parts[name] = mu, factor * torch.exp(-logvar)
        (mu_i, w_i), (mu_e, w_e) = parts["image"], parts["event"]
        total = w_i + w_e + 1e-8
        z = w_i / total * mu_i + w_e / total * mu_e
        for block in self.temporal.refinement_blocks:
            z = z - attenuation * block(z)
        return self.temporal.classifier(z).squeeze(-1), w_i / total


def vary(network: nn.Module, seed: int = 0) -> nn.Module:
    """Change all weights, so that none has a value (0 or 1) that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(0.2 * noise + (1.0 if "norm" in name or "whiten" in name else 0.0) * (value.dim() == 1))
    return network.eval()


@torch.no_grad()
def published_scores(network: Published, image: Tensor, event: Tensor) -> np.ndarray:
    """(T, D) features → (T,) scores: chunks of 256 segments; the attention sees the zeros that pad the last one."""
    scores = []
    for start in range(0, len(image), CHUNK):
        pair = [features[start : start + CHUNK] for features in (image, event)]
        length = len(pair[0])
        padded = [torch.cat([part, torch.zeros(CHUNK - length, part.shape[1])])[None] for part in pair]
        logits, _ = network(padded[0], padded[1])
        scores.append(torch.sigmoid(logits[0, :length]))
    return torch.cat(scores).numpy()


def write_field(
    root: Path,
    *,
    dim: int = 16,
    train: int = 6,
    test: Sequence[int] = (5, 270, 12),
    windows: bool = False,
    image_folder: str = "rgb",
    seed: int = 0,
) -> dict[str, Path]:
    """Write features, lists and gt.npy in the field's layout. `test` has the numbers of segments of the test videos.

    Features are ROOT/vitb/rgb/CLASS/NAME__{0..9}.npy (`image_folder` instead of rgb), and the same below event_thr_10.
    The training list has every crop, the test list only crop 5. Both have paths of another machine (`windows`: with a
    drive and backslashes).
    """
    random = np.random.default_rng(seed)
    truth: list[np.ndarray] = []
    lists: dict[str, list[str]] = {"train": ["path,label"], "test": ["path,label"]}
    lengths = {"train": [int(n) for n in random.integers(3, 9, train)], "test": list(test)}
    for split, counts in lengths.items():
        for index, segments in enumerate(counts):
            kind = "Abuse" if index % 2 == 0 else "Normal"
            name = f"{kind}{index:03d}_{split}_x264"
            labels = np.zeros(segments, np.float64)
            if kind != "Normal":
                labels[segments // 3 : segments // 3 + 2] = 1
            for crop in range(CROPS):
                for stream in (image_folder, "event_thr_10"):
                    folder = root / "features" / "vitb" / stream / kind
                    folder.mkdir(parents=True, exist_ok=True)
                    values = random.normal(size=(segments, dim)) + 2.0 * labels[:, None]
                    np.save(folder / f"{name}__{crop}.npy", values.astype(np.float32))
                if split == "train" or crop == 5:
                    path = f"/media/Data1/UCFCrime_dataset/vitb/{image_folder}/{kind}/{name}__{crop}.npy"
                    if windows:
                        path = "D:" + path.replace("/", "\\")
                    lists[split].append(f"{path},{kind}")
            if split == "test":
                truth.append(np.repeat(labels, 16))
    files = {"features": root / "features", "gt": root / "gt.npy"}
    np.save(files["gt"], np.concatenate(truth))
    for split, rows in lists.items():
        files[split] = root / f"{split}.csv"
        files[split].write_text("\n".join(rows) + "\n")
    return files
