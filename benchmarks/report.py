"""What does a report of 10,000 test images take, with the pass of the model that makes its scores?

    python benchmarks/report.py RUN [--data fashion-mnist] [--rounds 3]

RUN is that of `make demo`, or any other. Measured are the commands that a user types, from their start to their end:
`vitrail evaluate RUN DATA`, whose one pass of the model makes the answers and whose end is the report, and the same with
--no-report. CPU seconds are those of all threads: on a machine with other work they tell more than the clock does, so the load
average stands beside them. Writes benchmarks/results/report.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import machine
from vitrail.bench.rounds import summary
from vitrail.weights import load

LIMIT_S = 60.0
"""What the report is to reach on two cores."""


def timed(words: list[str]) -> tuple[float, float]:
    """Run a command line of Vitrail. Return its seconds by the clock, and its CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "vitrail", *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(run: Path, data: str, rounds: int) -> dict[str, Any]:
    """Take interleaved rounds of the evaluation with and without its report."""
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu_seconds": []} for name in ("with report", "without")}
    size = images = 0
    with tempfile.TemporaryDirectory() as place:
        for _ in range(rounds):
            for name, more in (("with report", []), ("without", ["--no-report"])):
                folder = Path(place, name)
                seconds, cpu = timed(["evaluate", str(run), data, "--out", str(folder), "--device", "cpu", *more])
                found[name]["seconds"].append(seconds)
                found[name]["cpu_seconds"].append(cpu)
        size = (Path(place, "with report") / "report.html").stat().st_size
        images = json.loads((Path(place, "with report") / "evaluation.json").read_text())["count"]
    rows = {name: {unit: summary(values) for unit, values in units.items()} for name, units in found.items()}
    return {"images": images, "page_bytes": size, "rounds": rounds, "limit_s": LIMIT_S, "commands": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "report.json")
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    result = measure(args.run, args.data, args.rounds)
    model = load(str(args.run))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    loads = [round(load_before, 1), round(os.getloadavg()[0], 1)]
    noted = {**machine.facts(), "threads": torch.get_num_threads(), "load_average": loads}
    args.out.write_text(json.dumps({"machine": noted, "data": args.data, "parameters": parameters, **result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
