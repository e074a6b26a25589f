"""Training on several processes: ranks and devices, reductions, barriers, and how all end when one fails."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from iefvad.training.main_process import Aborted
from iefvad.utils import threads
from iefvad.utils.errors import UserError

# The others wait while the main process renders the embedded benchmark or writes the report, so the timeout is long.
TIMEOUT = datetime.timedelta(hours=2)
_STARTS = itertools.count()
# The last operations of gloo are kept, so that its threads never free their tensors: that needs the interpreter's lock,
# which the end of a group holds while it waits for these threads (a deadlock in torch 2.6 to 2.10). A group may end
# late, because the wrapped model refers to it, so they are never cleared.
_RECENT: deque[Any] = deque(maxlen=16)


@dataclass(frozen=True)
class Processes:
    """This process among those that train one network.

    With `world` 1 every method is a plain local operation, and torch.distributed is not used.

    Attributes:
        rank: Number of this process, from 0. Process 0 is the main process.
        world: Number of processes.
        local_rank: Number of this process on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, the one that prints and writes."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """Return the device of this process; on GPUs, each process of a machine has its own.

        Args:
            chosen: The device that the user asked for.

        Raises:
            UserError: all processes would share one GPU, or there are more processes than GPUs.
        """
        if self.world == 1 or chosen.type != "cuda":
            return chosen
        if chosen.index is not None:
            raise UserError(f"--device {chosen} names one GPU for {self.world} processes: use --device cuda.")
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"there are more processes than the {torch.cuda.device_count()} GPUs of this machine: lower"
                " --nproc-per-node, or add --device cpu."
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    @contextlib.contextmanager
    def barrier(self) -> Iterator[None]:
        """Wait at the end of the block until all processes are there; if one failed, all end.

        The block must not communicate.

        Raises:
            Exception: the error of this process, in the first process that failed.
            Aborted: another process failed.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            if self.world == 1:
                raise
            error = caught
        self.abort_on(error)

    def abort_on(self, error: Exception | None) -> None:
        """End all processes if any of them passes an error: the first of those raises it, the others raise Aborted."""
        if self.world == 1:
            if error is not None:
                raise error
            return
        first = torch.tensor(self.world if error is None else self.rank)
        _all_reduce(first, dist.ReduceOp.MIN)
        if error is not None and first == self.rank:
            raise error
        if first < self.world:
            raise Aborted

    def agree(self, value: int) -> bool:
        """Return whether all processes pass the same integer."""
        if self.world == 1:
            return True
        ends = torch.tensor([value, -value])
        _all_reduce(ends, dist.ReduceOp.MIN)
        return bool(ends[0] == -ends[1])

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, on its device. All pass the same shape."""
        if self.world > 1:
            values = values.clone()
            _all_reduce(values)
        return values

    def decide(self, choice: bool) -> bool:
        """Return the main process' choice, so that rounding on another machine cannot make them differ."""
        if self.world == 1:
            return choice
        value = torch.tensor(int(choice))
        _wait_for(dist.broadcast(value, 0, async_op=True))
        return bool(value)

    def union(self, texts: list[str]) -> list[str]:
        """Return the texts of all processes without repetitions, those of the main process first."""
        if self.world == 1:
            return texts
        data = torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.world, dtype=torch.int64)
        sizes[self.rank] = len(data)
        _all_reduce(sizes)
        table = torch.zeros(self.world, int(sizes.max()), dtype=torch.uint8)
        table[self.rank, : len(data)] = data
        _all_reduce(table)
        rows = [json.loads(bytes(row[:size].tolist())) for row, size in zip(table, sizes.tolist(), strict=True)]
        return list(dict.fromkeys(text for row in rows for text in row))

    def replicate(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """Wrap a model so that a backward pass leaves the mean gradient of all processes in its parameters.

        All processes begin with the main process' weights and buffers.

        Args:
            model: The model, on this process' device.
            unused: Some parameters take no part in the loss.
        """
        if self.world == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)


@contextlib.contextmanager
def start(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, and leave them at the end. Without torchrun there is one process.

    Args:
        device: The `--device` of the user. NCCL communicates between GPUs, gloo between CPUs.

    Yields:
        This process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    processes = Processes(int(os.environ["RANK"]), world, int(os.environ["LOCAL_RANK"]))
    _share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    gpu = device != "cpu" and torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    store, _, _ = next(rendezvous("env://"))
    # torchrun's store outlives a group. A prefix per group lets a program train a second time.
    store = dist.PrefixStore(  # type: ignore[attr-defined]
        f"iefvad/{next(_STARTS)}", store
    )
    dist.init_process_group(backend, store=store, rank=processes.rank, world_size=world, timeout=TIMEOUT)
    settled = True
    try:
        yield processes
    except (UserError, Aborted):
        raise
    except BaseException:
        settled = False
        raise
    finally:
        # Destroying an NCCL group waits for processes that still compute. torchrun ends them when this one exits.
        if settled or not gpu:
            dist.destroy_process_group()


def _all_reduce(values: Tensor, op: Any = None) -> None:
    """Reduce a tensor over all processes in place; the sum where no operation is given."""
    op = dist.ReduceOp.SUM if op is None else op
    if values.is_cuda:
        dist.all_reduce(values, op)
    else:
        _wait_for(dist.all_reduce(values, op, async_op=True))


def _wait_for(work: Any) -> None:
    work.wait()
    _RECENT.append(work)


def _share_cores(local_world: int) -> None:
    """Divide the cores of this machine among its processes, unless the user set the number of threads."""
    # torchrun sets OMP_NUM_THREADS to 1 where it is not set, so 1 cannot be told from nothing.
    if threads.chosen() is None and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, threads.cpus() // local_world))
