"""What every network checks of its inputs and sizes, so that all say the same about the same mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # sizes are checked without torch, which takes seconds to load
    from torch import Tensor


def check_inputs(
    given: Mapping[str, Tensor | None], streams: Iterable[str], dim: int, lengths: Tensor | None, context: int
) -> dict[str, Tensor]:
    """Return the features of the streams that a network sees.

    Args:
        given: Stream → features, (B, T, D) each. Streams that the network does not see may be None.
        streams: Streams that it sees.
        dim: D.
        lengths: (B,) integers, or None.
        context: Number of first segments that only serve as context.

    Raises:
        ValueError: features are missing, have another shape, or differ in shape; or `lengths` or `context` do not fit
            them.
    """
    inputs: dict[str, Tensor] = {}
    for name in streams:
        features = given[name]
        if features is None or features.dim() != 3 or features.shape[-1] != dim:
            got = "nothing" if features is None else tuple(features.shape)
            raise ValueError(f"{name} features must be (B, T, {dim}), not {got}")
        inputs[name] = features
    shapes = [tuple(features.shape) for features in inputs.values()]
    if shapes[0] != shapes[-1]:
        raise ValueError(f"image and event features differ in shape: {sorted(shapes)}")
    batch, segments, _ = shapes[0]
    if not 0 <= context <= segments:
        raise ValueError(f"context must be between 0 and the {segments} segments given, not {context}")
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths must be ({batch},), not {tuple(lengths.shape)}")
    return inputs


def check_projection(projection: int | None, dim: int, *, standardize: bool) -> None:
    """Check the projection of features of width `dim`.

    Raises:
        ValueError: it is not between 1 and `dim`, or the features are not standardised.
    """
    if projection is None:
        return
    if not 1 <= projection <= dim:
        raise ValueError(f"projection must be between 1 and the feature width {dim}, not {projection}")
    if not standardize:
        raise ValueError("projection needs standardize = True")
