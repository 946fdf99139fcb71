"""Loss of token merging: accuracy with and without it, on the same images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.data.listing import mark_output
from vitrail.data.sources import SplitName
from vitrail.evaluate.evaluate import compute_logits
from vitrail.evaluate.intervals import Accuracy
from vitrail.evaluate.paired import Paired, compare_pair
from vitrail.evaluate.run import open_run
from vitrail.models.merging import MergedViT
from vitrail.weights.run_folder import write_atomically

MERGING = "merging.json"
"""Name of the file in a folder of scores."""


@dataclass(frozen=True)
class MergingLoss:
    """A model beside itself with merged tokens, on one split."""

    r: int
    """Patches merged in each block."""
    without: Accuracy
    """Top-1 of the model."""
    merged: Accuracy
    """Top-1 with merging."""
    paired: Paired
    """The second minus the first."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        sides = {"without": self.without, "merged": self.merged}
        rates = {name: top1.to_dict() for name, top1 in sides.items()}
        return {"r": self.r, **rates, "paired": self.paired.to_dict()}

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write merging.json. Return its path."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        with write_atomically(place / MERGING) as draft:
            draft.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        mark_output(place, [place / MERGING], command="evaluate")
        return (place / MERGING,)


def measure_merging(
    run: str | Path,
    data: str | None = None,
    *,
    r: int,
    split: SplitName | None = None,
    batch_size: int = 256,
    device: str = "auto",
) -> MergingLoss:
    """Measure the accuracy of a run or a checkpoint with and without `r` patches merged in each block.

    Data and split are those of `evaluate_run`. Raises ValueError for a model whose tokens can't be merged, for one without
    classes, and for images with several labels.
    """
    opened = open_run(run, data, split=split, device=device)
    if opened.headless or opened.source.multi_label:
        raise ValueError(
            f"merging is measured by the accuracy on images with one class each, which {run} has not; leave it out"
        )
    images, right = opened.load_split(), []
    for model in (opened.model, MergedViT(opened.model, r).eval()):
        found = compute_logits(
            model,
            images,
            preprocessing=opened.preprocessing,
            batch_size=batch_size,
            device=opened.device,
            autocast_dtype=opened.autocast_dtype,
        )
        right.append(found.logits.argmax(1) == found.labels)
    without, merged = (Accuracy(int(correct.sum()), len(correct)) for correct in right)
    return MergingLoss(r, without, merged, compare_pair(*right))
