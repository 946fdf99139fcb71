"""Exports for a CPU beside timm's model and the runtimes called directly, and what int8 and token merging cost in accuracy.

    python benchmarks/export_speed.py --run runs/demo       writes results/export_speed.json
    python benchmarks/export_speed.py --case Ti/16,8 --rounds 3 --out quick.json

In the first part all contenders compute logits of the same images with the same random weights, each in its own process. In
a round they run one after the other, never at once, and the order turns from round to round; what counts is the ratio to timm's
eager fp32 within a round. "vitrail fp32" and "bf16" are backends of `vitrail predict`, "int8" and "int8, merged" are files of
`vitrail export --to openvino --int8`, opened for one number of images. Random weights say nothing of accuracy: the second part
exports a run that was really trained, and measures int8 and merging on its test images, with paired intervals.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import machine
from inference import BASE, NAMES, Forward, Speeds, case, measure, onnxruntime_form, openvino_form, rows_of
from vitrail.bench.rounds import ratios, summary
from vitrail.data.augment import normalise
from vitrail.deploy import BACKENDS
from vitrail.deploy.export.contract import Change, correct_of
from vitrail.deploy.export.formats import FORMATS
from vitrail.deploy.export.images import read_labelled
from vitrail.deploy.export.int8 import quantizer_of
from vitrail.deploy.export.run import export, load_model
from vitrail.deploy.export.to_openvino import convert
from vitrail.deploy.export.trace import trace
from vitrail.deploy.forms import fp32
from vitrail.models import create_model
from vitrail.models.backbone import Backbone
from vitrail.models.device import keep_freed_memory
from vitrail.models.merging import MergedViT

CASES = (("Ti/16", 8), ("S/16", 8), ("B/16", 8))
CPU = torch.device("cpu")
MERGE = 13
"""Patches merged in each block, as in the paper's tables of ViT-B (at most 16 at 196 patches and 12 blocks)."""
MERGES = (2, 4, 6, 8, 10, 12, 14)
"""Those whose accuracy is measured: the demo's model has 49 patches and 3 blocks."""
PEERS = ("timm fp32 compiled", "ONNX Runtime fp32", "OpenVINO fp32", "OpenVINO bf16", "OpenVINO int8")
CALIBRATION_IMAGES = 8
"""Random ones: with random weights int8 is measured for its speed alone."""


def contenders() -> list[str]:
    """timm's model, the runtimes called directly, and ours, as far as this machine and its packages go."""
    bf16 = not BACKENDS["openvino-bf16"].unavailable(CPU)
    names = [BASE, *PEERS, "vitrail fp32", "vitrail bf16", "vitrail int8", "vitrail int8, merged"]
    absent = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino", "vitrail": "openvino"}
    return [
        name
        for name in names
        if (bf16 or "bf16" not in name)
        and all(importlib.util.find_spec(package) for start, package in absent.items() if name.startswith(start))
        and ("int8" not in name or importlib.util.find_spec("nncf"))
    ]


def build(contender: str, size: str, images: Tensor) -> Forward:
    """One contender's form of the model."""
    torch.manual_seed(0)
    theirs: nn.Module = timm.create_model(NAMES[size]).eval()
    library, _, form = contender.partition(" ")
    if library == "vitrail":
        keep_freed_memory()
        ours = create_model(size).eval()
        ours.load_state_dict(theirs.state_dict())
        backends = {"fp32": "openvino", "bf16": "openvino-bf16"}
        if form in backends:
            forward: Forward = BACKENDS[backends[form]].build(ours, batch_size=len(images))
            return forward
        return int8_form(MergedViT(ours, MERGE).eval() if form.endswith("merged") else ours, images)
    if contender == "timm fp32 compiled":
        return torch.compile(theirs)
    if contender.startswith("ONNX"):
        return onnxruntime_form(theirs, images)
    if contender == "OpenVINO int8":
        return openvino_int8(theirs, images)
    if library == "OpenVINO":
        return openvino_form(theirs, images, {"fp32": "f32"}.get(form, form))
    return theirs


def int8_form(model: Backbone, images: Tensor) -> Forward:
    """What `vitrail export --to openvino --int8` writes, opened for this number of images."""
    openvino, row = importlib.import_module("openvino"), FORMATS["openvino"]
    writer, quantizer = row.load(), quantizer_of(row, "openvino")
    compile_forward = importlib.import_module(row.module).compile_forward
    with tempfile.TemporaryDirectory() as folder:
        floating, path = Path(folder) / "float.xml", Path(folder) / row.file
        writer.write(trace(model, size=(224, 224)), floating, {})
        quantizer.quantize(floating, path, calibration_images(), in_float=[])
        opened = openvino.Core().read_model(path)
        opened.reshape(list(images.shape))
        forward: Forward = compile_forward(opened, precision=None)
    return forward


def openvino_int8(model: nn.Module, images: Tensor) -> Forward:
    """timm's model quantised by NNCF as its documentation has it for transformers, the rest as OpenVINO chooses."""
    openvino, nncf = importlib.import_module("openvino"), importlib.import_module("nncf")
    converted = convert(torch.export.export(model, (images,)))
    batches = [calibration_images()[torch.arange(len(images)) % CALIBRATION_IMAGES].numpy()]  # the graph is for one batch size
    quantized = nncf.quantize(converted, nncf.Dataset(batches), subset_size=len(batches), model_type=nncf.ModelType.TRANSFORMER)
    quantized.reshape(list(images.shape))
    compiled = openvino.compile_model(quantized, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


def calibration_images() -> Tensor:
    return torch.randn(CALIBRATION_IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(2))


def compare(size: str, batch: int, *, rounds: int) -> dict[str, Any]:
    """Images a second, ratios within the rounds, and differences of the logits, of every contender."""
    speeds, differences = measure(contenders(), build, size, batch, rounds=rounds)
    return {"contenders": rows_of(speeds, differences), "to_best_peer": to_best_peer(speeds)}


def to_best_peer(speeds: Speeds) -> dict[str, Any]:
    """Ratio of each of ours to the fastest peer of its number type, within the rounds."""
    compared = {}
    for kind in ("fp32", "bf16", "int8"):
        peers = [name for name in PEERS if name in speeds and kind in name]
        if peers and f"vitrail {kind}" in speeds:
            best = max(peers, key=lambda name: sorted(speeds[name])[len(speeds[name]) // 2])
            compared[kind] = {"peer": best, "ratio": summary(ratios(speeds[f"vitrail {kind}"], speeds[best]))}
    if {"vitrail int8", "vitrail int8, merged"} <= speeds.keys():
        merged = summary(ratios(speeds["vitrail int8, merged"], speeds["vitrail int8"]))
        compared["merged"] = {"peer": "vitrail int8", "ratio": merged}
    return compared


def accuracy(run: str) -> dict[str, Any]:
    """Points of top-1 that int8 and merging cost a run, on its test images."""
    model = load_model(run)
    assert model.preprocessing is not None
    images = read_labelled(model, run, None, split="test")
    batches = normalise(images.views, model.preprocessing).split(100)
    right, data = correct_of(fp32(model, 100), batches, images.labels), f"{images.data}, {images.split}"
    rows = {}
    for name, row in FORMATS.items():
        if row.quantizer is not None:
            with tempfile.TemporaryDirectory() as folder:
                done = export(run, name, out=Path(folder) / "export", int8=True)
                assert done.contract.int8 is not None
                after = correct_of(row.load().open_forward(done.file), batches, images.labels)
            change = Change.of(right, after, method=done.contract.int8.change.method, data=data)
            rows[f"int8, {name}"] = {**change.to_dict(), "in_float": list(done.contract.int8.in_float)}
    for r in MERGES:
        after = correct_of(fp32(MergedViT(model, r).eval(), 100), batches, images.labels)
        change = Change.of(right, after, method=f"ToMe, {r} patches in each block", data=data)
        rows[f"{r} patches merged in each block"] = change.to_dict()
    return {"model": describe(model), "rows": rows}


def describe(model: Backbone) -> str:
    """Shape of a run's model, in a few words."""
    cfg = model.config
    return (
        f"{cfg.depth} blocks of width {cfg.embed_dim}, {cfg.img_size[0]} px, {(cfg.img_size[0] // cfg.patch_size) ** 2} patches"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Exports for a CPU beside timm and the runtimes called directly.")
    parser.add_argument("--case", action="append", type=case, metavar="SIZE,BATCH", help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--run", help="a trained run, whose accuracy in int8 and with merging is measured")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "export_speed.json")
    args = parser.parse_args()

    packages = [name for name in ("timm", "onnxruntime", "openvino", "nncf") if importlib.util.find_spec(name)]
    result: dict[str, Any] = {"machine": machine.facts(*packages), "rounds": args.rounds, "merge": MERGE, "cases": {}}
    for size, batch in args.case or CASES:
        result["cases"][f"{size}, batch {batch}"] = measured = compare(size, batch, rounds=args.rounds)
        for name, row in measured["contenders"].items():
            ratio = row["ratio"]
            print(
                f"{size}, batch {batch}, {name}: {row['images_per_s']['median']:.1f} images/s, {ratio['median']:.2f}x "
                f"({ratio['min']:.2f} to {ratio['max']:.2f}), logits differ by {row['difference']:.1e}"
            )
        for kind, against in measured["to_best_peer"].items():
            print(f"{size}, batch {batch}, vitrail {kind}: {against['ratio']['median']:.2f} of {against['peer']}")
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.run:
        result["accuracy"] = accuracy(args.run)
        for name, row in result["accuracy"]["rows"].items():
            low, high = (100 * side for side in row["paired"]["interval"])
            print(f"{name}: {-row['loss_points']:+.2f} points ({low:+.2f} to {high:+.2f}) on {row['data']}")
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
