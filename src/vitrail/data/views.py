"""Views of images on the device: several crops of each, with colours drawn for each view (multi-crop: Caron et al. 2020)."""

# B batch · C channels · H W canvas · v views of a group · h w view · M views of any images · N images of the split

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.data.apply_colors import ApplyColors, apply_each_
from vitrail.data.augment import crop_boxes, normalise
from vitrail.data.batch import RawBatch
from vitrail.data.draws import Draws
from vitrail.data.geometry import mirror, resample
from vitrail.data.policy import view_colors_
from vitrail.settings import AugmentConfig, Pair, Preprocessing, ViewsConfig

Views = Float[Tensor, "B v C h w"]


def draw_views(
    raw: RawBatch,
    *,
    cfg: ViewsConfig,
    preprocessing: Preprocessing,
    sizes: Int64[Tensor, "N 2"],
    local_size: Pair,
    seed: int,
    epoch: int,
    apply: ApplyColors = apply_each_,
) -> tuple[Views, ...]:
    """Return the views of each image: global ones at the image size, then local ones at `local_size`, if there are any.

    `raw` has whole images, maybe squashed to one canvas; `sizes` are the images' own, which the ratio of a crop is drawn for.
    Order: crop and flip in one resampling, colours, normalisation. Draws are keyed by (seed, epoch, index) and the view, so
    that a view does not depend on the batch. Pixels are computed on the device of `raw.images`, each group in one pass; with
    all else of `raw` on the CPU, that device is never waited for. `apply` computes colours.
    """
    groups = [(0, cfg.global_crops, preprocessing.img_size, cfg.global_scale)]
    if cfg.local_crops:
        groups.append((cfg.global_crops, cfg.local_crops, local_size, cfg.local_scale))
    own = sizes[raw.indexes.to(sizes.device)]  # (B, 2)
    parts = []
    for first, count, size, scale in groups:
        views = torch.arange(first, first + count).repeat(len(raw))  # (B v)
        rows = torch.arange(len(raw)).repeat_interleave(count)
        draws = draws_of_views(raw, views=views, rows=rows, cfg=cfg, seed=seed, epoch=epoch)
        boxes = crop_boxes(own[rows], draws, AugmentConfig(crop="resized", crop_scale=scale))
        to_canvas = (raw.sizes / own).repeat(1, 2)[rows]  # (B v, 4)
        flips = draws.uniform("flip")[:, 0] < cfg.flip
        pixels = resample(
            raw.images.repeat_interleave(count, 0),
            sizes=raw.sizes[rows],
            boxes=boxes * to_canvas,
            matrices=mirror(flips, width=size[1]),
            out=size,
        )
        kind = torch.where(views == 0, 0, torch.where(views < cfg.global_crops, 1, 2))
        blur, solarize = (torch.tensor(probs)[kind] for probs in (cfg.blur_probs, cfg.solarize_probs))
        view_colors_(pixels, draws, cfg, blur=blur, solarize=solarize, apply=apply)
        images = normalise(pixels, replace(preprocessing, img_size=size))
        parts.append(images.unflatten(0, (len(raw), count)))  # (B, v, C, h, w)
    return tuple(parts)


def draws_of_views(
    raw: RawBatch, *, views: Int64[Tensor, " M"], rows: Int64[Tensor, " M"], cfg: ViewsConfig, seed: int, epoch: int
) -> Draws:
    """Return the random numbers of some views, each given by its number and the row of its image."""
    turns = views if raw.turns is None else views + cfg.views * raw.turns[rows]
    return Draws(seed=seed, epoch=epoch, indexes=raw.indexes[rows], turns=turns)
