"""The whole measurement of a machine: a model, two phases of interleaved rounds, and the report."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vitrail.bench import ceiling, prediction, training
from vitrail.bench.case import Case, write_case
from vitrail.bench.contender import Contender, Precision
from vitrail.bench.processes import First, Unmeasurable, Worker, end_all
from vitrail.bench.rounds import Summary, interleave, ratios, summary
from vitrail.models import machine
from vitrail.models.device import autocast_dtype, pick_device
from vitrail.settings import Pair
from vitrail.settings.families import family_of

LEAST_ROUNDS = 3
_ROUNDS = 8  # that a phase is planned for; a contender's turn is not longer than _TURN_S though
_TURN_S = 1.0
_PACKAGES = ("timm", "torchvision", "onnxruntime", "openvino")
REFERENCE = "timm fp32"
"""Contender that the ratios refer to."""
OURS_FP32 = "Vitrail fp32"
"""Contender whose logits the others are compared with."""
_PASSES = {"training": 3, "prediction": 1}  # a backward pass computes two products for each of the forward pass


@dataclass(frozen=True, kw_only=True)
class Result:
    """Speed of one contender."""

    contender: str
    precision: Precision
    images_per_s: Summary
    ratio: Summary | None
    """To timm in fp32, within the rounds; None without it."""
    gflop_per_s: float
    share_of_ceiling: float | None
    """Share of the rate of the fastest matrix products in its number type, within the rounds; None if those failed."""
    logits_difference: float | None
    """Greatest difference from our logits in fp32, relative to the greatest of those; None in training."""
    first_call_s: float


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """Rate of plain matrix products."""

    products: str
    precision: Precision
    gflop_per_s: Summary


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Training or prediction: contenders that took turns."""

    rounds: int
    calls: dict[str, int]
    """Calls of each contender in a round."""
    ceilings: list[Ceiling]
    results: list[Result]
    left_out: dict[str, str]
    """Contenders that were not measured, and why."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Speed of a machine with one model."""

    machine: dict[str, str | int]
    model: str
    img_size: Pair
    batch_size: int
    device: str
    parameters: int
    gflops: float
    """Operations of the forward pass of one image, in 10⁹; training takes three times as many."""
    train_precision: Precision
    """Number type that `vitrail train` takes on this device, or the one asked for."""
    training: Phase
    prediction: Phase
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return dataclasses.asdict(self)


def bench(
    model: str | None = None,
    *,
    img_size: int | Pair | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    minutes: float = 2.0,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure training and prediction of a model, ours beside the peers'.

    The default model is Ti/16 on a CPU, with 16 images a batch, and B/16 with 256 on a GPU. With `precision` "auto", bf16 is
    measured where the device computes it faster than fp32; "fp32" leaves it out, "bf16" measures it anyway. Rounds are taken
    until `minutes` are over, and three in any case. `say` gets lines about the progress. Raises ValueError for an invalid
    model, size or device.
    """
    start, where = time.perf_counter(), pick_device(device)
    if minutes <= 0:
        raise ValueError(f"minutes {minutes:g} must be above 0")
    name = model or ("Ti/16" if where.type == "cpu" else "B/16")
    if not family_of(name).names:
        raise ValueError(f'"{name}" is another library\'s model, which has no peers; take one that `vitrail models` lists')
    bf16 = autocast_dtype(precision, where) is not None
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if bf16 else ("fp32",)
    images = batch_size or (16 if where.type == "cpu" else 256)
    with tempfile.TemporaryDirectory() as folder:
        case = write_case(name, Path(folder), img_size=img_size, batch_size=images, device=str(where))
        say(f"{name}, {images} images a batch, on {where}: about {minutes:g} min")
        ends = {"training": start + 60 * minutes / 2, "prediction": start + 60 * minutes}
        rows = {"training": training.rows(precisions), "prediction": prediction.rows(precisions)}
        ceilings = ceiling.rows(precisions, case.device)
        phases = {kind: measure(kind, case, rows[kind], ceilings, until=ends[kind], say=say) for kind in rows}
    return Report(
        machine=facts(where),
        model=name,
        img_size=case.shape[1:],
        batch_size=images,
        device=case.device,
        parameters=case.parameters,
        gflops=round(case.flops / 1e9, 3),
        train_precision=precisions[-1],
        **phases,
        seconds=round(time.perf_counter() - start, 1),
    )


def facts(device: torch.device) -> dict[str, str | int]:
    """Return the facts of the machine, its GPU and the libraries that are installed."""
    noted = machine.facts("vitrail", *(name for name in _PACKAGES if importlib.util.find_spec(name)))
    gpu: dict[str, str | int] = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {**noted, "threads": torch.get_num_threads(), **gpu}


def measure(
    kind: str, case: Case, rows: Sequence[Contender], ceilings: Sequence[Contender], *, until: float, say: Callable[[str], None]
) -> Phase:
    """Measure one phase: start all processes, choose the calls of each turn, take rounds until the time is over.

    Raises ValueError if a contender fails after its first call.
    """
    left_out = {row.key: reason for row in rows if (reason := row.absent) is not None}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        stack.callback(lambda: end_all(workers.values()))
        for row in (*ceilings, *(row for row in rows if row.key not in left_out)):
            workers[row.key] = Worker(partial(row.build, case, row.precision), device=case.device)
        first, calls = prepare(workers, left_out, until=until)
        say(f"{kind}: {len(first)} contenders take turns")
        turns = {key: partial(take, key, workers[key], calls[key]) for key in first}
        seconds = interleave(turns, least=LEAST_ROUNDS, until=until)
    each = {key: [taken / calls[key] for taken in values] for key, values in seconds.items()}  # seconds of a call, by round
    highest = [row for row in ceilings if row.key in each]
    rates = {row.key: [ceiling.flops(row.name, case) / s / 1e9 for s in each[row.key]] for row in highest}
    measured = [row for row in rows if row.key in each]
    return Phase(
        rounds=len(next(iter(seconds.values()))),
        calls=calls,
        ceilings=[Ceiling(products=r.name, precision=r.precision, gflop_per_s=summary(rates[r.key])) for r in highest],
        results=[result(kind, case, row, each, best_rates(row.precision, highest, rates), first) for row in measured],
        left_out=left_out,
    )


def prepare(workers: dict[str, Worker], left_out: dict[str, str], *, until: float) -> tuple[dict[str, First], dict[str, int]]:
    """Make every first call, and choose how many calls a turn has, so that the rounds planned for fit the time.

    A contender that fails is moved to `left_out`, with the reason. Raises ValueError if all do.
    """
    first: dict[str, First] = {}
    for key, worker in workers.items():  # all are built before one computes
        with reason_of(key, left_out):
            worker.built()
    for key in [key for key in workers if key not in left_out]:
        with reason_of(key, left_out):
            first[key] = workers[key].first()
    if not first:
        raise ValueError(f"nothing could be measured: {next(iter(left_out.values()))}")
    left = until - time.perf_counter()
    if sum(one.seconds for one in first.values()) * (LEAST_ROUNDS + 1) > left:  # no time to find out, nor to fill
        return first, dict.fromkeys(first, 1)
    once = {key: take(key, workers[key], 1) for key in first}
    turn = min(_TURN_S, left / _ROUNDS / len(first))
    return first, {key: max(1, round(turn / once[key])) for key in first}


@contextlib.contextmanager
def reason_of(key: str, left_out: dict[str, str]) -> Iterator[None]:
    """Context that notes why a contender cannot be measured."""
    try:
        yield
    except Unmeasurable as error:
        left_out[key] = str(error)


def take(key: str, worker: Worker, calls: int) -> float:
    """Return the seconds of a turn. Raises ValueError, with the contender's name, if it failed."""
    try:
        return worker.take(calls)
    except Unmeasurable as error:
        raise ValueError(f"{key}: {error}") from error


def best_rates(precision: Precision, ceilings: Sequence[Contender], rates: dict[str, list[float]]) -> list[float] | None:
    """Return the rates, round by round, of the ceiling of this number type with the greatest median."""
    same = [rates[row.key] for row in ceilings if row.precision == precision]
    return max(same, key=statistics.median, default=None)


def result(
    kind: str,
    case: Case,
    row: Contender,
    each: dict[str, list[float]],
    ceiling_rates: Sequence[float] | None,
    first: dict[str, First],
) -> Result:
    """Return the figures of one contender."""
    images = [case.batch_size / seconds for seconds in each[row.key]]
    rates = [_PASSES[kind] * case.flops * speed / 1e9 for speed in images]
    return Result(
        contender=row.name,
        precision=row.precision,
        images_per_s=summary(images),
        ratio=summary(ratios(each[REFERENCE], each[row.key])) if REFERENCE in each else None,
        gflop_per_s=round(statistics.median(rates), 3),
        share_of_ceiling=None if ceiling_rates is None else round(statistics.median(ratios(rates, ceiling_rates)), 3),
        logits_difference=difference(first[row.key].output, first[OURS_FP32].output if OURS_FP32 in first else None),
        first_call_s=round(first[row.key].seconds, 3),
    )


def difference(logits: Any, reference: Any) -> float | None:
    """Return the greatest difference of two arrays, relative to the greatest value of the reference."""
    if logits is None or reference is None:
        return None
    return float(f"{np.abs(logits - reference).max() / np.abs(reference).max():.2g}")
