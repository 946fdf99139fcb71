"""Batched augmentation on the device, with independent draws for each sample: raw pixels in, model inputs and targets out."""

# N images · B batch · C channels · H W image · K classes

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from vitrail.data.apply_colors import ApplyColors, apply_each_
from vitrail.data.batch import Batch, RawBatch, constant
from vitrail.data.draws import Draws
from vitrail.data.geometry import is_shift, mirror, resample, shift
from vitrail.data.policy import color_jitter_, rand_augment_colors_, rand_augment_matrices, three_augment_
from vitrail.settings import AugmentConfig, Pair, Preprocessing

_TRIES = 10  # as torchvision's RandomResizedCrop and timm's RandomErasing
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 1 / 0.3)


def augment(
    raw: RawBatch,
    *,
    cfg: AugmentConfig,
    preprocessing: Preprocessing,
    num_classes: int,
    seed: int,
    epoch: int,
    label_smoothing: float = 0.0,
    teacher_targets: Float[Tensor, "N K"] | None = None,
    apply: ApplyColors = apply_each_,
) -> Batch:
    """Return the training batch: augmented images and soft targets.

    Order: crop, flip and the geometric part of RandAugment in one resampling; the colours of RandAugment, three-augment
    and colour jitter; normalisation; random erasing; mixup or cutmix. All draws are keyed by (seed, epoch, index), and by the
    turn of an image that is repeated, so the result for a sample depends on its batch only through its mixing partner.
    Pixels are computed on the device of `raw.images`; with all else of `raw` on the CPU, that device is never waited for.
    `teacher_targets` are those of all images of the split; the batch gets its own, mixed as the labels are. `apply` computes
    colours.
    """
    draws = Draws(seed=seed, epoch=epoch, indexes=raw.indexes, turns=raw.turns)
    pixels = _apply_colors(_crop_and_warp(raw, draws, cfg, preprocessing), draws, cfg, apply)
    images = normalise(pixels, preprocessing)
    erase_(images, draws, prob=cfg.erase_prob)
    targets = raw.targets
    if targets is None:
        targets = F.one_hot(raw.labels, num_classes).float() * (1 - label_smoothing) + label_smoothing / num_classes
    batch_targets = None
    if teacher_targets is None:
        images, targets = mix(images, targets, draws, cfg)
    else:
        batch_targets = teacher_targets[raw.indexes.to(teacher_targets.device)].to(targets)
        images, both = mix(images, torch.cat([targets, batch_targets], dim=1), draws, cfg)
        targets, batch_targets = (part.to(images.device, non_blocking=True) for part in both.chunk(2, dim=1))
    targets, labels = (value.to(images.device, non_blocking=True) for value in (targets, raw.labels))
    return Batch(images=images, targets=targets, labels=labels, indexes=raw.indexes, teacher_targets=batch_targets)


def _crop_and_warp(raw: RawBatch, draws: Draws, cfg: AugmentConfig, preprocessing: Preprocessing) -> Tensor:
    """Crop, flip and warp to the model's size: (B, C, H, W), 0 … 255. Shifts whole pixels where possible, else resamples."""
    out = preprocessing.img_size
    flips = draws.uniform("flip")[:, 0] < cfg.flip
    if cfg.rand_augment is None and is_shift(raw.boxes, out=out):
        return shift(raw.images, boxes=raw.boxes, flips=flips, out=out)
    matrices, fill = mirror(flips, width=out[1]), None
    if cfg.rand_augment is not None:
        matrices = matrices @ rand_augment_matrices(draws, cfg.rand_augment, size=out)
        # The border is filled with the data's mean colour, as in timm: zero after normalisation, so no signal.
        fill = 255 * constant(preprocessing.mean, raw.images.device).flatten()
    return resample(raw.images, sizes=raw.sizes, boxes=raw.boxes, matrices=matrices, out=out, fill=fill)


def _apply_colors(pixels: Tensor, draws: Draws, cfg: AugmentConfig, apply: ApplyColors) -> Tensor:
    """Apply the colour operations that `cfg` enables."""
    if cfg.rand_augment is None and not cfg.three_augment and cfg.color_jitter == 0:
        return pixels
    pixels = pixels.float().round_()  # whole levels, as the operations take them: a 127.999 has not the bits of 128
    if cfg.rand_augment is not None:
        rand_augment_colors_(pixels, draws, cfg.rand_augment, apply=apply)
    if cfg.three_augment:
        three_augment_(pixels, draws, apply=apply)
    if cfg.color_jitter > 0:
        color_jitter_(pixels, draws, amount=cfg.color_jitter, apply=apply)
    return pixels


def crop_boxes(sizes: Int64[Tensor, "B 2"], draws: Draws, cfg: AugmentConfig) -> Float[Tensor, "B 4"]:
    """Draw the crop of each image: top, left, height and width, in whole pixels.

    "resized" draws area share and aspect ratio as Inception's crop does (Szegedy et al. 2015), ten tries and then the
    largest centred crop of an allowed ratio, as torchvision; "pad" shifts the whole image by up to `crop_pad` pixels;
    "none" and "whole" take all of it.
    """
    height, width = sizes.unbind(1)
    if cfg.crop in ("none", "whole"):
        return torch.stack((torch.zeros_like(height), torch.zeros_like(height), height, width), dim=1).float()
    if cfg.crop == "pad":
        corner = draws.integers("crop_pad", high=2 * cfg.crop_pad + 1, n=2) - cfg.crop_pad
        return torch.cat((corner, sizes), dim=1).float()

    tall, wide = _draw_rectangles(draws, "crop", area=height * width, share=cfg.crop_scale, ratio=cfg.crop_ratio)
    fits = (tall > 0) & (tall <= height[:, None]) & (wide > 0) & (wide <= width[:, None])  # (B, tries)
    first = fits.int().argmax(1, keepdim=True)
    any_fits = fits.any(1)
    tall = torch.where(any_fits, tall.gather(1, first)[:, 0], torch.minimum(height, (width / cfg.crop_ratio[0]).round().long()))
    wide = torch.where(any_fits, wide.gather(1, first)[:, 0], torch.minimum(width, (height * cfg.crop_ratio[1]).round().long()))
    top = torch.where(any_fits, draws.integers("crop_top", high=height - tall + 1)[:, 0], (height - tall) // 2)
    left = torch.where(any_fits, draws.integers("crop_left", high=width - wide + 1)[:, 0], (width - wide) // 2)
    return torch.stack((top, left, tall, wide), dim=1).float()


def _draw_rectangles(
    draws: Draws, stream: str, *, area: int | Tensor, share: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Int64[Tensor, "B tries"], Int64[Tensor, "B tries"]]:
    """Draw heights and widths of rectangles: area uniform in `share` of the whole, log of width over height uniform."""
    part = share[0] + (share[1] - share[0]) * draws.uniform(f"{stream}_area", _TRIES)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * draws.uniform(f"{stream}_ratio", _TRIES))
    target = part * (area[:, None] if isinstance(area, Tensor) else area)
    return (target / shape).sqrt().round().long(), (target * shape).sqrt().round().long()


def normalise(
    images: UInt8[Tensor, "B C H W"] | Float[Tensor, "B C H W"], preprocessing: Preprocessing
) -> Float[Tensor, "B C H W"]:
    """Normalise pixels from 0 … 255: (x / 255 - mean) / std in each channel."""
    mean, std = (constant(values, images.device) for values in (preprocessing.mean, preprocessing.std))
    return (images * (1 / (255 * std))).sub_(mean / std)


def erase_(images: Float[Tensor, "B C H W"], draws: Draws, *, prob: float) -> None:
    """Random erasing in pixel mode (Zhong et al. 2020), in place: a rectangle of normal noise, with probability `prob`.

    Runs after normalisation, so that the noise has the images' own spread. Area 0.02 to 1/3 of the image, ratio 0.3 to
    3.3; a rectangle that does not fit is drawn again, up to ten times.
    """
    if prob == 0:
        return
    height, width = images.shape[-2:]
    tall, wide = _draw_rectangles(draws, "erase", area=height * width, share=_ERASED_AREA, ratio=_ERASED_RATIO)
    fits = (tall > 0) & (tall < height) & (wide > 0) & (wide < width)  # (B, tries)
    first = fits.int().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
    chosen = fits.any(1) & (draws.uniform("erase")[:, 0] < prob)
    top = draws.integers("erase_top", high=(height - tall + 1).clamp(min=1))[:, 0]
    left = draws.integers("erase_left", high=(width - wide + 1).clamp(min=1))[:, 0]
    some = chosen.nonzero()[:, 0]
    boxes = top[some], left[some], tall[some], wide[some]
    rows, columns = _pixels_of(some, *boxes, shape=images.shape[1:], device=images.device)
    noise = draws.on(images.device).normal_at("erase_noise", rows=rows, columns=columns)
    images.view(len(images), -1)[rows, columns] = noise.to(images.dtype)


def _pixels_of(
    samples: Int64[Tensor, " b"], *boxes: Int64[Tensor, " b"], shape: torch.Size, device: torch.device
) -> tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]:
    """Return sample and position (in the flattened image) of every number in the boxes: top, left, height, width.

    The lists are made on the device, of a length that is known beforehand: a search of a mask would wait for the device.
    """
    channels, height, width = shape
    counts = channels * boxes[2] * boxes[3]
    values = torch.stack((samples, counts.cumsum(0) - counts, *boxes)).to(device, non_blocking=True)
    total = int(counts.sum())
    repeats = counts.to(device, non_blocking=True)
    rows, first, top, left, tall, wide = values.repeat_interleave(repeats, dim=1, output_size=total)  # (M,) each
    place = torch.arange(total, device=device) - first
    channel, inside = place // (tall * wide), place % (tall * wide)
    return rows, (channel * height + top + inside // wide) * width + left + inside % wide


def mix(
    images: Float[Tensor, "B C H W"], targets: Float[Tensor, "B K"], draws: Draws, cfg: AugmentConfig
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of each image with the one before it in the batch.

    Each sample draws whether, how and by how much it is mixed. A cutmix box is clipped at the edges, and the target takes
    the share of pixels that is left.
    """
    if cfg.mixup_prob == 0 or (cfg.mixup_alpha == 0 and cfg.cutmix_alpha == 0):
        return images, targets
    mixed = draws.uniform("mix")[:, 0] < cfg.mixup_prob
    cut = draws.uniform("cutmix")[:, 0] < (cfg.switch_prob if cfg.mixup_alpha > 0 else 1.0)
    cut = cut & mixed if cfg.cutmix_alpha > 0 else torch.zeros_like(mixed)
    share = torch.ones(len(images), device=mixed.device)  # of the image itself, in the target
    if cfg.mixup_alpha > 0:
        share = torch.where(mixed & ~cut, draws.beta("mixup", cfg.mixup_alpha), 1.0)
    weight = share.view(-1, 1, 1, 1).to(images.device, non_blocking=True)  # of the image itself, in each pixel
    if cfg.cutmix_alpha > 0:
        rows, columns = _draw_cutmix_box(draws, alpha=cfg.cutmix_alpha, size=(images.shape[-2], images.shape[-1]))
        rows = rows * cut[:, None]
        share = share - rows.mean(1) * columns.mean(1)
        rows, columns = (value.to(images.device, non_blocking=True) for value in (rows, columns))
        weight = torch.addcmul(weight, rows[:, None, :, None], columns[:, None, None, :], value=-1)  # (B, 1, H, W)
    return images.roll(1, 0).lerp_(images, weight.to(images.dtype)), targets.roll(1, 0).lerp_(targets, share[:, None])


def _draw_cutmix_box(draws: Draws, *, alpha: float, size: Pair) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B W"]]:
    """Draw a cutmix box for each sample; return its row mask and its column mask, 1 inside and 0 outside."""
    side = torch.sqrt(1 - draws.beta("cutmix_share", alpha))
    tall, wide = (size[0] * side).long(), (size[1] * side).long()
    middle_y = draws.integers("cutmix_y", high=size[0])[:, 0]
    middle_x = draws.integers("cutmix_x", high=size[1])[:, 0]
    rows = _interval_mask(middle_y - tall // 2, middle_y + (tall + 1) // 2, size[0])
    columns = _interval_mask(middle_x - wide // 2, middle_x + (wide + 1) // 2, size[1])
    return rows.float(), columns.float()


def _interval_mask(start: Int64[Tensor, " B"], stop: Int64[Tensor, " B"], side: int) -> Bool[Tensor, "B side"]:
    place = torch.arange(side, device=start.device)
    return (place >= start[:, None]) & (place < stop[:, None])
