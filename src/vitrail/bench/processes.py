"""A process for each contender, so that settings of one (allocator, threads, precision) do not reach another."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrail.bench.rounds import timed
from vitrail.text import one_line

Call = Callable[[], object]
PRELOAD = "vitrail.bench.preload"
_PATIENCE_S = 5.0


class Unmeasurable(ValueError):
    """Reason why a contender cannot be measured, in one line."""


class First(NamedTuple):
    """The first call of a contender."""

    seconds: float
    output: Any
    """Output as an fp32 array if it is a tensor, else None."""


class Worker:
    """Process that builds a contender and then runs it on request.

    `build` returns the call to time; it must be a function of a module, or a `functools.partial` of one. Processes fork from a
    server that has torch, timm and torchvision loaded, where the system can fork.
    """

    def __init__(self, build: Callable[[], Call], *, device: str = "cpu", threads: int | None = None) -> None:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([PRELOAD])
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, device, threads), daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()  # so that a process that dies is an EOFError here, not a wait without end

    def built(self) -> None:
        """Wait until the contender is built. Raises Unmeasurable if that failed."""
        self._receive()

    def first(self) -> First:
        """Make the first call of a contender that is built. Raises Unmeasurable if it failed."""
        return First(*self._ask(1))

    def take(self, times: int = 1) -> float:
        """Return the wall time in seconds of some calls after the first. Raises Unmeasurable if one failed."""
        return float(self._ask(times))

    def end(self, *, within_s: float = _PATIENCE_S) -> None:
        """End the process: by itself if it can in this time, so that it cleans up."""
        self.stop()
        self._process.join(timeout=within_s)
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        """Tell the process to end, without waiting for it."""
        with contextlib.suppress(OSError):
            self._line.send(0)
        self._line.close()

    def _ask(self, times: int) -> Any:
        with contextlib.suppress(OSError):  # the process ended: receiving says so
            self._line.send(times)
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._line.recv()
        except (EOFError, OSError):
            raise Unmeasurable("its process ended; memory may have run out, so try a smaller batch") from None
        if isinstance(answer, str):
            raise Unmeasurable(answer)
        return answer


def end_all(workers: Iterable[Worker]) -> None:
    """End all processes, within seconds even if they are busy."""
    ends = time.monotonic() + _PATIENCE_S
    for worker in (every := list(workers)):
        worker.stop()
    for worker in every:
        worker.end(within_s=max(0.0, ends - time.monotonic()))


def _serve(line: Connection, build: Callable[[], Call], device: str, threads: int | None) -> None:
    """Build, make the first call, then answer each number of calls with their seconds, until 0; a string is an error.

    Each waits for the parent, as contenders that compute at the same time wait for each other's threads. On a GPU, contenders
    that wait give their cached memory back, and a call that is not timed fetches it again.
    """
    on_gpu = torch.device(device).type == "cuda"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    outputs: list[object] = []
    try:
        call = build()
        line.send(True)
        if not line.recv():
            return
        seconds = timed(lambda: outputs.append(call()), wait=lambda: wait(device))
        line.send((seconds, array(outputs[0])))
        while times := line.recv():
            if on_gpu:
                call()
            line.send(timed(call, times=times, wait=lambda: wait(device)))
            if on_gpu:
                torch.cuda.empty_cache()
    except (EOFError, BrokenPipeError):  # the parent has ended
        return
    except Exception as error:  # a peer may fail in any way, and the others are measured all the same
        line.send(one_line(error) or type(error).__name__)


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def array(output: object) -> Any:
    """Convert a tensor or an array to a NumPy array in fp32; None for anything else."""
    if isinstance(output, Tensor):
        return output.detach().float().cpu().numpy()
    return output if hasattr(output, "__array__") else None
