"""Export a model: trace, write, measure against the original, and publish the folder whole or not at all."""

# N images · B batch · C channels · H W image · K classes

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vitrail import weights
from vitrail.data.augment import normalise
from vitrail.data.decode import eval_view
from vitrail.data.listing import mark_output
from vitrail.deploy.export.contract import (
    BATCHES,
    FP32,
    UNLIMITED,
    Contract,
    Deviation,
    Limits,
    Speed,
    compare_logits,
    logits_of,
    measure_speed,
)
from vitrail.deploy.export.formats import format_of, load
from vitrail.deploy.export.images import Images, read_images
from vitrail.deploy.export.int8 import MAX_LOSS, quantize_file, quantizer_of
from vitrail.deploy.export.merging import merged
from vitrail.deploy.export.metadata import CARD, CONTRACT, ExportCard, card_of
from vitrail.deploy.export.raw import RawImages, view
from vitrail.deploy.export.trace import Inputs, trace, trace_raw
from vitrail.deploy.forms import Forward, fp32
from vitrail.models.backbone import Backbone
from vitrail.settings import pair
from vitrail.weights.run_folder import put, sync

IMAGES = 256
"""Number of images that the logits are compared on."""
_BATCH = 32


@dataclass(frozen=True)
class Exported:
    """A written export."""

    folder: Path
    card: ExportCard
    contract: Contract

    @property
    def file(self) -> Path:
        """The model's file."""
        return self.folder / format_of(self.card.format).file


def export(
    source: str | Path,
    to: str = "onnx",
    *,
    out: str | Path | None = None,
    images: str | None = None,
    dynamic_size: bool = False,
    raw_images: bool = False,
    count: int = IMAGES,
    runtime: str | Path | None = None,
    merge: int = 0,
    int8: bool = False,
    max_loss: float = MAX_LOSS,
) -> Exported:
    """Export a run, or any checkpoint with a head, and check it against the original on real images.

    `to` is a row of `FORMATS`. `images` is a folder or a named set [the run's validation images], of which `count` are
    compared. The folder `out` [SOURCE-FORMAT] has the model, card.json and contract.json. With `dynamic_size` the file takes
    images of any size; with `raw_images` it takes decoded images, and resizes and normalises them itself. `runtime` is the
    folder of onnxruntime-web's files, for a web page.

    With `merge`, that many patches are merged in each block (`models.merging`): the contract is with the merged model, and has
    the accuracy that merging costs. With `int8` products are in int8, with a loss of at most `max_loss` points of top-1 on the
    validation images (`int8.quantize_within`), and ValueError where that can't be.

    Raises ValueError for a folder that is not empty, for a model without a head, and where the logits differ by more than
    `Limits` allows: then nothing is written.
    """
    row = format_of(to)
    row.check_options(dynamic_size=dynamic_size, raw_images=raw_images, int8=int8, runtime=runtime)
    quantizer = quantizer_of(row, to) if int8 else None
    folder = free_folder(out, source=source, to=to)
    writer, raw = row.load(), raw_images or row.raw_images
    model = load_model(source)
    assert model.preprocessing is not None
    size = pair(model.preprocessing.img_size)
    samples = read_images(source, images, preprocessing=model.preprocessing, count=count, pictures=raw)
    inputs: Inputs = "raw" if raw else "normalised"
    model, merging = merged(model, merge, source, images) if merge else (model, None)
    card = card_of(model, source=str(source), format=to, inputs=inputs, dynamic_size=dynamic_size)
    with drafted(folder) as draft:
        traced = trace_raw(model) if raw else trace(model, size=size, dynamic_size=dynamic_size)
        (draft / row.file).parent.mkdir(exist_ok=True)
        quantized = None
        if quantizer is None:
            writer.write(traced, draft / row.file, card.metadata())
        else:
            card = replace(card, precision="int8")
            quantized = quantize_file(
                model,
                lambda path: writer.write(traced, path, card.metadata()),
                quantizer,
                draft / row.file,
                open_forward=writer.open_forward,
                source=source,
                images=images,
                max_loss=max_loss,
            )
        exported, limits = writer.open_forward(draft / row.file), FP32 if quantized is None else UNLIMITED
        contract = measure(model, exported, samples, card=card, size=size_of(draft), limits=limits)
        contract = replace(contract, merging=merging, int8=quantized)
        if reason := contract.deviation.broken(contract.limits):
            way_out = ". Without --raw-images the resize is no part of it" if raw else ""
            broken = f"the {to} export of {source} breaks its contract on {contract.data}: {reason}"
            raise ValueError(f"{broken}; nothing is written{way_out}")
        if row.page is not None:
            load(row.page)(draft, card, runtime=None if runtime is None else Path(runtime))
        if row.server is not None:
            load(row.server)(draft, draft / row.file, card, name=folder.name)
        seal(draft, card, contract)
    return Exported(folder, card, contract)


@contextlib.contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """Yield a draft beside a folder, which takes its place at the end; after an error nothing is left."""
    draft = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        put(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def load_model(source: str | Path) -> Backbone:
    """Load the model on the CPU. Raises ValueError for one without a head, and for a name, whose weights are random."""
    model = weights.load(source).eval()
    if not model.config.num_classes:
        raise ValueError(f"{source} has no classes; fine-tune it: `vitrail train DATA --weights {source}`")
    if model.preprocessing is None:
        raise ValueError(f"{source} has random weights; train it, or give the run or the weights of one that is trained")
    return model


def free_folder(out: str | Path | None, *, source: str | Path, to: str) -> Path:
    """Return the folder to write. Raises ValueError where it is not empty, or a file."""
    here = Path(source)
    folder = Path(out) if out is not None else (here.parent if here.exists() else Path()) / f"{here.name}-{to}"
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; give another folder with --out")
    return folder


def measure(
    model: Backbone, exported: Forward, images: Images, *, card: ExportCard, size: int, limits: Limits = FP32
) -> Contract:
    """Compare an export with the model that it was made of."""
    compared = (compare_raw if card.inputs == "raw" else compare_normalised)(model, exported, images)
    return Contract(
        format=card.format,
        sha256=card.sha256,
        data=f"{images.data}, {images.split}",
        deviation=compared.deviation,
        limits=limits,
        speeds=compared.speeds,
        before_bytes=sum(value.numel() * value.element_size() for value in model.state_dict().values()),
        after_bytes=size,
        threads=torch.get_num_threads(),
    )


class Compared(NamedTuple):
    """Logits and times of an export beside the original's."""

    deviation: Deviation
    speeds: tuple[Speed, ...]


def compare_normalised(model: Backbone, exported: Forward, images: Images) -> Compared:
    """Compare on normalised evaluation views."""
    assert model.preprocessing is not None
    inputs, before = normalise(images.views, model.preprocessing), fp32(model, _BATCH)
    batches = inputs.split(_BATCH)
    deviation = compare_logits(logits_of(exported, batches), logits_of(before, batches), multi_label=model.multi_label)
    return Compared(deviation, measure_speed(before, exported, {batch: repeated(inputs, batch) for batch in BATCHES}))


def compare_raw(model: Backbone, exported: Forward, images: Images) -> Compared:
    """Compare on decoded images. The time of the original is that with Pillow's resize, which the export does itself."""
    assert model.preprocessing is not None
    preprocessing, forward = model.preprocessing, fp32(model, _BATCH)
    in_torch = fp32(RawImages(model, preprocessing).eval(), _BATCH)
    one_by_one = [picture[None] for picture in images.pictures]
    deviation = compare_logits(logits_of(exported, one_by_one), logits_of(in_torch, one_by_one), multi_label=model.multi_label)
    ours = torch.cat([view(picture.permute(0, 3, 1, 2).float(), preprocessing) for picture in one_by_one])
    deviation = replace(deviation, pixel_difference=float((ours - images.views).abs().mean()))

    def before(pictures: Tensor) -> Tensor:
        views = torch.stack([eval_view(picture.numpy(), preprocessing) for picture in pictures])
        return forward(normalise(views, preprocessing))

    return Compared(deviation, measure_speed(before, exported, {batch: repeated(one_by_one[0], batch) for batch in BATCHES}))


def repeated(images: Tensor, count: int) -> Tensor:
    """Return `count` images, from the first on, again where there are fewer."""
    return images[torch.arange(count) % len(images)]


def size_of(folder: Path) -> int:
    """Return the size of a folder's files in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def seal(draft: Path, card: ExportCard, contract: Contract) -> None:
    """Write card.json and contract.json into a draft, and wait until all of it is on the disk."""
    (draft / CARD).write_text(card.to_text(), encoding="utf-8")
    text = json.dumps(contract.to_dict(), indent=2, allow_nan=False) + "\n"
    (draft / CONTRACT).write_text(text, encoding="utf-8")
    mark_output(draft, [file for file in draft.rglob("*") if file.is_file()], command="export")
    for file in draft.rglob("*"):
        sync(file)
