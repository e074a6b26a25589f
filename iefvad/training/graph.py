"""Training steps from CUDA graphs, for small batches: there, launching the kernels takes longer than the kernels.

A graph has fixed shapes. So the segments of a batch are padded to the next of a few lengths, and there is one graph per
length. Padding changes nothing: the lengths say what is valid. A graph also has fixed work. So lengths are on the GPU,
and padding is computed along instead of being left out.

The first `WARM_UPS` batches of a length run as plain steps. They compile and tune the kernels and make the optimiser's
state. The next one is captured, and replayed from then on. All batches are trained on once, as without graphs.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from iefvad.data.batches import Batch

WARM_UPS = 3
"""Plain steps before a capture."""

LENGTHS = 8
"""Maximum number of lengths that batches are padded to."""

Replay = Callable[[], None]


@dataclasses.dataclass
class _Captured:
    """A captured step: its inputs, how it is run again, and the losses that it writes."""

    batch: Batch
    replay: Replay
    losses: Tensor


class GraphedStep:
    """A training step that is replayed from CUDA graphs. On the CPU the padded batches run as plain steps.

    Args:
        step: Trains on one batch and returns its losses. It must not wait for the device.
        device: Where batches are.
        max_segments: Maximum T of a batch.
        capture: Captures a step: from a function that runs it to how it is replayed, and the losses that this writes.
            None: a CUDA graph on a GPU, nothing on the CPU.

    Attributes:
        failure: Why steps run plainly although they were to be captured; None if they do not.
    """

    def __init__(
        self,
        step: Callable[[Batch], Tensor],
        device: torch.device,
        max_segments: int,
        *,
        capture: Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]] | None = None,
    ) -> None:
        self.step, self.device, self.max_segments = step, device, max_segments
        self.failure: str | None = None
        self._capture = capture
        if capture is None and device.type == "cuda":
            self._capture = _Graphs(device).capture
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._seen: Counter[tuple[int, int]] = Counter()

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch and return its losses, as `step` does. They are valid until the next call."""
        clips, segments, _ = batch.image.shape
        padded = padded_length(segments, self.max_segments)
        if self._capture is None:
            return self.step(pad(batch, padded))
        captured = self._captured.get((clips, padded))
        if captured is None:
            self._seen[clips, padded] += 1
            if self.failure is None and self._seen[clips, padded] <= WARM_UPS:
                return self._warm_up(pad(batch, padded))
            captured = self._new(pad(batch, padded)) if self.failure is None else None
            if captured is None:
                return self.step(batch)
            self._captured[clips, padded] = captured
        _load(captured.batch, batch)
        captured.replay()
        return captured.losses

    def _warm_up(self, batch: Batch) -> Tensor:
        """Run a step as it will be captured, with the lengths on the device."""
        batch = dataclasses.replace(batch, lengths=batch.lengths.to(self.device, non_blocking=True))
        if self.device.type != "cuda":
            return self.step(batch)
        # Work that is captured later must have run on a stream other than the default one before.
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable=True.*")  # that these steps are not captured
            losses = self.step(batch)
        current.wait_stream(side)
        return losses

    def _new(self, batch: Batch) -> _Captured | None:
        """Capture a step for batches of this shape; None if it fails."""
        assert self._capture is not None
        fixed = Batch(*(value.to(self.device, copy=True) for value in vars(batch).values()))
        try:
            replay, losses = self._capture(lambda: self.step(fixed))
        except RuntimeError as error:
            self.failure = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"note: --cuda-graph: {self.failure}; so nothing is captured, and steps run one by one.", flush=True)
            return None
        return _Captured(fixed, replay, losses)


class _Graphs:
    """CUDA graphs that share their memory: one is replayed at a time, and no graph reads what another left there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Record what `run` launches; nothing of it is executed."""
        graph = torch.cuda.CUDAGraph()
        # The thread that prepares the next batch may allocate memory meanwhile: only this thread's calls are watched.
        capture = torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local")
        with torch.cuda.device(self.device), capture:
            losses = run()
        return graph.replay, losses


def padded_length(segments: int, max_segments: int) -> int:
    """Return the length that a batch of this T is padded to: the next multiple of max_segments / 8, rounded up."""
    unit = max(1, -(-max_segments // LENGTHS))
    return max(segments, min(-(-segments // unit) * unit, max_segments))


def pad(batch: Batch, segments: int) -> Batch:
    """Return the batch with zeros behind its clips, up to this T."""
    more = segments - batch.image.shape[1]
    if more == 0:
        return batch
    image, event = (F.pad(values, (0, 0, 0, more)) for values in (batch.image, batch.event))
    return Batch(image, event, batch.lengths, batch.labels)


def _load(fixed: Batch, batch: Batch) -> None:
    """Write a batch into the memory that a graph reads."""
    segments = batch.image.shape[1]
    for into, values in ((fixed.image, batch.image), (fixed.event, batch.event)):
        into[:, :segments].copy_(values, non_blocking=True)
        into[:, segments:].zero_()
    fixed.lengths.copy_(batch.lengths, non_blocking=True)
    fixed.labels.copy_(batch.labels, non_blocking=True)
