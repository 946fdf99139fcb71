"""What a machine without bf16 gets: every row with this machine's instructions and with AVX2 alone.

    python benchmarks/laptop.py                               all but the photographs; writes results/laptop.json
    python benchmarks/laptop.py --part photographs --photos PHOTOS
    python benchmarks/laptop.py --part step --rounds 3 --out quick.json

`ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` makes most of a laptop of a newer machine: torch's kernels and oneDNN's use
AVX2, and bf16 is emulated. MKL is not bound by them, and is faster here than on an older processor.

| part | question |
| --- | --- |
| step | images/s of a training step in fp32 beside timm's eager one, in interleaved rounds, each in a process of its own |
| optimizer | share of the optimizer in a step of `make demo` |
| demo | test accuracy of `make demo`: two minutes on the embedded sample |
| photographs | validation accuracy of three minutes on a folder, with `train.smaller` and without, and the line about it |
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine

STEP_CASES = {"Ti-16-224": 8, "vit-28": 64}
"""Batch of each model."""


def step(*, rounds: int) -> dict[str, Any]:
    """Ours beside timm's, in fp32 and without compiling."""
    import dataclasses

    import train_step

    result = {}
    for name, batch in STEP_CASES.items():
        case = dataclasses.replace(train_step.CASES[name], batch_size=batch)
        row = train_step.measure(
            case, rounds=rounds, steps=4, warmup=2, threads=machine.cores(), dtype=None, names=("timm", "vitrail")
        )
        title = "Ti/16 at 224 px" if name == "Ti-16-224" else "28-px ViT"
        result[f"{title}, batch {batch}"] = row["ratios"]["vitrail / timm"] | {"images_per_s": row["images_per_s"]}
    return result


def optimizer(*, rounds: int) -> dict[str, Any]:
    """Seconds of a step of the demo's model, and of the optimizers in it."""
    import torch

    from vitrail.bench.training import batch_of
    from vitrail.models import build_model
    from vitrail.models.device import autocast_dtype, bf16_is_faster, keep_freed_memory
    from vitrail.settings import Preprocessing, layers
    from vitrail.tasks.classify import Classify
    from vitrail.train.fit import UpdateClock
    from vitrail.train.optim import build_optimizers
    from vitrail.train.step import Step

    cpu = torch.device("cpu")
    keep_freed_memory()
    muon = "bf16" if bf16_is_faster(cpu) else "fp32"
    data = {"model": {"img_size": 28, "in_channels": 1, "num_classes": 10}, "optim": {"muon_precision": muon}}
    settings = layers.build([layers.read_recipe("fashion-sample"), data])
    model = build_model(settings.model).train()
    view = Preprocessing(img_size=(28, 28), in_channels=1, mean=(0.0,), std=(1.0,))
    optimizers = build_optimizers(model, settings.optim, batch_size=settings.train.batch_size)
    take = Step(Classify(model, preprocessing=view), optimizers, autocast_dtype=autocast_dtype("auto", cpu))
    clock, batch = UpdateClock(optimizers), batch_of(torch.randn(settings.train.batch_size, 1, 28, 28), 10)
    steps, shares = [], []
    for number in range(10 * rounds):
        clock.seconds, start = 0.0, time.perf_counter()
        take(batch)
        if number >= 5:
            steps.append(time.perf_counter() - start)
            shares.append(clock.seconds / steps[-1])
    return {"step_s": round(statistics.median(steps), 4), "share": round(statistics.median(shares), 4)}


def run_and_score(words: list[str], split: str) -> dict[str, Any]:
    """A training as a user starts it: its score, its steps, and the line about its model."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "vitrail", "train", *words, "--out", str(run)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        command = [sys.executable, "-m", "vitrail", "evaluate", str(run), "--split", split, "--json"]
        scores = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    lines = [
        line.removeprefix("note: ") for line in output.splitlines() if line.removeprefix("note: ").startswith("this machine")
    ]
    return {"accuracy": scores["top1"], "images": scores["count"], "steps": steps, "line": lines[0] if lines else ""}


def demo(*, rounds: int) -> dict[str, Any]:
    """`make demo` trains with no words at all."""
    return run_and_score([], "test")


def photographs(*, rounds: int, photos: Path | None = None) -> dict[str, Any]:
    """Three minutes on a folder, on validation images."""
    folder = str(photos)
    return {
        "fits": run_and_score([folder, "--minutes", "3"], "val"),
        "refused": run_and_score([folder, "--minutes", "3", "--train.smaller", "false"], "val"),
    }


PARTS = {"step": step, "optimizer": optimizer, "demo": demo, "photographs": photographs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all but photographs")
    parser.add_argument("--photos", type=Path, help="folder of part photographs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "laptop.json")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)  # in a process with the variables set
    args = parser.parse_args()
    more = ["--photos", str(args.photos)] if args.photos else []
    if args.only:
        options = {"photos": args.photos} if args.only == "photographs" else {}
        print(json.dumps(PARTS[args.only](rounds=args.rounds, **options)))
        return
    parts = args.part or [name for name in PARTS if name != "photographs"]
    if "photographs" in parts and args.photos is None:
        parser.error("--part photographs needs --photos FOLDER")
    result = json.loads(args.out.read_text()) if args.out.exists() else {"parts": {}}
    result["machine"] = machine.facts("timm")
    for part in parts:
        for title, row in machine.with_instructions(__file__, ["--only", part, "--rounds", str(args.rounds), *more]):
            result["parts"].setdefault(part, {})[title] = row
            print(f"{part}, {title}: {json.dumps(row)}", file=sys.stderr)
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
