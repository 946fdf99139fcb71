"""Signal of training without labels, live: checks for a collapse, curves, and colours of patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vitrail.data.batches import Part
from vitrail.data.dataset import Split
from vitrail.data.draws import permutation
from vitrail.data.subset import Subset
from vitrail.evaluate import EmbeddingScores
from vitrail.evaluate.embedding import evaluate_embedding
from vitrail.evaluate.evaluate import Among
from vitrail.models.backbone import Backbone
from vitrail.settings import Preprocessing
from vitrail.train.curves import write_curves
from vitrail.train.distributed import SINGLE_PROCESS, World
from vitrail.train.guard import Check, Collapse, Guard
from vitrail.train.patch_colors import draw_patch_colors, write_strip


@dataclass(frozen=True, eq=False)
class Watch:
    """Guard and pictures of a run without labels."""

    folder: Path
    guard: Guard
    images: Split
    """Held-out images, or training images, in evaluation view."""
    preprocessing: Preprocessing
    device: torch.device
    autocast_dtype: torch.dtype | None = None
    world: World = SINGLE_PROCESS
    keeps_best: bool = True
    """True where the checkpoint of the best evaluation is saved."""

    @property
    def collapse(self) -> Collapse | None:
        """Collapse that the checks show."""
        return self.guard.collapse

    def is_due(self, step: int, progress: float) -> bool:
        """Return True where a check is due before a step."""
        return self.guard.cfg.stop and self.guard.is_due(step, progress)

    def check(self, model: Backbone, watch: Callable[[], None]) -> EmbeddingScores:
        """Score a model on the images of the checks, which are each other's neighbours: the same in all processes."""
        self.world.broadcast_buffers(model)
        scores = evaluate_embedding(
            model,
            draw_images(self.images, self.guard.cfg.images),
            preprocessing=self.preprocessing,
            device=self.device,
            autocast_dtype=self.autocast_dtype,
            among=Among(Part(self.world.rank, self.world.size), gather=self.world.gather, watch=watch),
        )
        return self.world.run_on_first(lambda: scores)  # the others' may differ in the last bits, and the decision may not

    def add(self, scores: EmbeddingScores, *, step: int, progress: float, **in_use: float | None) -> Mapping[str, float]:
        """Add a check to the guard, with what is `in_use` by name (see `Check.of`). Return its figures for the log."""
        self.guard.add(Check.of(scores, step=step, progress=progress, **in_use))
        figures = scores.figures() | {name: value for name, value in in_use.items() if value is not None}
        return {f"check_{name}": value for name, value in figures.items()}

    def draw(self, model: Backbone, *, step: int) -> None:
        """Write curves.png and pca.png. All processes compute the colours, the first one writes."""
        colors = draw_patch_colors(
            model, self.images, preprocessing=self.preprocessing, device=self.device, autocast_dtype=self.autocast_dtype
        )
        if self.world.first:
            write_curves(self.folder)
            if colors is not None:
                write_strip(self.folder, colors, step=step)


def draw_images(split: Split, count: int) -> Split:
    """Return at most `count` images of a split, drawn by a fixed seed, in their order."""
    if len(split) <= count:
        return split
    return Subset(split, permutation(len(split), seed=0, epoch=0)[:count].sort().values)
