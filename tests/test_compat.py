"""Checkpoints with the published names give the published model's outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from iefvad.compat import load_official
from iefvad.errors import UserError


class Published(nn.Module):
    """The published network from its description (SPEC §3): names, order of operations, padding attended."""

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

    def forward(self, image, event, *, nu, attenuation):
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


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("layers", "heads", "steps", "hidden", "nu"),
    [(2, 8, 3, 32, 8.0), (1, 4, 0, 32, 5.0), (3, 2, 1, 48, None)],
)
def test_loaded_model_gives_the_published_outputs(prefix, layers, heads, steps, hidden, nu):
    torch.manual_seed(0)
    published = Published(32, layers, heads, steps, hidden).eval()
    for norm in (module for module in published.modules() if isinstance(module, nn.LayerNorm)):
        nn.init.normal_(norm.weight, 1.0, 0.2)
        nn.init.normal_(norm.bias, 0.0, 0.2)
    state = {prefix + name: value for name, value in published.state_dict().items()}
    noise = "gaussian" if nu is None else "student-t"
    model = load_official(state, noise=noise, nu=nu or 8.0, attenuation=0.3, heads=heads)
    image, event = torch.randn(3, 21, 32), torch.randn(3, 21, 32)
    image[0, 10:] = event[0, 10:] = 0  # the published loader pads with zeros, and its model attends to them
    logits, weight = published(image, event, nu=nu, attenuation=0.3)
    out = model(image, event, torch.tensor([10, 21, 21]))
    # 1e-5 is the promise of SPEC §3; only the order of float32 operations differs.
    torch.testing.assert_close(out.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.w_img, weight, rtol=1e-5, atol=1e-5)


def test_foreign_missing_and_misshapen_tensors_are_named():
    with pytest.raises(UserError, match=r"temporal\.classifier\.weight"):
        load_official({"encoder.weight": torch.zeros(2, 2)})
    state = dict(Published(16, 1, 2, 1, 16).state_dict())
    with pytest.raises(UserError, match="extra"):
        load_official({**state, "temporal.extra.weight": torch.zeros(1)}, heads=2)
    missing = {name: value for name, value in state.items() if name != "temporal.event_mu.bias"}
    with pytest.raises(UserError, match=r"encoders\.event\.mu\.bias"):
        load_official(missing, heads=2)
