"""The speed of one GPU in eight minutes: training, augmentation, small images, files and prediction, beside timm.

    python benchmarks/gpu.py                      every part; writes results/gpu.json and prints the table
    python benchmarks/gpu.py --part small --part predict
    python benchmarks/gpu.py --toy --device cpu   toy sizes on any device, to try the script; writes nothing

| part | question |
| --- | --- |
| small | images/s of `vitrail train` with the Fashion-MNIST recipe, batch 128: launches or a replayed graph |
| augment | ms of the DeiT augmentation of 256 images of 224 px, its colours grouped and compiled, and of crop and flip alone |
| train | images/s of B/16, S/16 and L/16 under bf16, compiled by block, beside timm compiled; share of an 8192 x 8192 product |
| fp8 | a step of the largest of them in fp8 beside bf16, both compiled by block |
| files | a B/16 step fed from JPEG files of 500x375 over one on batches in memory |
| predict | images/s of a B/16 by each backend, beside timm under bf16, compiled |

Contenders of a part take turns; ratios are within a round. A part that fails is left out with the reason, and the others go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import machine
import vitrail
from vitrail.bench.processes import wait
from vitrail.bench.rounds import interleave, ratios, summary, timed
from vitrail.bench.training import batch_of, our_step, plain_step
from vitrail.data.apply_colors import apply_compiled_, apply_each_
from vitrail.data.augment import augment, crop_boxes
from vitrail.data.batch import RawBatch
from vitrail.data.batches import train_batches
from vitrail.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from vitrail.data.draws import Draws
from vitrail.data.folder import open_folder
from vitrail.models import create_model
from vitrail.models.counts import count
from vitrail.models.fp8 import train_in_fp8
from vitrail.settings import AugmentConfig, DataConfig, OptimConfig, Preprocessing, RandAugment
from vitrail.tasks.classify import Classify
from vitrail.train.optim import build_optimizers
from vitrail.train.step import Step
from vitrail.train.stream import SideStream

DEIT = AugmentConfig(
    crop="resized", rand_augment=RandAugment(n=2, m=9.0, mstd=0.5), mixup_alpha=0.8, cutmix_alpha=1.0, erase_prob=0.25
)
PLAIN = AugmentConfig(crop="resized")
OPTIM = OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of the parts."""

    device: str
    models: tuple[tuple[str, int], ...] = (("B/16", 256), ("S/16", 512), ("L/16", 128))
    side: int = 224
    rounds: int = 3
    steps: int = 8
    small_steps: int = 4000
    files: int = 2048
    small_model: tuple[str, ...] = ()
    """Fields of the model in part small, as on a command line."""

    def images(self, count: int) -> torch.Tensor:
        """Random images on the device."""
        return torch.randn(count, 3, self.side, self.side, device=self.device)


def toy(device: str) -> Scale:
    """Sizes to try the script with."""
    return Scale(device, models=(("Ti/16", 4),), side=32, rounds=2, steps=1, small_steps=12, files=16)


def measure(scale: Scale, contenders: dict[str, Callable[[], object]], *, images: int, base: str) -> dict[str, Any]:
    """Images a second of contenders that take turns, and their ratios to one of them within the rounds."""
    turns = {
        name: partial(timed, call, times=scale.steps, wait=lambda: wait(scale.device)) for name, call in contenders.items()
    }
    seconds = interleave(turns, least=scale.rounds, warmup=1)
    speeds = {name: [images * scale.steps / s for s in values] for name, values in seconds.items()}
    return {
        "images_per_s": {name: summary(values) for name, values in speeds.items()},
        "ratios": {name: summary(ratios(values, speeds[base])) for name, values in speeds.items() if name != base},
    }


def small(scale: Scale) -> dict[str, Any]:
    """Images a second of whole runs, with and without a replayed step: the median over the last half of their log."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, graph in (("launched", False), ("replayed", True)):
            run = vitrail.train(
                "fashion-sample",
                out=Path(folder, name),
                recipe="fashion-mnist",
                train={"steps": scale.small_steps, "batch_size": 128, "eval_every": 0, "device": scale.device, "graph": graph},
            )
            lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
            speeds = [line["images_per_s"] for line in lines if "images_per_s" in line]
            result[name] = summary(speeds[len(speeds) // 2 :], digits=0)
    return {"images_per_s": result}


def augmentation(scale: Scale) -> dict[str, Any]:
    """Milliseconds of the augmentation of a batch, until the device has done it."""
    batch, result = scale.models[0][1], {}
    view = Preprocessing(img_size=(scale.side, scale.side), in_channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8, generator=generator).to(scale.device)
    indexes, sizes = torch.arange(batch), torch.tensor([[256, 256]]).repeat(batch, 1)
    for name, cfg, apply in (
        ("crop and flip", PLAIN, apply_each_),
        ("DeiT", DEIT, apply_each_),
        ("DeiT compiled", DEIT, apply_compiled_),
    ):
        boxes = crop_boxes(sizes, Draws(seed=0, epoch=0, indexes=indexes), cfg)
        raw = RawBatch(pixels, sizes, boxes, indexes % 10, indexes)
        call = partial(augment, raw, cfg=cfg, preprocessing=view, num_classes=10, seed=0, epoch=0, apply=apply)
        call()
        times = [1e3 * timed(call, wait=lambda: wait(scale.device)) for _ in range(5 * scale.rounds)]
        result[name] = summary(times)
    return {"batch": batch, "ms": result}


def training(scale: Scale) -> dict[str, Any]:
    """Steps of each model, ours and timm's compiled."""
    import timm

    result: dict[str, Any] = {"ceiling_tflop_per_s": ceiling(scale)}
    for name, batch in scale.models:
        data = batch_of(scale.images(batch), 1000)
        model = create_model(name, img_size=scale.side).to(scale.device).train()
        flops = 3 * count(model.config).flops
        theirs = timm.models.VisionTransformer(
            img_size=scale.side,
            embed_dim=model.config.embed_dim,
            depth=model.config.depth,
            num_heads=model.config.num_heads,
        )
        torch.compiler.reset()
        contenders: dict[str, Callable[[], object]] = {
            "timm compiled": plain_step(theirs.to(scale.device).train(), data, dtype=torch.bfloat16, compiled=True),
            "vitrail compiled": our_step(model, data, dtype=torch.bfloat16, optim=OPTIM, compiled=True),
        }
        row = measure(scale, contenders, images=batch, base="timm compiled")
        row["tflop_per_s"] = row["images_per_s"]["vitrail compiled"]["median"] * flops / 1e12
        row["share_of_ceiling"] = row["tflop_per_s"] / result["ceiling_tflop_per_s"]
        result[f"{name}, batch {batch}"] = row
    return result


def in_fp8(scale: Scale) -> dict[str, Any]:
    """Steps of the largest model with the blocks' linear layers in fp8 and in bf16."""
    (name, batch), contenders = scale.models[-1], dict[str, Callable[[], object]]()
    for precision in ("bf16", "fp8"):
        model = create_model(name, img_size=scale.side).to(scale.device).train()
        if precision == "fp8":
            train_in_fp8(model)
        data = batch_of(scale.images(batch), 1000)
        contenders[precision] = our_step(model, data, dtype=torch.bfloat16, optim=OPTIM, compiled=True)
    return {"model": name, "batch": batch, **measure(scale, contenders, images=batch, base="bf16")}


def ceiling(scale: Scale) -> float:
    """TFLOP/s of a large product in bf16."""
    side = 8192 if torch.device(scale.device).type == "cuda" else 512
    a, b = (torch.randn(side, side, device=scale.device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return 2 * side**3 / min(timed(lambda: a @ b, wait=lambda: wait(scale.device)) for _ in range(10)) / 1e12


def files(scale: Scale) -> dict[str, Any]:
    """Steps of a model fed from JPEG files and from memory, as the loop feeds them."""
    name, size = scale.models[0]
    size = min(size, scale.files)
    view = Preprocessing(img_size=(scale.side, scale.side), in_channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), scale.files)
        split = open_folder(Path(folder), val_fraction=0).load(
            "train", preprocessing=view, cfg=DataConfig(memory_gb=0), augment=PLAIN
        )
        model = create_model(name, img_size=scale.side, num_classes=2).to(scale.device).train()
        task, device = Classify(model, preprocessing=view, augment=PLAIN), torch.device(scale.device)
        for block in model.blocks_in_order():
            block.compile()
        step = Step(task, build_optimizers(model, OPTIM, batch_size=size), autocast_dtype=torch.bfloat16)

        def prepare(item: tuple[int, RawBatch]) -> Any:
            return task.batch(item[1].pixels_to(device), epoch=item[0], img_size=view.img_size)

        source = SideStream(device).iterate(train_batches(split, batch_size=size, seed=0, augment=PLAIN), prepare)
        kept = next(source)[1]

        def turn(batches: Iterator[Any] | None) -> None:
            step(kept if batches is None else next(batches)[1])

        result = measure(scale, {"memory": partial(turn, None), "files": partial(turn, source)}, images=size, base="memory")
        source.close()
        return {**result, "workers": split.workers, "batch": size}


def write_photos(folder: Path, images: int) -> None:
    """JPEGs of 500x375 with as much detail as noise over smooth colours has."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 24, 32, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic") * 255
    for number in range(images):
        noise = 12 * torch.randn(3, 375, 500, generator=generator)
        pixels = (smooth[number % 16] + noise).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        path = folder / "train" / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def prediction(scale: Scale) -> dict[str, Any]:
    """A model by each backend of this device, beside timm's compiled."""
    import timm

    from vitrail.deploy.backends import BACKENDS

    name, batch = scale.models[0]
    images = scale.images(batch)
    model = create_model(name, img_size=scale.side).to(scale.device).eval()
    cfg = model.config
    theirs = timm.models.VisionTransformer(
        img_size=scale.side, embed_dim=cfg.embed_dim, depth=cfg.depth, num_heads=cfg.num_heads
    )
    compiled: Any = torch.compile(theirs.to(scale.device).eval())
    contenders: dict[str, Callable[[], object]] = {"timm compiled bf16": partial(forward, compiled, images)}
    for backend, row in BACKENDS.items():
        if not row.unavailable(torch.device(scale.device)):
            contenders[backend] = partial(call, row.build(model, batch_size=batch), images)
    return measure(scale, contenders, images=batch, base="timm compiled bf16")


@torch.inference_mode()
def forward(model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """A plain pass under bf16 autocast."""
    with torch.autocast(images.device.type, torch.bfloat16):
        return model(images)


@torch.inference_mode()
def call(form: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """A pass of a backend."""
    return form(images)


PARTS = {"small": small, "augment": augmentation, "train": training, "fp8": in_fp8, "files": files, "predict": prediction}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "gpu.json")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --toy --device cpu tries the script")
    scale = toy(args.device) if args.toy else Scale(args.device)
    gpu = torch.cuda.get_device_name() if args.device != "cpu" else "none"
    result: dict[str, Any] = {"machine": {**machine.facts("timm"), "gpu": gpu}, "parts": {}}
    for name in args.part or PARTS:
        start = time.perf_counter()
        try:
            part = PARTS[name](scale)
        except Exception as error:  # the time on a GPU is short: the others are measured all the same
            part = {"failed": f"{type(error).__name__}: {error}".partition("\n")[0]}
        result["parts"][name] = {**part, "seconds": round(time.perf_counter() - start, 1)}
        print(json.dumps({name: result["parts"][name]}, indent=1), file=sys.stderr)
        if not args.toy:
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    if failed := [name for name, part in result["parts"].items() if "failed" in part]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
