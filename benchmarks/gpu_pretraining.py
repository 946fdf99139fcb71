"""Pre-training without labels on one GPU in eight minutes: LeJEPA on CIFAR-10 for five of them, then k-NN and a linear probe.

    python benchmarks/gpu_pretraining.py                     writes results/gpu_pretraining.json
    python benchmarks/gpu_pretraining.py --toy --device cpu  seconds of it on the sample, to try the script; writes nothing

Each is a command of the package in a process of its own: `vitrail pretrain` and `vitrail probe`. Beside the accuracies on the
test images stand images/s, and the share of a large product's speed that the forward and backward passes of the views are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import accuracy
import machine
import vitrail
from gpu import Scale, ceiling
from vitrail.models.counts import count

VIEWS = 2
OPTIONS = ("--method", "lejepa", "--recipe", "lejepa-small", "--train.batch_size", "512", "--train.eval_every", "20")
MODEL = ("--model.embed_dim", "192", "--model.depth", "6", "--model.num_heads", "3")


def main() -> None:
    """Pre-train, and score the frozen features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "gpu_pretraining.json")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --toy --device cpu tries the script")
    data, minutes, model = ("fashion-sample", 0.1, ()) if args.toy else ("cifar10", args.minutes, MODEL)
    words = [
        *OPTIONS,
        *model,
        "--train.device",
        args.device,
        "--minutes",
        f"{minutes:g}",
        "--train.compare",
        "false",
        "--no-report",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        accuracy.vitrail("pretrain", data, *words, "--out", str(run))
        probe = [sys.executable, "-m", "vitrail", "probe", str(run), data, "--device", args.device, "--json"]
        scores = json.loads(subprocess.run(probe, check=True, stdout=subprocess.PIPE, text=True).stdout)
        trained = accuracy.training(run / "metrics.jsonl")
        flops = VIEWS * 3 * count(vitrail.load(run).config).flops
    speed = ceiling(Scale(args.device))
    result: dict[str, Any] = {
        "command": " ".join(["vitrail", "pretrain", data, *words]),
        **{way: scores[way]["test"] for way in ("knn", "probe")},
        **trained,
        "ceiling_tflop_per_s": speed,
        "share_of_ceiling": trained["images_per_s"] * flops / 1e12 / speed,
        "machine": {**machine.facts(), "gpu": "none" if args.device == "cpu" else torch.cuda.get_device_name()},
    }
    print(json.dumps(result, indent=1))
    if not args.toy:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
