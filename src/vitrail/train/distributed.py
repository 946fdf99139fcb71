"""The processes that train together: started by torchrun, held together by torch.distributed.

Every process has the whole model (DDP), or a part of every weight (FSDP2), and its own rows of each batch. What they have
to agree on passes through `World`; a run in one process has a world of one, in which nothing is sent.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from vitrail.models.backbone import Backbone

Result = TypeVar("Result")

TIMEOUT_S = 1800.0
"""Seconds that a process waits for the others before it gives up; $VITRAIL_TIMEOUT_S says otherwise."""


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them."""

    rank: int = 0
    size: int = 1
    neighbours: int = 1
    """Processes on the same machine, this one counted."""

    @property
    def first(self) -> bool:
        """Whether this is the process that talks and writes."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def greatest(self, *values: float) -> tuple[float, ...]:
        """The greatest of each number over the processes: what one of them asks for, all of them do."""
        if self.size == 1:
            return values
        told = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return tuple(told.tolist())

    def gather(self, value: Result) -> list[Result]:
        """What every process has, in the order of their ranks, in all of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def on_first(self, do: Callable[[], Result]) -> Result:
        """What the first process's call returns, in all of them; what it raises ends the others without a word.

        For what is asked, written or fetched once: mistakes are told once.
        """
        if self.size == 1:
            return do()
        outcome: list[Any] = [None, None]
        error: BaseException | None = None
        if self.first:
            try:
                outcome[0] = do()
            except BaseException as raised:  # the others wait for an answer, whatever it is
                error, outcome[1] = raised, type(raised).__name__
        dist.broadcast_object_list(outcome, src=0)
        if error is not None:
            raise error
        if outcome[1] is not None:
            raise Ended(outcome[1])
        result: Result = outcome[0]
        return result

    def told_once(self, do: Callable[[], Result]) -> Result:
        """What the call returns in each process; a mistake that they all make is told by the first of them alone.

        The others of one that fails end with it, instead of waiting for it.
        """
        if self.size == 1:
            return do()
        result: Any = None
        error: ValueError | None = None
        try:
            result = do()
        except ValueError as raised:
            error = raised
        said = self.gather(None if error is None else str(error))
        if error is not None and said.index(str(error)) == self.rank:
            raise error
        if any(words is not None for words in said):
            raise Ended("a mistake that another process tells")
        own: Result = result
        return own

    def same_buffers(self, model: nn.Module) -> None:
        """Gives all processes the first one's buffers: a batch norm's statistics are of the rows that a process has seen."""
        if self.size > 1:
            for buffer in model.buffers():
                if not in_parts(buffer):
                    dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


class Ended(Exception):
    """The first process failed and says why; this one has nothing to add."""


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, for as long as a run takes; a world of one where it did not.

    A process group that somebody set up is used as it is, and left. Raises ConnectionError where they do not meet, and
    ValueError where the environment does not say where.
    """
    if device.type == "cuda" and device.index is not None:  # nccl and .cuda() take the current device
        torch.cuda.set_device(device)
    if dist.is_available() and dist.is_initialized():
        yield current()
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    seconds = float(os.environ.get("VITRAIL_TIMEOUT_S", TIMEOUT_S))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=seconds)
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        store = anew(store, rank, size, seconds=seconds)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:  # as torch's DistError is
        told, _, _ = str(error).partition("\n")
        raise ConnectionError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not meet the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({told.rstrip('.')}); start them by torchrun, or "
            "unset WORLD_SIZE to train alone"
        ) from error
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def anew(store: dist.Store, rank: int, size: int, *, seconds: float) -> dist.Store:
    """A part of the store that only the processes know that start now. Raises TimeoutError where one does not come.

    torchrun starts processes again with the store of those before (torch 2.14, --standalone and c10d). One that asks for the
    address of another before that has written its own finds the dead one's, and waits for it (dev/LOG.md).
    So the first process names a part, and hands the name to each of the others under a word that nobody wrote before.
    """
    if rank:
        word = uuid.uuid4().hex
        store.set(f"vitrail/asks/{rank}", word)
        name = written(store, f"vitrail/told/{word}")
        store.set(f"vitrail/{name}/{rank}", "here")
        return dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    name, told, until = uuid.uuid4().hex, dict.fromkeys(range(1, size), ""), time.monotonic() + seconds
    while told:
        for other, before in list(told.items()):
            if store.check([f"vitrail/{name}/{other}"]):
                del told[other]
            elif store.check([f"vitrail/asks/{other}"]) and (word := written(store, f"vitrail/asks/{other}")) != before:
                store.set(f"vitrail/told/{word}", name)
                told[other] = word  # of a process that is gone, perhaps: another one may ask in its place
        if told and time.monotonic() > until:
            raise TimeoutError(f"process {min(told)} did not start within {seconds:g} s; see why in its own messages")
        time.sleep(0.01)
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def written(store: dist.Store, key: str) -> str:
    """What stands under a key; waits until something does."""
    value: str | bytes = store.get(key)  # bytes, whatever torch's annotations say
    return value.decode() if isinstance(value, bytes) else value


def current() -> World:
    """The process group that is set up."""
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def own_device(device: torch.device) -> torch.device:
    """The device of this process: `device`, and on CUDA the GPU whose number torchrun gives it (LOCAL_RANK).

    One process a machine may name a GPU ("cuda:1"); several may not. Raises ValueError where they do, and where there are
    more of them than GPUs.
    """
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.index is not None:
        if processes > 1:
            raise ValueError(f"train.device {device} is one GPU for {processes} processes; use cuda, and each has its own")
        return device
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise ValueError(f"--nproc-per-node is more than the {count} GPUs of this machine; use {count}, or --train.device cpu")
    return torch.device("cuda", local)


# --------------------------------------------------------------------------------------------------------------------
# A model in parts


def require_shardable(model: Backbone, processes: World, *, dtype: torch.dtype | None) -> None:
    """Raises ValueError for a single process, for a model without blocks, and for fp16."""
    if processes.size == 1:
        raise ValueError("train.shard needs several processes; start them by `torchrun --nproc-per-node N -m vitrail train …`")
    if not model.blocks_in_order():
        raise ValueError(f"train.shard needs a model with blocks, and {type(model).__name__} has none; leave it out")
    if dtype == torch.float16:
        raise ValueError("train.shard does not go with fp16, whose loss is scaled in each process; use --train.precision bf16")


def shard(model: Backbone, processes: World, *, device: torch.device, dtype: torch.dtype | None) -> None:
    """FSDP2: every process keeps its part of each weight, and a block is put together only while it computes.

    With `dtype` the blocks are sent and computed in it, and gradients are summed in fp32; the parts stay in fp32.
    Raises ValueError for what `require_shardable` refuses.
    """
    require_shardable(model, processes, dtype=dtype)
    from torch.distributed.device_mesh import init_device_mesh  # a second of imports that others do without
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (processes.size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype is not None else None)
    for weight in model.parameters():  # FSDP2 takes no others: a convolutional stem computes more slowly then
        weight.data = weight.data.contiguous()
    for block in model.blocks_in_order():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Kept together behind a pass, as the outermost part is by default, a running mean would be evaluated as it was before.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for name in ("outputs", "forward_features", "features", "embedding", "head_logits"):
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


def is_sharded(model: nn.Module) -> bool:
    """Whether every process has only its part of the weights."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not loaded, it has sharded nothing
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def in_parts(value: Tensor) -> bool:
    """Whether a tensor is one of which every process has a part."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(value, tensors.DTensor)


def own_part(value: Tensor) -> Tensor:
    """This process's part of a weight, which is all of it where nothing is sharded; a view, not a copy."""
    own: Tensor = value.to_local() if in_parts(value) else value  # type: ignore[attr-defined]
    return own


def whole(value: Tensor) -> Tensor:
    """A weight put together from the parts of all processes, all of which have to ask."""
    full: Tensor = value.full_tensor() if in_parts(value) else value  # type: ignore[attr-defined]
    return full
