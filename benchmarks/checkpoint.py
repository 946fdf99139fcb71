"""What a checkpoint costs, and whether every damage to one is found.

    python benchmarks/checkpoint.py                      writes results/checkpoint.json
    python benchmarks/checkpoint.py --size Ti/16 --rounds 1 --out quick.json

Cost: seconds of one call of `checkpoint.save` with AdamW's state and a running mean, until all is hashed and on the disk;
and what it is of the default interval. Training stands still meanwhile, so this is all that checkpoints cost.
Damage: a tiny checkpoint is copied, one thing at random is done to the copy, and `checkpoint.find_newest` has to pass it over:
a bit flipped in any byte of any file, a file cut at any byte, emptied, or removed. Half of the copies are of a checkpoint
in parts, as torch.distributed.checkpoint writes it.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import machine
from vitrail.models import create_model
from vitrail.models.backbone import Backbone
from vitrail.settings import OptimConfig, TrainConfig
from vitrail.train import checkpoint
from vitrail.train.optim import build_optimizers
from vitrail.train.step import Ema

SIZES = ("Ti/16", "S/16", "B/16")
DAMAGES = ("flipped", "cut", "emptied", "removed")
INTERVAL_S = 60 * TrainConfig().checkpoint_every


def training(model: Backbone) -> dict[str, Any]:
    """What `save` takes of a training that has made its first step."""
    optimizers = build_optimizers(model, OptimConfig(name="adamw"), batch_size=1024)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers.step()
    optimizers.zero_grad()
    return {"model": model, "ema": Ema(model, copy.deepcopy(model), 0.9), "optimizers": optimizers, "state": {}, "keep": 2}


def cost(size: str, *, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of the saves, the first of which finds no memory that the process has used before."""
    made, seconds, path = training(create_model(size)), [], folder
    for step in range(rounds):
        start = time.perf_counter()
        path = checkpoint.save(folder, step=step, **made)
        seconds.append(time.perf_counter() - start)
    written = sum(file.stat().st_size for file in path.iterdir())
    median = statistics.median(seconds)
    return {
        "parameters": sum(p.numel() for p in made["model"].parameters()),
        "mb": round(written / 1e6),
        "save_s": {"median": round(median, 3), "min": round(min(seconds), 3), "max": round(max(seconds), 3)},
        "share": round(median / INTERVAL_S, 5),
        "share_of_slowest": round(max(seconds) / INTERVAL_S, 5),
    }


def damage(folder: Path, rng: random.Random) -> str:
    """Does one thing to one file of a checkpoint, both at random, and says which."""
    kind, file = rng.choice(DAMAGES), rng.choice(sorted(folder.iterdir()))
    content = bytearray(file.read_bytes())
    if kind == "removed":
        file.unlink()
        return kind
    if kind == "flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content if kind == "flipped" else content[: 0 if kind == "emptied" else rng.randrange(len(content))])
    return kind


def detection(count: int, *, seed: int, folder: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Of each form and kind of damage, how many were done and how many were found."""
    rng = random.Random(seed)
    tiny = ViT(img_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for form in ("whole", "in parts"):
        with mock.patch.object(checkpoint, "is_sharded", lambda _, form=form: form == "in parts"):
            good = checkpoint.save(folder / form, step=1, **training(tiny))
        counts[form] = {kind: {"done": 0, "found": 0} for kind in DAMAGES}
        for number in range(count // 2):
            there = folder / form / str(number)
            shutil.copytree(good, there / good.name)
            if checkpoint.find_newest(there)[0] != there / good.name:
                raise AssertionError("the copy itself is not taken for whole")
            row = counts[form][damage(there / good.name, rng)]
            row["done"] += 1
            try:
                checkpoint.find_newest(there)
            except ValueError:
                row["found"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="What a checkpoint costs, and whether every damage to one is found.")
    parser.add_argument("--size", action="append", choices=SIZES, help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="saves of each size")
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the checkpoints go meanwhile; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "checkpoint.json")
    args = parser.parse_args()

    result: dict[str, Any] = {"machine": machine.facts(), "interval_s": INTERVAL_S, "rounds": args.rounds, "cost": {}}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result["damage"] = detection(args.damages, seed=args.seed, folder=Path(folder, "tiny"))
        rows = [row for form in result["damage"].values() for row in form.values()]
        print(f"damages found: {sum(row['found'] for row in rows)} of {sum(row['done'] for row in rows)}")
        for size in args.size or SIZES:
            print(size, file=sys.stderr)
            row = result["cost"][size] = cost(size, rounds=args.rounds, folder=Path(folder, size))
            seconds = row["save_s"]
            print(
                f"{size}: {row['mb']:,} MB in {seconds['median']:.2f} s ({seconds['min']:.2f} to {seconds['max']:.2f}), "
                f"{row['share']:.2%} of {INTERVAL_S / 60:g} minutes"
            )
            shutil.rmtree(Path(folder, size))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
