"""Distributed training: processes started by torchrun that communicate by torch.distributed.

Every process has the full model (DDP), or a shard of every weight (FSDP2), and its rows of each batch. All communication but
that of gradients goes through `World`; a run in one process has a world of size 1, in which nothing is sent.
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
"""Seconds that a process waits for the others before it fails; overridden by $VITRAIL_TIMEOUT_S."""


@dataclass(frozen=True)
class World:
    """Process group of a run: rank of this process, number of processes, and collectives."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    """Number of processes on this machine."""

    @property
    def first(self) -> bool:
        """True in the process of rank 0, which prints and writes files."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def max(self, *values: float) -> tuple[float, ...]:
        """Return the maximum of each number over the processes."""
        if self.size == 1:
            return values
        maxima = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
        return tuple(maxima.tolist())

    def gather(self, value: Result) -> list[Result]:
        """Return the values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def run_on_first(self, do: Callable[[], Result]) -> Result:
        """Call a function in the first process, and return its result in all of them.

        For interaction, writing and downloading. An exception is raised in the first process; the others raise PeerFailed.
        """
        if self.size == 1:
            return do()
        outcome: list[Any] = [None, None]
        error: BaseException | None = None
        if self.first:
            try:
                outcome[0] = do()
            except BaseException as raised:  # the others wait for an outcome in any case
                error, outcome[1] = raised, type(raised).__name__
        dist.broadcast_object_list(outcome, src=0)
        if error is not None:
            raise error
        if outcome[1] is not None:
            raise PeerFailed(outcome[1])
        result: Result = outcome[0]
        return result

    def raise_once(self, do: Callable[[], Result]) -> Result:
        """Call a function in all processes; raise a ValueError that several of them get only in the first of these.

        All other processes raise PeerFailed, instead of waiting for the one that failed.
        """
        if self.size == 1:
            return do()
        result: Any = None
        error: ValueError | None = None
        try:
            result = do()
        except ValueError as raised:
            error = raised
        messages = self.gather(None if error is None else str(error))
        if error is not None and messages.index(str(error)) == self.rank:
            raise error
        if any(message is not None for message in messages):
            raise PeerFailed("another process reports the error")
        value: Result = result
        return value

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Broadcast the first process's buffers: batch-norm statistics differ, for each process sees other rows."""
        if self.size > 1:
            for buffer in model.buffers():
                if not is_sharded_tensor(buffer):
                    dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        """Wait until all processes call it."""
        if self.size > 1:
            dist.barrier()


SINGLE_PROCESS = World()


class PeerFailed(Exception):
    """Another process failed and reports the error; this one prints nothing."""


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """Context of the process group that torchrun's environment describes; `SINGLE_PROCESS` without it.

    An initialised process group is used, and not destroyed. Raises ConnectionError where the processes do not connect, and
    ValueError for an incomplete environment.
    """
    if device.type == "cuda" and device.index is not None:  # nccl and .cuda() take the current device
        torch.cuda.set_device(device)
    if dist.is_available() and dist.is_initialized():
        yield current_world()
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield SINGLE_PROCESS
        return
    seconds = float(os.environ.get("VITRAIL_TIMEOUT_S", TIMEOUT_S))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=seconds)
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        store = open_new_store(store, rank, size, seconds=seconds)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:  # torch's DistError is one
        reason, _, _ = str(error).partition("\n")
        raise ConnectionError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not meet the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({reason.rstrip('.')}); start them by torchrun, "
            "or unset WORLD_SIZE to train alone"
        ) from error
    try:
        yield current_world()
    finally:
        dist.destroy_process_group()


def open_new_store(store: dist.Store, rank: int, size: int, *, seconds: float) -> dist.Store:
    """Return a prefix of the store that only the processes of this start use. Raises TimeoutError where one does not start.

    torchrun restarts processes with the store of their predecessors (torch 2.14, --standalone and c10d). A process that reads
    another's address before it is written gets the dead one's, and waits for it (dev/LOG.md). So the first process chooses a
    prefix, and sends it to each other process under a token that is new with every start.
    """
    if rank:
        token = uuid.uuid4().hex
        store.set(f"vitrail/request/{rank}", token)
        prefix = wait_for_key(store, f"vitrail/answer/{token}")
        store.set(f"vitrail/{prefix}/{rank}", "here")
        return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    prefix, answered, until = uuid.uuid4().hex, dict.fromkeys(range(1, size), ""), time.monotonic() + seconds
    while answered:
        for other, previous in list(answered.items()):
            request = f"vitrail/request/{other}"
            if store.check([f"vitrail/{prefix}/{other}"]):
                del answered[other]
            elif store.check([request]) and (token := wait_for_key(store, request)) != previous:
                store.set(f"vitrail/answer/{token}", prefix)
                answered[other] = token  # perhaps of a dead process: a restarted one may send another
        if answered and time.monotonic() > until:
            raise TimeoutError(f"process {min(answered)} did not start within {seconds:g} s; see why in its own messages")
        time.sleep(0.01)
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def wait_for_key(store: dist.Store, key: str) -> str:
    """Return the value of a key; wait until it is set."""
    value: str | bytes = store.get(key)  # bytes, whatever torch's annotations say
    return value.decode() if isinstance(value, bytes) else value


def current_world() -> World:
    """Return the initialised process group."""
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process: `device`, and on CUDA the GPU of its LOCAL_RANK.

    Raises ValueError for a numbered GPU ("cuda:1") with several processes on a machine, and for more processes than GPUs.
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
# Sharded models


def require_shardable(model: Backbone, processes: World, *, dtype: torch.dtype | None) -> None:
    """Raise ValueError for a single process, for a model without blocks, and for fp16."""
    if processes.size == 1:
        raise ValueError("train.shard needs several processes; start them by `torchrun --nproc-per-node N -m vitrail train …`")
    if not model.blocks_in_order():
        raise ValueError(f"train.shard needs a model with blocks, and {type(model).__name__} has none; leave it out")
    if dtype == torch.float16:
        raise ValueError("train.shard does not go with fp16, whose loss is scaled in each process; use --train.precision bf16")


def shard(model: Backbone, processes: World, *, device: torch.device, dtype: torch.dtype | None) -> None:
    """Shard a model by FSDP2: every process keeps its shard of each weight, and gathers a block only while it computes.

    With `dtype`, blocks are sent and computed in it, and gradients are summed in fp32; the shards stay in fp32.
    Raises ValueError as `require_shardable` does.
    """
    require_shardable(model, processes, dtype=dtype)
    from torch.distributed.device_mesh import init_device_mesh  # these imports take a second, which unsharded runs save
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (processes.size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype is not None else None)
    for weight in model.parameters():  # FSDP2 takes no others: a convolutional stem computes more slowly then
        weight.data = weight.data.contiguous()
    for block in model.blocks_in_order():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # By default the outermost module stays gathered after a pass: a running mean would be evaluated with stale weights.
    # What is outside of the blocks stays in fp32: a BatchNorm takes no weights in bf16 beside its statistics.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for name in ("outputs", "forward_features", "features", "embedding", "head_logits", "packed_logits"):
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


def is_sharded(model: nn.Module) -> bool:
    """Return True for a model whose weights are sharded."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not loaded, it has sharded nothing
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def is_sharded_tensor(value: Tensor) -> bool:
    """Return True for a tensor of which every process has a shard."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(value, tensors.DTensor)


def local_shard(value: Tensor) -> Tensor:
    """Return this process's shard of a tensor, as a view; an unsharded tensor is returned as it is."""
    local: Tensor = value.to_local() if is_sharded_tensor(value) else value  # type: ignore[attr-defined]
    return local


def full_tensor(value: Tensor) -> Tensor:
    """Gather a tensor from the shards of all processes, all of which have to call it."""
    full: Tensor = value.full_tensor() if is_sharded_tensor(value) else value  # type: ignore[attr-defined]
    return full
