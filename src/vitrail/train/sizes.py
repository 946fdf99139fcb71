"""Image size and patch size over a run: pure functions of progress and step."""

from __future__ import annotations

import math

import torch

from vitrail.data.draws import Draws
from vitrail.models.backbone import Backbone
from vitrail.settings import Pair, TrainConfig, pair


def size_at(progress: float, *, start: int, stages: int, full_from: float, full: Pair, patch: Pair) -> Pair:
    """(height, width) of the images at a share of the run: `full` from `full_from` on, and smaller before.

    Progressive learning (Tan & Le 2021): the short side grows evenly from `start` in `stages` stages of equal length; one stage
    is the higher-resolution finish of Touvron et al. 2019. It is rounded down to a multiple of its patch, so that only the last
    size is the full one; the long side is rounded to the nearest multiple.
    """
    if progress >= full_from:
        return full
    stage = min(stages - 1, int(progress / full_from * stages + 1e-9))  # against rounding errors
    return stage_size(stage, start=start, stages=stages, full=full, patch=patch)


def stage_size(stage: int, *, start: int, stages: int, full: Pair, patch: Pair) -> Pair:
    """(height, width) of the images in a stage before the full size; stage 0 has short side `start`."""
    axis = full.index(min(full))
    short = (start * stages + (full[axis] - start) * stage) // stages // patch[axis] * patch[axis]

    def side(full_px: int, patch_px: int) -> int:
        # rounds to the nearest multiple in integers, which has no rounding errors
        return max(1, (2 * full_px * short + patch_px * full[axis]) // (2 * patch_px * full[axis])) * patch_px

    height, width = (short if i == axis else side(full[i], patch[i]) for i in range(2))
    return height, width


def patch_at(step: int, *, patches: tuple[int, ...], seed: int) -> int:
    """Patch size of a step, drawn uniformly from `patches` (FlexiViT: Beyer et al. 2023, section 3.2)."""
    draw = Draws(seed=seed, epoch=0, indexes=torch.tensor([step])).integers("patch_size", high=len(patches))
    return patches[int(draw)]


# --------------------------------------------------------------------------------------------------------------------
# Sizes of a run


def side_unit(patch_sizes: tuple[int, ...], model: Backbone) -> Pair:
    """Unit of the image sides, (height, width) in pixels: the model's, or the least common multiple of `patch_sizes`."""
    return pair(math.lcm(*patch_sizes)) if patch_sizes else model.side_unit


def list_sizes(cfg: TrainConfig, model: Backbone) -> tuple[Pair, ...]:
    """Return all image sizes of a run, in order."""
    full = pair(model.config.img_size)
    if cfg.start_size is None:
        return (full,)
    unit = side_unit(cfg.patch_sizes, model)
    before = [
        stage_size(i, start=cfg.start_size, stages=cfg.size_stages, full=full, patch=unit) for i in range(cfg.size_stages)
    ]
    return tuple(dict.fromkeys([*before, full]))


def check_sizes(cfg: TrainConfig, model: Backbone) -> None:
    """Raise ValueError for an invalid `start_size`, and for patch sizes that do not fit the model or its images."""
    full = pair(model.config.img_size)
    for patch in cfg.patch_sizes:
        model.check_patch(pair(patch))
        for side in full:
            if side % patch:
                fits = [part for part in range(1, min(full) + 1) if not any(side % part for side in full)]
                near = min(fits, key=lambda part: abs(part - patch))
                raise ValueError(f"train.patch_sizes: {patch} does not divide the image side {side}; use {near}")
    if cfg.start_size is None:
        return
    axis = full.index(min(full))
    short, unit = full[axis], side_unit(cfg.patch_sizes, model)[axis]
    if cfg.start_size > short:
        way_out = f"use {short - unit}, or a larger model.img_size" if short > unit else "leave it out"
        raise ValueError(f"train.start_size {cfg.start_size} is larger than the images' full side {short}; {way_out}")
    if cfg.start_size % unit:
        near = max(1, min(short // unit, round(cfg.start_size / unit))) * unit
        of = f"which all of train.patch_sizes {', '.join(map(str, cfg.patch_sizes))} divide" if cfg.patch_sizes else "the patch"
        raise ValueError(f"train.start_size {cfg.start_size} is not a multiple of {unit}, {of}; use {near}")
