"""Event maps: where, and how often, the brightness of a video segment jumps."""

from __future__ import annotations

from torch import Tensor

from .._autograd import gradients_wanted, run
from ..dispatch import choose
from . import reference
from .arguments import check
from .autograd import EventSynthesis

__all__ = ["event_synthesis"]


def event_synthesis(
    frames: Tensor,
    *,
    threshold: float = 10,
    clamp: int = 10,
    normalize: str = "clamp",
    polarity: str = "merged",
    carry: Tensor | None = None,
    surrogate: float | None = None,
    layout: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """Synthesise event maps of video segments from frame differences.

    The count is in integers, so that every backend agrees bit for bit. The unit is 1e-4 grey level::

        Y_t   = 2989·R + 5870·G + 1140·B                    (luma input: 10000·luma)
        count = min(clamp, Σ_t [ |Y_t − Y_{t−1}| > round(threshold·10⁴) ])
        map   = count / clamp | count / max(1, largest of the segment) | count / max(1, largest of the call) | count

    Floating-point frames use the same weights in float32 (float64 for float64). Integer-valued pixels give the result
    of uint8 ones there. The source is ``docs/specification.md#event-synthesis``.

    With ``surrogate=τ`` the gradient of an event is that of sigmoid((|ΔY| − threshold)/τ), ΔY in grey levels. It
    passes where the count was not clamped away (count ≤ clamp). It treats the number by which counts are divided as a
    constant. With ``polarity="split"`` it belongs to the map of its sign. Without a surrogate the gradient is zero.

    Args:
        frames: (..., S, H, W, 3) RGB or (..., S, H, W) luma, uint8 or floating point in [0, 255], S frames per
            segment. Strided frames are read in place where the pixels of a row have no gaps, such as the luma plane of
            a decoder's NV12 surface, ``surface[..., :H, :W]``, whose rows have a pitch.
        threshold: grey levels of RGB or of the luma given, 0 or more; a difference must exceed it. Video luma usually
            has the limited range 16 to 235: ``threshold=t * 219 / 255`` means t levels of full range there.
        clamp: largest number of events per pixel, 1 to 255.
        normalize: ``"clamp"``, ``"segment"``, ``"batch"`` or ``"none"``, in the order of the formula. With split
            polarity the largest count is that of both maps together.
        polarity: ``"merged"``, or ``"split"`` for two maps, brighter and darker.
        carry: (..., H, W[, 3]), of frames' dtype: the last frame before each segment. Its difference to the first
            frame counts too.
        surrogate: τ > 0 in grey levels for a gradient of floating-point frames, or None.
        layout: ``"rgb"``, ``"luma"``, or ``"auto"``: a last dimension of 3 with at least three before it means RGB.
        backend: ``"auto"``, ``"triton"``, ``"native"`` or ``"reference"``.

    Returns:
        (..., H, W), or (..., 2, H, W) for split polarity. float32 (float64 for float64 frames), or uint8 for
        ``normalize="none"``. Zeros where there is no difference to count.

    Raises:
        TypeError: `frames` is neither uint8 nor floating point.
        ValueError: another argument lies outside its range or has another shape.
        BackendUnavailable: the backend asked for cannot serve this call.
    """
    settings = check(frames, threshold, clamp, normalize, polarity, carry, surrogate, layout)
    choice = choose("event_synthesis", backend, frames.device, frames.dtype)
    if choice.backend == "reference":
        return reference.event_synthesis(
            frames,
            threshold=threshold,
            clamp=clamp,
            normalize=normalize,
            polarity=polarity,
            carry=carry,
            surrogate=surrogate,
            layout=layout,
        )
    wanted = normalize != "none" and gradients_wanted(frames, carry)  # only floating-point tensors require one
    maps: Tensor = run("event_synthesis", EventSynthesis, wanted, frames, carry, settings, choice.backend)
    return maps
