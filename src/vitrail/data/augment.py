"""From raw pixels to what the model sees: every augmentation, batched, on the batch's device, a fresh draw for every sample."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from vitrail.config import AugmentConfig, Preprocessing
from vitrail.data.batch import Batch, RawBatch
from vitrail.data.draws import Draws
from vitrail.data.geometry import is_shift, mirror, resample, shift

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
) -> Batch:
    """The batch as the model sees it in training.

    Order: crop box and flip, normalisation, random erasing, mixup or cutmix. All draws are keyed by (seed, epoch, index):
    a sample comes out the same in any batch, but for the neighbour it is mixed with.
    """
    draws = Draws(seed=seed, epoch=epoch, indexes=raw.indexes)
    out = preprocessing.img_size
    flips = draws.uniform("flip")[:, 0] < cfg.flip
    if is_shift(raw.boxes, out=out):
        images = normalise(shift(raw.images, boxes=raw.boxes, flips=flips, out=out), preprocessing)
    else:
        matrices = mirror(flips, width=out[1])
        pixels = resample(raw.images, sizes=raw.sizes, boxes=raw.boxes, matrices=matrices, out=out)
        images = normalise(pixels, preprocessing)
    images = erase(images, draws, prob=cfg.erase_prob)
    targets = F.one_hot(raw.labels, num_classes).float() * (1 - label_smoothing) + label_smoothing / num_classes
    images, targets = mix(images, targets, draws, cfg)
    return Batch(images=images, targets=targets, labels=raw.labels, indexes=raw.indexes)


def crop_boxes(sizes: Int64[Tensor, "B 2"], draws: Draws, cfg: AugmentConfig) -> Float[Tensor, "B 4"]:
    """Top, left, height and width of each image's crop, in whole pixels of the image.

    "resized" draws share of the area and ratio as Inception's crop does (Szegedy et al. 2015), ten tries and then the
    largest centred crop of an allowed ratio, as torchvision; "pad" shifts the whole image by up to `crop_pad` pixels;
    "none" is the whole image.
    """
    height, width = sizes.unbind(1)
    if cfg.crop == "none":
        return torch.stack((torch.zeros_like(height), torch.zeros_like(height), height, width), dim=1).float()
    if cfg.crop == "pad":
        corner = draws.integers("crop_pad", high=2 * cfg.crop_pad + 1, n=2) - cfg.crop_pad
        return torch.cat((corner, sizes), dim=1).float()

    tall, wide = _rectangles(draws, "crop", area=height * width, share=cfg.crop_scale, ratio=cfg.crop_ratio)
    fits = (tall > 0) & (tall <= height[:, None]) & (wide > 0) & (wide <= width[:, None])  # (B, tries)
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    tall = torch.where(found, tall.gather(1, first)[:, 0], torch.minimum(height, (width / cfg.crop_ratio[0]).round().long()))
    wide = torch.where(found, wide.gather(1, first)[:, 0], torch.minimum(width, (height * cfg.crop_ratio[1]).round().long()))
    top = torch.where(found, draws.integers("crop_top", high=height - tall + 1)[:, 0], (height - tall) // 2)
    left = torch.where(found, draws.integers("crop_left", high=width - wide + 1)[:, 0], (width - wide) // 2)
    return torch.stack((top, left, tall, wide), dim=1).float()


def _rectangles(
    draws: Draws, stream: str, *, area: int | Tensor, share: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Int64[Tensor, "B tries"], Int64[Tensor, "B tries"]]:
    """Heights and widths of some rectangles: area uniform in `share` of the whole, log of width over height uniform."""
    part = share[0] + (share[1] - share[0]) * draws.uniform(f"{stream}_area", _TRIES)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * draws.uniform(f"{stream}_ratio", _TRIES))
    target = part * (area[:, None] if isinstance(area, Tensor) else area)
    return (target / shape).sqrt().round().long(), (target * shape).sqrt().round().long()


def normalise(
    images: UInt8[Tensor, "B C H W"] | Float[Tensor, "B C H W"], preprocessing: Preprocessing
) -> Float[Tensor, "B C H W"]:
    """Pixels from 0 … 255 to the model's scale: (x / 255 - mean) / std in each channel."""
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return images * (1 / (255 * std)) - mean / std


def erase(images: Float[Tensor, "B C H W"], draws: Draws, *, prob: float) -> Float[Tensor, "B C H W"]:
    """Random erasing in pixel mode (Zhong et al. 2020): a rectangle of standard normal noise, with probability `prob`.

    Runs after normalisation, so that the noise has the images' own spread. Area 0.02 to 1/3 of the image, ratio 0.3 to
    3.3; a rectangle that does not fit is drawn again, up to ten times.
    """
    if prob == 0:
        return images
    height, width = images.shape[-2:]
    tall, wide = _rectangles(draws, "erase", area=height * width, share=_ERASED_AREA, ratio=_ERASED_RATIO)
    fits = (tall > 0) & (tall < height) & (wide > 0) & (wide < width)  # (B, tries)
    first = fits.int().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
    chosen = fits.any(1) & (draws.uniform("erase")[:, 0] < prob)
    top = draws.integers("erase_top", high=(height - tall + 1).clamp(min=1))[:, 0]
    left = draws.integers("erase_left", high=(width - wide + 1).clamp(min=1))[:, 0]
    holes = _inside(top, top + tall, height)[:, :, None] & _inside(left, left + wide, width)[:, None, :]  # (B, H, W)
    holes &= chosen[:, None, None]
    rows, columns = holes[:, None].expand_as(images).flatten(1).nonzero(as_tuple=True)
    erased = images.flatten(1).clone()
    erased[rows, columns] = draws.normal_at("erase_noise", rows=rows, columns=columns).to(images.dtype)
    return erased.view_as(images)


def mix(
    images: Float[Tensor, "B C H W"], targets: Float[Tensor, "B K"], draws: Draws, cfg: AugmentConfig
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of each image with the one before it in the batch.

    Each sample draws whether it is mixed, how, and by how much. The share that cutmix really leaves goes into the target:
    a box that reaches over the edge is cut off.
    """
    if cfg.mixup_prob == 0 or (cfg.mixup_alpha == 0 and cfg.cutmix_alpha == 0):
        return images, targets
    count, height, width = len(images), *images.shape[-2:]
    mixed = draws.uniform("mix")[:, 0] < cfg.mixup_prob
    share = torch.ones(count, device=images.device)
    if cfg.mixup_alpha > 0:
        share = draws.beta("mixup", cfg.mixup_alpha)
    weight = share.view(-1, 1, 1, 1)
    if cfg.cutmix_alpha > 0:
        cut = draws.uniform("cutmix")[:, 0] < (cfg.switch_prob if cfg.mixup_alpha > 0 else 1.0)
        holes = _cutmix_holes(draws, alpha=cfg.cutmix_alpha, height=height, width=width)  # (B, H, W)
        share = torch.where(cut, 1 - holes.float().mean((1, 2)), share)
        weight = torch.where(cut.view(-1, 1, 1, 1), (~holes)[:, None].float(), weight)
    share = torch.where(mixed, share, 1.0)
    weight = torch.where(mixed.view(-1, 1, 1, 1), weight, 1.0)
    images = torch.lerp(images.roll(1, 0), images, weight.to(images.dtype))
    return images, torch.lerp(targets.roll(1, 0), targets, share[:, None])


def _cutmix_holes(draws: Draws, *, alpha: float, height: int, width: int) -> Bool[Tensor, "B H W"]:
    side = torch.sqrt(1 - draws.beta("cutmix_share", alpha))
    tall, wide = (height * side).long(), (width * side).long()
    middle_y = draws.integers("cutmix_y", high=height)[:, 0]
    middle_x = draws.integers("cutmix_x", high=width)[:, 0]
    rows = _inside(middle_y - tall // 2, middle_y + (tall + 1) // 2, height)
    columns = _inside(middle_x - wide // 2, middle_x + (wide + 1) // 2, width)
    return rows[:, :, None] & columns[:, None, :]


def _inside(start: Int64[Tensor, " B"], stop: Int64[Tensor, " B"], side: int) -> Bool[Tensor, "B side"]:
    place = torch.arange(side, device=start.device)
    return (place >= start[:, None]) & (place < stop[:, None])
