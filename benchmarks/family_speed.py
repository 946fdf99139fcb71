"""Forward pass and training step of the families' models beside timm's and transformers', in interleaved rounds on a CPU.

    python benchmarks/family_speed.py                                writes results/family_speed.json
    python benchmarks/family_speed.py --model swin_t --rounds 3 --out quick.json

Every library builds the same architecture with random weights, for 1000 classes. The forward pass of ours is the one that
`vitrail predict` runs; the training step of ours is that of `vitrail train`, the others' forward, cross-entropy, backward and
fused AdamW. Each contender has a process of its own; in a round they run one after the other, never at once, and the order
turns from round to round. What counts is the ratio to the faster of the two others, within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import machine
from vitrail.bench.processes import Call, Worker, end_all
from vitrail.bench.rounds import interleave, ratios, summary
from vitrail.bench.training import batch_of, our_step, plain_step
from vitrail.deploy import BACKENDS
from vitrail.models import create_model
from vitrail.models.device import autocast, bf16_is_faster, keep_freed_memory
from vitrail.settings import OptimConfig

CPU, CLASSES, OURS = torch.device("cpu"), 1000, "vitrail"
TURN_S = 0.5
"""A contender repeats its call until a turn takes about this long."""
Work = Literal["forward", "training step"]
BATCHES: Mapping[Work, int] = {"forward": 8, "training step": 16}
OPTIM = OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=None)


class Logits(nn.Module):
    """A model of transformers whose output is a tensor: its logits, or a linear head on the pooled embedding."""

    def __init__(self, model: nn.Module, width: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.head = None if width is None else nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        out = self.model(pixel_values=images)
        logits: Tensor = out.logits if self.head is None else self.head(out.pooler_output)
        return logits


def timm_model(name: str, side: int) -> nn.Module:
    import timm

    fields: dict[str, Any] = {"num_classes": CLASSES, "img_size": side}
    model: nn.Module = timm.create_model(name, **fields)
    return model


def transformers_swin(side: int) -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    fields: dict[str, Any] = {"image_size": side, "num_labels": CLASSES}  # all other defaults are Swin-T's
    return Logits(SwinForImageClassification(SwinConfig(**fields)))


def transformers_dinov3(side: int) -> nn.Module:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    shape: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
    return Logits(DINOv3ViTModel(DINOv3ViTConfig(image_size=side, num_register_tokens=4, **shape)), 384)


@dataclass(frozen=True)
class Row:
    """One model: how the other libraries build it, at a side in pixels."""

    peers: Mapping[str, Callable[[int], nn.Module]]
    side: int = 224


MODELS = {
    "swin_t": Row({"timm": partial(timm_model, "swin_tiny_patch4_window7_224"), "transformers": transformers_swin}),
    "cait_xxs24": Row({"timm": partial(timm_model, "cait_xxs24_224")}),
    "dinov3_s16": Row({"timm": partial(timm_model, "vit_small_patch16_dinov3_qkvb"), "transformers": transformers_dinov3}),
}
"""Models by our name. One that this version does not have is left out, with a line."""


def images_of(batch_size: int, side: int) -> Tensor:
    return torch.randn(batch_size, 3, side, side, generator=torch.Generator().manual_seed(0))


def build(contender: str, model: str, work: Work, batch_size: int, side: int, dtype: torch.dtype | None) -> Call:
    """One contender's call, in its own process."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    images = images_of(batch_size, side)
    if contender == OURS:
        keep_freed_memory()
        ours = create_model(model, img_size=side, num_classes=CLASSES)
        if work == "training step":
            return our_step(ours.train(), batch_of(images, CLASSES), dtype=dtype, optim=OPTIM)
        form = BACKENDS["bf16" if dtype else "packed" if not BACKENDS["packed"].unavailable(CPU) else "fp32"]
        return partial(_without_gradients, form.build(ours.eval(), batch_size=batch_size), images, None)
    theirs = MODELS[model].peers[contender](side)
    if work == "training step":
        return plain_step(theirs.train(), batch_of(images, CLASSES), dtype=dtype)
    return partial(_without_gradients, theirs.eval(), images, dtype)


@torch.inference_mode()
def _without_gradients(forward: Callable[[Tensor], Tensor], images: Tensor, dtype: torch.dtype | None) -> Tensor:
    with autocast(CPU, dtype):
        return forward(images)


def measure(
    model: str, work: Work, *, rounds: int, side: int, batch_size: int, threads: int, dtype: torch.dtype | None
) -> dict[str, Any]:
    """Images a second of every contender, and our ratio to each and to the faster one, within the rounds."""
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        stack.callback(lambda: end_all(workers.values()))
        calls, turns = {}, {}
        for name in (OURS, *MODELS[model].peers):
            workers[name] = Worker(partial(build, name, model, work, batch_size, side, dtype), threads=threads)
            workers[name].built()
            workers[name].first()
            calls[name] = max(1, round(TURN_S / workers[name].take()))
            turns[name] = partial(workers[name].take, calls[name])
        seconds = interleave(turns, least=rounds)
    speeds = {name: [calls[name] * batch_size / taken for taken in values] for name, values in seconds.items()}
    peers = {name: values for name, values in speeds.items() if name != OURS}
    fastest = [max(values) for values in zip(*peers.values(), strict=True)]
    return {
        "batch_size": batch_size,
        "images_per_s": {name: summary(values) for name, values in speeds.items()},
        "ratios": {name: summary(ratios(speeds[OURS], values)) for name, values in peers.items()},
        "ratio_to_the_faster": summary(ratios(speeds[OURS], fastest)),
    }


def parameters(model: str, side: int) -> dict[str, int]:
    """Number of parameters of each contender's model: the sign that it is the same architecture."""
    with torch.device("meta"):
        every = {OURS: create_model(model, img_size=side, num_classes=CLASSES)}
        every |= {name: peer(side) for name, peer in MODELS[model].peers.items()}  # type: ignore[misc]
    return {name: sum(parameter.numel() for parameter in one.parameters()) for name, one in every.items()}


def reason_against(model: str) -> str | None:
    """Why this version can't build a model; None if it can."""
    try:
        with torch.device("meta"):
            create_model(model)
    except ValueError as error:
        return str(error)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Forward pass and training step of the families beside timm and transformers.")
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all that there are")
    parser.add_argument("--work", action="append", choices=BATCHES, help="default: both")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, help="default: 8 forward, 16 in training")
    parser.add_argument("--img-size", type=int, help="default: 224")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if bf16_is_faster(CPU) else "fp32")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "family_speed.json")
    args = parser.parse_args()

    facts = {**machine.facts("timm", "transformers"), "threads": args.threads, "precision": args.precision}
    result: dict[str, Any] = {"machine": facts, "rounds": args.rounds, "models": {}}
    for model in args.model or list(MODELS):
        if reason := reason_against(model):
            print(f"{model} is left out: {reason}", file=sys.stderr)
            continue
        side = args.img_size or MODELS[model].side
        row: dict[str, Any] = {"img_size": side, "parameters": parameters(model, side)}
        for work in args.work or list(BATCHES):
            row[work] = measure(
                model,
                work,
                rounds=args.rounds,
                side=side,
                batch_size=args.batch_size or BATCHES[work],
                threads=args.threads,
                dtype=torch.bfloat16 if args.precision == "bf16" else None,
            )
            speeds = ", ".join(f"{name} {each['median']:.1f}" for name, each in row[work]["images_per_s"].items())
            ratio = row[work]["ratio_to_the_faster"]
            print(f"{model}, {work}: {speeds} images/s; {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})")
        result["models"][model] = row
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
