"""Does a CNN teacher help? Fashion-MNIST in the same minutes with and without one, three seeds each.

    python benchmarks/distillation.py [--minutes 5] [--teacher-minutes 8] [--seeds 0 1 2] [--teacher RUN] [--out FILE]

First the teacher: torchvision's ResNet-18 in the same loop. Then, seed after seed, the recipe's ViT alone and the same ViT
with the teacher (soft distillation), both for the same minutes. The teacher is asked once about each image, which is part of
the minutes. The whole test split is scored. Nothing else should run on the machine meanwhile. Writes
benchmarks/results/distillation.json after each run, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import machine
from accuracy import Row, measure, vitrail

CNN = ("--model", "torchvision:resnet18", "--optim.name", "adamw", "--optim.lr", "8e-3", "--optim.weight_decay", "0.05")
TAUGHT = ("--distill.kind", "soft", "--distill.alpha", "0.7", "--distill.tau", "3", "--distill.once", "true")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--teacher-minutes", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teacher", type=Path, help="a run that is the teacher, instead of a new one")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "distillation.json")
    args = parser.parse_args()
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"alone": {}, "taught": {}}
    with tempfile.TemporaryDirectory() as name:
        teacher = args.teacher
        if teacher is None:
            teacher = Path(name) / "teacher"
            vitrail("train", "fashion-mnist", *CNN, "--minutes", f"{args.teacher_minutes:g}", "--out", str(teacher))
        learned = json.loads((teacher / "evaluation.json").read_text())
        result |= {"minutes": args.minutes, "teacher_options": " ".join(CNN), "options": " ".join(TAUGHT)}
        result["teacher"] = {"top1": learned["top1"], "interval": learned["top1_interval"], "minutes": args.teacher_minutes}
        print(f"teacher: {learned['top1']:.2%}", flush=True)
        length = ("--minutes", f"{args.minutes:g}")
        rows = {
            "alone": Row("alone", "fashion-mnist", length),
            "taught": Row("taught", "fashion-mnist", (*length, "--distill.teacher", str(teacher), *TAUGHT)),
        }
        for seed in args.seeds:
            for way, row in rows.items():
                if str(seed) not in result[way]:
                    result[way][str(seed)] = measure(row, seed=seed)
                    args.out.write_text(json.dumps(result, indent=1) + "\n")
                print(f"{way}, seed {seed}: {result[way][str(seed)]['top1']:.2%}", flush=True)
    gains = [result["taught"][seed]["top1"] - result["alone"][seed]["top1"] for seed in result["alone"]]
    print(f"gain: {100 * statistics.mean(gains):+.2f} points, {min(gains):+.2%} to {max(gains):+.2%}")


if __name__ == "__main__":
    main()
