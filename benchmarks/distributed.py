"""What several processes bring on one machine: the speed of two beside one, and a model that one alone can't train.

    python benchmarks/distributed.py [--rounds 3] [--seconds 40] [--only speed|memory] [--out FILE]

Speed: `vitrail train fashion-mnist` in one process with two threads and in two processes (DDP, gloo) with one thread each, in
interleaved rounds of so many seconds; the ratio is of the median images a second within a round.

Memory: a ViT with 12 blocks of width 1024, whose AdamW state is twice its weights. Under the same limit for each process
(RLIMIT_DATA) one process ends with a line that says so, and two with train.shard train it. The limit lies halfway between what
the two take without one. Writes benchmarks/results/distributed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import machine
from vitrail.bench.rounds import interleave, ratios, summary

CASES = {
    "28-px ViT of the recipe, batch 128": ("--recipe", "fashion-mnist"),
    "Ti/16 at 224 px, batch 32": ("--model", "Ti/16", "--model.img_size", "224", "--train.batch_size", "32"),
}
WIDE = {
    "--model": "Ti/16",
    "--model.img_size": "32",
    "--model.embed_dim": "1024",
    "--model.num_heads": "16",
    "--model.depth": "12",
    "--optim.name": "adamw",
    "--train.steps": "3",
    "--train.batch_size": "8",
    "--train.precision": "fp32",
    "--train.eval_every": "0",
}


def launch(words: list[str], *, processes: int, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """`vitrail` with these words in so many processes, which share the cores; with `limit`, bytes of data for each."""
    threads = max(1, machine.cores() // processes)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    return subprocess.run(
        [sys.executable, *launcher, "-m", "vitrail", *words],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "VITRAIL_TIMEOUT_S": "120"},
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
    )


def speed(options: tuple[str, ...], *, processes: int, seconds: float) -> float:
    """Images a second of a run of so many seconds: the median of its reports behind the first third."""
    length = ("--minutes", f"{seconds / 60:g}", "--train.eval_every", "0")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        done = launch(["train", "fashion-mnist", *options, *length, "--out", str(out)], processes=processes)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        reports = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [report["images_per_s"] for report in reports if "images_per_s" in report]
    return statistics.median(rates[len(rates) // 3 :])


def speeds(rounds: int, seconds: float) -> dict[str, Any]:
    """Both ways in turn."""
    result: dict[str, Any] = {}
    for title, options in CASES.items():
        turns = {name: partial(speed, options, processes=n, seconds=seconds) for name, n in (("one", 1), ("two", 2))}
        rates = interleave(turns, least=rounds, on_round=partial(print, title, flush=True))
        result[title] = {name: statistics.median(values) for name, values in rates.items()}
        result[title] |= {"ratio": summary(ratios(rates["two"], rates["one"]), digits=6)}
    return result


def memory() -> dict[str, Any]:
    """What one process and each of two take, and what happens to both under a limit between."""
    with tempfile.TemporaryDirectory() as name:

        def words(out: str, *more: str) -> list[str]:
            return [
                "train",
                "fashion-sample",
                "--recipe",
                "from-scratch",
                *chain(*WIDE.items()),
                *more,
                "--out",
                str(Path(name) / out),
            ]

        low, high = 0.5e9, 12e9  # bytes, by bisection: the least limit under which each of the two trains
        least = {}
        for title, processes, more in (("one", 1, ()), ("two, in parts", 2, ("--train.shard", "true"))):
            lower, upper = low, high
            while upper - lower > 0.2e9:
                middle = (lower + upper) / 2
                done = launch(words(f"{processes}-{middle:.0f}", *more), processes=processes, limit=int(middle))
                lower, upper = (lower, middle) if done.returncode == 0 else (middle, upper)
                print(f"{title}: {middle / 1e9:.2f} GB {'is enough' if done.returncode == 0 else 'is too little'}", flush=True)
            least[title] = upper
        limit = int((least["one"] + least["two, in parts"]) / 2)
        alone = launch(words("alone"), processes=1, limit=limit)
        parts = launch(words("parts", "--train.shard", "true"), processes=2, limit=limit)
        return {
            "least_gb": {title: round(value / 1e9, 2) for title, value in least.items()},
            "limit_gb": round(limit / 1e9, 2),
            "one": {"code": alone.returncode, "said": alone.stderr.strip().splitlines()[-1:]},
            "two": {"code": parts.returncode, "saved": (Path(name) / "parts" / "model.safetensors").exists()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each training")
    parser.add_argument("--only", choices=("speed", "memory"))
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "distributed.json")
    args = parser.parse_args()
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    machines = result.setdefault("machines", {})
    if args.only != "memory":
        result["speed"], machines["speed"] = speeds(args.rounds, args.seconds), machine.facts()
    if args.only != "speed":
        result["memory"], machines["memory"] = memory(), machine.facts()
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
