"""Views: crops and colours of several views of an image, keyed, beside torchvision's operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as reference

from vitrail.data import color
from vitrail.data.batch import RawBatch
from vitrail.data.draws import Draws
from vitrail.data.memory import whole_boxes
from vitrail.data.policy import view_colors_
from vitrail.data.views import draw_views
from vitrail.settings import Preprocessing, ViewsConfig

PLAIN: dict[str, Any] = {
    "jitter_prob": 0.0,
    "grey_prob": 0.0,
    "blur_probs": (0.0, 0.0, 0.0),
    "solarize_probs": (0.0, 0.0, 0.0),
    "flip": 0.0,
}


def images_of(size: tuple[int, int] = (16, 16), channels: int = 3) -> Preprocessing:
    return Preprocessing(img_size=size, in_channels=channels, mean=(0.0,) * channels, std=(1 / 255,) * channels)


def raw(indexes: list[int], *, size: tuple[int, int] = (24, 20), channels: int = 3) -> RawBatch:
    pixels = [
        torch.randint(0, 256, (channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)) for i in indexes
    ]
    sizes = torch.tensor([size]).expand(len(indexes), 2)
    return RawBatch(torch.stack(pixels), sizes, whole_boxes(sizes), torch.full((len(indexes),), -1), torch.tensor(indexes))


def views_of(batch: RawBatch, cfg: ViewsConfig, *, size: tuple[int, int] = (16, 16), own: tuple[int, int] = (24, 20)):
    return draw_views(
        batch,
        cfg=cfg,
        preprocessing=images_of(size, batch.images.shape[1]),
        sizes=torch.tensor([own]).expand(100, 2),
        local_size=(8, 8),
        seed=0,
        epoch=1,
    )


@given(shift=st.floats(-0.5, 0.5), seed=st.integers(0, 100))
def test_hue_is_torchvisions(shift: float, seed: int) -> None:
    pixels = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed))
    pixels[0, :, 0] = 0.5  # grey has no hue
    pixels[0, 0, 1], pixels[0, 1:, 1] = 1.0, 0.25
    ours = color.hue(pixels * 255, torch.tensor([shift, shift])) / 255
    torch.testing.assert_close(ours, reference.adjust_hue(pixels, shift), atol=2e-5, rtol=0)


def test_hue_leaves_other_channels_alone() -> None:
    pixels = torch.rand(2, 4, 5, 4) * 255
    assert color.hue(pixels, torch.tensor([0.3, -0.2])).equal(pixels)


def test_groups_have_global_and_local_views_of_each_image() -> None:
    whole, local = views_of(raw([3, 5, 8]), ViewsConfig(global_crops=2, local_crops=3))
    assert whole.shape == (3, 2, 3, 16, 16)
    assert local.shape == (3, 3, 3, 8, 8)
    assert not whole[:, 0].equal(whole[:, 1])


def test_no_local_views() -> None:
    assert [group.shape[1] for group in views_of(raw([1]), ViewsConfig(global_crops=4, local_crops=0))] == [4]


def test_views_do_not_depend_on_the_batch() -> None:
    cfg = ViewsConfig()
    together, alone = views_of(raw([3, 5, 8]), cfg), views_of(raw([5]), cfg)
    for group, single in zip(together, alone, strict=True):
        torch.testing.assert_close(group[1], single[0], atol=1e-4, rtol=0)


def test_a_plain_view_is_a_crop_of_the_image() -> None:
    cfg = ViewsConfig(global_crops=2, local_crops=0, global_scale=(1.0, 1.0), **PLAIN)
    batch = raw([4], size=(16, 16))
    whole = views_of(batch, cfg, own=(16, 16))[0]
    # a crop of all the area whose ratio is not 1 does not fit; ten tries without one take the whole image
    assert any(view.equal(batch.images[0].float()) for view in whole[0])


def test_crops_have_the_ratio_of_the_image_behind_a_squashed_canvas() -> None:
    """A wide image on a square canvas: a crop of ratio 1 in the image is narrow on the canvas."""
    gradient = torch.arange(32).float()
    canvas = (gradient * 7).round().expand(1, 3, 32, 32).to(torch.uint8).clone()  # level grows along the width
    sizes = torch.tensor([[32, 32]])
    batch = RawBatch(canvas, sizes, whole_boxes(sizes), torch.tensor([-1]), torch.tensor([0]))
    cfg = ViewsConfig(global_crops=8, local_crops=0, global_scale=(0.2, 0.2), **PLAIN)
    views = views_of(batch, cfg, own=(32, 128))[0][0]  # the image is four times as wide as high
    spans = (views[:, 0, 0, -1] - views[:, 0, 0, 0]) / 7 * 4  # in pixels of the image
    assert spans.max() < 50  # sqrt(0.2 · 32 · 128 · 4/3) = 33; without the image's own ratio: over 57


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_colors_keep_range_and_shape(channels: int) -> None:
    pixels = torch.rand(40, channels, 9, 9) * 255
    draws = Draws(seed=0, epoch=0, indexes=torch.arange(40))
    view_colors_(pixels, draws, ViewsConfig(), blur=torch.ones(40), solarize=torch.full((40,), 0.5))
    assert pixels.min() >= 0
    assert pixels.max() <= 255.01


def test_probabilities_are_those_of_each_view() -> None:
    images = raw(list(range(60)), size=(16, 16))
    cfg = ViewsConfig(global_crops=2, local_crops=1, **PLAIN | {"solarize_probs": (0.0, 1.0, 0.0), "global_scale": (0.5, 1.0)})
    plain = ViewsConfig(global_crops=2, local_crops=1, **PLAIN | {"global_scale": (0.5, 1.0)})
    (whole, local), (whole_plain, local_plain) = views_of(images, cfg, own=(16, 16)), views_of(images, plain, own=(16, 16))
    assert whole[:, 0].equal(whole_plain[:, 0])
    assert local.equal(local_plain)
    expected = torch.where(whole_plain[:, 1] >= 128, 255 - whole_plain[:, 1], whole_plain[:, 1])
    torch.testing.assert_close(whole[:, 1], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_crops": 1, "local_crops": 0}, "one view has nothing to be compared with"),
        ({"global_scale": (0.0, 1.0)}, "global_scale"),
        ({"hue": 0.6}, "hue"),
        ({"blur_sigma": (0.1, 3.0)}, "blur_sigma"),
        ({"blur_probs": (0.1, 2.0, 0.0)}, "blur_probs"),
        ({"canvas": 0.5}, "canvas"),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewsConfig(**fields)
