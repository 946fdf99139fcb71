"""Inference of every backend beside timm's same model, on this machine as it is and with AVX2 alone.

    python benchmarks/inference.py                          writes results/inference.json
    python benchmarks/inference.py --case Ti/16,8 --rounds 3 --out quick.json

All contenders compute the logits of the same images with the same random weights. Each has a process of its own, so that no
one's settings reach another; in a round they run one after the other, never at once, and the order turns from round to round.
What counts is the ratio to timm's eager fp32 within a round, and the largest difference from its logits. ONNX Runtime and
OpenVINO compete where they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import machine
from vitrail.bench.processes import Call, Worker, end_all
from vitrail.bench.rounds import interleave, ratios, summary
from vitrail.deploy import BACKENDS
from vitrail.models import create_model
from vitrail.models.device import keep_freed_memory

NAMES = {"Ti/16": "vit_tiny_patch16_224", "S/16": "vit_small_patch16_224", "B/16": "vit_base_patch16_224"}
CASES = (("Ti/16", 8), ("S/16", 8), ("B/16", 8), ("S/16", 4), ("B/16", 1))
BASE = "timm fp32"
CPU = torch.device("cpu")
TURN_S = 0.25
"""A contender repeats its pass until a turn takes about this long."""

Forward = Callable[[Tensor], Tensor]
Build = Callable[[str, str, Tensor], Forward]
"""A contender, a size and its images to the contender's form of the model."""
Speeds = dict[str, list[float]]
"""Images a second of each contender, round by round."""


def contenders() -> list[str]:
    """timm's model, ours in every form that this machine runs, and other runtimes where they are installed."""
    available = [name for name, row in BACKENDS.items() if not row.unavailable(CPU)]
    names = [BASE, *(["timm bf16"] if "bf16" in available else []), *(f"vitrail {name}" for name in available)]
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        names.append("ONNX Runtime fp32")
    if importlib.util.find_spec("openvino"):
        names += ["OpenVINO fp32", *(["OpenVINO bf16"] if "bf16" in available else [])]
    return names


def build(contender: str, size: str, images: Tensor) -> Forward:
    """One contender's form of the model."""
    torch.manual_seed(0)
    theirs: nn.Module = timm.create_model(NAMES[size]).eval()
    library, _, form = contender.rpartition(" ")
    if library == "vitrail":
        keep_freed_memory()  # as Predictor does
        ours = create_model(size).eval()
        ours.load_state_dict(theirs.state_dict())
        forward: Forward = BACKENDS[form].build(ours, batch_size=len(images))
        return forward
    if library == "ONNX Runtime":
        return onnxruntime_form(theirs, images)
    if library == "OpenVINO":
        return openvino_form(theirs, images, {"fp32": "f32"}.get(form, form))
    if form == "fp32":
        return theirs
    half = theirs.to(torch.bfloat16)
    return lambda images: half(images.to(torch.bfloat16)).float()


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
    from vitrail.deploy.export.to_openvino import convert

    converted = convert(torch.export.export(model, (images,)))
    converted.reshape(list(images.shape))
    config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(converted, "CPU", config)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


def prepare(build: Build, contender: str, size: str, batch: int) -> Call:
    """One contender's pass, in its own process."""
    warnings.simplefilter("ignore")  # of the exporters
    logging.disable(logging.WARNING)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    forward = build(contender, size, images)

    @torch.inference_mode()
    def call() -> Tensor:
        return forward(images)

    return call


def measure(names: Sequence[str], build: Build, size: str, batch: int, *, rounds: int) -> tuple[Speeds, dict[str, float]]:
    """Images a second of every contender, round by round, and the largest difference of its logits from `BASE`'s."""
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        stack.callback(lambda: end_all(workers.values()))
        logits, passes, turns = {}, {}, {}
        for name in names:
            workers[name] = Worker(partial(prepare, build, name, size, batch), threads=machine.cores())
            workers[name].built()
            logits[name] = workers[name].first().output
            passes[name] = max(1, round(TURN_S / workers[name].take()))
            turns[name] = partial(workers[name].take, passes[name])
        seconds = interleave(turns, least=rounds)
    speeds = {name: [passes[name] * batch / taken for taken in values] for name, values in seconds.items()}
    return speeds, {name: float(abs(logits[name] - logits[BASE]).max()) for name in names}


def rows_of(speeds: Speeds, differences: dict[str, float]) -> dict[str, Any]:
    """Images a second, ratio within the rounds and difference of every contender."""
    return {
        name: {
            "images_per_s": summary(values),
            "ratio": summary(ratios(values, speeds[BASE])),
            "difference": differences[name],
        }
        for name, values in speeds.items()
    }


def compare(size: str, batch: int, *, rounds: int) -> dict[str, Any]:
    """Every contender of one case."""
    return rows_of(*measure(contenders(), build, size, batch, rounds=rounds))


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
        print(json.dumps({f"{size}, batch {batch}": compare(size, batch, rounds=args.rounds) for size, batch in cases}))
        return
    result: dict[str, Any] = {"machine": machine.facts("timm"), "rounds": args.rounds, "cases": {}}
    words = ["--only", "--rounds", str(args.rounds)]
    for size, batch in cases:
        words += ["--case", f"{size},{batch}"]
    for name, measured in machine.with_instructions(__file__, words):
        result["cases"][name] = measured
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
