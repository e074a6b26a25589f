"""Sizes and choices of one baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from iefvad.model.config import DEEPEST, WIDEST
from iefvad.model.inputs import check_projection
from iefvad.utils.values import COUNT, Range, problems, within

BaselineName = Literal["concat", "cross-attention", "sultani", "rtfm", "ur-dmu", "mgfn", "vadclip"]

BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
"""The methods of `docs/baselines.md`."""

TWO_STREAMS: tuple[BaselineName, ...] = ("concat", "cross-attention")
"""Methods that fuse two streams. The others score one stream, or the concatenation of both."""

PAIRED: tuple[BaselineName, ...] = ("sultani", "rtfm", "ur-dmu", "mgfn")
"""Methods whose loss compares the videos of a batch with each other. A batch cannot be shared by processes."""


@dataclass(frozen=True)
class BaselineConfig:
    """Sizes and choices of one baseline (`docs/baselines.md`).

    Attributes:
        model: The method. Sizes that its paper states are fixed.
        dim: Width D of the features of one stream.
        modality: The streams. `fusion`: both, of which a method for one stream gets the concatenation, 2D wide.
        standardize: Features are centred and scaled per dimension by buffers that `set_statistics` fills.
        projection: Standardised features are projected onto this number of principal directions; None: they are not.
        layers: Self-attention layers per stream of `concat` and `cross-attention`, as in the network of IEF-VAD.
        heads: Attention heads of these two; they divide the width of a stream.
        dropout: Dropout of the attention weights of these two in training.
        window: Attention windows of these two, in segments; None: no windows.

    Raises:
        ValueError: the method does not exist, or the values do not fit it.
    """

    model: BaselineName
    dim: int = within(768, Range(1, WIDEST))
    modality: Literal["fusion", "image", "event"] = "fusion"
    standardize: bool = False
    projection: int | None = within(None, Range(1, WIDEST))
    layers: int = within(2, Range(0, DEEPEST))
    heads: int = within(8, Range(1, WIDEST))
    dropout: float = within(0.1, Range(0, below=1))
    window: int | None = within(None, COUNT)

    def __post_init__(self) -> None:
        if self.model not in BASELINES:
            raise ValueError(f"there is no model {self.model}; there are {', '.join(BASELINES)}")
        for name, problem in problems(vars(self), BaselineConfig):
            raise ValueError(f"{name} {problem}")
        check_projection(self.projection, self.dim, standardize=self.standardize)
        if self.model in TWO_STREAMS:
            if self.modality != "fusion":
                raise ValueError(f"{self.model} fuses two streams, so its modality is fusion, not {self.modality}")
            if self.stream_width % self.heads:
                raise ValueError(f"heads = {self.heads} does not divide the width {self.stream_width} of a stream")
        elif self.window is not None:
            raise ValueError(f"{self.model} has no attention windows to set: its paper states them")
        if self.model == "rtfm" and self.width % 4:
            raise ValueError(f"rtfm divides its features in four, which {self.width} dimensions do not allow")

    @property
    def stream_width(self) -> int:
        """Width of one stream as the method sees it."""
        return self.dim if self.projection is None else self.projection

    @property
    def width(self) -> int:
        """Width of all that the method sees: both streams side by side, or one."""
        return self.stream_width * (2 if self.modality == "fusion" else 1)

    @property
    def released(self) -> bool:
        """Whether padding takes part in attention, which is so in the released variant of IEF-VAD alone."""
        return False
