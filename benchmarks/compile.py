"""Compiling a deep model by block, as train.compile does, beside compiling it whole.

    python benchmarks/compile.py                    24 blocks, without and with stochastic depth; writes results/compile.json
    python benchmarks/compile.py --depth 4 --batch-size 2 --starts 1 --rounds 2 --out quick.json

First the first step: all that somebody waits for from the first batch to the moved weights, compilers included, in a new
process with an empty compiler cache, several times in turn. The processes of the last turn stay, and take further steps in
interleaved rounds. A step is the one that vitrail.train takes, under bf16 autocast with AdamW. What counts is the ratio
within a turn or a round: its median, least and greatest are reported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import machine
from train_step import OPTIM, Case, synthetic
from vitrail.bench.processes import Call
from vitrail.bench.rounds import interleave, ratios, rotated, summary
from vitrail.bench.training import our_step
from vitrail.models import ViT
from vitrail.models.device import keep_freed_memory
from vitrail.settings import ViTConfig

WAYS = ("not compiled", "by block", "whole")
RATES = (0.0, 0.1)
"""Of stochastic depth: with it each block has a number of its own, which must not make it another program."""


@dataclass(frozen=True)
class Process:
    """One contender's process and the line to it."""

    process: BaseProcess
    line: Connection

    @staticmethod
    def start(way: str, case: Case, threads: int) -> Process:
        """One that is getting ready."""
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=contend, args=(theirs, way, case, threads))
        process.start()
        theirs.close()  # so that a process that dies is an EOFError here, not a wait without end
        return Process(process, ours)

    def take(self, steps: int) -> tuple[float, int]:
        """Seconds that the steps took, and how many graphs the process has compiled up to now."""
        self.line.send(steps)
        seconds, graphs = self.line.recv()
        return seconds, graphs

    def end(self) -> None:
        """Ends by itself where it can, so that the compilers' own processes end as well."""
        if self.process.is_alive():
            self.line.send(0)
            self.process.join(timeout=30)
        self.process.kill()


def contend(line: Connection, way: str, case: Case, threads: int) -> None:
    """One contender's process: builds, answers each number of steps with seconds and graphs, ends at 0."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        from torch._dynamo.utils import counters

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        step = step_of(way, case)
        while steps := line.recv():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            line.send((time.perf_counter() - start, counters["stats"]["unique_graphs"]))


def step_of(way: str, case: Case) -> Call:
    """The step that vitrail.train takes, of a model that is compiled in this way."""
    keep_freed_memory()
    model = ViT(case.vit).train()
    if way == "whole":
        model.compile()
    return our_step(model, synthetic(case), dtype=torch.bfloat16, optim=OPTIM, compiled=way == "by block")


def measure(case: Case, *, starts: int, rounds: int, steps: int, warmup: int, threads: int) -> dict[str, Any]:
    """Seconds of the first step and of the later ones by contender, their ratios, and the graphs that were compiled."""
    first: dict[str, list[float]] = {way: [] for way in WAYS}
    graphs: dict[str, int] = {}
    processes: dict[str, Process] = {}
    try:
        for turn in range(starts):
            for way in rotated(WAYS, turn):
                processes[way] = Process.start(way, case, threads)
                seconds, graphs[way] = processes[way].take(1)
                first[way].append(seconds)
                print(f"  start {turn + 1}, {way}: first step {seconds:.1f} s, {graphs[way]} graphs", file=sys.stderr)
                if turn + 1 < starts:
                    processes.pop(way).end()
        for way in WAYS:
            processes[way].take(warmup)

        def take(way: str) -> float:
            seconds, graphs[way] = processes[way].take(steps)
            return seconds / steps

        later = interleave({way: partial(take, way) for way in WAYS}, least=rounds, on_round=show)
    finally:
        for process in processes.values():
            process.end()
    return {
        "title": case.title,
        "batch_size": case.batch_size,
        "starts": starts,
        "rounds": rounds,
        "steps_a_round": steps,
        "graphs": graphs,
        "first_step_s": {way: summary(first[way]) for way in WAYS},
        "step_s": {way: summary(later[way]) for way in WAYS},
        "first_step_ratio": summary(ratios(first["by block"], first["whole"])),
        "speed_ratio": summary(ratios(later["whole"], later["by block"])),
    }


def show(seconds: dict[str, float]) -> None:
    """Print a round."""
    print("  " + ", ".join(f"{way} {taken:.3f} s" for way, taken in seconds.items()), file=sys.stderr)


def case_of(depth: int, rate: float, batch_size: int) -> Case:
    """A model as wide as Ti at 128 px."""
    vit = ViTConfig(img_size=128, embed_dim=192, depth=depth, num_heads=3, drop_path_rate=rate)
    return Case(f"{depth} blocks, stochastic depth {rate:g}", vit, batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compiling a deep model by block beside compiling it whole.")
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rate", type=float, action="append", help=f"of stochastic depth; default: {RATES}")
    parser.add_argument("--starts", type=int, default=3, help="first steps of each contender")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="steps of each contender in a round")
    parser.add_argument("--warmup", type=int, default=3, help="steps that are not counted, after the first")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "compile.json")
    args = parser.parse_args()

    result: dict[str, Any] = {"machine": {**machine.facts(), "threads": args.threads}, "cases": {}}
    for rate in args.rate or RATES:
        case = case_of(args.depth, rate, args.batch_size)
        print(case.title, file=sys.stderr)
        shape = {name: getattr(args, name) for name in ("starts", "rounds", "steps", "warmup", "threads")}
        row = result["cases"][f"drop-path-{rate:g}"] = measure(case, **shape)
        for name, what in (("first_step_ratio", "first step, by block / whole"), ("speed_ratio", "speed, by block / whole")):
            print(f"{case.title}: {what} = {row[name]['median']:.2f} ({row[name]['min']:.2f} to {row[name]['max']:.2f})")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
