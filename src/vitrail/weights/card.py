"""Attach the card of a loaded model: preprocessing, classes, task, and the receipt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vitrail.models.backbone import Backbone
from vitrail.models.receipt import Entry, Receipt
from vitrail.settings import pair
from vitrail.weights.eval_transform import EvalTransform
from vitrail.weights.preprocess import preprocessing_for
from vitrail.weights.read import Checkpoint


def attach_card(
    model: Backbone,
    checkpoint: Checkpoint,
    stored: Any,
    entries: Iterable[Entry],
    *,
    origin: str,
    notes: tuple[str, ...] | None = None,
    assumed: tuple[str, ...] = (),
    grid: str = "",
    answered: EvalTransform | None = None,
) -> Receipt:
    """Attach the card to a model that was built from a checkpoint. Return the receipt, which the card holds too.

    `stored` is the config of the model in the file; `origin` names its library, for receipt and preprocessing.
    `answered` is the evaluation transform that the caller states.
    """
    config = model.config
    given = preprocessing_for(
        img_size=pair(config.img_size),
        in_channels=config.in_channels,
        num_classes=config.num_classes if config.num_classes == stored.num_classes else -1,
        config=checkpoint.config,
        preprocessor=checkpoint.preprocessor,
        origin=origin,
        file_img_size=pair(stored.img_size),
        answered=answered,
    )
    receipt = Receipt(
        origin=origin,
        file=checkpoint.file,
        sha256=checkpoint.sha256,
        licence=checkpoint.licence or licence_of(checkpoint.config),
        entries=tuple(entries),
        assumed=assumed,
        notes=checkpoint.notes if notes is None else notes,
        preprocessing=given.source,
        grid=grid,
    )
    model.card = given.card(receipt)
    return receipt


def licence_of(config: Mapping[str, Any]) -> str | None:
    """Return the licence in the config.json of a run, or of timm."""
    ours, timms = config.get("vitrail"), config.get("pretrained_cfg")
    licence = (ours.get("licence") if isinstance(ours, dict) else None) or (
        timms.get("license") if isinstance(timms, dict) else None
    )
    return licence if isinstance(licence, str) else None
