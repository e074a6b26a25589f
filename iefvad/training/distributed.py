"""Training on several processes: who this process is, what they tell one another, and how they end together."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from iefvad.utils.errors import UserError

# Others wait while the first process renders the embedded benchmark or writes the report, so this is ample.
PATIENCE = datetime.timedelta(hours=2)
_STARTS = itertools.count()


class Aborted(Exception):
    """Another process could not go on and says why; this one ends too, silently."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train one network: number `rank` of `world`, `local_rank` on its machine.

    With world 1 every method is a plain local operation and torch.distributed is not touched.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that prints and writes."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """The device of this process where `chosen` was asked for: each has a GPU of its own.

        Raises UserError for one GPU that all would share and for more processes than GPUs.
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
        """After the block all processes go on, or all end: the first that failed with its error, the others silently.

        The block must not communicate. Raises Aborted where another process failed.
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
        """End all processes if any brings an error: the first of those raises it, the others Aborted."""
        if self.world == 1:
            if error is not None:
                raise error
            return
        first = torch.tensor(self.world if error is None else self.rank)
        dist.all_reduce(first, dist.ReduceOp.MIN)
        if error is not None and first == self.rank:
            raise error
        if first < self.world:
            raise Aborted

    def agree(self, value: int) -> bool:
        """Whether all processes bring the same integer."""
        if self.world == 1:
            return True
        ends = torch.tensor([value, -value])
        dist.all_reduce(ends, dist.ReduceOp.MIN)
        return bool(ends[0] == -ends[1])

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on its device; it must have one shape everywhere."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def decide(self, choice: bool) -> bool:
        """The first process' choice, so that rounding on another machine cannot split them."""
        if self.world == 1:
            return choice
        value = torch.tensor(int(choice))
        dist.broadcast(value, 0)
        return bool(value)

    def union(self, texts: list[str]) -> list[str]:
        """The texts of all processes, each once, those of the first process first."""
        if self.world == 1:
            return texts
        data = torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.world, dtype=torch.int64)
        sizes[self.rank] = len(data)
        dist.all_reduce(sizes)
        table = torch.zeros(self.world, int(sizes.max()), dtype=torch.uint8)
        table[self.rank, : len(data)] = data
        dist.all_reduce(table)
        rows = [json.loads(bytes(row[:size].tolist())) for row, size in zip(table, sizes.tolist(), strict=True)]
        return list(dict.fromkeys(text for row in rows for text in row))

    def replicate(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """`model` so wrapped that a backward pass leaves the mean gradient of all processes in its parameters.

        All begin with the first process' weights and buffers. `unused`: some parameters take no part in the loss.
        """
        if self.world == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)


@contextlib.contextmanager
def start(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, and leave them at the end; alone without torchrun.

    `device` is the `--device` that was asked for: NCCL carries what is on GPUs, gloo what is on the CPU.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    processes = Processes(int(os.environ["RANK"]), world, int(os.environ["LOCAL_RANK"]))
    _share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    gpu = device != "cpu" and torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    store, _, _ = next(dist.rendezvous("env://"))
    # torchrun's store outlives a group; names of its own let a program train a second time.
    store = dist.PrefixStore(f"iefvad/{next(_STARTS)}", store)
    dist.init_process_group(backend, store=store, rank=processes.rank, world_size=world, timeout=PATIENCE)
    settled = True
    try:
        yield processes
    except (UserError, Aborted):
        raise
    except BaseException:
        settled = False
        raise
    finally:
        # An NCCL group that others still compute with would be waited for; torchrun ends them when this one exits.
        if settled or not gpu:
            dist.destroy_process_group()


@contextlib.contextmanager
def main_process_output() -> Iterator[None]:
    """For what all processes do alike before they are joined: only the first of each machine prints and complains.

    The others raise Aborted where it raises UserError.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    except (UserError, OSError):
        raise Aborted from None


def _share_cores(local_world: int) -> None:
    """Give each process of this machine its part of the cores, where the number of threads was not set by hand."""
    # torchrun sets OMP_NUM_THREADS to 1 where it is not set, so 1 cannot be told from nothing.
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local_world))
