"""Augmentation policies: RandAugment, three-augment, colour jitter, and the colours of views."""

# B batch · C channels · H W image · n operations a sample

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.data import color, geometry
from vitrail.data.apply_colors import ApplyColors, apply_each_
from vitrail.data.draws import Draws
from vitrail.settings import Pair, RandAugment, ViewsConfig

_COLORS = (
    color.autocontrast,
    color.equalize,
    color.invert,
    color.posterize,
    color.solarize,
    color.solarize_add,
    color.saturation,
    color.contrast,
    color.brightness,
    color.sharpness,
)
_ROTATE, _SHEAR_X, _SHEAR_Y, _MOVE_X, _MOVE_Y = range(len(_COLORS), len(_COLORS) + 5)
_KINDS = len(_COLORS) + 5
_APPLIED = 0.5  # probability that a drawn operation is applied, as in timm


def _draw_rand_augment(draws: Draws, policy: RandAugment) -> tuple[Tensor, Tensor, Tensor]:
    """Draw kind, level (0 to 1) and sign of each operation, (B, n) each; kind -1 is not applied."""
    kinds = draws.integers("rand_augment", high=_KINDS, n=policy.n)
    kinds = torch.where(draws.uniform("rand_augment_applied", policy.n) < _APPLIED, kinds, -1)
    level = (policy.m + policy.mstd * draws.normal("rand_augment_level", policy.n)).clamp_(0, 10) / 10
    sign = 1.0 - 2.0 * draws.integers("rand_augment_sign", high=2, n=policy.n)
    return kinds, level, sign


def rand_augment_matrices(draws: Draws, policy: RandAugment, *, size: Pair) -> Float[Tensor, "B 3 3"]:
    """Draw RandAugment's rotations (to 30°), shears (to 0.3) and translations (to 0.45 of the side) as one matrix per sample.

    RandAugment (Cubuk et al. 2020) as in timm's `rand-m9-mstd0.5-inc1` family: n operations out of fifteen, each
    applied with probability 0.5, at a magnitude drawn around m and kept within 0 to 10. Its ten colour operations are
    `rand_augment_colors_`; all geometry comes first, which saves a resampling and changes only how the fill is coloured.
    """
    kinds, level, sign = _draw_rand_augment(draws, policy)
    amount = level * sign

    def of(kind: int, most: float) -> Tensor:
        return torch.where(kinds == kind, most * amount, 0.0)  # (B, n)

    degrees, shear_x, shear_y = of(_ROTATE, 30.0), of(_SHEAR_X, 0.3), of(_SHEAR_Y, 0.3)
    right, down = of(_MOVE_X, 0.45 * size[1]), of(_MOVE_Y, 0.45 * size[0])
    matrices = torch.eye(3, device=kinds.device).expand(len(kinds), 3, 3)
    for i in range(policy.n):
        matrices = matrices @ geometry.affine(
            degrees=degrees[:, i], shear_x=shear_x[:, i], shear_y=shear_y[:, i], right=right[:, i], down=down[:, i], size=size
        )
    return matrices


def rand_augment_colors_(
    images: Float[Tensor, "B C H W"], draws: Draws, policy: RandAugment, *, apply: ApplyColors = apply_each_
) -> None:
    """Apply RandAugment's colour operations, in place, in the increasing form: a greater magnitude is a greater change.

    At full magnitude: 0 bits for posterize, kept at 1 at least; threshold 0 for solarize; 110 added for solarize-add;
    factors 0.1 or 1.9 for saturation, contrast, brightness and sharpness.
    """
    kinds, level, sign = _draw_rand_augment(draws, policy)
    none = torch.zeros_like(level)
    factor = (1 + 0.9 * level * sign).clamp(min=0.1)
    bits = (4 - (4 * level).floor()).clamp(min=1)
    strengths = (none, none, none, bits, 256 - (256 * level).floor(), (110 * level).floor(), factor, factor, factor, factor)
    kinds = torch.where(kinds < len(_COLORS), kinds, -1)
    table = torch.stack(strengths, dim=-1)  # (B, n, colours)
    chosen = table.gather(-1, kinds.clamp(min=0)[:, :, None])[:, :, 0]  # (B, n)
    for i in range(policy.n):
        apply(images, kinds=kinds[:, i], operations=_COLORS, strengths=chosen[:, i])


def three_augment_(images: Float[Tensor, "B C H W"], draws: Draws, *, apply: ApplyColors = apply_each_) -> None:
    """Grey, solarise at 128 or blur with sigma 0.1 to 2 each image, in place: three-augment (DeiT III: Touvron et al. 2022)."""
    kinds = draws.integers("three_augment", high=3)[:, 0]
    sigma = 0.1 + 1.9 * draws.uniform("three_augment_sigma")[:, 0]
    strengths = torch.where(kinds == 2, sigma, 128.0)
    operations = (color.grayscale, color.solarize, color.gaussian_blur)
    apply(images, kinds=kinds, operations=operations, strengths=strengths)


def color_jitter_(images: Float[Tensor, "B C H W"], draws: Draws, *, amount: float, apply: ApplyColors = apply_each_) -> None:
    """Scale brightness, contrast and saturation by factors from 1 ± amount, in place, in random order for each image."""
    factors = (1 + amount * (2 * draws.uniform("color_jitter", 3) - 1)).clamp(min=0)  # (B, 3)
    order = draws.uniform("color_jitter_order", 3).argsort(1)
    operations = (color.brightness, color.contrast, color.saturation)
    for i in range(3):
        kinds = order[:, i]
        apply(images, kinds=kinds, operations=operations, strengths=factors.gather(1, order)[:, i])


def view_colors_(
    images: Float[Tensor, "B C H W"],
    draws: Draws,
    cfg: ViewsConfig,
    *,
    blur: Tensor,
    solarize: Tensor,
    apply: ApplyColors = apply_each_,
) -> None:
    """Apply the colours of views in place: jitter in random order, grey, blur, solarisation (SimCLR: Chen et al. 2020; BYOL).

    `blur` and `solarize` (B,) are each view's probabilities.
    """
    strength = torch.tensor([cfg.brightness, cfg.contrast, cfg.saturation, cfg.hue])
    amounts = strength * (2 * draws.uniform("view_jitter", 4) - 1)  # (B, 4)
    amounts[:, :3] = (1 + amounts[:, :3]).clamp(min=0)
    jittered = draws.uniform("view_jittered")[:, 0] < cfg.jitter_prob
    order = draws.uniform("view_jitter_order", 4).argsort(1)
    operations = (color.brightness, color.contrast, color.saturation, color.hue)
    for i in range(4):
        chosen = amounts.gather(1, order)[:, i]
        apply(images, kinds=torch.where(jittered, order[:, i], -1), operations=operations, strengths=chosen)
    low, high = cfg.blur_sigma
    sigma = low + (high - low) * draws.uniform("view_blur_sigma")[:, 0]
    threshold = torch.full_like(sigma, 128.0)
    for operation, probability, amount in (
        (color.grayscale, torch.full_like(sigma, cfg.grey_prob), sigma),
        (color.gaussian_blur, blur, sigma),
        (color.solarize, solarize, threshold),
    ):
        applied = draws.uniform(f"view_{operation.__name__}")[:, 0] < probability
        apply(images, kinds=applied.long() - 1, operations=(operation,), strengths=amount)
