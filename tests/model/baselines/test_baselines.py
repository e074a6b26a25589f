"""Every baseline: shapes, padding, gradients, determinism, and the size that its paper's description gives."""

from __future__ import annotations

import pytest
import torch

from iefvad.model.baselines.config import BASELINES, TWO_STREAMS, BaselineConfig
from iefvad.model.baselines.network import BaselineNetwork
from iefvad.model.losses import Share

DIM = 16


def build(name: str, **choices) -> BaselineNetwork:
    torch.manual_seed(0)
    return BaselineNetwork(BaselineConfig(**{"model": name, "dim": DIM} | choices))


def batch(lengths: list[int], dim: int = DIM):
    """Features with NaN in the padding."""
    generator = torch.Generator().manual_seed(1)
    image, event = torch.randn(2, len(lengths), max(lengths), dim, generator=generator)
    for row, length in enumerate(lengths):
        image[row, length:] = event[row, length:] = torch.nan
    return image, event, torch.tensor(lengths)


@pytest.mark.parametrize("name", BASELINES)
def test_padding_changes_nothing(name: str):
    network = build(name, dim=20, standardize=True, projection=DIM).eval()
    image, event, lengths = batch([19, 7, 1], 20)
    network.set_statistics("event", torch.randn(50, 20))
    together = network(image, event, lengths)
    assert together.logits.shape == together.scores.shape == (3, 19)
    assert together.w_img is None and together.gain is None and together.state is None
    for row, length in enumerate(lengths.tolist()):
        alone = network(image[row : row + 1, :length], event[row : row + 1, :length])
        # Another shape of the batch only changes the order of sums.
        torch.testing.assert_close(together.logits[row, :length], alone.logits[0], rtol=1e-4, atol=1e-5)
    behind = network(image, event, lengths, context=4)
    assert torch.equal(behind.logits, together.logits[:, 4:])


@pytest.mark.parametrize("name", BASELINES)
def test_gradients_are_finite_complete_and_the_same_twice(name: str):
    image, event, lengths = batch([19, 7, 18, 1])
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0])
    grads = []
    for _ in range(2):
        network = build(name).train()
        torch.manual_seed(2)
        loss = network.loss(network(image, event, lengths), labels, lengths)
        assert all(torch.isfinite(part) for part in vars(loss).values())
        torch.testing.assert_close(loss.total, loss.cls + loss.kl + loss.reg)
        loss.total.backward()
        grads.append({key: value.grad for key, value in network.named_parameters()})
    for key, grad in grads[0].items():
        assert grad is not None, key
        assert torch.isfinite(grad).all(), key
        assert torch.equal(grad, grads[1][key]), key
    assert all(grad.abs().sum() > 0 for key, grad in grads[0].items() if "bias" not in key)


@pytest.mark.parametrize("name", BASELINES)
def test_loss_does_not_see_padding(name: str):
    network = build(name).eval()
    image, event, lengths = batch([12, 7])
    labels = torch.tensor([1.0, 0.0])
    more = [torch.cat([stream, torch.full((2, 5, DIM), torch.nan)], 1) for stream in (image, event)]
    losses = [network.loss(network(*pair, lengths), labels, lengths).total for pair in ((image, event), more)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_batches_of_one_kind_have_a_finite_loss(name: str):
    network = build(name).train()
    image, event, lengths = batch([5, 3])
    for label in (0.0, 1.0):
        loss = network.loss(network(image, event, lengths), torch.full((2,), label), lengths)
        assert torch.isfinite(loss.total)
        loss.total.backward()


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in TWO_STREAMS])
@pytest.mark.parametrize("modality", ["image", "event"])
def test_one_stream_ignores_the_other(name: str, modality: str):
    network = build(name, modality=modality).eval()
    image, event, lengths = batch([6, 4])
    given = {"image": image, "event": event}
    other = "event" if modality == "image" else "image"
    expected = network(**given, lengths=lengths).logits
    assert torch.equal(network(**given | {other: None}, lengths=lengths).logits, expected)
    with pytest.raises(ValueError, match=f"{modality} features must be"):
        network(**given | {modality: None}, lengths=lengths)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # C3D, 4096 wide: (4096·512 + 512) + (512·32 + 32) + (32 + 1).
        (BaselineConfig("sultani", 4096, "image"), 2_114_113),
        # I3D, 2048 wide. Three convolutions 3·2048·512 + 512; 2048·512 + 512; four of 512·512 + 512;
        # (2048·512 + 512) + (512·128 + 128) + (128 + 1).
        (BaselineConfig("rtfm", 2048, "image"), 9_438_720 + 1_049_088 + 4 * 262_656 + 1_114_881),
        # I3D, 1024 wide; 6.49 million are published.
        (BaselineConfig("ur-dmu", 1024, "image"), 6_492_929),
        # I3D, 2048 wide; a conversion of the published checkpoint has 115 MB. 3·2048·64 + 64 and 3·64 + 64; three
        # glance blocks, each with a convolution 3·64² + 64, an attention 2·64 + 3·64² + 64² + 64 and a feed-forward
        # layer 2·64 + 8·64² + 5·64; focus blocks with 2·d + d² + (5 + 1)·d/64 + d² + d instead of the attention;
        # normalised and widened twice; a norm and 1024 + 1.
        (
            BaselineConfig("mgfn", 2048, "image"),
            393_280
            + 256
            + 3 * (15 * 64**2 + 11 * 64)
            + 3 * (13 * 128**2 + 11 * 128 + 6 * 2)
            + 2 * (13 * 1024**2 + 11 * 1024 + 6 * 16)
            + (2 * 64 + 64 * 128 + 128)
            + (2 * 128 + 128 * 1024 + 1024)
            + 2 * 1024
            + 1025,
        ),
        # CLIP ViT-B/16, 512 wide: a transformer layer 12·512² + 13·512, the graph 2·512², and a feed-forward layer
        # 8·512² + 5·512, and 512 + 1.
        (BaselineConfig("vadclip", 512, "image"), 22 * 512**2 + 18 * 512 + 513),
        # Two streams, 768 wide, two layers each of 4·768² + 6·768; 2·768² + 768; 768 + 1.
        (BaselineConfig("concat", 768), 18 * 768**2 + 25 * 768 + 769),
        # And twice 4·768² + 6·768.
        (BaselineConfig("cross-attention", 768), 26 * 768**2 + 37 * 768 + 769),
    ],
    ids=lambda value: value.model if isinstance(value, BaselineConfig) else "",
)
def test_number_of_parameters(config: BaselineConfig, count: int):
    with torch.device("meta"):
        network = BaselineNetwork(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_impossible_configurations():
    with pytest.raises(ValueError, match="there is no model best"):
        BaselineConfig("best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fuses two streams"):
        BaselineConfig("concat", modality="image")
    with pytest.raises(ValueError, match="heads = 8 does not divide"):
        BaselineConfig("cross-attention", dim=20)
    with pytest.raises(ValueError, match="projection must be between"):
        BaselineConfig("sultani", dim=20, standardize=True, projection=21)
    with pytest.raises(ValueError, match="needs standardize"):
        BaselineConfig("sultani", dim=20, projection=8)
    with pytest.raises(ValueError, match="no attention windows"):
        BaselineConfig("rtfm", window=2)
    with pytest.raises(ValueError, match="divides its features in four"):
        BaselineConfig("rtfm", dim=18, modality="event")


def test_windows_separate_and_share_weighs():
    network = build("concat", window=4).eval()
    image, event, lengths = batch([8])
    before = network(image, event, lengths)
    image[0, 0] += 1
    after = network(image, event, lengths)
    assert torch.equal(before.logits[0, 4:], after.logits[0, 4:])
    assert not torch.equal(before.logits[0, 1:4], after.logits[0, 1:4])
    labels = torch.ones(1)
    whole, half = (network.loss(after, labels, lengths, share=Share(part, part)).total for part in (1.0, 0.5))
    torch.testing.assert_close(half, 0.5 * whole)
