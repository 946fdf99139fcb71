"""Plain attention (matmul, softmax, matmul) beside the fused kernel on a CPU in bf16, by the number of tokens.

    python benchmarks/attention.py        writes results/attention.json, from which PLAIN_ATTENTION_MAX_TOKENS follows

Heads of 64 channels; about as many tokens in all at every length. The two take turns in every round; a speed-up is the
fused kernel's seconds over plain attention's in the same round.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import machine
from vitrail.bench.rounds import Summary, interleave, ratios, summary, timed
from vitrail.models.attention import attention_weights

TOKENS = (50, 197, 257, 577, 1025, 2049, 4097)
HEADS, HEAD_DIM = 6, 64


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What models/vit.py does below the threshold."""
    return attention_weights(q, k, None) @ v


def call(attend: Callable[[Tensor, Tensor, Tensor], Tensor], qkv: list[Tensor], *, training: bool) -> None:
    """Attention, with its backward pass where asked."""
    with torch.set_grad_enabled(training):
        out = attend(*qkv)
    if training:
        torch.autograd.grad(out, qkv, out)


def speedup(tokens: int, *, training: bool, rounds: int, total: int) -> Summary:
    """Median, least and greatest of the rounds."""
    batch = max(1, total // tokens)
    qkv = [torch.randn(batch, HEADS, tokens, HEAD_DIM, dtype=torch.bfloat16, requires_grad=training) for _ in range(3)]
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"plain": plain, "fused": F.scaled_dot_product_attention}
    turns = {name: partial(timed, partial(call, way, qkv, training=training), times=3) for name, way in ways.items()}
    seconds = interleave(turns, least=rounds, warmup=1)
    return summary(ratios(seconds["fused"], seconds["plain"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Plain attention beside the fused kernel on a CPU in bf16.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--total", type=int, default=8192, help="tokens of a batch, over all its images")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "attention.json")
    args = parser.parse_args()
    torch.set_num_threads(machine.cores())
    rows: dict[str, Any] = {}
    for tokens in TOKENS:
        modes = {"forward": False, "training": True}
        rows[str(tokens)] = {
            name: speedup(tokens, training=training, rounds=args.rounds, total=args.total) for name, training in modes.items()
        }
        print(f"{tokens} tokens: {rows[str(tokens)]}", file=sys.stderr)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"machine": machine.facts(), "speedup": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
