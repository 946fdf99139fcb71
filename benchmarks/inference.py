"""Inference of every backend beside timm's same model, on this machine as it is and with AVX2 alone.

    python benchmarks/inference.py                          writes results/inference.json
    python benchmarks/inference.py --case Ti/16,8 --rounds 3 --out quick.json

All contenders compute the logits of the same images with the same random weights, in interleaved rounds, in one process for
each set of instructions. What counts is the ratio to timm's eager fp32 within a round, and the largest difference from its
logits. ONNX Runtime and OpenVINO compete where they are installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import machine
from vitrail.deploy import BACKENDS
from vitrail.models import ViT, create_model

NAMES = {"Ti/16": "vit_tiny_patch16_224", "S/16": "vit_small_patch16_224", "B/16": "vit_base_patch16_224"}
CASES = (("Ti/16", 8), ("S/16", 8), ("B/16", 8), ("S/16", 4), ("B/16", 1))
BASE = "timm fp32"
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
TURN_S = 0.25
"""A contender repeats its pass until a turn takes about this long."""

Forward = Callable[[Tensor], Tensor]


def contenders(size: str, images: Tensor) -> dict[str, Forward]:
    """timm's model, ours in every form that this machine runs, and other runtimes where they are installed."""
    torch.manual_seed(0)
    theirs: nn.Module = timm.create_model(NAMES[size]).eval()
    ours: ViT = create_model(size).eval()  # type: ignore[assignment]
    ours.load_state_dict(theirs.state_dict())
    forms: dict[str, Forward] = {BASE: theirs}
    available = [name for name, row in BACKENDS.items() if not row.unavailable(images.device)]
    if "bf16" in available:
        half = timm.create_model(NAMES[size]).eval()
        half.load_state_dict(theirs.state_dict())
        half = half.to(torch.bfloat16)
        forms["timm bf16"] = lambda images: half(images.to(torch.bfloat16)).float()
    forms |= {f"vitrail {name}": BACKENDS[name].build(ours, batch_size=len(images)) for name in available}
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        forms["ONNX Runtime fp32"] = onnxruntime_form(theirs, images)
    if importlib.util.find_spec("openvino"):
        forms["OpenVINO fp32"] = openvino_form(theirs, images, "f32")
        if "bf16" in available:
            forms["OpenVINO bf16"] = openvino_form(theirs, images, "bf16")
    return forms


def onnxruntime_form(model: nn.Module, images: Tensor) -> Forward:
    """The model in ONNX Runtime, with as many threads as torch."""
    onnxruntime = importlib.import_module("onnxruntime")
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def openvino_form(model: nn.Module, images: Tensor, precision: str) -> Forward:
    """The model in OpenVINO, with as many threads as torch."""
    openvino = importlib.import_module("openvino")
    converted = openvino.convert_model(model, example_input=images)
    converted.reshape(list(images.shape))
    config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(converted, "CPU", config)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


@torch.inference_mode()
def compare(size: str, batch: int, *, rounds: int) -> dict[str, Any]:
    """Images a second, ratios within the rounds and differences of every contender."""
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    forms = contenders(size, images)
    logits = {name: forward(images) for name, forward in forms.items()}
    passes = {name: max(1, round(TURN_S / seconds(forward, images, 1))) for name, forward in forms.items()}
    speeds: dict[str, list[float]] = {name: [] for name in forms}
    names = list(forms)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            speeds[name].append(passes[name] * batch / seconds(forms[name], images, passes[name]))
    return {
        name: {
            "images_per_s": summary(speeds[name]),
            "ratio": summary([a / b for a, b in zip(speeds[name], speeds[BASE], strict=True)]),
            "difference": float((logits[name] - logits[BASE]).abs().max()),
        }
        for name in forms
    }


def seconds(forward: Forward, images: Tensor, passes: int) -> float:
    """Wall time of some passes."""
    start = time.perf_counter()
    for _ in range(passes):
        forward(images)
    return time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def case(text: str) -> tuple[str, int]:
    """A size and a batch size from "Ti/16,8"."""
    size, _, batch = text.partition(",")
    if size not in NAMES or not batch.isdecimal() or not int(batch):
        raise argparse.ArgumentTypeError(f'"{text}" is no case; write one of {", ".join(NAMES)} and a batch size: Ti/16,8')
    return size, int(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description="Inference of every backend beside timm's same model.")
    parser.add_argument("--case", action="append", type=case, metavar="SIZE,BATCH", help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="store_true", help="this process's instructions alone, printed as JSON")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "inference.json")
    args = parser.parse_args()

    cases = args.case or list(CASES)
    if args.only:
        warnings.simplefilter("ignore")  # of the exporters
        logging.disable(logging.WARNING)
        torch.set_num_threads(machine.cores())
        print(json.dumps({f"{size}, batch {batch}": compare(size, batch, rounds=args.rounds) for size, batch in cases}))
        return
    result: dict[str, Any] = {"machine": machine.facts("timm"), "rounds": args.rounds, "cases": {}}
    words = [sys.executable, __file__, "--only", "--rounds", str(args.rounds)]
    for size, batch in cases:
        words += ["--case", f"{size},{batch}"]
    for name, limits in (("as it is", {}), ("AVX2 alone", AVX2)):
        done = subprocess.run(words, env={**os.environ, **limits}, capture_output=True, text=True, check=True)
        result["cases"][name] = json.loads(done.stdout.splitlines()[-1])
        for title, rows in result["cases"][name].items():
            for contender, row in rows.items():
                ratio = row["ratio"]
                print(
                    f"{name}, {title}, {contender}: {row['images_per_s']['median']:.1f} images/s, {ratio['median']:.2f}x "
                    f"({ratio['min']:.2f} to {ratio['max']:.2f}), logits differ by {row['difference']:.1e}"
                )
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
