from __future__ import annotations

import pytest
import torch
from scipy import stats
from timm.data.auto_augment import LEVEL_TO_ARG
from torch import Tensor

from vitrail.data import color, geometry, policy
from vitrail.data.draws import Draws
from vitrail.settings import RandAugment

FAR = 1e-4
OPERATIONS = (  # in the order of the kinds: the name timm gives it, and ours
    ("AutoContrast", color.autocontrast),
    ("Equalize", color.equalize),
    ("Invert", color.invert),
    ("PosterizeIncreasing", color.posterize),
    ("SolarizeIncreasing", color.solarize),
    ("SolarizeAdd", color.solarize_add),
    ("ColorIncreasing", color.saturation),
    ("ContrastIncreasing", color.contrast),
    ("BrightnessIncreasing", color.brightness),
    ("SharpnessIncreasing", color.sharpness),
)
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def draws(count: int) -> Draws:
    return Draws(seed=0, epoch=0, indexes=torch.arange(count))


def pictures(count: int, channels: int = 3, side: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator).float()


def test_operations_are_drawn_evenly_and_half_of_them_applied() -> None:
    kinds, level, sign = policy._draw_rand_augment(draws(30_000), RandAugment(n=2))
    assert kinds.shape == level.shape == sign.shape == (30_000, 2)
    counts = torch.bincount((kinds + 1).flatten(), minlength=16)
    assert stats.binomtest(int(counts[0]), kinds.numel(), 0.5).pvalue > FAR
    assert stats.chisquare(counts[1:].numpy()).pvalue > FAR
    assert stats.chi2_contingency(torch.histogramdd((kinds + 1).double(), [16, 16]).hist.numpy()).pvalue > FAR
    assert stats.binomtest(int((sign > 0).sum()), sign.numel(), 0.5).pvalue > FAR
    assert sign.abs().eq(1).all()


def test_the_level_is_normal_around_m_and_kept_within_0_to_10() -> None:
    _, level, _ = policy._draw_rand_augment(draws(20_000), RandAugment(n=1, m=5.0, mstd=0.5))
    assert stats.kstest((10 * level[:, 0].double()).numpy(), stats.norm(5, 0.5).cdf).pvalue > FAR
    _, level, _ = policy._draw_rand_augment(draws(20_000), RandAugment(n=1, m=9.0, mstd=2.0))
    assert level.max() == 1
    assert level.min() >= 0
    _, level, _ = policy._draw_rand_augment(draws(5), RandAugment(n=1, m=9.0, mstd=0.0))
    assert level.eq(0.9).all()


@pytest.mark.parametrize("m", [0.0, 3.0, 9.0, 10.0])
def test_strengths_are_those_of_timms_increasing_family(m: float) -> None:
    """What each colour sample becomes, against our operation at the strength timm computes for that level and sign."""
    images, some, cfg = pictures(300), draws(300), RandAugment(n=1, m=m, mstd=0.0)
    kinds, _, sign = policy._draw_rand_augment(some, cfg)
    ours = images.clone()
    policy.rand_augment_colors_(ours, some, cfg)
    for row, kind in enumerate(kinds[:, 0].tolist()):
        expected = images[row, None]
        if 0 <= kind < len(OPERATIONS):
            name, operation = OPERATIONS[kind]
            strength = 0.0
            if name in ("AutoContrast", "Equalize", "Invert"):
                assert LEVEL_TO_ARG[name] is None
            elif name.startswith(("Posterize", "Solarize")):
                strength = float(LEVEL_TO_ARG[name](m, {})[0])
                strength = max(1.0, strength) if name.startswith("Posterize") else strength  # 0 bits would be black
            else:
                strength = max(0.1, 1 + float(sign[row, 0]) * abs(LEVEL_TO_ARG[name](m, {})[0] - 1))
                assert strength == pytest.approx(1 + float(sign[row, 0]) * 0.09 * m)
            expected = operation(expected, torch.tensor([strength]))
        torch.testing.assert_close(ours[row, None], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("m", [0.0, 9.0, 10.0])
def test_matrices_are_those_of_timms_family(m: float) -> None:
    some, cfg = draws(300), RandAugment(n=1, m=m, mstd=0.0)
    kinds, _, sign = policy._draw_rand_augment(some, cfg)
    ours = policy.rand_augment_matrices(some, cfg, size=(20, 40))
    nil = torch.zeros(1)
    for row, kind in enumerate(kinds[:, 0].tolist()):
        parts = {"degrees": nil, "shear_x": nil, "shear_y": nil, "right": nil, "down": nil}
        if kind >= len(OPERATIONS):
            name = GEOMETRIC[kind - len(OPERATIONS)]
            amount = abs(LEVEL_TO_ARG[name](m, {})[0]) * sign[row]
            scale = {"TranslateXRel": 40, "TranslateYRel": 20}.get(name, 1)
            parts[tuple(parts)[kind - len(OPERATIONS)]] = amount * scale
        torch.testing.assert_close(ours[row, None], geometry.affine(**parts, size=(20, 40)), atol=1e-4, rtol=0)


def test_matrices_of_several_operations_are_their_product() -> None:
    some, cfg = draws(200), RandAugment(n=3)
    ours = policy.rand_augment_matrices(some, cfg, size=(20, 20))
    kinds, level, sign = policy._draw_rand_augment(some, cfg)
    amount = level * sign
    for row in range(200):
        expected = torch.eye(3)
        for i in range(3):
            kind = int(kinds[row, i]) - len(OPERATIONS)
            if kind >= 0:
                parts = dict.fromkeys(("degrees", "shear_x", "shear_y", "right", "down"), torch.zeros(1))
                parts[tuple(parts)[kind]] = amount[row, i, None] * (30, 0.3, 0.3, 9, 9)[kind]
                expected = expected @ geometry.affine(**parts, size=(20, 20))[0]
        torch.testing.assert_close(ours[row], expected, atol=1e-4, rtol=1e-4)


def test_no_operations() -> None:
    images, cfg = pictures(3), RandAugment(n=0)
    ours = images.clone()
    policy.rand_augment_colors_(ours, draws(3), cfg)
    assert torch.equal(ours, images)
    assert torch.equal(policy.rand_augment_matrices(draws(3), cfg, size=(4, 4)), torch.eye(3).expand(3, 3, 3))


def test_three_augment_is_one_of_three_for_each_image() -> None:
    images, some = pictures(400), draws(400)
    ours = images.clone()
    policy.three_augment_(ours, some)
    kinds = some.integers("three_augment", high=3)[:, 0]
    sigma = 0.1 + 1.9 * some.uniform("three_augment_sigma")[:, 0]
    assert stats.chisquare(torch.bincount(kinds, minlength=3).numpy()).pvalue > FAR
    assert torch.equal(ours[kinds == 0], color.grayscale(images[kinds == 0], sigma[kinds == 0]))
    solar = torch.full((int((kinds == 1).sum()),), 128.0)
    assert torch.equal(ours[kinds == 1], color.solarize(images[kinds == 1], solar))
    torch.testing.assert_close(ours[kinds == 2], color.gaussian_blur(images[kinds == 2], sigma[kinds == 2]))
    assert stats.kstest((sigma.double().numpy() - 0.1) / 1.9, "uniform").pvalue > FAR


def test_color_jitter_draws_factors_and_order_for_each_image() -> None:
    images, some, amount = pictures(300), draws(300), 0.4
    ours = images.clone()
    policy.color_jitter_(ours, some, amount=amount)
    factors = 1 + amount * (2 * some.uniform("color_jitter", 3) - 1)
    order = some.uniform("color_jitter_order", 3).argsort(1)
    operations = (color.brightness, color.contrast, color.saturation)
    for row in range(300):
        expected = images[row, None]
        for kind in order[row].tolist():
            expected = operations[kind](expected, factors[row, kind, None])
        torch.testing.assert_close(ours[row, None], expected, atol=1e-3, rtol=0)
    orders = torch.bincount(order @ torch.tensor([9, 3, 1]))
    assert stats.chisquare(orders[orders > 0].numpy()).pvalue > FAR
    assert int((orders > 0).sum()) == 6


def test_colour_jitter_beyond_one_never_turns_negative() -> None:
    images = pictures(50)
    policy.color_jitter_(images, draws(50), amount=3.0)
    assert images.min() >= 0
    assert images.max() <= 255
