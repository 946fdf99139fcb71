"""A model and a split give scores: every image once, as it would be predicted."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.config import Preprocessing
from vitrail.data.augment import normalise
from vitrail.data.batch import RawBatch
from vitrail.data.batches import eval_batches
from vitrail.data.dataset import Split
from vitrail.evaluate.confusion import save_confusion
from vitrail.evaluate.metrics import Evaluation, Judged, Scores, judge, summarise
from vitrail.evaluate.multilabel import MultiLabelEvaluation, score_labels


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    batch_size: int = 256,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
) -> Evaluation:
    """Scores of the model, which is on `device`, on a split loaded as evaluation view (`augment=None`).

    Each image is seen once; one that can't be read any more is left out of the count. The model runs in eval mode without
    gradients, and is left in the mode it was in. Raises ValueError for a split that is empty or not in evaluation view.
    """
    if split.multi_label:
        raise ValueError("an image of this split may have several labels, so there is no accuracy; use evaluate_labels")
    device = torch.device(device)
    judged: list[Judged] = []
    labels = []
    with _in_eval_mode(model), torch.inference_mode():
        for images, raw in _views(split, preprocessing=preprocessing, batch_size=batch_size, device=device):
            with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                logits = model(images)  # (B, K)
            judged.append(judge(logits, raw.labels))
            labels.append(raw.labels)
    if not judged:
        raise ValueError("there are no images to evaluate; the split is empty or none of its files could be read")
    return summarise(Judged(*map(torch.cat, zip(*judged, strict=True))), torch.cat(labels), classes=classes)


def evaluate_labels(
    model: nn.Module,
    split: Split,
    *,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    batch_size: int = 256,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
) -> MultiLabelEvaluation:
    """As `evaluate`, for a split whose images may have several labels each."""
    if not split.multi_label:
        raise ValueError("every image of this split has one class; use evaluate")
    device = torch.device(device)
    logits, targets = [torch.empty(0, len(classes))], [torch.empty(0, len(classes))]
    with _in_eval_mode(model), torch.inference_mode():
        for images, raw in _views(split, preprocessing=preprocessing, batch_size=batch_size, device=device):
            assert raw.targets is not None
            with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                given = model(images)  # (B, K)
            logits.append(given.float().cpu())
            targets.append(raw.targets.cpu())
    return score_labels(torch.cat(logits), torch.cat(targets) > 0, classes=classes)


def save_evaluation(scores: Scores, folder: Path, *, data: str, split: str) -> tuple[Path, ...]:
    """Writes evaluation.json, and with one class an image confusion.png and confusion.csv; returns their paths."""
    numbers = {"data": data, "split": split, **scores.to_dict()}
    path, draft = folder / "evaluation.json", folder / "evaluation.json.part"
    pictures = save_confusion(scores, folder) if isinstance(scores, Evaluation) else ()
    draft.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, path)
    return (path, *pictures)


def _views(
    split: Split, *, preprocessing: Preprocessing, batch_size: int, device: torch.device
) -> Iterator[tuple[Float[Tensor, "B C H W"], RawBatch]]:
    """Every image once as the model sees it, in order; one that can't be read any more is left out."""
    for raw in eval_batches(split, batch_size=batch_size):
        if tuple(raw.images.shape[-2:]) != preprocessing.img_size:
            sides = "x".join(map(str, raw.images.shape[-2:])), "x".join(map(str, preprocessing.img_size))
            raise ValueError(f"images of {sides[0]} pixels, but the model takes {sides[1]}; load the split with augment=None")
        raw = raw.to(device)
        yield normalise(raw.images, preprocessing), raw


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode for a while, then each as it was: parts of a model may have been frozen."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
