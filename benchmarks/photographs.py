"""A ViT beside a CNN from random weights, on a folder of photographs: the same time in the same loop.

    python benchmarks/photographs.py PHOTOS --name clothing [--minutes 30] [--seed 0] [--only vit] [--out FILE]

Both are `vitrail train PHOTOS` with the recipe `from-scratch` and the same minutes: one with the recipe's ViT, one with
torchvision's ResNet-18, whose learning rate is a usual one for it (AdamW, 1e-3 at batch 64; the recipe's is Muon's). The
whole test split is scored. Nothing else should run on the machine meanwhile; images a second are in the result, so that one
sees where something did. Writes benchmarks/results/photographs.json, one contender as soon as it is done.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import machine
from accuracy import Row, measure

CONTENDERS = {
    "ViT of the recipe": (),
    "ResNet-18": ("--model", "torchvision:resnet18", "--optim.name", "adamw", "--optim.lr", "1.6e-2"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of images with train, validation and test")
    parser.add_argument("--name", required=True, help="the folder's name in the results; a path is not written there")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), help="default: both")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "photographs.json")
    args = parser.parse_args()
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.only or CONTENDERS:
        options = ("--recipe", "from-scratch", "--minutes", f"{args.minutes:g}", *CONTENDERS[name])
        row = Row(args.name, str(args.photos), options)
        shown = " ".join(["vitrail", *row.command(args.name.upper())])
        result[name] = {"command": shown, "minutes": args.minutes, **measure(row, seed=args.seed)}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name}: {result[name]['top1']:.2%}, {result[name]['images_per_s']:.0f} images/s", flush=True)


if __name__ == "__main__":
    main()
