"""A step of Muon beside torch's own, on this machine as it is and with AVX2 alone, where bf16 is emulated.

    python benchmarks/muon.py                      writes results/muon.json
    python benchmarks/muon.py --size Ti/4 --rounds 3 --out quick.json

Both optimizers move the matrices of a ViT's blocks, with the same gradients, in turns and in one process. torch's computes in
bf16, ours in the type that `optim.muon_precision auto` takes on this machine. The greatest relative difference of the weights
after all rounds is reported too.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import machine
from vitrail.bench.rounds import interleave, ratios, summary, timed
from vitrail.models import create_model
from vitrail.models.device import bf16_is_faster
from vitrail.settings import OptimConfig
from vitrail.train.muon import Muon
from vitrail.train.optim import group_table

SIZES: dict[str, dict[str, int]] = {"Ti/4": {"img_size": 28, "in_channels": 1}, "S/16": {}}
OPTIONS: dict[str, Any] = {"lr": 1e-3, "momentum": 0.95, "weight_decay": 0.05, "adjust_lr_fn": "match_rms_adamw"}


def matrices(size: str) -> list[nn.Parameter]:
    """The matrices that Muon moves in a model of this size, with random gradients."""
    torch.manual_seed(0)
    model = create_model(size, **SIZES[size])
    moved = {row.name for row in group_table(model, OptimConfig(name="muon")) if row.optimizer == "muon"}
    parameters = [parameter for name, parameter in model.named_parameters() if name in moved]
    for parameter in parameters:
        parameter.grad = 0.01 * torch.randn_like(parameter)
    return parameters


def compare(size: str, *, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step of each, taken in turns, the first one left out."""
    dtype = torch.bfloat16 if bf16_is_faster(torch.device("cpu")) else torch.float32
    theirs, ours = matrices(size), matrices(size)
    optimizers = {"torch": torch.optim.Muon(theirs, **OPTIONS), "ours": Muon(ours, dtype=dtype, **OPTIONS)}
    turns = {name: partial(timed, optimizer.step) for name, optimizer in optimizers.items()}
    taken = interleave(turns, least=rounds, warmup=1)
    ms = {name: summary([1e3 * seconds for seconds in values], digits=1) for name, values in taken.items()}
    return {
        "matrices": len(ours),
        "ms": ms,
        "dtype": str(dtype).removeprefix("torch."),
        "speed_ratio": summary(ratios(taken["torch"], taken["ours"]), digits=2)["median"],
        "difference": difference(ours, theirs),
    }


@torch.no_grad()
def difference(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> float:
    """Greatest norm of a difference, relative to the matrix."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="A step of Muon beside torch's own.")
    parser.add_argument("--size", action="append", choices=SIZES, help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="store_true", help="this process's instructions alone, printed as JSON")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "muon.json")
    args = parser.parse_args()

    sizes = args.size or list(SIZES)
    if args.only:
        print(json.dumps({size: compare(size, rounds=args.rounds) for size in sizes}))
        return
    result: dict[str, Any] = {"machine": machine.facts(), "rounds": args.rounds, "cases": {}}
    words = ["--only", "--rounds", str(args.rounds), *(word for size in sizes for word in ("--size", size))]
    for name, rows in machine.with_instructions(__file__, words):
        result["cases"][name] = rows
        for size, row in result["cases"][name].items():
            ms = {kind: times["median"] for kind, times in row["ms"].items()}
            print(
                f"{name}, {size}: torch {ms['torch']:.1f} ms, ours {ms['ours']:.1f} ms in {row['dtype']}, "
                f"{row['speed_ratio']:.2f}x; weights differ by {row['difference']:.1e}"
            )
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
