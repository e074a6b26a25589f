"""Checkpoints with the published names give the published model's outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from iefvad.checkpoints.hub import load_released
from iefvad.utils.errors import UserError
from tests.helpers.released import Published


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
    model = load_released(state, noise=noise, nu=nu or 8.0, attenuation=0.3, heads=heads)
    image, event = torch.randn(3, 21, 32), torch.randn(3, 21, 32)
    image[0, 10:] = event[0, 10:] = 0  # the published loader pads with zeros, and its model attends to them
    logits, weight = published(image, event, nu=nu, attenuation=0.3)
    out = model(image, event, torch.tensor([10, 21, 21]))
    # docs/specification.md#released-checkpoints promises 1e-5: only the order of float32 operations differs.
    torch.testing.assert_close(out.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.w_img, weight, rtol=1e-5, atol=1e-5)


def test_foreign_missing_and_misshapen_tensors_are_named():
    with pytest.raises(UserError, match=r"temporal\.classifier\.weight"):
        load_released({"encoder.weight": torch.zeros(2, 2)})
    state = dict(Published(16, 2, 2, 3, 16).state_dict())

    def refused(changed, *named, **arguments):
        with pytest.raises(UserError) as error:
            load_released(changed, **{"heads": 2, **arguments})
        for name in named:
            assert name in str(error.value)

    refused({**state, "temporal.extra.weight": torch.zeros(1)}, "unexpected: temporal.extra.weight")
    refused({**state, "module.clip.weight": torch.zeros(1)}, "unexpected: clip.weight")
    for gone in (
        "temporal.event_mu.bias",
        "temporal.image_attn_layers.0.in_proj_weight",
        "temporal.event_norms.1.bias",
    ):
        refused({name: value for name, value in state.items() if name != gone}, f"missing: {gone}")
    middle = "temporal.refinement_blocks.1.0.weight"
    refused({name: value for name, value in state.items() if name != middle}, f"missing: {middle}")
    several = {name: value for name, value in state.items() if ".refinement_blocks.1." not in name}
    refused(several, middle, "and 1 more")
    misshapen = {**state, "temporal.image_mu.bias": torch.zeros(3)}
    refused(misshapen, "of another shape: temporal.image_mu.bias (3,) instead of (16,)")
    refused({**state, "temporal.refinement_blocks.0.0.weight": torch.zeros(())}, "refinement_blocks.0.0.weight ()")
    # An absurd index must not make an absurd network.
    refused({**state, "temporal.image_norms.999999999999.weight": torch.zeros(16)}, "missing")
    refused(state, "heads = 3 does not divide", heads=3)
    refused(state, "nu must be greater than 0", nu=-1.0)


def test_half_precision_checkpoints_become_float32_and_are_copies():
    state = {name: value.half() for name, value in Published(16, 1, 2, 2, 16).state_dict().items()}
    model = load_released(state, heads=2)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters())
    whole = Published(16, 1, 2, 2, 16).state_dict()
    model = load_released(whole, heads=2)
    whole["temporal.classifier.bias"].fill_(7)
    assert model.classifier.bias.item() != 7


def test_loading_draws_no_random_number():
    state = Published(16, 1, 2, 2, 16).state_dict()
    before = torch.random.get_rng_state()
    load_released(state, heads=2)
    assert torch.equal(before, torch.random.get_rng_state())
