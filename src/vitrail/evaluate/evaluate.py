"""Evaluation of a model on a split: every image once, preprocessed as in prediction."""

# N images · B batch · C channels · H W image · K classes

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vitrail.data.augment import normalise
from vitrail.data.batch import RawBatch
from vitrail.data.batches import WHOLE, Part, eval_batches
from vitrail.data.dataset import Split
from vitrail.evaluate.metrics import Evaluation, judge, summarise
from vitrail.evaluate.multilabel import MultiLabelEvaluation, score_labels
from vitrail.evaluate.predictions import find_worst_labels, rank_predictions
from vitrail.evaluate.trust import measure_trust
from vitrail.models.backbone import Backbone
from vitrail.settings import Preprocessing

Taken = TypeVar("Taken")


@dataclass(frozen=True)
class Among:
    """Distribution of an evaluation over processes: this process's part of a split, and the exchange of results."""

    part: Part = WHOLE
    gather: Callable[[Any], list[Any]] = lambda result: [result]
    """Return the results of all processes, in order of rank, to each of them."""
    watch: Callable[[], None] = lambda: None
    """Callback before each batch; may raise."""


ALONE = Among()


class SplitLogits(NamedTuple):
    """Logits of a split, on the CPU, in its order; unreadable images are left out."""

    logits: Float[Tensor, "N K"]
    labels: Int64[Tensor, " N"]
    indexes: Int64[Tensor, " N"]
    """Position of each image in the split."""


def compute_logits(
    model: nn.Module,
    split: Split,
    *,
    preprocessing: Preprocessing,
    batch_size: int = 256,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
    among: Among = ALONE,
) -> SplitLogits:
    """Compute the logits of a split in evaluation view.

    Raises ValueError for an empty split, for one not in evaluation view, and for logits that are not finite.
    """

    def take(logits: Tensor, raw: RawBatch) -> SplitLogits:
        return SplitLogits(logits.float().cpu(), raw.labels.cpu(), raw.indexes.cpu())

    batches = over_batches(
        take,
        model,
        split,
        preprocessing,
        batch_size=batch_size,
        device=torch.device(device),
        autocast_dtype=autocast_dtype,
        among=among,
    )
    parts = [each for part in among.gather(batches) for each in part]
    if not parts:
        raise ValueError("there are no images to evaluate; the split is empty or none of its files could be read")
    joined = SplitLogits(*map(torch.cat, zip(*parts, strict=True)))
    require_finite(joined.logits.isfinite().all(1))
    order = joined.indexes.argsort()
    return SplitLogits(*(value[order] for value in joined))


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    batch_size: int = 256,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
    among: Among = ALONE,
) -> Evaluation:
    """Evaluate a model, which is on `device`, on a split in evaluation view (`augment=None`).

    Each image counts once; an unreadable one is left out. `Evaluation.trust` measures the probabilities that the
    calibration in the model's card makes, or those at temperature 1. The model runs in eval mode without gradients, and its own
    mode is restored. Raises ValueError for a split that is empty or not in evaluation view.
    """
    if split.multi_label:
        raise ValueError("an image of this split may have several labels, so there is no accuracy; use evaluate_labels")
    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "autocast_dtype": autocast_dtype, "among": among}
    logits, labels, indexes = compute_logits(model, split, preprocessing=preprocessing, **options)
    judged = judge(logits, labels)
    calibration = model.card.calibration if isinstance(model, Backbone) else None  # a plain module has no card
    trust = measure_trust(logits, labels, calibration)
    predictions = rank_predictions(logits, labels, indexes, predicted=judged.predicted, temperature=trust.temperature)
    return dataclasses.replace(summarise(judged, labels, classes=classes), trust=trust, predictions=predictions)


def evaluate_labels(
    model: nn.Module,
    split: Split,
    *,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    batch_size: int = 256,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
    among: Among = ALONE,
) -> MultiLabelEvaluation:
    """Evaluate a model as `evaluate` does, on a split whose images may have several labels each."""
    if not split.multi_label:
        raise ValueError("every image of this split has one class; use evaluate")

    def take(logits: Tensor, raw: RawBatch) -> tuple[Tensor, Tensor, Tensor]:
        assert raw.targets is not None
        return logits.float().cpu(), raw.targets.cpu(), raw.indexes.cpu()

    results = over_batches(
        take,
        model,
        split,
        preprocessing,
        batch_size=batch_size,
        device=torch.device(device),
        autocast_dtype=autocast_dtype,
        among=among,
    )
    nothing = torch.empty(0, len(classes)), torch.empty(0, len(classes)), torch.empty(0, dtype=torch.long)
    parts = zip(nothing, *(one for part in among.gather(results) for one in part), strict=True)
    logits, targets, indexes = map(torch.cat, parts)
    require_finite(logits.isfinite().all(1))
    scores = score_labels(logits, targets > 0, classes=classes)
    return dataclasses.replace(scores, predictions=find_worst_labels(logits, targets > 0, indexes))


def require_finite(finite: Bool[Tensor, " N"]) -> None:
    """Raise ValueError if the model's output is not finite for some image, as it can't be scored."""
    if wrong := int((~finite).sum()):
        raise ValueError(
            f"the model's output is not finite for {wrong:,} of {len(finite):,} images, so there is no score; "
            "use fp32, or look whether the weights are finite"
        )


def over_batches(
    take: Callable[[Tensor, RawBatch], Taken],
    model: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 256,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    among: Among = ALONE,
) -> list[Taken]:
    """Apply `take` to the logits (B, K) of each batch, and return the results. Unreadable images are left out."""
    height, width = preprocessing.img_size
    nothing = torch.zeros(1, preprocessing.in_channels, height, width, device=device)
    taken = []
    with (
        in_eval_mode(model),
        torch.no_grad(),
    ):  # no inference mode: weights in parts are laid out anew here, and learn after it
        for raw in eval_batches(split, batch_size=batch_size, part=among.part):
            among.watch()
            if tuple(raw.images.shape[-2:]) != preprocessing.img_size:
                sides = "x".join(map(str, raw.images.shape[-2:])), f"{height}x{width}"
                raise ValueError(
                    f"images of {sides[0]} pixels, but the model takes {sides[1]}; load the split with augment=None"
                )
            raw = raw.to(device)
            # Processes that have a part of the weights each compute together, also what nobody needs.
            images = normalise(raw.images, preprocessing) if len(raw) else nothing
            with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                logits = model(images)
            if len(raw):
                taken.append(take(logits, raw))
    return taken


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Set every module to eval mode, and restore each one's own mode on exit: parts of a model may be frozen."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
