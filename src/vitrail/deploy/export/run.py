"""Export a model: trace, write, measure against the original, and publish the folder whole or not at all."""

# N images · B batch · C channels · H W image · K classes

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vitrail import weights
from vitrail.data.augment import normalise
from vitrail.data.listing import mark_output
from vitrail.deploy.export.contract import BATCHES, FP32, UNLIMITED, Contract, Limits, compare_logits, logits_of, measure_speed
from vitrail.deploy.export.formats import format_of
from vitrail.deploy.export.images import Images, read_images
from vitrail.deploy.export.int8 import MAX_LOSS, quantize_file, quantizer_of
from vitrail.deploy.export.merging import merged
from vitrail.deploy.export.metadata import CARD, CONTRACT, ExportCard, card_of
from vitrail.deploy.export.trace import trace
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
    count: int = IMAGES,
    merge: int = 0,
    int8: bool = False,
    max_loss: float = MAX_LOSS,
) -> Exported:
    """Export a run, or any checkpoint with a head, and check it against the original on real images.

    `to` is a row of `FORMATS`. `images` is a folder or a named set [the run's validation images], of which `count` are
    compared. The folder `out` [SOURCE-FORMAT] has the model, card.json and contract.json. Raises ValueError for a folder
    that is not empty, for a model without a head, and where the logits differ by more than `Limits` allows: then nothing is
    written.

    With `merge`, that many patches are merged in each block (`models.merging`): the contract is with the merged model, and
    has the accuracy that merging costs. With `int8` the products are in int8, with a loss of at most `max_loss` points of top-1
    on the validation images (`int8.quantize_within`); ValueError where that can't be.
    """
    row = format_of(to)
    quantizer = quantizer_of(row, to) if int8 else None
    folder = free_folder(out, source=source, to=to)
    writer = row.load()
    model = load_model(source)
    assert model.preprocessing is not None
    pictures = read_images(source, images, preprocessing=model.preprocessing, count=count)
    model, merging = merged(model, merge, source, images) if merge else (model, None)
    card = card_of(model, source=str(source), format=to, inputs="normalised", dynamic_size=dynamic_size)
    draft = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        traced = trace(model, size=pair(model.preprocessing.img_size), dynamic_size=dynamic_size)
        opened, quantized = writer.open_forward, None
        if quantizer is None:
            writer.write(traced, draft / row.file, card.metadata())
        else:
            card = replace(card, precision="int8")
            quantized = quantize_file(
                model,
                lambda path: writer.write(traced, path, card.metadata()),
                quantizer,
                draft / row.file,
                source=source,
                images=images,
                max_loss=max_loss,
            )
            opened = quantizer.open_forward
        contract = measure(
            model,
            opened(draft / row.file),
            pictures,
            card=card,
            size=size_of(draft),
            limits=FP32 if quantized is None else UNLIMITED,
        )
        contract = replace(contract, merging=merging, int8=quantized)
        if reason := contract.deviation.broken(contract.limits):
            raise ValueError(
                f"the {to} export of {source} breaks its contract on {contract.data}: {reason}; nothing is written"
            )
        publish(draft, folder, card, contract)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Exported(folder, card, contract)


def load_model(source: str | Path) -> Backbone:
    """Load the model on the CPU. Raises ValueError for one without a head."""
    model = weights.load(source).eval()
    if not model.config.num_classes:
        raise ValueError(f"{source} has no classes; fine-tune it: `vitrail train DATA --weights {source}`")
    return model


def free_folder(out: str | Path | None, *, source: str | Path, to: str) -> Path:
    """Return the folder to write. Raises ValueError where it is not empty, or a file."""
    folder = (
        Path(out)
        if out is not None
        else Path(f"{str(source).rstrip('/')}-{to}" if Path(source).exists() else f"{Path(source).name}-{to}")
    )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; give another folder with --out")
    return folder


def measure(
    model: Backbone, exported: Forward, images: Images, *, card: ExportCard, size: int, limits: Limits = FP32
) -> Contract:
    """Compare an export with the model that it was made of."""
    assert model.preprocessing is not None
    inputs = normalise(images.views, model.preprocessing)
    before = fp32(model, _BATCH)
    deviation = compare_logits(
        logits_of(exported, inputs.split(_BATCH)), logits_of(before, inputs.split(_BATCH)), multi_label=model.multi_label
    )
    some = {batch: repeated(inputs, batch) for batch in BATCHES}
    return Contract(
        format=card.format,
        sha256=card.sha256,
        data=f"{images.data}, {images.split}",
        deviation=deviation,
        limits=limits,
        speeds=measure_speed(before, exported, {batch: (some[batch], some[batch]) for batch in BATCHES}),
        before_bytes=sum(value.numel() * value.element_size() for value in model.state_dict().values()),
        after_bytes=size,
        threads=torch.get_num_threads(),
    )


def repeated(images: Tensor, count: int) -> Tensor:
    """Return `count` images, from the first on, again where there are fewer."""
    return images[torch.arange(count) % len(images)]


def size_of(folder: Path) -> int:
    """Return the size of a folder's files in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def publish(draft: Path, folder: Path, card: ExportCard, contract: Contract) -> None:
    """Write card.json and contract.json into the draft, and rename it."""
    (draft / CARD).write_text(card.to_text(), encoding="utf-8")
    text = json.dumps(contract.to_dict(), indent=2, allow_nan=False) + "\n"
    (draft / CONTRACT).write_text(text, encoding="utf-8")
    mark_output(draft, [file for file in draft.rglob("*") if file.is_file()], command="export")
    for file in draft.rglob("*"):
        sync(file)
    put(draft, folder)
