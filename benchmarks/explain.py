"""What a map costs: the class token's rows of one layer beside a plain forward pass, and every method on a long image.

    python benchmarks/explain.py [--rounds 15] [--only time memory long] [--out FILE]

Time: ViT-B/16 at 224 px in fp32, one image and eight, our forward pass, our rows of one layer, and transformers' and timm's way
to the same rows (`output_attentions` with eager attention; fused attention off and a hook), each beside its own forward pass,
in turns. Memory: the greatest resident size of a process of its own over what it had with the model loaded, after a pass over
one small image. Long: 1,024 px, 4,096 patches, every method. Writes benchmarks/results/explain.json. Memory needs Linux.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import machine
from memory import resident
from vitrail.bench.rounds import interleave, ratios, summary, timed
from vitrail.explain import METHODS
from vitrail.models import ViT, create_model

LAYER = 6
BATCHES = (1, 8)


def ours(img_size: int = 224) -> ViT:
    """B/16 with random weights."""
    torch.manual_seed(0)
    model = create_model("B/16", img_size=img_size)
    assert isinstance(model, ViT)
    return model.eval()


def ways() -> dict[str, tuple[Callable[[Tensor], object], Callable[[Tensor], object]]]:
    """Library -> its forward pass, and its way to the class token's rows of one layer."""
    import timm
    from transformers import ViTConfig, ViTForImageClassification

    from vitrail.explain import attention

    model = ours()
    theirs: list[Any] = []
    for way in ("eager", "sdpa"):
        config: Any = ViTConfig()
        config.num_labels, config._attn_implementation = 1000, way
        theirs.append(cast(Any, ViTForImageClassification(config)).eval())
    eager, fused = theirs
    plain, hooked = (cast(Any, timm.create_model("vit_base_patch16_224")).eval() for _ in range(2))
    for block in hooked.blocks:
        block.attn.fused_attn = False
    kept: dict[int, Tensor] = {}
    hooked.blocks[LAYER].attn.attn_drop.register_forward_hook(lambda module, taken, given: kept.update({0: given[:, :, :1]}))
    return {
        "ours": (model, lambda x: attention(model, x, layer=LAYER)),
        "ours, last layer": (model, lambda x: attention(model, x)),
        "transformers": (fused, lambda x: eager(x, output_attentions=True).attentions[LAYER][:, :, 0]),
        "timm": (plain, hooked),
    }


@torch.inference_mode()
def run(call: Callable[[Tensor], object], images: Tensor) -> None:
    """One call."""
    call(images)


def times(rounds: int) -> dict[str, Any]:
    """By library and batch: the seconds of the way to the rows over those of the forward pass, in the same round."""
    every, result = ways(), {}
    for batch in BATCHES:
        images = torch.randn(batch, 3, 224, 224)
        turns = {
            f"{kind}, {name}": partial(timed, partial(run, call, images))
            for name, calls in every.items()
            for kind, call in zip(("forward", "rows"), calls, strict=True)
        }
        taken = interleave(turns, least=rounds, warmup=2)
        result[str(batch)] = {name: summary(ratios(taken[f"rows, {name}"], taken[f"forward, {name}"])) for name in every}
        print(f"{batch} images:", {name: value["median"] for name, value in result[str(batch)].items()}, flush=True)
    return result


def peak(what: str, batch: int, img_size: int) -> int:
    """Greatest resident size in bytes over what this process has with the model loaded, for one call."""
    from vitrail import explain

    model = ours(img_size)
    small = torch.randn(1, 3, 32, 32)
    calls: dict[str, Callable[[Tensor], object]] = {
        "forward": model,
        "rows": lambda x: explain.attention(model, x),  # of the last layer, the longest way
        **{name: (lambda x, run=row.run: run(model, x)) for name, row in METHODS.items()},  # type: ignore[misc]
        "similarity": lambda x: explain.similarity(model, x, query=(0, 0)),
        "integrated_gradients": lambda x: explain.integrated_gradients(model, x, steps=2),  # as many steps, one at a time
    }
    with torch.no_grad():
        calls[what](small)
        images = torch.randn(batch, 3, img_size, img_size)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        calls[what](images)
    return resident("VmHWM") - before


def in_a_process(what: str, batch: int, img_size: int) -> int:
    """`peak`, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(peak, what, batch, img_size).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=("time", "memory", "long"), default=["time", "memory", "long"])
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "explain.json")
    args = parser.parse_args()
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    result["machine"] = machine.facts("timm", "transformers")
    if "time" in args.only:
        result["rounds"], result["time"] = args.rounds, times(args.rounds)
    if "memory" in args.only:
        mb = {what: in_a_process(what, 8, 224) / 1e6 for what in ("forward", "rows")}
        result["memory"] = {**{f"{what}_mb": round(value) for what, value in mb.items()}, "ratio": mb["rows"] / mb["forward"]}
        print(result["memory"], flush=True)
    if "long" in args.only:
        result["long_mb"] = {}
        for method in ("forward", *METHODS):
            result["long_mb"][method] = round(in_a_process(method, 1, 1024) / 1e6)
            print(f"1,024 px, {method}: {result['long_mb'][method]} MB", file=sys.stderr, flush=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
