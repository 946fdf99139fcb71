"""From JPEG files to batches: our decoding beside the field's on one core, and a training from files beside one from memory.

    python benchmarks/decode.py PHOTOS                    both parts; writes results/decode.json
    python benchmarks/decode.py PHOTOS --images 32 --rounds 2 --steps 2 --out quick.json

Folders of JPEGs of 500x375 and 1600x1200 (quality 90, 4:2:0) are made of the photographs under PHOTOS, each a mosaic of
several, so that there is as much detail as a camera's.

The first part reads them on one core and one thread, into batches of bytes at 224 px under a random resized crop of 8 to 100 %
of the area. Ours is what `vitrail train` does for a folder that does not fit data.memory_gb, the draws included; theirs opens a
file with Pillow, decodes all of it and crops with torchvision's RandomResizedCrop, or does both with torchvision on tensors;
each stacks its images to a batch, as every loader does. The files are in the system's cache. Contenders take turns, and the
order turns from round to round.

The second part trains: forward, backward and AdamW under bf16 autocast, once with batches that the loader processes decode
meanwhile, once with such batches kept in memory, in turns. A turn begins with as many steps that are not counted as batches
could have waited. It does so with all cores, and with one left to the loaders. What counts is always the ratio within a round.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

import machine
import vitrail
from train_step import OPTIM
from vitrail.bench.rounds import interleave, ratios, summary
from vitrail.data.augment import augment
from vitrail.data.batches import train_batches
from vitrail.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Split
from vitrail.data.folder import open_folder
from vitrail.models.device import keep_freed_memory
from vitrail.settings import AugmentConfig, DataConfig, Preprocessing
from vitrail.tasks.classify import Classify
from vitrail.train.optim import build_optimizers
from vitrail.train.step import Step

SIZES = {"500x375": (500, 375, 2), "1600x1200": (1600, 1200, 4)}  # width, height, photographs on a side of the mosaic
FILTERS: tuple[Literal["bicubic", "bilinear"], ...] = ("bicubic", "bilinear")
SIDE_PX, BATCH, CLASSES = 224, 32, 2
CROP = AugmentConfig(crop="resized", crop_scale=(0.08, 1.0))
THEIRS = ("Pillow + torchvision", "torchvision")


def make_folder(photos: Path, folder: Path, *, size: tuple[int, int, int], images: int) -> float:
    """Writes JPEGs into class folders; gives their mean size in bytes."""
    width, height, side = size
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise SystemExit(f"{photos} has no JPEG or PNG files; give a folder of photographs")
    draw = random.Random(0)
    for number in range(images):
        mosaic = Image.new("RGB", (width, height))
        for row, column in itertools.product(range(side), repeat=2):
            with Image.open(draw.choice(found)) as photo:
                tile = photo.convert("RGB").resize((width // side, height // side), Image.Resampling.BICUBIC)
            mosaic.paste(tile, (column * (width // side), row * (height // side)))
        path = folder / "train" / str(number % CLASSES) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        mosaic.save(path, quality=90)
    return sum(path.stat().st_size for path in folder.rglob("*.jpg")) / images


def split_of(folder: Path, *, interpolation: Literal["bicubic", "bilinear"] = "bicubic", workers: int) -> Split:
    """The training images as `vitrail train` takes them from disk, where they are too many to be kept in memory."""
    cfg = DataConfig(memory_gb=0, workers=workers)
    return open_folder(folder, val_fraction=0).load("train", preprocessing=view(interpolation), cfg=cfg, augment=CROP)


def view(interpolation: Literal["bicubic", "bilinear"]) -> Preprocessing:
    """What the model is given."""
    return Preprocessing(
        img_size=(SIDE_PX, SIDE_PX), in_channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation=interpolation
    )


def ours(split: Split) -> Iterator[torch.Tensor]:
    """Batches as the training loop gets them."""
    return (raw.images for _, raw in train_batches(split, batch_size=BATCH, seed=0, augment=CROP))


def theirs(files: list[Path], *, interpolation: str, tensors: bool) -> Iterator[torch.Tensor]:
    """Batches as torchvision's users make them: from Pillow images, or with `tensors` from its own decoder."""
    crop = v2.RandomResizedCrop(
        SIDE_PX, scale=CROP.crop_scale, interpolation=v2.InterpolationMode(interpolation), antialias=True
    )

    def one(file: Path) -> torch.Tensor:
        if tensors:
            return crop(decode_image(read_file(str(file)), mode=ImageReadMode.RGB))
        with Image.open(file) as image:
            return v2.functional.pil_to_tensor(crop(image.convert("RGB")))

    endless = itertools.cycle(files)
    while True:
        yield torch.stack([one(next(endless)) for _ in range(BATCH)])


def read(folder: Path, *, interpolation: Literal["bicubic", "bilinear"], rounds: int) -> dict[str, Any]:
    """Images a second of each contender on this core, and the ratios within the rounds."""
    split = split_of(folder, interpolation=interpolation, workers=0)
    files = [folder / name for name in split.names]
    random.Random(0).shuffle(files)  # the files of a class stand one after the other
    contenders = {"vitrail": ours(split)}
    contenders |= {name: theirs(files, interpolation=interpolation, tensors=name == THEIRS[1]) for name in THEIRS}
    batches = max(1, len(split) // BATCH)

    def turn(name: str) -> float:
        start = time.perf_counter()
        for batch in itertools.islice(contenders[name], batches):
            assert batch.shape == (BATCH, 3, SIDE_PX, SIDE_PX)
            assert batch.dtype == torch.uint8
        return batches * BATCH / (time.perf_counter() - start)

    speeds = interleave({name: functools.partial(turn, name) for name in contenders}, least=rounds, warmup=1, on_round=show)
    return {"images_per_s": {name: summary(values) for name, values in speeds.items()}} | {
        "ratios": {name: summary(ratios(speeds["vitrail"], speeds[name])) for name in THEIRS}
    }


def train(folder: Path, *, model_name: str, threads: int, rounds: int, steps: int) -> dict[str, Any]:
    """Images a second of the step loop from files and from memory, and the ratio within the rounds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    split = split_of(folder, workers=DataConfig().workers)
    model = vitrail.create_model(model_name, num_classes=CLASSES).to(device).train()
    move = Step(
        Classify(model, preprocessing=view("bicubic")),
        build_optimizers(model, OPTIM, batch_size=BATCH),
        autocast_dtype=torch.bfloat16,
    )
    files = train_batches(split, batch_size=BATCH, seed=0, augment=CROP)
    waiting = 2 * split.workers  # batches that the loader processes may have ready
    kept = itertools.cycle(list(itertools.islice(files, 8)))

    def step(source: Iterator[tuple[int, Any]]) -> None:
        epoch, raw = next(source)
        raw = raw.pixels_to(device)
        batch = augment(raw, cfg=CROP, preprocessing=view("bicubic"), num_classes=CLASSES, seed=0, epoch=epoch)
        float(move(batch)["loss"])  # waits for the device

    def turn(source: Iterator[tuple[int, Any]]) -> float:
        for _ in range(waiting):
            step(source)
        start = time.perf_counter()
        for _ in range(steps):
            step(source)
        return steps * BATCH / (time.perf_counter() - start)

    speeds = interleave({"files": lambda: turn(files), "memory": lambda: turn(kept)}, least=rounds, warmup=1, on_round=show)
    return {
        "threads": threads,
        "loaders": split.workers,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "images_per_s": {name: summary(values) for name, values in speeds.items()},
        "ratio": summary(ratios(speeds["files"], speeds["memory"])),
    }


def show(speeds: dict[str, float]) -> None:
    """Print a round."""
    print("  " + ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items()), file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of photographs, at any depth")
    parser.add_argument("--images", type=int, default=128, help="JPEGs of each size")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=12, help="training steps that are counted in a turn")
    parser.add_argument("--model", default="Ti/16", help="what the second part trains")
    parser.add_argument("--part", action="append", choices=("read", "train"), help="default: both")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "decode.json")
    args = parser.parse_args()
    if args.images < BATCH:
        parser.error(f"--images {args.images} is less than a batch; give {BATCH} or more")
    parts = args.part or ["read", "train"]

    result: dict[str, Any] = {"machine": machine.facts("pillow", "torchvision"), "model": args.model, "batch_size": BATCH}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {size: Path(temporary, size) for size in SIZES}
        result["bytes"] = {
            size: round(make_folder(args.photos, folder, size=SIZES[size], images=args.images))
            for size, folder in folders.items()
        }
        if "train" in parts:
            keep_freed_memory()  # as vitrail.train does
            cores = machine.cores()
            result["train"] = {size: [] for size in SIZES}
            for size, threads in itertools.product(SIZES, sorted({cores, max(1, cores - 1)}, reverse=True)):
                row = train(folders[size], model_name=args.model, threads=threads, rounds=args.rounds, steps=args.steps)
                result["train"][size].append(row)
                print(
                    f"{size}, {threads} threads: from files {row['ratio']['median']:.3f} of the speed from memory", flush=True
                )
        if "read" in parts:
            only_one_core()
            result["read"] = {size: {} for size in SIZES}
            for size, interpolation in itertools.product(SIZES, FILTERS):
                row = read(folders[size], interpolation=interpolation, rounds=args.rounds)
                result["read"][size][interpolation] = row
                shown = ", ".join(f"{value['median']:.2f} of {name}" for name, value in row["ratios"].items())
                print(f"{size}, {interpolation}: {shown}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def only_one_core() -> None:
    """This process, from here on."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


if __name__ == "__main__":
    main()
