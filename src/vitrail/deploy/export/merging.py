"""Token merging in an export, and what it costs."""

from __future__ import annotations

from pathlib import Path

from vitrail.data.augment import normalise
from vitrail.deploy.export.contract import Change, correct_of
from vitrail.deploy.export.images import read_labelled
from vitrail.deploy.forms import fp32
from vitrail.models.backbone import Backbone
from vitrail.models.merging import MergedViT

_BATCH = 32


def merged(model: Backbone, r: int, source: str | Path, data: str | None) -> tuple[MergedViT, Change]:
    """Return a model that merges `r` patches in each block, and its accuracy beside the model's on the validation images."""
    assert model.preprocessing is not None
    other = MergedViT(model, r).eval()
    images = read_labelled(model, source, data, split="val")
    batches = normalise(images.views, model.preprocessing).split(_BATCH)
    right = [correct_of(fp32(each, _BATCH), batches, images.labels) for each in (model, other)]
    return other, Change.of(*right, method=f"ToMe, {r} patches in each block", data=f"{images.data}, {images.split}")
