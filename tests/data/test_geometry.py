from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from vitrail.data.geometry import affine, is_shift, mirror, resample, shift

LINEAR = InterpolationMode.BILINEAR


def pictures(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(count + height + width)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def whole(images: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes and boxes of images that fill their canvas."""
    height, width = images.shape[-2:]
    sizes = torch.tensor([height, width]).repeat(len(images), 1)
    return sizes, torch.cat((torch.zeros_like(sizes), sizes), dim=1).float()


def still(count: int) -> Tensor:
    return torch.eye(3).repeat(count, 1, 1)


def moved(images: Tensor, matrices: Tensor, fill: Tensor | None = None) -> Tensor:
    sizes, boxes = whole(images)
    return resample(images, sizes=sizes, boxes=boxes, matrices=matrices, out=tuple(images.shape[-2:]), fill=fill)


def matrices_of(size: tuple[int, int], **some: Tensor) -> Tensor:
    nil = torch.zeros_like(next(iter(some.values())))
    parts = {"degrees": nil, "shear_x": nil, "shear_y": nil, "right": nil, "down": nil, **some}
    return affine(**parts, size=size)


def test_standing_still_changes_nothing() -> None:
    images = pictures(3, 9, 14)
    torch.testing.assert_close(moved(images, still(3)), images.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 14), (1, 5), (5, 1)])
def test_flip(height: int, width: int) -> None:
    images, flips = pictures(4, height, width), torch.tensor([True, False, True, False])
    expected = torch.where(flips.view(-1, 1, 1, 1), TF.hflip(images), images)
    torch.testing.assert_close(moved(images, mirror(flips, width=width)), expected.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
def test_rotate(size: tuple[int, int]) -> None:
    images, degrees = pictures(5, *size), torch.tensor([0.0, 30.0, -30.0, 90.0, 12.5])
    ours = moved(images, matrices_of(size, degrees=degrees), fill=torch.zeros(3))
    for row, angle in enumerate(degrees.tolist()):
        theirs = TF.rotate(images[row].float(), angle, interpolation=LINEAR)
        torch.testing.assert_close(core(ours[row], theirs), core(theirs, theirs), atol=2e-2, rtol=0)


def core(values: Tensor, reference: Tensor) -> Tensor:
    """Values away from the border of the moved image, where torchvision darkens a pixel towards zero and we blend with fill."""
    solid = -F.max_pool2d(-(reference > 0).float().amax(0)[None], 3, 1, 1)[0] > 0
    assert solid.float().mean() > 0.3
    return values[:, solid]


@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
@pytest.mark.parametrize("axis", [0, 1])
def test_shear(size: tuple[int, int], axis: int) -> None:
    images, tangents = pictures(4, *size), torch.tensor([0.0, 0.3, -0.3, 0.11])
    ours = moved(images, matrices_of(size, **{("shear_x", "shear_y")[axis]: tangents}), fill=torch.zeros(3))
    for row, tangent in enumerate(tangents.tolist()):
        shear = [0.0, 0.0]
        shear[axis] = math.degrees(math.atan(tangent))
        theirs = TF.affine(images[row].float(), 0.0, [0, 0], 1.0, shear, interpolation=LINEAR, center=[0, 0])
        torch.testing.assert_close(core(ours[row], theirs), core(theirs, theirs), atol=2e-2, rtol=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_translate(axis: int) -> None:
    images, pixels = pictures(4, 20, 26), torch.tensor([0.0, 5.0, -3.0, 11.0])
    ours = moved(images, matrices_of((20, 26), **{("right", "down")[axis]: pixels}), fill=torch.zeros(3))
    for row, distance in enumerate(pixels.tolist()):
        move = [0, 0]
        move[axis] = int(distance)
        theirs = TF.affine(images[row].float(), 0.0, move, 1.0, [0.0, 0.0], interpolation=LINEAR)
        torch.testing.assert_close(ours[row], theirs, atol=2e-2, rtol=0)


def test_rotate_then_translate_is_torchvisions_affine() -> None:
    images, degrees = pictures(3, 24, 31), torch.tensor([10.0, -25.0, 140.0])
    right, down = torch.tensor([3.0, -4.0, 1.0]), torch.tensor([-2.0, 5.0, 2.0])
    ours = moved(images, matrices_of((24, 31), degrees=degrees, right=right, down=down), fill=torch.zeros(3))
    for row in range(3):
        move = [int(right[row]), int(down[row])]
        theirs = TF.affine(images[row].float(), -float(degrees[row]), move, 1.0, [0.0, 0.0], interpolation=LINEAR)
        torch.testing.assert_close(core(ours[row], theirs), core(theirs, theirs), atol=2e-2, rtol=0)


def test_matrices_compose_in_the_order_of_the_steps() -> None:
    """Flip, then rotate, in one resampling: on right angles that is exact, and the order shows."""
    images = pictures(1, 16, 16)
    flip, turn = mirror(torch.tensor([True]), width=16), matrices_of((16, 16), degrees=torch.tensor([90.0]))
    expected = TF.hflip(images).float().rot90(1, (-2, -1))
    torch.testing.assert_close(moved(images, flip @ turn), expected, atol=2e-2, rtol=0)
    assert not torch.allclose(moved(images, turn @ flip), expected, atol=1)


def test_fill_takes_the_place_of_what_lies_outside() -> None:
    images, fill = torch.full((1, 3, 20, 20), 200, dtype=torch.uint8), torch.tensor([124.0, 116.0, 104.0])
    ours = moved(images, matrices_of((20, 20), right=torch.tensor([7.0])), fill=fill)[0]
    torch.testing.assert_close(ours[:, :, :7], fill[:, None, None].expand(3, 20, 7), atol=1e-2, rtol=0)
    torch.testing.assert_close(ours[:, :, 7:], torch.full((3, 20, 13), 200.0), atol=1e-2, rtol=0)


@given(
    channels=st.integers(1, 5),
    canvas=st.tuples(st.integers(3, 25), st.integers(3, 25)),
    out=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_resized_crop(channels: int, canvas: tuple[int, int], out: tuple[int, int], data: st.DataObject) -> None:
    """Each sample's own box against torchvision's resized_crop, while nothing shrinks to half or less."""
    images = pictures(3, *canvas, channels)
    boxes = []
    for _ in range(3):
        tall = data.draw(st.integers(1, min(canvas[0], 2 * out[0] - 1)))
        wide = data.draw(st.integers(1, min(canvas[1], 2 * out[1] - 1)))
        top, left = data.draw(st.integers(0, canvas[0] - tall)), data.draw(st.integers(0, canvas[1] - wide))
        boxes.append((top, left, tall, wide))
    ours = resample(images, sizes=whole(images)[0], boxes=torch.tensor(boxes).float(), matrices=still(3), out=out)
    for row, box in enumerate(boxes):
        theirs = TF.resized_crop(images[row].float(), *box, size=list(out), interpolation=LINEAR, antialias=False)
        torch.testing.assert_close(ours[row], theirs, atol=2e-2, rtol=0)


def test_an_image_in_a_larger_canvas_is_the_image_alone() -> None:
    """What lies beside an image on its canvas never bleeds in, halved or not."""
    image = pictures(1, 31, 45)
    canvas = F.pad(image, (0, 30, 0, 11))
    sizes, boxes = whole(image)
    for out in [(31, 45), (50, 50), (20, 24), (7, 11), (5, 5)]:
        for matrices in (still(1), mirror(torch.tensor([True]), width=out[1])):
            alone = resample(image, sizes=sizes, boxes=boxes, matrices=matrices, out=out)
            beside = resample(canvas, sizes=sizes, boxes=boxes, matrices=matrices, out=out)
            torch.testing.assert_close(alone, beside, atol=2e-2, rtol=0)


def test_strong_shrinking_does_not_alias() -> None:
    """One-pixel stripes, which point sampling would turn into black or white, come out grey; a flat image stays flat."""
    stripes = (torch.arange(96) % 2 * 255).to(torch.uint8).expand(1, 1, 96, 96).contiguous()
    for images, deviation in ((stripes, 1.0), (torch.full_like(stripes, 90), 1e-2)):
        for out in [(24, 24), (48, 24), (13, 11), (96, 20)]:
            sizes, boxes = whole(images)
            ours = resample(images, sizes=sizes, boxes=boxes, matrices=still(1), out=out)
            mean = images.float().mean()
            torch.testing.assert_close(ours, mean.expand_as(ours), atol=deviation, rtol=0)


def test_strong_shrinking_is_near_to_the_antialiased_resize() -> None:
    images = pictures(2, 130, 111)  # noise, which point sampling would keep as it is
    sizes, boxes = whole(images)
    theirs = TF.resize(images.float(), [32, 24], interpolation=LINEAR, antialias=True)
    ours = resample(images, sizes=sizes, boxes=boxes, matrices=still(2), out=(32, 24))
    naive = TF.resize(images.float(), [32, 24], interpolation=LINEAR, antialias=False)
    assert (ours - theirs).std() < 0.25 * (naive - theirs).std()


def test_halving_touches_only_the_samples_that_shrink() -> None:
    images = pictures(2, 40, 40)
    boxes = torch.tensor([[0, 0, 40, 40], [3, 4, 10, 10]]).float()
    both = resample(images, sizes=whole(images)[0], boxes=boxes, matrices=still(2), out=(10, 10))
    torch.testing.assert_close(both[1], images[1, :, 3:13, 4:14].float(), atol=1e-2, rtol=0)
    torch.testing.assert_close(both[0], F.avg_pool2d(images[:1].float(), 4)[0], atol=1e-2, rtol=0)


@given(
    channels=st.integers(1, 4),
    canvas=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    out=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    corner=st.lists(st.tuples(st.integers(-15, 15), st.integers(-15, 15)), min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_shift_is_a_slice_of_the_padded_image(
    channels: int, canvas: tuple[int, int], out: tuple[int, int], corner: list[tuple[int, int]], data: st.DataObject
) -> None:
    images = pictures(len(corner), *canvas, channels)
    flips = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(corner), max_size=len(corner))))
    boxes = torch.tensor([(top, left, *out) for top, left in corner]).float()
    assert is_shift(boxes, out=out)
    ours = shift(images, boxes=boxes, flips=flips, out=out)
    assert ours.dtype == torch.uint8
    for row, (top, left) in enumerate(corner):
        padded = F.pad(images[row], (30, 30, 30, 30))
        expected = padded[:, 30 + top : 30 + top + out[0], 30 + left : 30 + left + out[1]]
        assert torch.equal(ours[row], TF.hflip(expected) if flips[row] else expected)
    slow = resample(
        images, sizes=whole(images)[0], boxes=boxes, matrices=mirror(flips, width=out[1]), out=out
    )  # the two ways agree
    torch.testing.assert_close(slow, ours.float(), atol=2e-2, rtol=0)


@pytest.mark.parametrize("box", [(0.5, 0, 8, 8), (0, 0, 8, 7), (0, 0.25, 8, 8), (0, 0, 9, 8)])
def test_is_shift_is_false_where_pixels_must_be_read_between(box: tuple[float, ...]) -> None:
    assert not is_shift(torch.tensor([(0.0, 0.0, 8.0, 8.0), box]), out=(8, 8))
